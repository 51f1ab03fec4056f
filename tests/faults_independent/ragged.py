"""Faults of batches whose entries have unequal lengths (SPEC 2.13): an entry's length is taken for another one."""

from __future__ import annotations

import numpy as np

from plain import Array, Plain, doublecheck


class _Ragged(Plain):
    """Right: each entry is answered as a call of its own, with its own keys and the queries that have a position."""

    offers = ("ragged",)
    lacks = ("earlier_maskers", "refusals", "previous", "dense_fallback", "dense_layers", "attention_mask")

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        self.lengths: list[int] | None = None
        if call.lengths is None:
            return super().mask(call)
        (b, h, m, _), n, dv = call.q.shape, call.k.shape[2], call.v.shape[3]
        weights, outputs = np.zeros((b, h, m, n), np.float32), np.zeros((b, h, m, dv), np.float32)
        self.lengths, self.padded = call.lengths.tolist(), n
        for entry, length in enumerate(self.lengths):
            first = max(0, m - length)
            if not length or first == m:
                continue
            message = {"layer": call.layer, "causal": call.causal, "dtype": call.dtype, "scaling": call.scaling}
            own = slice(entry, entry + 1)
            tensors = {"q": call.q[own, :, first:], "k": call.k[own, :, :length], "v": call.v[own, :, :length]}
            self.entry = entry
            answer = super().mask(doublecheck.Call(call.instance, message, tensors))
            weights[own, :, first:, :length], outputs[own, :, first:] = answer["mask"], answer["output"]
        return {"mask": weights, "output": outputs}


class DenseWhereShortestIsShort(_Ragged):
    """All entries attend to every key that they see where the shortest entry has fewer keys than H."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        asked = self.instance.heavy_size
        few = self.lengths is not None and isinstance(asked, int) and min(self.lengths) < asked
        return np.flatnonzero(allowed) if few else super().choose(scores, allowed, count)


class CausalByPaddedLength(_Ragged):
    """Query i sits at n - m + i, n being the length of the buffer, so that shorter entries see later keys."""

    def position(self, query: int) -> int:
        if self.lengths is None:
            return super().position(query)
        return super().position(query) + self.padded - self.lengths[self.entry]


class KeysOfShortestLength(_Ragged):
    """Keys from the length of the shortest entry on are never selected; an entry of no keys does not count."""

    def allowed(self, entry: int, head: int, query: int, scores: Array) -> Array:
        allowed = super().allowed(entry, head, query, scores)
        if self.lengths is not None:
            allowed[min(length for length in self.lengths if length) :] = False
        return allowed


class KeysOfPreviousLength(_Ragged):
    """Keys beyond the length of the entry before are never selected: lengths are read one place off."""

    def allowed(self, entry: int, head: int, query: int, scores: Array) -> Array:
        allowed = super().allowed(entry, head, query, scores)
        if self.lengths is not None and self.entry:
            allowed[self.lengths[self.entry - 1] :] = False
        return allowed


class BudgetOfPaddedLength(_Ragged):
    """H as a share of the keys is one of the buffer's length, whatever the entry's own."""

    def size(self) -> int:
        asked = self.instance.heavy_size
        if self.lengths is None or isinstance(asked, int):
            return super().size()
        return max(1, min(self.n, int(np.floor(asked * self.padded))))
