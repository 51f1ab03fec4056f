"""A Hypothesis test with allclose beside `doublecheck.check`: how fast they ask, and how soon they find five faults.

The kernel is a layer in numpy. The test is one that people write: small random shapes, outputs compared by
`np.allclose(rtol=1e-2)` with a reference in float64. Each stops at its first failure, which is not shrunk.

    python3 benches/beside_allclose.py | tee golden/records/beside-allclose.txt    # with wheel, numpy and Hypothesis
"""

import contextlib
import platform
import sys
import time
from types import SimpleNamespace
from typing import Any

import doublecheck
import hypothesis
import numpy as np
from hypothesis import strategies as st

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
FAULTS = {
    "": "right",
    "tiled": "KV heads are tiled, not repeated",
    "tail": "the last partial tile of 64 keys is dropped",
    "channels": "label channels are taken from the other end of their order",
    "one more": "H + 1 keys are selected",
    "stale": "keys are quantised with the ranges of an earlier call",
}
LACKS = ["previous", "fractions", "earlier_maskers", "dense_fallback", "dense_layers", "refusals"]
OPTIONS: dict[str, Any] = {"stop_after": 1, "shrink_seconds": 0, "conditions": False, "lacks": LACKS}
# KV heads, heads of each, keys, H, head dimension, label bits: what the test draws.
SIZES = [*(st.integers(1, most) for most in (4, 4, 128, 16)), st.sampled_from([8, 16]), st.sampled_from([4, 16])]


def quantised(x, bits, ends=None):
    """Rows as their codes stand for them (SPEC 2.5), and the ends of their ranges: others where `ends` are given."""
    low, high = ends = ends or (x.min(-1, keepdims=True), x.max(-1, keepdims=True))
    scale = 1 / np.where(high == low, x.dtype.type(1), high - low) * x.dtype.type(2**bits - 1)
    return x if bits == 16 else np.clip(np.rint((x - low) * scale), 0, 2**bits - 1) / scale + low, ends


class Layer:
    """Double Sparsity and attention in f32: right, or with a fault. Labels are ranked per head."""

    def __init__(self, fault):
        self.fault, self.calls, self.ends = fault, 0, {}

    def configure(self, _instance):
        self.ends = {}

    def mask(self, call):
        """The mask [b, h, m, n] and the output [b, h, m, dv] of a call."""
        self.calls += 1
        (_, h, _, d), (_, hk, n, _), additive = call.q.shape, call.k.shape, call.additive()
        head = np.arange(h) % hk if self.fault == "tiled" else np.arange(h) // (h // hk)
        q, k, v, r = call.q, call.k[:, head], call.v[:, head], d // call.instance.group_factor
        order = np.repeat(call.channels, h // len(call.channels), axis=0)
        order = (order[:, ::-1] if self.fault == "channels" else order)[None, :, None, :r]
        labels, bits, place = (
            (np.take_along_axis(x, order, -1) for x in (q, k)),
            call.instance.label_bits,
            (call.layer, k.shape),
        )
        q_labels, _ = quantised(next(labels), bits)
        k_labels, self.ends[place] = quantised(
            next(labels), bits, self.ends.get(place) if self.fault == "stale" else None
        )
        scores = q_labels @ k_labels.swapaxes(2, 3) / np.float32(r**0.5) + additive
        if self.fault == "tail" and n > 64:
            scores[..., n // 64 * 64 :] = -np.inf
        size = call.instance.heavy_size + (self.fault == "one more")
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, np.argsort(-scores, axis=-1, kind="stable")[..., :size], True, -1)
        chosen &= scores > -np.inf
        logits = np.where(chosen, q @ k.swapaxes(2, 3) * np.float32(call.scaling) + additive, -np.inf)
        weights = np.exp(logits - np.nan_to_num(logits.max(-1, keepdims=True), neginf=0))
        return chosen, weights / np.maximum(weights.sum(-1, keepdims=True), np.float32(1e-30)) @ v


def reference(call):
    """The output of one decode step of one sequence, in float64, head by head."""
    (q,), (k,), (v,) = (x.astype(np.float64) for x in (call.q, call.k, call.v))
    outputs, group = [], len(q) // len(k)
    for head, channels in enumerate(call.channels[:, : q.shape[-1] // call.instance.group_factor]):
        keys, values = k[head // group], v[head // group]
        (q_label, _), (k_labels, _) = (quantised(x[:, channels], call.instance.label_bits) for x in (q[head], keys))
        best = np.argsort(-(q_label @ k_labels.T)[0], kind="stable")[: call.instance.heavy_size]
        logits = q[head] @ keys[best].T * call.scaling
        weights = np.exp(logits - logits.max())
        outputs.append(weights / weights.sum() @ values[best])
    return np.stack(outputs)[None]


def by_hypothesis(fault):
    """Seconds until it fails, or None, and how many cases it asks a second."""
    began, asked, failed = time.perf_counter(), 0, []

    @hypothesis.seed(0)
    @hypothesis.settings(max_examples=10**9, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(st.tuples(*SIZES), st.integers(0, 2**32 - 1))
    def test(sizes, seed):
        nonlocal asked
        if time.perf_counter() - began > SECONDS:
            raise TimeoutError
        asked, random, (hk, group, n, size, d, bits) = asked + 1, np.random.default_rng(seed), sizes
        shapes = (1, hk * group, 1, d), (1, hk, n, d), (1, hk, n, d)
        q, k, v = (random.standard_normal(shape, np.float32) for shape in shapes)
        channels = np.stack([random.permutation(d) for _ in range(hk * group)])
        instance = SimpleNamespace(heavy_size=size, group_factor=2, label_bits=bits)
        call = SimpleNamespace(q=q, k=k, v=v, channels=channels, instance=instance, layer=0, scaling=d**-0.5)
        call.additive = lambda: np.float32(0)
        if not np.allclose(Layer(fault).mask(call)[1], reference(call), rtol=1e-2):
            failed.append(time.perf_counter() - began)
            raise AssertionError

    with contextlib.suppress(AssertionError, TimeoutError):
        test()
    return failed[0] if failed else None, asked / (time.perf_counter() - began)


def by_check(fault):
    """The same for `doublecheck.check`; a case is a call."""
    layer, began = Layer(fault), time.perf_counter()
    report = doublecheck.check(layer, seconds=SECONDS, dtypes=["f32"], heads=["per-head"], **OPTIONS)
    seconds = time.perf_counter() - began
    return seconds if report.findings else None, layer.calls / seconds


if __name__ == "__main__":
    print(f"Hypothesis {hypothesis.__version__}, numpy {np.__version__}, Python {platform.python_version()}; seed 0\n")
    print("| kernel | Hypothesis and allclose | doublecheck |\n|---|---|---|")
    for fault, name in FAULTS.items():
        cells = []
        for seconds, rate in (by(fault) for by in (by_hypothesis, by_check)):
            found = f"nothing in {SECONDS:.0f} s" if seconds is None else f"{seconds:.2g} s"
            cells.append(found if fault else f"{found}, {rate:.0f} cases a second")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
