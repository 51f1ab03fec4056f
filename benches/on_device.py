"""How many calls a second the examples in torch and Triton answer on a GPU in a check, and what the time goes to.

bf16, d = dv = 128, up to 131,072 keys; scores up to 1,048,576. Of each call: the kernel until its answer is there; the
upload of its tensors; and the rest: making the question, copying it, reading the answer, the verdict.

    python3 benches/on_device.py | tee golden/records/on-device.txt    # with the wheel, torch, Triton and CUDA
"""

import collections
import pathlib
import runpy
import sys
import time
from typing import Any

import doublecheck
from doublecheck import _kernel

import torch

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples" / "python"
SECONDS = 40
SIZES = [256, 4096, 32768, 131072, 1048576]
EVERY = [("triton_topk", "select"), ("triton_attention", "attend"), ("torch_masker", "mask")]


def timed(function, seconds):
    """The function; what it takes until the GPU is done is added to a list."""

    def call(*arguments):
        begin = time.perf_counter()
        try:
            result = function(*arguments)
            torch.cuda.synchronize()
            return result
        finally:
            seconds.append(time.perf_counter() - begin)

    return call


def measured(name, kernel):
    """By the largest size of SIZES that holds its keys: of each call what the kernel, the upload and all of it took."""
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    kernels: list[float] = []
    uploads: list[float] = []
    ask = timed(example[kernel], kernels)
    by_size, last = collections.defaultdict(list), time.perf_counter()

    def asked(call):
        nonlocal last
        uploaded = sum(uploads)
        uploads.clear()
        answer = ask(call)
        now = time.perf_counter()
        tensor = call.scores if hasattr(call, "scores") else call.k
        keys = tensor.shape[3] if hasattr(call, "scores") else tensor.shape[2]
        by_size[next(size for size in SIZES if keys <= size)].append((kernels[-1], uploaded, now - last))
        last = now
        return answer

    tensors = _kernel.torch_tensors
    _kernel.torch_tensors = lambda *arguments: timed(tensors(*arguments), uploads)
    domain = {} if name == "triton_topk" else {"head_dim": [128], "value_dim": [128]}
    supports = {**example["SUPPORTS"], "dtypes": ["bf16"], "domain": domain}
    options: dict[str, Any] = {"arrays": "torch", "device": "cuda", "seconds": SECONDS, "goldens": False}
    report = doublecheck.check(asked, **supports, **options, probes=False)
    _kernel.torch_tensors = tensors
    print(str(report).rsplit("\n\n", 1)[-1].strip(), file=sys.stderr)
    return report.conforms, by_size


def main():
    print("python3 benches/on_device.py")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {SECONDS} s each, times of a call in ms\n")
    columns = "example", "keys up to", "calls", "a second", "call", "kernel", "upload", "rest", "conforms"
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for name, kernel in EVERY:
        conforms, by_size = measured(name, kernel)
        for size, calls in sorted(by_size.items()):
            own, upload, whole = (1e3 * sum(of) / len(calls) for of in zip(*calls))
            times = f"{whole:.2f} | {own:.2f} | {upload:.2f} | {whole - own - upload:.2f}"
            print(f"| {name} | {size} | {len(calls)} | {1e3 / whole:.0f} | {times} | {conforms} |", flush=True)


if __name__ == "__main__":
    main()
