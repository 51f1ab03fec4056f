"""How long a question takes in one process, and over the pipe with and without shared memory, to an idle kernel.

Run it with the Python that has the wheel: python3 benches/in_process.py [--serve]. Verdicts are not included.
"""

import json
import pathlib
import statistics
import sys
import tempfile

import doublecheck
import numpy as np


def kernel(call):
    """No key for any row, so that only the way there and back takes time."""
    return {"selected": np.full((*call.q.shape[:3], 1), -1)}


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
        yield "small", case(folder, "f32", heads=2, kv_heads=1, keys=32, head_dim=16), 5000
        for dtype in ("f32", "bf16"):
            yield "long", case(folder, dtype, heads=8, kv_heads=2, keys=32768, head_dim=128), 40


def main():
    from doublecheck import _native
    from doublecheck._kernel import Arrays, Kernel

    asked = Kernel(kernel, Arrays(), (), "inputs")
    command = f"{sys.executable} {__file__} --serve"
    print("| case | dtype | n | in process, µs | pipe, µs | shared memory, µs |")
    print("|---|---|---|---|---|---|")
    for name, case, times in cases():
        question, calls = case._question, len(case.calls)
        seconds = []
        for of, said in ((asked, ""), (None, command), (None, command + "-shared")):
            tries = [_native.seconds_of_asking(question, of, said, False, times) for _ in range(3)]
            seconds.append(statistics.median(tries) / times / calls)
        call = case.calls[0]
        print(f"| {name} | {call.dtype} | {call.k.shape[2]} | " + " | ".join(f"{1e6 * s:.1f}" for s in seconds) + " |")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        doublecheck.serve(kernel)
    elif "--serve-shared" in sys.argv:
        doublecheck.serve(kernel, shared_memory=True)
    else:
        main()
