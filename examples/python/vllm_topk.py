"""vLLM's per-row top-k on CUDA, checked alone: it takes scores and gives the selected keys (SPEC 2.9).

    doublecheck check --command "python3 examples/python/vllm_topk.py --package PACKAGE"

PACKAGE is its source distribution, unpacked. Its csrc/sampler.cu is compiled with nvcc against torch's headers, which
takes about a minute the first time, and its own host functions are called. They choose the kernel: in decoding, what is
left is sorted by insertion below 12,288 columns and by radix from there on, in two steps from 200,000.
"""

import argparse
import hashlib
import pathlib
import subprocess
import sys
import tempfile

from torch.utils.cpp_extension import include_paths, library_paths

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

SOURCE = """
#include <torch/csrc/stable/library.h>
#include "sampler.cu"

STABLE_TORCH_LIBRARY(vllm_top_k, library) {
  library.def("decode(Tensor logits, int next_n, Tensor lengths, Tensor! selected, int rows, int stride0, int stride1, "
              "int k) -> ()");
  library.def("prefill(Tensor logits, Tensor starts, Tensor ends, Tensor! selected, int rows, int stride0, "
              "int stride1, int k) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vllm_top_k, CUDA, library) {
  library.impl("decode", TORCH_BOX(&top_k_per_row_decode));
  library.impl("prefill", TORCH_BOX(&top_k_per_row_prefill));
}
"""
# vLLM builds for torch's stable interface of this version.
FLAGS = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# What its indexers ask for at most; shared memory holds a few thousand.
MOST_SELECTED = 2048


def compiled(package: pathlib.Path) -> pathlib.Path:
    """The library of SOURCE, compiled once for this package and GPU."""
    csrc = package / "csrc"
    major, minor = torch.cuda.get_device_capability()
    name = hashlib.sha256(f"{SOURCE}{(csrc / 'sampler.cu').read_text()}{major}{minor}{torch.__version__}".encode())
    library = pathlib.Path(tempfile.gettempdir()) / f"vllm-topk-{name.hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            source, built = pathlib.Path(folder) / "topk.cu", pathlib.Path(folder) / "topk.so"
            source.write_text(SOURCE)
            command = [
                "nvcc",
                "-shared",
                "-O2",
                "-std=c++17",
                f"-arch=sm_{major}{minor}",
                "-Xcompiler",
                "-fPIC",
                *FLAGS,
            ]
            includes = [f"-I{path}" for path in (csrc, *include_paths())]
            libraries = [f"-L{path}" for path in library_paths()] + ["-ltorch_cpu", "-ltorch_cuda", "-lc10"]
            files = [str(source), "-o", str(built)]
            subprocess.run([*command, *includes, *files, *libraries], check=True, stdout=sys.stderr)
            built.rename(library)
    return library


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=pathlib.Path, required=True)
    parser.add_argument("--keys", type=int, nargs=2, help="from and to: asked between these numbers of keys only")
    parser.add_argument(
        "--prefill", action="store_true", help="its kernel for prefill, which sorts by insertion at any size"
    )
    parser.add_argument("--compile", action="store_true", help="and nothing else")
    arguments = parser.parse_args()
    torch.ops.load_library(compiled(arguments.package))
    if arguments.compile:
        return

    def select(call):
        scores = torch.from_numpy(call.scores).cuda()
        rows, n = scores.shape[:3].numel(), scores.shape[3]
        flat, k = scores.reshape(rows, n).contiguous(), min(call.heavy_size, n)
        lengths = torch.full((rows,), n, dtype=torch.int32, device="cuda")
        selected = torch.full((rows, k), -2, dtype=torch.int32, device="cuda")
        if arguments.prefill:
            torch.ops.vllm_top_k.prefill(flat, torch.zeros_like(lengths), lengths, selected, rows, n, 1, k)
        else:
            torch.ops.vllm_top_k.decode(flat, 1, lengths, selected, rows, n, 1, k)
        if not bool(((selected >= 0) & (selected < n)).all()):
            wrong = selected[(selected < 0) | (selected >= n)][0].item()
            raise doublecheck.Failed(f"selected: found key {wrong}, expected one of 0 to {n - 1}")
        # A score of -inf is no candidate, which only its caller can know; any order is as good as another.
        selected = torch.where(flat.gather(1, selected.long()) > -torch.inf, selected, n).sort(-1).values
        return {"selected": torch.where(selected < n, selected, -1).reshape(*scores.shape[:3], k)}

    domain = {"heavy_size": {"to": MOST_SELECTED}}
    if arguments.keys:
        domain["keys"] = {"from": arguments.keys[0], "to": arguments.keys[1]}
    version = (
        f"{arguments.package.resolve().name.removeprefix('vllm-')}, {'prefill' if arguments.prefill else 'decode'}"
    )
    doublecheck.serve(select, name="vLLM top-k per row", version=f"{version}, cuda", takes="scores", gives=["selected"],
                      dtypes=["f32"], promises=[], domain=domain)  # fmt: skip


if __name__ == "__main__":
    main()
