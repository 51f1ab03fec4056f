"""Serves the Double Sparsity selector of Twilight to `doublecheck check`.

It runs twilight/pyimpl/double_sparse.py out of a checkout of tsinghua-ideal/Twilight, with its Triton kernel
for labels. Needs torch, triton and numpy; without CUDA the kernel runs in Triton's interpreter, which wants numpy 2.2.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck
import foreign

import torch

REAL = [
    f"twilight.{name}" for name in ("kernel.triton.channel", "pyimpl.double_sparse", "pyimpl.quantize", "pyimpl.top_k")
]


class Twilight:
    def __init__(self, checkout):
        foreign.patch_once()
        foreign.Package("transformers", checkout, [], {})
        foreign.Package("twilight", checkout, REAL, {})
        labels = foreign.module("twilight.kernel.triton.channel")
        foreign.module("twilight.kernel").get_label_tensor = labels.get_label_tensor
        self.module = foreign.module("twilight.pyimpl.double_sparse")

    @torch.no_grad()
    def mask(self, call):
        settings, (_, h, _, d), hk = call.instance, call.q.shape, call.k.shape[1]
        q, k = (foreign.tensor(x, call.dtype) for x in (call.q, np.repeat(call.k, h // hk, axis=1)))
        rows = np.repeat(call.channels, h // len(call.channels), axis=0)[:, : d // settings.group_factor]
        size = settings.heavy_size
        budget = {"sparsity_rate": size} if isinstance(size, float) else {"token_budget": size}
        bits = settings.label_bits if settings.label_bits < 16 else 32
        channels = torch.from_numpy(rows.copy()).to(foreign.DEVICE)
        return self.module.double_sparse_selector(q, k, channels, rows.shape[1], bits, **budget)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="a checkout of tsinghua-ideal/Twilight")
    parser.add_argument("--lacks", default="", help="more that is not asked, separated by commas")
    parser.add_argument("--domain", default="{}", help="narrower than its own, as JSON")
    arguments = parser.parse_args()
    sizes = {"queries": [1], "label_channels": [1 << i for i in range(8)]}
    doublecheck.serve(
        Twilight(arguments.checkout),
        name="tsinghua-ideal/Twilight, double sparsity selector",
        version=f"{foreign.commit_of(arguments.checkout)}, {foreign.DEVICE}",
        model={"labels": "step", "kept": "storage"},
        heads=["per-head"],
        rules=["twilight"],
        domain=sizes | json.loads(arguments.domain),
        lacks=[
            *foreign.LACKS,
            "output",
            *filter(None, arguments.lacks.split(",")),
        ],
    )


if __name__ == "__main__":
    main()
