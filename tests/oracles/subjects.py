"""The implementations that are judged, each in one storage type, and the two references that rivals compare with.

Faulty and right ones come from tests/faults_independent. One that is written for float32 is asked in float16 and in
bfloat16, too: its arithmetic stays float32, as in kernels that accumulate in it, and its output rounded to that type.
One that names its types is asked in those alone. `Eager` and what follows it are further right ones, which round
after each operation, as PyTorch's own operations do.
"""

from __future__ import annotations

import pathlib
import random
import sys
from typing import ClassVar

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults_independent"))
from plain import KEEP, Array, Plain, doublecheck
from right import FourLanes, HalfStorage, TiesHighest
from run import implementations

DTYPES = ("f32", "bf16", "f16")
WIDE = {"labels": "exact", "kept": "f32", "accumulation": "f32"}
EVERY_STEP = {"labels": "exact", "kept": "storage", "accumulation": "f32"}


class Stored(Plain):
    """Outputs leave in the storage type of the call."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        return super().answer(weights, KEEP[self.call.dtype](outputs))


class Eager(HalfStorage):
    """Rounds to the storage type after each operation of labels, scores and attention."""

    dtypes = DTYPES
    model: ClassVar = EVERY_STEP

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        keep, keys = self.keep, np.flatnonzero(weights)
        vectors, values = self.key_vectors(entry, head)[keys], self.values(entry, head)[keys]
        products = keep(keep(vectors @ self.query_vector(entry, head, query)) * np.float32(self.scaling()))
        logits = keep(products + keep(self.bias(entry, head, query)[keys]))
        if not len(keys) or logits.max() == -np.inf:
            return self.empty_row(entry, head)
        shares = keep(keep(np.exp(keep(logits - logits.max()))) / weights[keys])
        return keep(keep(shares / keep(shares.sum(dtype=np.float32))) @ values)


class EagerTiesHighest(TiesHighest, Eager):
    """The same, and of equal scores the later position wins."""

    dtypes = DTYPES


class EagerFourLanes(FourLanes, Eager):
    """The same with sums in another order."""

    dtypes = DTYPES


# Right ones that differ in form or memory, not in arithmetic or ties: float32 shows what there is to see.
FORMS = (
    "row_by_row",
    "one_by_one",
    "sorted_channels",
    "split_keys",
    "answers_positions",
    "gives_labels",
    "cached_labels",
    "shuffled_pages",
    "both_types_of_zero",
)
MORE_RIGHT = {"eager": Eager, "eager_ties_highest": EagerTiesHighest, "eager_four_lanes": EagerFourLanes}


class Exact(Plain):
    """The contract in float64: labels by the operations of SPEC 2.5 in the storage type, all after them in float64.

    `ranked` holds the scores of the last call [b, h, m, n], NaN in rows that are not ranked.
    """

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        self.open_call(call)
        weights = np.zeros((self.b, self.h, self.m, self.n), np.float32)
        self.ranked = np.full(weights.shape, np.nan)
        outputs = np.zeros((self.b, self.h, self.m, self.dv))
        with np.errstate(all="ignore"):
            for at in np.ndindex(self.b, self.h, self.m):
                self.at = at
                weights[at] = self.row_weights(*at)
                outputs[at] = self.attend(*at, weights[at])
        return {"mask": weights, "output": outputs}

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        self.ranked[self.at] = scores
        return super().choose(scores, allowed, count)

    def dots(self, keys: Array, query: Array) -> Array:
        return keys.astype(np.float64) @ query.astype(np.float64)

    def factor(self) -> float:
        return float(np.sqrt(self.r))

    def over_heads(self, rows: list[Array]) -> Array:
        return np.sum(rows, axis=0, dtype=np.float64)

    def summed_label_scores(self, entry: int, query: int) -> Array:
        keys = np.sum([self.key_labels(entry, i) for i in range(self.h)], axis=0, dtype=np.float64)
        label = np.sum([self.query_label(entry, i, query) for i in range(self.h)], axis=0, dtype=np.float64)
        return self.dots(keys, label) / self.factor()


def classes() -> dict[str, type[Plain]]:
    return {**implementations(), **MORE_RIGHT}


def is_right(name: str) -> bool:
    return name in MORE_RIGHT or classes()[name].__module__ == "right"


def is_asked(name: str, dtype: str) -> bool:
    declared = classes()[name].dtypes
    return dtype in declared or (declared == ("f32",) and name not in FORMS)


def make(name: str, dtype: str) -> Plain:
    """The implementation in a storage type; what fails from time to time does so alike in each run."""
    random.seed(1)
    np.random.seed(1)
    return stored(classes()[name], dtype)


def stored(base: type[Plain], dtype: str) -> Plain:
    model = base.model or WIDE
    return type(base.__name__, (Stored, base), {"dtypes": (dtype,), "model": model})()


def serve(subject: Plain, name: str) -> None:
    doublecheck.serve(
        subject,
        name=name,
        dtypes=list(subject.dtypes),
        heads=list(subject.heads),
        model=subject.model,
        lacks=list(subject.lacks),
        largest_keys=subject.largest_keys,
    )


if __name__ == "__main__":
    serve(make(sys.argv[1], sys.argv[2]), sys.argv[1])
