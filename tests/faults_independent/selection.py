"""Faults of the selection: how many keys are taken, which of them, and in what order they rank."""

from __future__ import annotations

import numpy as np

from plain import INFINITY, Array, Plain


def ordered(scores: Array, keys: Array) -> Array:
    """`keys` by falling score, ties by position."""
    return keys[np.argsort(-scores[keys], kind="stable")]


def sortable(scores: Array) -> Array:
    """Unsigned numbers that order as the scores do."""
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


class StrictThreshold(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = ordered(scores, np.flatnonzero(allowed))
        if len(keys) <= count:
            return keys
        return keys[scores[keys] > scores[keys[count - 1]]]


class ThresholdTakesTies(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = ordered(scores, np.flatnonzero(allowed))
        if len(keys) <= count:
            return keys
        return keys[scores[keys] >= scores[keys[count - 1]]]


class FractionRoundedUp(Plain):
    def size(self) -> int:
        asked = self.instance.heavy_size
        if isinstance(asked, int):
            return super().size()
        return max(1, min(self.n, int(np.ceil(asked * self.n))))


class BudgetHoldsEarlier(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        attended = int((self.earlier(*self.at) != 0).sum())
        return super().choose(scores, allowed, max(0, count - attended))


class ExactFitEmpty(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        if allowed.sum() == count:
            return np.array([], int)
        return super().choose(scores, allowed, count)


class TrivialPathIdentity(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        candidates = int(allowed.sum())
        if candidates <= count:
            return np.arange(candidates)
        return super().choose(scores, allowed, count)


class CrowdedBinCut(Plain):
    """Only so many members of the bin that holds the H-th score go on to the exact comparison."""

    ROOM, SHIFT = 4, 21

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = np.flatnonzero(allowed)
        if len(keys) <= count:
            return keys
        bins = sortable(scores) >> np.uint32(self.SHIFT)
        edge = np.sort(bins[keys])[::-1][count - 1]
        above, inside = keys[bins[keys] > edge], keys[bins[keys] == edge][: self.ROOM]
        return np.concatenate([above, ordered(scores, inside)[: count - len(above)]])


class CoarseRanks(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        return super().choose((sortable(scores) >> np.uint32(20)).astype(np.int64), allowed, count)


class ScoresCollapse(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        slots = {float(scores[j]): int(j) for j in np.flatnonzero(allowed)[::-1]}
        return np.array([slots[score] for score in sorted(slots, reverse=True)[:count]], int)


class PaddedWithZeros(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        width = 1 << (self.n - 1).bit_length()
        padded = np.zeros(width, np.float32)
        padded[: self.n] = np.where(allowed, scores, -INFINITY)
        best = np.argsort(-padded, kind="stable")[:count]
        return best[(best < self.n) & (padded[best] > -INFINITY)]


class NegativeScoresEqual(Plain):
    def head_scores(self, entry: int, head: int, query: int) -> Array:
        return np.maximum(super().head_scores(entry, head, query), np.float32(0))


class LastPartialTileLost(Plain):
    TILE = 8

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        if self.n >= self.TILE:
            allowed = allowed & (np.arange(self.n) < self.n // self.TILE * self.TILE)
        return super().choose(scores, allowed, count)


class NewestKeyHeldOut(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        return super().choose(scores, allowed & (np.arange(self.n) < self.n - 1), count)


class WholePages(Plain):
    PAGE = 4

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        if not allowed.any():
            return np.array([], int)
        open_scores = np.where(allowed, scores, -INFINITY)
        peaks = [open_scores[start : start + self.PAGE].max() for start in range(0, self.n, self.PAGE)]
        pages = np.argsort(-np.array(peaks), kind="stable")[: max(1, count // self.PAGE)]
        return np.array([j for j in np.flatnonzero(allowed) if j // self.PAGE in pages], int)


class RunnersUpOfFirstRow(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        entry, head, query = self.at
        first = self.scores(entry, head, 0)
        keys = ordered(first, np.flatnonzero(self.allowed(entry, head, 0, first)))
        return keys[query * count : (query + 1) * count]


class HeadsOfGroupShare(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        entry, head, query = self.at
        leader = head // self.g * self.g
        scores = self.scores(entry, leader, query)
        return super().choose(scores, self.allowed(entry, leader, query, scores), count)


class FillsFromExcluded(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        chosen = super().choose(scores, allowed, count)
        others = np.flatnonzero(~allowed & (self.earlier(*self.at) == 0))
        return np.concatenate([chosen, others[: count - len(chosen)]])


class StaleThreshold(Plain):
    """The threshold is set only where a row has more candidates than it may take; other rows use the one before."""

    def open_call(self, call) -> None:
        super().open_call(call)
        self.threshold = -INFINITY

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = ordered(scores, np.flatnonzero(allowed))
        if len(keys) > count:
            self.threshold = scores[keys[count - 1]]
        return keys[:count][scores[keys[:count]] >= self.threshold]
