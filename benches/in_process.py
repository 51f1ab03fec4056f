"""How long a question takes in one process, and over the pipe with and without shared memory, to an idle kernel.

Times in µs of one call, verdicts not included: the kernel by itself; crossing to Python and back where the answer is
ready; in process; through a pipe; in shared memory; the second and third again without the kernel's own time.

    python3 benches/in_process.py | tee golden/records/in-process.txt    # with the wheel
"""

import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time

import doublecheck
import numpy as np

ROUNDS = 3


@functools.cache
def nothing(*rows):
    return np.full((*rows, 1), -1)


def kernel(call):
    """No key for any row, made once, so that only the way there and back takes time."""
    return {"selected": nothing(*call.q.shape[:3])}


def case(folder, dtype, **sizes):
    """A case without an expectation, whose inputs a recipe makes."""
    settings = {"heavy_size": 16, "group_factor": 4, "label_bits": 4, "heads": "per-head", "dense_fallback": False}
    texts = {
        "case": {**settings, "causal": True, "dtype": dtype},
        "recipe": {"generator": "splitmix-1", "seed": 1, "batch": 1, "queries": 1, **sizes},
    }
    header = json.dumps({"__metadata__": {key: json.dumps(text) for key, text in texts.items()}}).encode()
    path = pathlib.Path(folder) / "case.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return doublecheck.load(path)


def cases():
    """The name of each case, the case, and how often it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        yield "small", case(folder, "f32", heads=2, kv_heads=1, keys=32, head_dim=16), 2000
        for dtype in ("f32", "bf16"):
            yield "long", case(folder, dtype, heads=8, kv_heads=2, keys=32768, head_dim=128), 20


class Ready:
    """Stands for the package between the compiled module and a kernel: what it answers is there already."""

    def __init__(self, answer):
        self.answer = "answer", [("selected", "I64", answer["selected"])]

    def configure(self, _message):
        return ("configured",)

    def ask(self, _message, _tensors):
        return self.answer


def microseconds(rounds):
    """The median call of the best round, in µs: others on the machine disturb some rounds."""
    return 1e6 * min(statistics.median(seconds) for seconds in rounds)


def alone(call, times):
    """What the kernel takes by itself, call by call."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        kernel(call)
        seconds.append(time.perf_counter() - begin)
    return seconds


def main():
    from doublecheck import _native
    from doublecheck._kernel import Arrays, Kernel

    asked = Kernel(kernel, Arrays(), (), "inputs")
    command = f"{sys.executable} {__file__} --serve"
    columns = [
        "kernel",
        "crossing",
        "in process",
        "pipe",
        "shared memory",
        "beside the kernel",
        "of the pipe",
        "pipe / in process",
    ]
    print(f"| case | dtype | n | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for name, case, times in cases():
        (call,) = case.calls
        ready = Ready(kernel(call))
        ways = (ready, ""), (asked, ""), (None, command), (None, command + "-shared")
        rounds = []
        # By turns, so that what disturbs one disturbs all.
        for _ in range(ROUNDS):
            ask = (_native.seconds_of_asking(case._question, of, said, False, times) for of, said in ways)
            rounds.append([alone(call, times), *ask])
        own, crossing, inside, pipe, shared = (microseconds(of) for of in zip(*rounds))
        figures = own, crossing, inside, pipe, shared, inside - own, pipe - own, pipe / inside
        cells = [name, call.dtype, str(call.k.shape[2]), *(f"{figure:.1f}" for figure in figures)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        doublecheck.serve(kernel)
    elif "--serve-shared" in sys.argv:
        doublecheck.serve(kernel, shared_memory=True)
    else:
        main()
