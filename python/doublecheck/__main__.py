"""The command `doublecheck`, also as `python -m doublecheck`."""

import signal
import sys

from ._kernel import native


def main() -> int:
    """Runs the command with the arguments of this process. Returns its exit code: 0, 1 or 2."""
    # The command has handlers of its own, and Python's would act only after it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return native().main(["doublecheck", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
