"""Faults of the attention: the selection is right, the output is not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from plain import Array, Plain


class DefaultScaling(Plain):
    def scaling(self) -> float:
        return self.d**-0.5


class PadReadsLastKey(Plain):
    """Unused places hold -1, which addresses the last key; it is attended to once for each."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        chosen = int(((weights != 0) & (self.earlier(entry, head, query) == 0)).sum())
        keys = np.concatenate([np.flatnonzero(weights), np.full(max(0, self.size() - chosen), self.n - 1)])
        if self.dense() or not len(keys):
            return super().attend(entry, head, query, weights)
        bias = np.where(weights != 0, self.bias(entry, head, query), np.float32(0))
        logits = (self.products(entry, head, query) + bias)[keys]
        if logits.max() == -np.inf:
            return self.empty_row(entry, head)
        shares = np.exp(logits - logits.max()) / np.where(weights == 0, 1, weights)[keys]
        return shares @ self.values(entry, head)[keys] / shares.sum()


class FirstTileNan(Plain):
    """The running maximum starts at minus infinity: a first tile of 8 keys without an attended one gives NaN."""

    TILE = 8

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        if not weights[: self.TILE].any():
            return np.full(self.dv, np.nan, np.float32)
        return super().attend(entry, head, query, weights)


class EmptyRowNan(Plain):
    def empty_row(self, entry: int, head: int) -> Array:
        return np.full(self.dv, np.nan, np.float32)


class ValuesByKeyStride(Plain):
    """Values are addressed as rows of d numbers where they have dv."""

    def values(self, entry: int, head: int) -> Array:
        flat = self.call.v[entry, self.value_head(head)].reshape(-1)
        return flat[(np.arange(self.n)[:, None] * self.d + np.arange(self.dv)) % len(flat)]


class SplitsAveraged(Plain):
    """Two splits of the keys are attended to apart, and their outputs are averaged."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        halves = [np.where(part, weights, np.float32(0)) for part in (self.first_half(), ~self.first_half())]
        used = [half for half in halves if half.any()] or halves
        return np.mean([Plain.attend(self, entry, head, query, half) for half in used], axis=0)

    def first_half(self) -> Array:
        return np.arange(self.n) < self.n // 2


class OutputWithoutBias(Plain):
    """Finite entries of the additive mask are left out of the attention's logits."""

    def logits(self, entry: int, head: int, query: int) -> Array:
        bias = self.bias(entry, head, query)
        return self.products(entry, head, query) + np.where(np.isfinite(bias), np.float32(0), bias)


class WeightsIgnored(Plain):
    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        return super().attend(entry, head, query, (weights != 0).astype(np.float32))


class NotRenormalised(Plain):
    """The softmax runs over all keys that the additive mask allows; the others are dropped afterwards."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        logits = self.logits(entry, head, query)
        if logits.max() == -np.inf or not weights.any():
            return self.empty_row(entry, head)
        shares = np.exp(logits - logits.max())
        kept = np.where(weights == 0, 0, shares / np.where(weights == 0, 1, weights))
        return kept @ self.values(entry, head) / shares.sum()


class CappedLogits(Plain):
    """Logits are capped at 5 by a tanh that this model does not have."""

    CAP = 5.0

    def logits(self, entry: int, head: int, query: int) -> Array:
        capped = self.CAP * np.tanh(self.products(entry, head, query) / self.CAP)
        return capped + self.bias(entry, head, query)


class HalfProducts(Plain):
    """In float16 the products of q and k are summed in float16, before the scaling: large ones overflow."""

    dtypes = ("f16",)
    model: ClassVar = {"labels": "exact", "kept": "f32", "accumulation": "f32"}

    def products(self, entry: int, head: int, query: int) -> Array:
        products = self.key_vectors(entry, head) @ self.query_vector(entry, head, query)
        return self.keep(products).astype(np.float64) * self.scaling()


class PaddingInSoftmax(Plain):
    """Keys are read in tiles of 8, and the zeros beyond the last key take part in the softmax with a logit of 0."""

    TILE = 8

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        output = np.asarray(super().attend(entry, head, query, weights), np.float64)
        logits, padding = self.logits(entry, head, query)[weights != 0], -self.n % self.TILE
        if not padding or not len(logits) or logits.max() == -np.inf:
            return output
        total = (np.exp(logits - logits.max()) / weights[weights != 0]).sum()
        return output * total / (total + padding * np.exp(-logits.max()))


class HalfRowUnwritten(Plain):
    """The second half of each output row is never written: it holds what the buffer held before."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        held = np.random.default_rng(outputs.size).normal(size=outputs.shape).astype(np.float32)
        written = (self.dv + 1) // 2
        held[..., :written] = outputs[..., :written]
        return super().answer(weights, held)


class RowsOfHeadDimWritten(Plain):
    """As many numbers of an output row are written as q has channels, where values have more."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        held = np.full_like(outputs, np.nan)
        held[..., : self.d] = outputs[..., : self.d]
        return super().answer(weights, held)


class ProductsInHalf(Plain):
    """In float16 each product of q and k is rounded to float16 before the products are summed, in the attention."""

    dtypes = ("f16",)
    model: ClassVar = {"labels": "exact", "kept": "f32", "accumulation": "f32"}

    def products(self, entry: int, head: int, query: int) -> Array:
        products = self.keep(self.key_vectors(entry, head) * self.query_vector(entry, head, query))
        return products.sum(1, dtype=np.float64) * self.scaling()
