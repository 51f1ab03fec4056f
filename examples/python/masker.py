"""Double Sparsity in numpy, written from docs/SPEC.md, and served to `doublecheck check`."""

import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck


def labels(x, order, bits):
    x = np.take_along_axis(x, order[None, :, None], -1)
    if bits == 16:
        return x
    low, high, top = x.min(-1, keepdims=True), x.max(-1, keepdims=True), 2**bits - 1
    scale = 1 / np.where(high == low, np.float32(1), high - low) * np.float32(top)
    return np.clip(np.rint((x - low) * scale), 0, top) / scale + low


def mask(call):
    settings, (_, h, m, d), (_, hk, n, _) = call.instance, call.q.shape, call.k.shape
    size, r = settings.heavy_size, d // settings.group_factor
    size = max(1, min(n, size if isinstance(size, int) else int(size * n)))
    order = np.repeat(call.channels, h // len(call.channels), axis=0)[:, :r]
    q, k = (labels(x, order, settings.label_bits) for x in (call.q, np.repeat(call.k, h // hk, axis=1)))
    scores = q @ k.swapaxes(2, 3) / np.float32(r**0.5) + call.additive()
    attended = np.zeros_like(scores) if call.previous is None else call.previous
    scores[attended != 0] = -np.inf
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :size]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, best, True, -1)
    return np.where(chosen & (scores > -np.inf), np.float32(1), attended)


if __name__ == "__main__":
    doublecheck.serve(mask, name="numpy", dtypes=["f32"], heads=["per-head"],
                      lacks=["earlier_maskers", "dense_fallback", "dense_layers", "refusals", "output"])  # fmt: skip
