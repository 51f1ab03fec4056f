"""Serves sparse-attention-hub's attention with its Double Sparsity masker to `doublecheck check`.

It runs ResearchAttention out of a checkout of xAlg-ai/sparse-attention-hub: one attention, and so one masker, for all
layers and calls of a `configure`, as a model has it. Any exception counts as a refusal: it is loud. It has no setting
for the dense fallback and no head modes. Needs what golden/export.py needs for it.
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


class Hub:
    def __init__(self, checkout, outputs):
        sys.path.insert(0, str(pathlib.Path(checkout).resolve()))
        from sparse_attention_hub.sparse_attention import research_attention
        from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import (
            basic_fixed,
            double_sparsity_top_k,
        )
        from sparse_attention_hub.sparse_attention.utils.mask import Mask

        self.research, self.basic, self.double_sparsity = research_attention, basic_fixed, double_sparsity_top_k
        self.Mask, self.empty, self.outputs = Mask, Mask.create_empty_mask, outputs
        self.module = torch.nn.Module().eval()

    def configure(self, instance):
        earlier = {"sink": self.basic.SinkMaskerConfig, "local": self.basic.LocalMaskerConfig}
        try:
            configs = [
                earlier[kind](given["size"]) for masker in instance.earlier_maskers for kind, given in masker.items()
            ]
            configs.append(
                self.double_sparsity.DoubleSparsityTopKMaskerConfig(
                    heavy_size=instance.heavy_size,
                    group_factor=instance.group_factor,
                    label_bits=instance.label_bits,
                    channel_selection=instance.channel_selection,
                    sorted_channel_file=instance.write_channel_file(),
                )
            )
            config = self.research.ResearchAttentionConfig(masker_configs=configs)
            self.attention = self.research.ResearchAttention.create_from_config(config)
        except ValueError as error:
            raise doublecheck.Refused(None, str(error)) from error
        self.watch(self.attention.maskers[-1])

    def watch(self, masker):
        """Keeps the mask that Double Sparsity makes."""
        add_mask = masker.add_mask

        def watched(*, previous_mask, **options):
            made = add_mask(previous_mask=previous_mask, **options)
            self.made = made.get_dense_mask()
            return made

        masker.add_mask = watched

    @torch.no_grad()
    def mask(self, call):
        dtype = export.dtype_of(call.dtype)
        q, k, v, additive = (torch.from_numpy(x).to(dtype) for x in (call.q, call.k, call.v, call.additive()))

        def start(shape, dtype, device):
            if call.previous is None:
                return self.empty(shape, dtype=dtype, device=device)
            return self.Mask.create_mask_from_dense_mask(shape, torch.from_numpy(call.previous).to(dtype), dtype)

        self.Mask.create_empty_mask = start  # it always begins with an empty mask
        with export.observed(self.double_sparsity, "pseudo_quantize") as labels:
            output, _ = self.attention.custom_attention(
                module=self.module,
                queries=q,
                keys=k,
                values=v,
                attention_mask=additive,
                scaling=call.scaling,
                dropout=0.0,
                sparse_meta_data={},
                layer_idx=call.layer,
            )
        labels = dict(zip(("q_labels", "k_labels"), (made for _, _, made in labels)))
        return {"mask": self.made, "output": output.transpose(1, 2) if self.outputs else None, **labels}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="a checkout of xAlg-ai/sparse-attention-hub")
    parser.add_argument("--maskers-only", action="store_true", help="answer masks without outputs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Its channel files hold one row per head of the projection; a row for all heads is not among what it reads.
    doublecheck.serve(
        Hub(arguments.checkout, not arguments.maskers_only),
        name="xAlg-ai/sparse-attention-hub",
        version=export.commit_of(arguments.checkout),
        heads=["per-head"],
        lacks=["dense_layers", "channels_shared", *(["output"] if arguments.maskers_only else [])],
        refusals=(Exception,),
    )  # it refuses by any exception


if __name__ == "__main__":
    main()
