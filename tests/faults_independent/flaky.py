"""Faults that show now and then, as races do."""

from __future__ import annotations

import random

import numpy as np

from plain import Array, Plain


class SelectedKeyStaysMasked(Plain):
    """Filling a row and marking its keys are not ordered: one row in 50 loses the first key that was marked."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        chosen = super().choose(scores, allowed, count)
        return chosen[1:] if random.random() < 0.02 else chosen


class HistogramNotCleared(Plain):
    """One row in 50 ranks by what the row before it left behind."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        before, self.left = getattr(self, "left", scores), scores
        stale = random.random() < 0.02 and len(before) == len(scores)
        return super().choose(before if stale else scores, allowed, count)


class OutputRowTorn(Plain):
    """One row in 100 is read while it is written: its second half still holds zeros."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        output = np.array(super().attend(entry, head, query, weights))
        if random.random() < 0.01:
            output[len(output) // 2 :] = 0
        return output


class OneCallInHundred(Plain):
    """One call in 100 answers with one key too few in each row."""

    def size(self) -> int:
        if "short" not in self.memo:
            self.memo["short"] = random.random() < 0.01
        return max(1, super().size() - self.memo["short"])
