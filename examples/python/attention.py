"""A sparse attention kernel in numpy, checked alone: a selection in, output and log-sum-exp out (SPEC 2.11)."""

import pathlib
import sys

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck


def attend(call):
    (b, h, m, _), (_, hk, n, _) = call.q.shape, call.k.shape
    k, v = (np.repeat(x, h // hk, axis=1) for x in (call.k, call.v))
    attended = np.zeros((b, h, m, n + 1), bool)
    np.put_along_axis(attended, np.where(call.selected < 0, n, call.selected).astype(np.int64), True, -1)
    attended = attended[..., :n]
    logits = np.where(attended, call.q @ k.swapaxes(2, 3) * np.float32(call.scaling), -np.inf)
    largest = logits.max(-1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, np.float32(0))
    weights = np.exp(logits - largest)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (largest + np.log(total))[..., 0]
    return weights @ v / np.where(total > 0, total, np.float32(1)), lse


if __name__ == "__main__":
    model = {"kept": "f32", "accumulation": "f32"}
    doublecheck.serve(attend, name="numpy attention", takes="selection", gives=["output", "lse"], model=model)
