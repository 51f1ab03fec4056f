"""An indexer in numpy: weighted scores of all heads are summed, and the largest sums select keys for every head.

Rules other than the published algorithm (SPEC 2.12): relu with head weights, factor 1, and the query's own key forced.
"""

import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

RULES = {"score": "relu", "factor": 1, "forced": {"last": 1}}


def mask(call):
    (_, h, m, d), n = call.q.shape, call.k.shape[2]
    order = np.repeat(call.channels, h // len(call.channels), axis=0)[None, :, None, : d // call.instance.group_factor]
    q, k = (np.take_along_axis(x, order, -1) for x in (call.q, np.repeat(call.k, h // call.k.shape[1], axis=1)))
    weights = np.ones((1, h, m), np.float32) if call.head_weights is None else call.head_weights
    scores = weights[..., None] * np.maximum(q @ k.swapaxes(2, 3), 0) + call.additive()
    scores = scores.sum(1, keepdims=True)
    own = np.arange(n) == np.arange(n - m, n)[:, None]
    ranked = np.where(own & (scores > -np.inf), np.inf, scores)
    best = np.argsort(-ranked, axis=-1, kind="stable")[..., : call.instance.heavy_size]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, best, True, -1)
    return np.repeat(chosen & (scores > -np.inf), h, axis=1)


if __name__ == "__main__":
    doublecheck.serve(mask, name="numpy indexer", dtypes=["f32"], heads=["summed-scores"], rules=[RULES],
                      lacks=["quantised", "previous", "earlier_maskers", "fractions", "dense_fallback", "dense_layers",
                             "refusals", "output"])  # fmt: skip
