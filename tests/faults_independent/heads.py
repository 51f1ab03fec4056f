"""Faults of the heads: which KV head and channel row a head reads, and how heads are joined."""

from __future__ import annotations

import numpy as np

from plain import Array, Plain


class KvHeadsTiled(Plain):
    def kv_head(self, head: int) -> int:
        return head % self.hk

    value_head = kv_head


class KvHeadByKvCount(Plain):
    def kv_head(self, head: int) -> int:
        return min(head // self.hk, self.hk - 1)

    value_head = kv_head


class ValueHeadsTiled(Plain):
    def value_head(self, head: int) -> int:
        return head % self.hk


class ScoresOfFirstHeads(Plain):
    """Only as many heads as there are KV heads are scored; the rest rank zeros."""

    def head_scores(self, entry: int, head: int, query: int) -> Array:
        if head >= self.hk:
            return np.zeros(self.n, np.float32)
        return super().head_scores(entry, head, query)


class ChannelRowsTiled(Plain):
    def channel_row(self, head: int) -> int:
        return head % len(self.call.channels)


class ChannelRowOfKvHead(Plain):
    def channel_row(self, head: int) -> int:
        return self.kv_head(head) if len(self.call.channels) > 1 else 0


class RanksDoNotShare(Plain):
    """Heads lie on two ranks that each sum their own scores."""

    def ranks(self, head: int) -> range:
        half = -(-self.h // 2)
        return range(half) if head < half else range(half, self.h)

    def scores(self, entry: int, head: int, query: int) -> Array:
        if self.instance.heads != "summed-scores":
            return super().scores(entry, head, query)
        mine = [self.head_scores(entry, i, query) + self.bias(entry, i, query) for i in self.ranks(head)]
        return self.over_heads(mine)


class MaximumOverHeads(Plain):
    def over_heads(self, rows: list[Array]) -> Array:
        return np.max(rows, axis=0)


class ScoresSummedForLabels(Plain):
    """Labels that should be summed over heads are scored head by head, and the scores are summed."""

    def summed_label_scores(self, entry: int, query: int) -> Array:
        return self.over_heads([self.head_scores(entry, i, query) for i in range(self.h)])


class OneSelectionForAllHeads(Plain):
    def scores(self, entry: int, head: int, query: int) -> Array:
        if self.instance.heads != "per-head":
            return super().scores(entry, head, query)
        total = self.over_heads([self.head_scores(entry, i, query) for i in range(self.h)])
        return total + self.bias(entry, head, query)
