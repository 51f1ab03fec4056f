"""Faults of the labels: which channels they hold, and how they are quantised."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from plain import Array, Plain


class ScaleForgotten(Plain):
    def decode(self, codes: Array, scale: Array, low: Array) -> Array:
        return codes + low


class ZeroPointForgotten(Plain):
    def decode(self, codes: Array, scale: Array, low: Array) -> Array:
        return codes / scale


class QueryNotQuantised(Plain):
    def quantise_query(self, picked: Array) -> Array:
        return picked


class TruncatedCodes(Plain):
    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        _, scale, low = super().encode(picked)
        top = np.float32(2**self.instance.label_bits - 1)
        return np.clip(np.floor((picked - low) * scale), 0, top), scale, low


class SymmetricCodes(Plain):
    def quantise(self, picked: Array) -> Array:
        if self.instance.label_bits == 16:
            return picked
        top = np.float32(max(1, 2 ** (self.instance.label_bits - 1) - 1))
        peak = np.abs(picked).max(1, keepdims=True)
        step = np.where(peak == 0, np.float32(1), peak) / top
        return np.rint(picked / step) * step


class DeadLanesInRange(Plain):
    """Labels are read into a vector of the next power of two; the lanes beyond them hold 0 and count."""

    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        width = 1 << (self.r - 1).bit_length()
        padded = np.zeros((len(picked), width), np.float32)
        padded[:, : self.r] = picked
        codes, scale, low = super().encode(padded)
        return codes[:, : self.r], scale, low


class NibblesSwapped(Plain):
    def quantise_keys(self, picked: Array) -> Array:
        if self.instance.label_bits > 4:
            return super().quantise_keys(picked)
        codes, scale, low = self.encode(picked)
        order = np.arange(self.r) ^ 1
        return self.decode(codes[:, np.where(order < self.r, order, self.r - 1)], scale, low)


class ScaleOfPreviousKey(Plain):
    def quantise_keys(self, picked: Array) -> Array:
        if self.instance.label_bits == 16:
            return picked
        codes, scale, low = self.encode(picked)
        before = np.maximum(np.arange(len(picked)) - 1, 0)
        return self.decode(codes, scale[before], low)


class OneScaleForAllKeys(Plain):
    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        codes, scale, low = super().encode(picked.reshape(1, -1))
        ones = np.ones((len(picked), 1), np.float32)
        return codes.reshape(picked.shape), scale * ones, low * ones


class CodesInOneByte(Plain):
    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        codes, scale, low = super().encode(picked)
        return np.mod(codes, 256), scale, low


class EqualChannelsBecomeZero(Plain):
    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        codes, scale, low = super().encode(picked)
        constant = picked.min(1, keepdims=True) == picked.max(1, keepdims=True)
        return codes, scale, np.where(constant, np.float32(0), low)


class LeastImportantChannels(Plain):
    def channels(self, head: int) -> Array:
        return self.call.channels[self.channel_row(head)][-self.r :]


class OddChannelLost(Plain):
    """Products are taken in pairs of channels, and an odd one at the end is left out."""

    def dots(self, keys: Array, query: Array) -> Array:
        if self.r == 1:
            return super().dots(keys, query)
        even = self.r // 2 * 2
        return keys[:, :even] @ query[:even]


class ChannelsOfFirstLayer(Plain):
    def begin(self) -> None:
        self.first = None

    def channels(self, head: int) -> Array:
        if self.first is None:
            self.first = self.call.channels
        rows = self.first if self.first.shape == self.call.channels.shape else self.call.channels
        return rows[self.channel_row(head)][: self.r]


class ScoresOverRootOfHeadDim(Plain):
    def factor(self) -> np.float32:
        return np.float32(np.sqrt(self.d))


class LabelProductsInHalf(Plain):
    """In float16 each product of two labels is rounded to float16 before the products are summed."""

    dtypes = ("f16",)
    model: ClassVar = {"labels": "exact", "kept": "f32", "accumulation": "f32"}

    def dots(self, keys: Array, query: Array) -> Array:
        return self.keep(keys * query).sum(1, dtype=np.float32)
