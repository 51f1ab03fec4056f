"""Faults that need more than so many keys, and are right below."""

from __future__ import annotations

import numpy as np

from plain import Array, Plain
from selection import CrowdedBinCut, ordered


class TwoPassKeepsEight(Plain):
    """Above 64 keys each tile of 64 hands on its best 8, of which the best H are taken."""

    TILE, HANDED_ON = 64, 8

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        if self.n <= self.TILE:
            return super().choose(scores, allowed, count)
        tiles = [np.arange(start, min(start + self.TILE, self.n)) for start in range(0, self.n, self.TILE)]
        handed_on = [ordered(scores, tile[allowed[tile]])[: self.HANDED_ON] for tile in tiles]
        return ordered(scores, np.sort(np.concatenate(handed_on)))[:count]


class PartialTileOf64(Plain):
    """Above 64 keys a last tile of fewer than 64 is skipped."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        if self.n > 64:
            allowed = allowed & (np.arange(self.n) < self.n // 64 * 64)
        return super().choose(scores, allowed, count)


class FirstKeyAbove128(Plain):
    """Above 128 keys position 0 is selected in each row, in place of the weakest."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        chosen = super().choose(scores, allowed, count)
        if self.n > 128 and len(chosen) and 0 not in chosen and allowed[0]:
            chosen[-1] = 0
        return chosen


class PositionsInOneByte(Plain):
    """Positions are kept in eight bits: those from 256 on come out as themselves modulo 256."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        return super().choose(scores, allowed, count) % 256


class OneKeyPerThread(Plain):
    """A row is ranked by 1,024 threads, one key each; later keys are never looked at."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        return super().choose(scores, allowed & (np.arange(self.n) < 1024), count)


class CrowdedBinCutAt256(CrowdedBinCut):
    """At most 256 members of the bin of the H-th score are compared."""

    ROOM = 256


class SplitsLostAbove64(Plain):
    """Above 64 keys the attention runs over splits of 64, of which only the last one's result is written."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        if self.n > 64:
            weights = np.where(np.arange(self.n) < (self.n - 1) // 64 * 64, np.float32(0), weights)
        return super().attend(entry, head, query, weights)


class AtMost64Keys(Plain):
    """Lists of selected keys have 64 places."""

    def size(self) -> int:
        return min(64, super().size())
