"""Attention of torch over a selection, checked alone (SPEC 2.11): scaled_dot_product_attention or flex_attention."""

import argparse
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck
from torch.nn.attention.flex_attention import flex_attention

import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kind", default="sdpa", choices=["sdpa", "flex"])
    parser.add_argument("--weights", default="storage", choices=["storage", "f32"], help="what weights are kept in")
    arguments = parser.parse_args()

    @torch.no_grad()
    def attend(call):
        q, k, v = (torch.from_numpy(x).to(DTYPES[call.dtype]).to(arguments.device) for x in (call.q, call.k, call.v))
        selected = torch.from_numpy(call.selected).long().to(arguments.device)
        n = k.shape[2]
        attended = torch.zeros(*selected.shape[:3], n + 1, dtype=torch.bool, device=arguments.device)
        attended = attended.scatter_(-1, torch.where(selected < 0, n, selected), True)[..., :n]
        if arguments.kind == "sdpa":
            attention = torch.nn.functional.scaled_dot_product_attention
            return attention(q, k, v, attn_mask=attended, scale=call.scaling, enable_gqa=True)

        def only_selected(score, b, h, i, j):
            return torch.where(attended[b, h, i, j], score, -torch.inf)

        return flex_attention(q, k, v, only_selected, scale=call.scaling, enable_gqa=True, return_lse=True)

    gives = {"sdpa": ["output"], "flex": ["output", "lse"]}[arguments.kind]
    model = {"scores_kept": "f32", "weights_kept": arguments.weights}
    doublecheck.serve(attend, name=f"torch {arguments.kind}", version=f"{torch.__version__}, {arguments.device}",
                      takes="selection", gives=gives, model=model)  # fmt: skip


if __name__ == "__main__":
    main()
