"""What tests of attention and of key selection compare today: functions from an answer and references to a verdict.

The tolerances of torch are those of torch.testing.assert_close (its documentation, "If no tolerances are specified"):
(rtol, atol) is (1e-3, 1e-5) for float16, (1.6e-2, 1e-5) for bfloat16 and (1.3e-6, 1e-5) for float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from subjects import KEEP, Array, doublecheck

TORCH = {"f16": (1e-3, 1e-5), "bf16": (1.6e-2, 1e-5), "f32": (1.3e-6, 1e-5)}


@dataclass
class Answer:
    """Keys that this call selected, bool [b, h, m, n], and the output [b, h, m, dv]."""

    selected: Array
    output: Array


@dataclass
class Expected:
    """What rivals may compare with, of one call."""

    dtype: str
    exact: Answer
    scores: Array  # in float64, NaN where a row is not ranked
    eager: Array  # the output of the same steps in the storage type


def answer(call: doublecheck.Call, tensors: dict[str, Array]) -> Answer:
    """The parts of an answer; keys of an earlier mask are not selected."""
    if "mask" in tensors:
        attended = np.asarray(tensors["mask"]) != 0
    else:
        listed = tensors["selected"]
        attended = np.zeros((*listed.shape[:3], call.k.shape[2] + 1), bool)
        np.put_along_axis(attended, np.where(listed < 0, call.k.shape[2], listed), True, 3)
        attended = attended[..., :-1]
    if call.previous is not None:
        attended = attended & (call.previous == 0)
    return Answer(attended, np.asarray(tensors["output"], np.float64))


def close(found: Array, expected: Array, rtol: float, atol: float) -> bool:
    return bool(np.allclose(found, expected, rtol, atol))


def cosine(found: Array, expected: Array) -> float:
    found, expected = found.ravel(), expected.ravel()
    norms = float(np.linalg.norm(found) * np.linalg.norm(expected))
    if norms == 0:
        return float(not found.any() and not expected.any())
    return float(found @ expected) / norms


def recall(found: Array, expected: Array) -> float:
    """Of the keys that should be selected in a call, the share that is."""
    return float((found & expected).sum() / max(1, expected.sum())) if expected.any() else 1.0


def sorted_scores(found: Answer, expected: Expected) -> bool:
    """The exact scores of a row's selected keys, sorted, are those of the keys that should be, in any order of ties."""
    for at in np.ndindex(*found.selected.shape[:3]):
        scores = expected.scores[at]
        mine, theirs = scores[found.selected[at]], scores[expected.exact.selected[at]]
        if len(mine) != len(theirs):
            return False
        if (
            len(mine)
            and not np.isnan(scores).all()
            and not close(np.sort(mine), np.sort(theirs), *TORCH[expected.dtype])
        ):
            return False
    return True


def twice_the_error(found: Answer, expected: Expected) -> bool:
    """flash-attention's own rule: at most twice the error of a reference in the same type, and twice that of adding and
    taking away 0.3."""
    keep, exact = KEEP[expected.dtype], expected.exact.output
    out_ref = keep(exact)
    shaken = keep(keep(out_ref + np.float32(0.3)) - np.float32(0.3))
    allowed = 2 * np.abs(shaken - out_ref).max() + 2 * np.abs(expected.eager - exact).max()
    return bool(np.abs(found.output - exact).max() <= allowed)


Verdict = Callable[[Answer, Expected], bool]
RIVALS: dict[str, Verdict] = {
    "output, 1e-2": lambda found, expected: close(found.output, expected.exact.output, 1e-2, 1e-2),
    "output, 1e-3": lambda found, expected: close(found.output, expected.exact.output, 1e-3, 1e-3),
    "output, torch": lambda found, expected: close(found.output, expected.exact.output, *TORCH[expected.dtype]),
    "output, cosine 0.999": lambda found, expected: cosine(found.output, expected.exact.output) >= 0.999,
    "output, twice the error": twice_the_error,
    "keys, recall 0.99": lambda found, expected: recall(found.selected, expected.exact.selected) >= 0.99,
    "keys, recall 0.9995": lambda found, expected: recall(found.selected, expected.exact.selected) >= 0.9995,
    "keys, sorted scores": sorted_scores,
}
