"""Faults of causality, of the additive mask and of earlier masks."""

from __future__ import annotations

import numpy as np

from plain import INFINITY, Array, Plain


class CausalFromTopLeft(Plain):
    def position(self, query: int) -> int:
        return query


class CausalWithoutSelf(Plain):
    def position(self, query: int) -> int:
        return super().position(query) - 1


class WindowOfFirstQuery(Plain):
    """Several query tokens are scored as if each stood where the first one stands."""

    def scores(self, entry: int, head: int, query: int) -> Array:
        scores = super().scores(entry, head, query).copy()
        if self.call.causal:
            scores[np.arange(self.n) > self.position(0)] = -INFINITY
        return scores


class SelectsTheFuture(Plain):
    """Causality acts in the attention only."""

    def scores(self, entry: int, head: int, query: int) -> Array:
        causal, self.call.causal = self.call.causal, False
        try:
            return super().scores(entry, head, query)
        finally:
            self.call.causal = causal


class BiasIsYesOrNo(Plain):
    """The ranking knows of the mask only what it excludes."""

    def scores(self, entry: int, head: int, query: int) -> Array:
        given = self.call.attention_mask
        if given is not None:
            self.call.attention_mask = np.where(given == -np.inf, given, np.float32(0))
        try:
            return super().scores(entry, head, query)
        finally:
            self.call.attention_mask = given


class MaskOfFirstEntry(Plain):
    def bias(self, entry: int, head: int, query: int) -> Array:
        return super().bias(0, head, query)


class MaskOfFirstHead(Plain):
    def bias(self, entry: int, head: int, query: int) -> Array:
        return super().bias(entry, 0, query)


class FiniteSentinel(Plain):
    """Keys count as excluded from -50,000 down, which is what stands for minus infinity here."""

    def allowed(self, entry: int, head: int, query: int, scores: Array) -> Array:
        return super().allowed(entry, head, query, scores) & (scores > -5e4)


class EarlierKeysCompete(Plain):
    def blocked(self, entry: int, head: int, query: int) -> Array:
        return np.zeros(self.n, bool)


class EarlierWeightsReset(Plain):
    def row_weights(self, entry: int, head: int, query: int) -> Array:
        return (super().row_weights(entry, head, query) != 0).astype(np.float32)


class EarlierKeysOfAnyHead(Plain):
    def blocked(self, entry: int, head: int, query: int) -> Array:
        return np.any([self.earlier(entry, i, query) != 0 for i in range(self.h)], axis=0)
