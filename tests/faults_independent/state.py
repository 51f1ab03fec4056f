"""Faults of what is kept between calls. Each call brings all keys, so that nothing of an earlier call may be seen."""

from __future__ import annotations

import numpy as np

from plain import INFINITY, Array, Plain, doublecheck


class _Cache(Plain):
    """Labels of one request lie in a list per layer, entry and head; `store` decides what a call writes."""

    def begin(self) -> None:
        self.cache: dict = {}
        self.lengths: dict = {}

    def slot(self, entry: int, head: int) -> tuple:
        return self.call.layer, entry, head, self.r

    def make_key_labels(self, entry: int, head: int) -> Array:
        slot, fresh = self.slot(entry, head), super().make_key_labels(entry, head)
        kept = self.cache.get(slot, fresh[:0])
        stored = self.store(kept, fresh, slot)
        self.cache[slot] = np.concatenate([stored, kept[len(stored) :]])
        return stored

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        raise NotImplementedError


class LabelsWrittenOnce(_Cache):
    """A position that has a label is never labelled again."""

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        return np.concatenate([kept, fresh[len(kept) :]])[: len(fresh)]


class RenewedOnlyWhenShorter(_Cache):
    """A call that is shorter than the one before is taken for a new request; any other continues the old one."""

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        before, self.lengths[slot] = self.lengths.get(slot, 0), len(fresh)
        if len(fresh) < before:
            return fresh
        return np.concatenate([kept[:before], fresh[before:]])


class WritesNewTokensOnly(_Cache):
    """After the first call of a layer only the labels of the last m positions are written."""

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        first_new = max(0, len(fresh) - self.m)
        known = min(len(kept), first_new)
        return np.concatenate([kept[:known], fresh[known:]])


class FirstTokenOfChunkOnly(_Cache):
    """Of the tokens that a later call adds only the first is labelled; the others' labels stay zero."""

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        before, self.lengths[slot] = self.lengths.get(slot, 0), len(fresh)
        stored = fresh.copy()
        if before:
            stored[before + 1 :] = 0
        return stored


class NotTruncated(_Cache):
    """After a rollback the old tail's labels stay, and are taken for those of the tokens that replace it."""

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        before, self.lengths[slot] = self.lengths.get(slot, 0), len(fresh)
        stored = fresh.copy()
        if before < len(kept):
            end = min(len(kept), len(fresh))
            stored[before:end] = kept[before:end]
        return stored


class LayersShareLabels(_Cache):
    """The layer is no part of a label's address: a call finds those of the layer before it, where there are any."""

    def slot(self, entry: int, head: int) -> tuple:
        return entry, head, self.r

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        writer, self.lengths[slot] = self.lengths.get(slot, self.call.layer), self.call.layer
        if writer == self.call.layer:
            return fresh
        return np.concatenate([kept[: len(fresh)], fresh[len(kept) :]])


class SlotByPlaceInBatch(_Cache):
    """Labels belong to a place in the batch; a call of another batch size reads what lies in its places."""

    def open_call(self, call: doublecheck.Call) -> None:
        super().open_call(call)
        self.moved = self.lengths.get(call.layer, self.b) != self.b
        self.lengths[call.layer] = self.b

    def store(self, kept: Array, fresh: Array, slot: tuple) -> Array:
        return np.concatenate([kept[: len(fresh)], fresh[len(kept) :]]) if self.moved else fresh


class AnswerOfSameShape(Plain):
    """A second call of the same layer and shapes replays the first one's answer."""

    def begin(self) -> None:
        self.answers: dict = {}

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        shape = call.layer, call.q.shape, call.k.shape, call.v.shape
        if shape not in self.answers:
            self.answers[shape] = super().mask(call)
        return self.answers[shape]


class LengthAtCapture(Plain):
    """The number of keys is that of the first call with this layer, batch and number of queries."""

    def begin(self) -> None:
        self.captured: dict = {}

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        length = self.captured.setdefault((self.call.layer, self.b, self.m), self.n)
        return super().choose(scores, allowed & (np.arange(self.n) < length), count)


class ChannelsOfFirstInstance(Plain):
    """Channel rows are kept per layer for the life of the process."""

    def __init__(self) -> None:
        self.rows: dict = {}

    def channels(self, head: int) -> Array:
        rows = self.rows.setdefault((self.call.layer, self.call.channels.shape), self.call.channels)
        return rows[self.channel_row(head)][: self.r]


class ScoresOfFirstChunk(Plain):
    """With several query tokens only as many keys are scored as there are queries; with one, all are."""

    def scores(self, entry: int, head: int, query: int) -> Array:
        scores = super().scores(entry, head, query).copy()
        if self.m > 1:
            scores[self.m :] = -INFINITY
        return scores


class PageEndUnlabelled(Plain):
    """The label of the last key of each page of 8 is never written."""

    PAGE = 8

    def make_key_labels(self, entry: int, head: int) -> Array:
        labels = super().make_key_labels(entry, head).copy()
        labels[self.PAGE - 1 :: self.PAGE] = 0
        return labels
