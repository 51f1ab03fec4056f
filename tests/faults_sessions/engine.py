"""Serving engines on numpy that hold labels in slots, with the faults that calls alone let pass.

`engine.py NAME` answers `doublecheck check --sessions N` as that engine; `SlotLabels` is right. Selection and attention are those
of `plain.py` beside this folder. Each fault changes where labels are written or read; its docstring says what a real one did.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults_independent"))
from plain import Array, Plain, doublecheck

Requests = list[tuple[int, int]]


class Kernel(Plain):
    """Ranks by labels that are held, where there are some: [h, n, r]."""

    held: Array | None = None

    def make_key_labels(self, entry: int, head: int) -> Array:
        return super().make_key_labels(entry, head) if self.held is None else self.held[head]


class SlotLabels:
    """Each request has a slot, the lowest that is free. A slot holds the labels of its positions in each layer."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.mask, self.configure = self.kernel.mask, self.kernel.configure

    def open(self, opening: doublecheck.Opening) -> None:
        self.opening = opening
        self.slots: dict[int, int] = {}
        self.held: dict[tuple[int, int], tuple[Array, Array]] = {}  # by request and layer: k [n, hk, d], v [n, hk, dv]
        self.labels: dict[tuple[int, int], Array] = {}  # by slot and layer: [h, n, r], longer than a request may be

    def append(self, layer: int, requests: Requests, k: Array, v: Array) -> None:
        for request, keys, values in doublecheck.parts(requests, k, v):
            self.slots.setdefault(request, min(set(range(len(self.slots) + 1)) - set(self.slots.values())))
            old = self.held.get((request, layer), (keys[:0], values[:0]))
            self.held[request, layer] = np.concatenate([old[0], keys]), np.concatenate([old[1], values])
            self.write(self.slots[request], layer, len(old[0]), self.labelled(layer, keys, values))

    def labelled(self, layer: int, keys: Array, values: Array) -> Array:
        """Labels [h, t, r] of new keys."""
        opening = self.opening
        message = {"layer": layer, "causal": True, "dtype": opening.dtype, "scaling": opening.scaling}
        query = np.zeros((1, opening.heads, 1, opening.head_dim), np.float32)
        tensors = {"q": query, "k": keys.swapaxes(0, 1)[None], "v": values.swapaxes(0, 1)[None]}
        self.kernel.open_call(doublecheck.Call(opening.instance, message, tensors))
        return np.stack([self.kernel.make_key_labels(0, head) for head in range(opening.heads)])

    def write(self, slot: int, layer: int, start: int, fresh: Array) -> None:
        self.put(slot, layer, start, fresh)

    def put(self, slot: int, layer: int, start: int, fresh: Array) -> None:
        kept = self.labels.get((slot, layer), fresh[:, :0])
        self.labels[slot, layer] = np.concatenate([kept[:, :start], fresh, kept[:, start + fresh.shape[1] :]], 1)

    def attend(self, layer: int, requests: Requests, q: Array) -> dict[str, Array]:
        batch = [request for request, _ in requests]
        slots = iter(self.slots_of(batch))
        lengths = [len(self.held[request, layer][0]) for request in batch]

        def held(request: int) -> tuple[Array, Array]:
            self.kernel.held = self.read(next(slots), layer, len(self.held[request, layer][0]), lengths)
            return self.held[request, layer]

        try:
            return doublecheck.by_request(self.mask, self.opening, layer, requests, q, held)
        finally:
            self.kernel.held = None

    def slots_of(self, batch: list[int]) -> list[int]:
        """The slots whose labels stand for those of the requests of a batch."""
        return [self.slots[request] for request in batch]

    def read(self, slot: int, layer: int, length: int, lengths: list[int]) -> Array:
        """The labels of a request, in a batch of requests of these lengths; zeros where a slot has none."""
        found = self.labels[slot, layer][:, :length]
        missing = length - found.shape[1]
        return np.pad(found, ((0, 0), (0, missing), (0, 0)))

    def fork(self, request: int, to: int, length: int) -> None:
        self.slots[to] = min(set(range(len(self.slots) + 1)) - set(self.slots.values()))
        for layer in self.opening.layers:
            if (request, layer) in self.held:
                k, v = self.held[request, layer]
                self.held[to, layer] = k[:length], v[:length]
                self.put(self.slots[to], layer, 0, self.labels[self.slots[request], layer][:, : len(k[:length])])

    def truncate(self, request: int, length: int) -> None:
        for layer in self.opening.layers:
            if (request, layer) in self.held:
                k, v = self.held[request, layer]
                self.held[request, layer] = k[:length], v[:length]

    def free(self, request: int) -> None:
        del self.slots[request]
        for layer in self.opening.layers:
            self.held.pop((request, layer), None)


