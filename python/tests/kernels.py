"""Kernels that the tests of the package check: a right one, and ways to be wrong."""

from typing import Any

import doublecheck
import numpy as np

# What `right` does not do.
DECLARED: dict[str, Any] = {
    "dtypes": ["f32"],
    "heads": ["per-head"],
    "lacks": ["earlier_maskers", "dense_fallback", "dense_layers", "refusals", "output", "quantised"],
}


def right(call):
    """Double Sparsity with unquantised labels, ranked per head. The mask, [b, h, m, n]."""
    return masked(call, call.q.shape[3] // call.instance.group_factor)


def misses_a_channel(call):
    """As `right`, but without the last label channel where there are several."""
    return masked(call, max(1, call.q.shape[3] // call.instance.group_factor - 1))


def masked(call, channels):
    """The mask by the first so many label channels."""
    (_, h, _, d), (_, hk, n, _) = call.q.shape, call.k.shape
    size = call.instance.heavy_size
    size = max(1, min(n, size if isinstance(size, int) else int(size * n)))
    order = np.repeat(call.channels, h // len(call.channels), axis=0)[:, :channels]
    q, k = (
        np.take_along_axis(x, order[None, :, None, :].repeat(x.shape[0], 0).repeat(x.shape[2], 2), -1)
        for x in (call.q, np.repeat(call.k, h // hk, axis=1))
    )
    scores = q @ k.swapaxes(2, 3) / np.float32((d // call.instance.group_factor) ** 0.5) + call.additive()
    attended = np.zeros_like(scores) if call.previous is None else call.previous.copy()
    scores[attended != 0] = -np.inf
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :size]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, best, True, -1)
    return np.where(chosen & (scores > -np.inf), np.float32(1), attended)


def raises(call):
    """As `right`, but fails with more than three keys."""
    if call.k.shape[2] > 3:
        raise RuntimeError("no more than three keys")
    return right(call)


def top_k(call):
    """The keys with the largest scores, [b, h, m, .]; those that are no candidates are -1, at the end."""
    order = np.argsort(-call.scores, axis=-1, kind="stable")[..., : call.heavy_size]
    return {"selected": np.where(np.take_along_axis(call.scores, order, -1) > -np.inf, order, -1)}


if __name__ == "__main__":
    doublecheck.serve(misses_a_channel, **DECLARED)
