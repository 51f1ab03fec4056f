"""Why not allclose: a right kernel beside one that misses a label channel, on 20 random cases of 4,096 keys.

Both round as a kernel in f32, bf16 or f16 does. Their masks and outputs are compared with those of the same kernel in
f32, as tests do, and by `doublecheck`, which knows how far rounding can move a score. Needs the wheel and numpy:

    python3 examples/python/why_not_allclose.py
"""

import doublecheck
import numpy as np

CASES, HEADS, KEYS, D, CHANNELS, HEAVY = 20, 4, 4096, 64, 16, 256
TOLERANCES = (1e-2, 1e-1)  # the usual one, and one that right kernels pass


def rounded(x, dtype):
    """x in a storage type, kept as float32. bf16 is the upper half of float32, ties to even."""
    x = np.asarray(x, np.float32)
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return x


def kernel(q, k, v, channels, dtype):
    """The mask [1, h, 1, n] and the output [1, h, 1, d] of one decode step, ranked by given channels of each head."""
    index = channels[None, :, None, :]
    q_labels, k_labels = (np.take_along_axis(x, index, -1) for x in (q, k))
    scores = rounded(rounded(q_labels @ k_labels.swapaxes(2, 3), dtype) * np.float32(CHANNELS**-0.5), dtype)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :HEAVY]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, best, True, -1)
    logits = np.where(mask, rounded(q @ k.swapaxes(2, 3) * np.float32(D**-0.5), dtype), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = rounded(weights / weights.sum(-1, keepdims=True), dtype)
    return mask, rounded(weights @ v, dtype)


def main():
    rows = []
    for dtype in ("f32", "bf16", "f16"):
        counts = {name: np.zeros(4, int) for name in ("right", "misses a channel")}
        for seed in range(CASES):
            random = np.random.default_rng(seed)
            q, k, v = (rounded(random.standard_normal((1, HEADS, n, D), np.float32), dtype) for n in (1, KEYS, KEYS))
            channels = np.stack([random.permutation(D) for _ in range(HEADS)])
            case = doublecheck.case(
                q, k, v, channels, heavy_size=HEAVY, group_factor=D // CHANNELS, scaling=D**-0.5, dtype=dtype
            )
            (call,), exact = case.calls, kernel(q, k, v, channels[:, :CHANNELS], "f32")
            for name, used in (("right", CHANNELS), ("misses a channel", CHANNELS - 1)):
                mask, output = kernel(q, k, v, channels[:, :used], dtype)
                counts[name] += (
                    np.array_equal(mask, exact[0]),
                    *(np.allclose(output, exact[1], rtol=0, atol=tolerance) for tolerance in TOLERANCES),
                    doublecheck.judge(call, mask=mask, output=output).conforms,
                )
        rows += [(dtype, name, *counts[name]) for name in counts]
    header = ["masks equal", *(f"allclose {tolerance}" for tolerance in TOLERANCES), "doublecheck"]
    print(f"of {CASES} cases".ljust(22) + "".join(name.rjust(16) for name in header))
    for dtype, name, *found in rows:
        print(f"{dtype:4}  {name:16}" + "".join(f"{count:16}" for count in found))


if __name__ == "__main__":
    main()
