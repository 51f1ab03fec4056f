"""Serves the evaluation attention of Double Sparsity's author to `doublecheck check`.

It runs LlamaAttention_heavy_hitter of evaluation/modify_llama.py out of a checkout of andy-yang-1/DoubleSparse.
Stand-ins for projections, rotary embedding and cache hand it q, k and v; the mask is read where it drops keys.
Needs torch and transformers as golden/export.py does. Any exception counts as a refusal: it is loud.
With --fast it serves the fast path instead, of which author_fast.py says more.
"""

import argparse
import os
import pathlib
import sys

import numpy

# With AMX, a NaN in one row of a batched bf16 product makes the row before it NaN too (torch 2.11.0).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "golden")]
import doublecheck
import export

export.np, export.torch = numpy, torch


class Returns(torch.nn.Module):
    """Stands in for a projection and for the cache: returns what it was given before."""

    def forward(self, _):
        return self.x

    def update(self, *_):
        return self.x


class Author:
    def __init__(self, checkout):
        self.author, self.attentions = export.Author(checkout), {}
        self.author.module.apply_rotary_pos_emb = lambda q, k, _cos, _sin: (q, k)

    def attention(self, h, hk, d):
        """Built once per shape; its weights are never used, so they are given no memory."""
        if (h, hk, d) not in self.attentions:
            from transformers import LlamaConfig

            config = LlamaConfig(hidden_size=h * d, num_attention_heads=h, num_key_value_heads=hk, num_hidden_layers=4)
            with torch.device("meta"):
                attention = self.author.module.LlamaAttention_heavy_hitter(config, layer_idx=2)
            attention.q_proj, attention.k_proj, attention.v_proj = Returns(), Returns(), Returns()
            attention.o_proj = torch.nn.Identity()
            self.attentions[h, hk, d] = attention
        return self.attentions[h, hk, d]

    @torch.no_grad()
    def mask(self, call):
        settings, dtype = call.instance, export.dtype_of(call.dtype)
        q, k, v = (torch.from_numpy(x).to(dtype) for x in (call.q, call.k, call.v))
        (b, h, m, d), (_, hk, n, _) = q.shape, k.shape
        additive = torch.from_numpy(call.additive()).to(dtype)
        additive = additive.expand(b, additive.shape[1], m, n)  # it wants [b, 1, m, n]
        attention, past = self.attention(h, hk, d), Returns()
        attention.layer_idx = max(2, call.layer)  # it leaves layers 0 and 1 dense, whatever is asked for
        attention.q_proj.x = q.transpose(1, 2).reshape(b, m, h * d)
        attention.k_proj.x = attention.v_proj.x = torch.zeros(b, m, hk * d, dtype=dtype)
        past.x = k, v
        attention.sorted_channel = torch.from_numpy(call.channels)
        attention.heavy_const, attention.group_factor = settings.heavy_size, settings.group_factor
        attention.label_bits = settings.label_bits
        with (
            export.observed(torch.Tensor, "masked_fill_") as drops,
            export.observed(torch, "matmul") as products,
            export.observed(self.author.module, "pseudo_quantize") as labels,
        ):
            output, _, _ = attention(
                torch.empty(b, m, h * d, dtype=dtype),
                attention_mask=additive,
                past_key_value=past,
                position_embeddings=(None, None),
            )
        (_, dropped, _), _, _ = drops[-1]
        # Where there are fewer candidates than H it keeps positions of score -inf, too, which weigh nothing.
        _, (_, _, scores), *_ = products
        answer = {
            "mask": ~dropped & (scores + additive != -torch.inf),
            "output": output.reshape(b, m, h, d).transpose(1, 2),
        }
        return answer | dict(zip(("q_labels", "k_labels"), (made for _, _, made in labels)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="a checkout of andy-yang-1/DoubleSparse")
    parser.add_argument("--fast", action="store_true", help="the fast path: static cache and Triton kernels")
    parser.add_argument("--room", type=int, default=0, help="fast: slots of the cache beyond those that are needed")
    parser.add_argument("--calls-only", action="store_true", help="fast: do not offer sessions")
    parser.add_argument("--lacks", default="", help="fast: more that is not asked, separated by commas")
    parser.add_argument("--dtypes", help="fast: default all, without CUDA those that Triton's interpreter has")
    parser.add_argument("--domain", default="{}", help="fast: narrower than its own, as JSON")
    arguments = parser.parse_args()
    if arguments.fast:
        import author_fast

        return author_fast.serve(arguments)
    torch.set_num_threads(1)
    # Its channel files hold one row per query head: a shared row would reach the first head, the others stay dense.
    doublecheck.serve(
        Author(arguments.checkout),
        name="andy-yang-1/DoubleSparse",
        version=export.commit_of(arguments.checkout),
        heads=["per-head"],
        lacks=[
            "previous",
            "weights",
            "earlier_maskers",
            "fractions",
            "dense_fallback",
            "dense_layers",
            "scaling",
            "value_dim",
            "channels_per_kv_head",
            "channels_shared",
        ],
        refusals=(Exception,),
    )  # it refuses by any exception


if __name__ == "__main__":
    main()