class SlotKeptUnlessShorter(SlotLabels):
    """A slot that is used again is taken for the same text, unless the first chunk is shorter than what lay there."""

    def write(self, slot: int, layer: int, start: int, fresh: Array) -> None:
        known = self.labels.get((slot, layer), fresh[:, :0]).shape[1]
        if start == 0 and fresh.shape[1] < known:
            del self.labels[slot, layer]
            known = 0
        new = max(0, known - start)
        self.put(slot, layer, start + new, fresh[:, new:])

    def truncate(self, request: int, length: int) -> None:
        super().truncate(request, length)
        slot = self.slots[request]
        self.labels.update({at: kept[:, :length] for at, kept in self.labels.items() if at[0] == slot})


class FirstOfLaterChunk(SlotLabels):
    """Of a chunk after a request's first one only the first key is labelled; the other labels are zeros."""

    def write(self, slot: int, layer: int, start: int, fresh: Array) -> None:
        if start > 0:
            fresh = np.concatenate([fresh[:, :1], np.zeros_like(fresh[:, 1:])], 1)
        self.put(slot, layer, start, fresh)


class BatchOfAnotherSize(SlotLabels):
    """A batch of another size than the one before finds that one's slots in the places of both."""

    def open(self, opening: doublecheck.Opening) -> None:
        super().open(opening)
        self.table: list[int] = []

    def slots_of(self, batch: list[int]) -> list[int]:
        before, self.table = self.table, super().slots_of(batch)
        return self.table if len(before) == len(batch) else [*before, *self.table[len(before) :]][: len(batch)]


class DraftTailKept(SlotLabels):
    """Labels of positions that a truncate took back stay when other keys are appended there."""

    def open(self, opening: doublecheck.Opening) -> None:
        super().open(opening)
        self.written: dict[tuple[int, int], int] = {}

    def write(self, slot: int, layer: int, start: int, fresh: Array) -> None:
        new = max(0, min(self.written.get((slot, layer), 0) - start, fresh.shape[1]))
        self.put(slot, layer, start + new, fresh[:, new:])
        self.written[slot, layer] = max(self.written.get((slot, layer), 0), start + fresh.shape[1])

    def free(self, request: int) -> None:
        slot = self.slots[request]
        self.written = {at: count for at, count in self.written.items() if at[0] != slot}
        super().free(request)


class ShortestOfBatch(SlotLabels):
    """Every request of a batch is scored up to the length of the shortest one; labels beyond count as zeros."""

    def read(self, slot: int, layer: int, length: int, lengths: list[int]) -> Array:
        found = super().read(slot, layer, length, lengths).copy()
        found[:, min(lengths) :] = 0
        return found


ENGINES = {engine.__name__: engine for engine in (SlotLabels, *SlotLabels.__subclasses__())}

if __name__ == "__main__":
    engine = ENGINES[sys.argv[1]]()
    lacks = ["earlier_maskers", "dense_fallback", "dense_layers", "refusals"]
    doublecheck.serve(engine, name=sys.argv[1], dtypes=["f32"], heads=list(Plain.heads), lacks=lacks)
