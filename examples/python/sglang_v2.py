"""Serves the rules by which SGLang's second Double Sparsity selects keys, restated in numpy, to `doublecheck check`.

    doublecheck check --command "python3 examples/python/sglang_v2.py"

Its kernels want an fp8 latent cache and CUDA. This is no code of SGLang: it restates what its files say at d54ed197
(python/sglang/srt/layers/attention/double_sparsity). Each head of a rank scores every key over its label channels, by
cosine or dot, the largest head counts and a NaN never does; with several ranks their scores are rounded to bf16 and
summed; the newest key is then put first, where norms of the query are finite; NaN and minus infinity are never
selected, ties go to the lowest position, and positions are given in ascending order. Options show what a setting of its
server changes, and --nan-norm what a norm that is NaN does.
"""

import argparse
import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

EPSILON = np.float32(1e-6)


def bf16(x):
    """Rounded to the nearest bf16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
    return np.where(np.isnan(x), x, rounded)


class Selector:
    def __init__(self, arguments):
        self.arguments = arguments

    def scores(self, call):
        """Of one query: of each head and key, [b, h, n], and whether the newest key may be forced, [b]."""
        r, h = call.q.shape[3] // call.instance.group_factor, call.q.shape[1]
        order = np.repeat(call.channels, h // len(call.channels), axis=0)[None, :, None, :r]
        q, k = (np.take_along_axis(x, order, -1) for x in (call.q, np.repeat(call.k, h // call.k.shape[1], axis=1)))
        if call.channel_weights is not None:
            weights = np.repeat(call.channel_weights, h // len(call.channel_weights), axis=0)
            q = q * weights[None, :, None, :r]
        dots, finite = (q @ k.swapaxes(2, 3))[:, :, 0], np.ones(len(q), bool)
        if self.arguments.score == "cosine":
            norms = [np.sqrt(np.sum(x * x, -1)) for x in (q, k)]
            if self.arguments.nan_norm is not None:
                norms[1][:, self.arguments.nan_norm] = np.nan
            dots = dots / (norms[0] * norms[1] + EPSILON)
            finite = np.isfinite(norms[0]).all((1, 2))
        return dots, finite

    def mask(self, call):
        heads, may_force = self.scores(call)
        (b, h, n), ranks = heads.shape, self.arguments.ranks
        # The largest of a rank's heads; a NaN is passed over wherever another head has a number.
        parts = np.fmax.reduce(heads.reshape(b, ranks, h // ranks, n), axis=2)
        scores = parts[:, 0] if ranks == 1 else bf16(bf16(parts).sum(1))
        if self.arguments.newest == "forced":
            scores[may_force, -1] = np.inf
        elif self.arguments.newest == "held-out":
            scores[:, -1] = -np.inf
        ranked = np.where(np.isnan(scores), -np.inf, scores)
        chosen = np.argsort(-ranked, axis=-1, kind="stable")[:, : call.instance.heavy_size]
        chosen = np.where(np.take_along_axis(ranked, chosen, -1) == -np.inf, n, chosen)
        chosen = np.sort(chosen, -1)
        chosen = np.where(chosen == n, -1, chosen)
        return {"selected": np.broadcast_to(chosen[:, None, None], (b, h, 1, chosen.shape[1])).astype(np.int32)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--score", choices=["cosine", "dot"], default="cosine")
    parser.add_argument("--ranks", type=int, default=1, help="tensor parallelism")
    parser.add_argument("--newest", choices=["forced", "held-out", "ranked"], default="forced")
    parser.add_argument("--nan-norm", type=int, metavar="HEAD", help="the norms of this head's keys are NaN")
    parser.add_argument("--declared-ranks", type=int, default=1, help="what the suite is told")
    parser.add_argument("--unforced", action="store_true", help="tell the suite that no key is forced")
    arguments = parser.parse_args()
    rules = {"score": arguments.score, "factor": 1, "channel_weights": True}
    if not arguments.unforced:
        rules["forced"] = {"last": 1}
    if arguments.declared_ranks > 1:
        rules["ranks"] = {"count": arguments.declared_ranks, "parts": "bf16"}
    # One latent for all heads; a head that is dropped is one of several.
    fewest = 1 if arguments.nan_norm is None else arguments.nan_norm + 1
    heads = [heads for heads in range(1, 17) if heads >= fewest and heads % arguments.ranks == 0]
    doublecheck.serve(Selector(arguments), name="sglang, double sparsity 2, restated", version="d54ed197, cpu",
                      dtypes=["f32"], heads=["max"], rules=[rules],
                      domain={"heads": heads, "kv_heads": [1], "queries": [1]},
                      promises=["ties-lowest", "repeatable", "batch-invariant", "ascending", "padded"],
                      lacks=["quantised", "previous", "earlier_maskers", "fractions", "dense_fallback", "dense_layers",
                             "refusals", "output", "attention_mask"])  # fmt: skip
