"""FlashInfer's top-k on CUDA, checked alone: it takes scores and gives the selected keys (SPEC 2.9).

    pip install --no-deps --target PACKAGE flashinfer-python
    doublecheck check --command "python3 examples/python/flashinfer_topk.py --package PACKAGE --tie-break small"

Its header is compiled with nvcc, which takes about a minute the first time, and called with plain pointers.
"""

import argparse
import ctypes
import hashlib
import pathlib
import subprocess
import sys
import tempfile

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

# One function for each type.
SOURCE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <flashinfer/math.cuh>
#include <flashinfer/topk.cuh>

#define TOP_K(name, type) \\
  extern "C" int name(type* scores, int* selected, type* values, unsigned rows, unsigned k, unsigned n, void* states, \\
                      bool sorted, bool deterministic, int tie_break, cudaStream_t stream) { \\
    using namespace flashinfer::sampling; \\
    return TopKDispatch<type, int>(scores, selected, values, rows, k, n, static_cast<RadixRowState*>(states), sorted, \\
                                   deterministic, static_cast<TopKTieBreak>(tie_break), stream); \\
  }

TOP_K(top_k_f32, float)
TOP_K(top_k_f16, half)
TOP_K(top_k_bf16, nv_bfloat16)
"""
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TIE_BREAKS = {"none": 0, "small": 1, "large": 2}
# What its row states take, as its own Python code allocates them, and the largest k that can break ties.
ROW_STATES, MOST_TIED = 1 << 20, 2048


def compiled(package: pathlib.Path) -> ctypes.CDLL:
    """The functions of SOURCE, compiled once for this package and GPU."""
    include = package / "flashinfer" / "data" / "include"
    major, minor = torch.cuda.get_device_capability()
    headers = "".join(path.read_text() for path in sorted((include / "flashinfer").glob("*.cuh")))
    name = hashlib.sha256(f"{SOURCE}{headers}{major}{minor}".encode())
    library = pathlib.Path(tempfile.gettempdir()) / f"flashinfer-topk-{name.hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            source, built = pathlib.Path(folder) / "topk.cu", pathlib.Path(folder) / "topk.so"
            source.write_text(SOURCE)
            arch = f"-arch=sm_{major}{minor}{'a' if major == 9 else ''}"
            command = ["nvcc", "-shared", "-O2", "-std=c++17", arch, "-Xcompiler", "-fPIC", f"-I{include}"]
            subprocess.run([*command, str(source), "-o", str(built)], check=True, stdout=sys.stderr)
            built.rename(library)
    return ctypes.CDLL(str(library))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=pathlib.Path, required=True)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--tie-break", choices=TIE_BREAKS, default="none")
    parser.add_argument("--sorted", action="store_true")
    parser.add_argument("--compile", action="store_true", help="and nothing else")
    arguments = parser.parse_args()
    library = compiled(arguments.package)
    if arguments.compile:
        return
    states = torch.zeros(ROW_STATES, dtype=torch.uint8, device="cuda")

    def select(call):
        scores = torch.from_numpy(call.scores).to(DTYPES[call.dtype]).cuda().contiguous()
        rows, n = scores.shape[:3].numel(), scores.shape[3]
        k = min(call.heavy_size, n)
        selected = torch.full((*scores.shape[:3], k), -2, dtype=torch.int32, device="cuda")
        values = torch.zeros(selected.shape, dtype=scores.dtype, device="cuda")
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (scores, selected, values))
        status = getattr(library, f"top_k_{call.dtype}")(
            *pointers, rows, k, n, ctypes.c_void_p(states.data_ptr()), arguments.sorted, arguments.deterministic,
            TIE_BREAKS[arguments.tie_break], ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        if status:
            raise RuntimeError(f"TopKDispatch: found cudaError {status} for {rows} rows, k = {k}, n = {n}")
        torch.cuda.synchronize()
        # A score of -inf is no candidate, which only its caller can know; any order is as good as another.
        selected = torch.where(values > -torch.inf, selected, n).sort(-1).values
        return {"selected": torch.where(selected < n, selected, -1)}

    way = [name for name in ("deterministic", "sorted") if getattr(arguments, name)]
    way += [] if arguments.tie_break == "none" else [f"--tie-break {arguments.tie_break}"]
    tied = {"none": [], "small": ["ties-lowest"], "large": ["ties-highest"]}[arguments.tie_break]
    version = next(arguments.package.glob("flashinfer_python-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    doublecheck.serve(
        select, name="FlashInfer top-k", version=", ".join([version, *way, "cuda"]), takes="scores", gives=["selected"],
        promises=[*tied, *(["repeatable"] if arguments.deterministic or tied else [])],
        domain={"heavy_size": {"to": MOST_TIED}} if tied else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
