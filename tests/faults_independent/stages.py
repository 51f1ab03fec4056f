"""Faults of kernels that do one stage: a top-k that takes scores, a sparse attention that takes a selection."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from plain import Array, doublecheck


class _TopK:
    """Right: the H largest scores of each row; ties to the lowest position."""

    takes = "scores"
    gives = ("mask",)

    def select(self, call: doublecheck.ScoresCall) -> Array:
        rows = call.scores.reshape(-1, call.scores.shape[3])
        chosen = np.zeros(rows.shape, bool)
        for row, scores in enumerate(rows):
            chosen[row, self.keys(scores, call.heavy_size)] = True
        return chosen.reshape(call.scores.shape)

    def keys(self, scores: Array, count: int) -> Array:
        candidates = np.flatnonzero(scores > -np.inf)
        return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


class TopKPartialTile(_TopK):
    """Keys beyond the last whole tile of 16 are not read where there is a whole one."""

    def keys(self, scores: Array, count: int) -> Array:
        whole = len(scores) // 16 * 16
        return super().keys(scores[:whole] if whole else scores, count)


class TopKPadIsLastKey(_TopK):
    """Places that no candidate fills hold -1, which addresses the last key: it is selected, candidate or not."""

    def keys(self, scores: Array, count: int) -> Array:
        found = super().keys(scores, count)
        return np.append(found, len(scores) - 1) if len(found) < min(count, len(scores)) else found


class TopKPositionsInOneByte(_TopK):
    """Positions are kept in eight bits."""

    def keys(self, scores: Array, count: int) -> Array:
        return super().keys(scores, count) % 256


class TopKCrowdedBin(_TopK):
    """Of the scores that share their highest 12 bits with the H-th only the first eight by position compete."""

    def keys(self, scores: Array, count: int) -> Array:
        found = super().keys(scores, count)
        if (scores > -np.inf).sum() <= count:
            return found
        bins = (scores + np.float32(0)).view(np.int32) >> 20
        own = bins[found[-1]]
        crowd = np.flatnonzero((bins == own) & (scores > -np.inf))
        above = [key for key in found if bins[key] != own]
        room = crowd[:8]
        return np.array(above + list(room[np.argsort(-scores[room], kind="stable")][: count - len(above)]), np.int64)


class TopKBitsUnsigned(_TopK):
    """Scores are compared by their bits as unsigned numbers: negative ones are above all others, the largest first."""

    def keys(self, scores: Array, count: int) -> Array:
        candidates = np.flatnonzero(scores > -np.inf)
        bits = (scores[candidates] + np.float32(0)).view(np.uint32).astype(np.int64)
        return candidates[np.argsort(-bits, kind="stable")[:count]]


class TopKRankedCoarsely(_TopK):
    """Scores are ranked as bfloat16, cut off, so that close ones tie and the lowest position wins."""

    def keys(self, scores: Array, count: int) -> Array:
        cut = ((scores + np.float32(0)).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return super().keys(np.where(scores > -np.inf, cut, scores), count)


class TopKOfFirstRow(_TopK):
    """Every query of a head gets what its first query selects."""

    def select(self, call: doublecheck.ScoresCall) -> Array:
        chosen = super().select(call)
        return np.broadcast_to(chosen[:, :, :1], chosen.shape)


class _Attention:
    """Right: attention over the selected keys, with its log-sum-exp, in float64."""

    takes = "selection"
    gives = ("output", "lse")
    model: ClassVar = {"kept": "f32", "accumulation": "f32"}

    def attend(self, call: doublecheck.SelectionCall) -> tuple[Array, Array]:
        (b, h, m, _), (_, hk, self.n, self.dv) = call.q.shape, call.v.shape
        output, lse = np.zeros((b, h, m, self.dv)), np.full((b, h, m), -np.inf)
        for entry, head, query in np.ndindex(b, h, m):
            keys = self.keys(call.selected[entry, head, query])
            k, v = self.tensors(call, entry, head, h // hk)
            q = call.q[entry, head, query].astype(np.float64)
            if len(keys):
                at = entry, head, query
                output[at], lse[at] = self.row(k[keys] @ q * call.scaling, v[keys])
        return self.answer(output.astype(np.float32), lse.astype(np.float32))

    def answer(self, output: Array, lse: Array) -> tuple[Array, Array]:
        return output, lse

    def keys(self, selected: Array) -> Array:
        return selected[selected >= 0]

    def tensors(self, call: doublecheck.SelectionCall, entry: int, head: int, group: int) -> tuple[Array, Array]:
        kv = head // group
        return call.k[entry, kv].astype(np.float64), call.v[entry, kv].astype(np.float64)

    def row(self, logits: Array, values: Array) -> tuple[Array, float]:
        shares = np.exp(logits - logits.max())
        return shares @ values / shares.sum(), logits.max() + np.log(shares.sum())


class AttentionPadIsLastKey(_Attention):
    """The -1 that fill a row address the last key, which is attended to once for each."""

    def keys(self, selected: Array) -> Array:
        return np.where(selected < 0, self.n - 1, selected)


class AttentionSplitsAveraged(_Attention):
    """The list of selected keys is split in two; the outputs of both parts are averaged, not merged by their sums."""

    def row(self, logits: Array, values: Array) -> tuple[Array, float]:
        output, lse = super().row(logits, values)
        half = (len(logits) + 1) // 2
        if half == len(logits):
            return output, lse
        return (super().row(logits[:half], values[:half])[0] + super().row(logits[half:], values[half:])[0]) / 2, lse


class AttentionValuesByKeyStride(_Attention):
    """Values are addressed as rows of d numbers where they have dv."""

    def tensors(self, call: doublecheck.SelectionCall, entry: int, head: int, group: int) -> tuple[Array, Array]:
        k, v = super().tensors(call, entry, head, group)
        flat = v.reshape(-1)
        return k, flat[(np.arange(self.n)[:, None] * k.shape[1] + np.arange(self.dv)) % len(flat)]


class AttentionLseBaseTwo(_Attention):
    """The log-sum-exp is one to base 2."""

    def answer(self, output: Array, lse: Array) -> tuple[Array, Array]:
        return output, (lse.astype(np.float64) / np.log(2)).astype(np.float32)


class AttentionKvHeadsTiled(_Attention):
    """Head i reads KV head i mod hk."""

    def tensors(self, call: doublecheck.SelectionCall, entry: int, head: int, group: int) -> tuple[Array, Array]:
        return super().tensors(call, entry, head % call.k.shape[1], 1)


class AttentionFirstTileOnly(_Attention):
    """Of the selected keys only the first 32 of the list are read."""

    def keys(self, selected: Array) -> Array:
        return super().keys(selected)[:32]


class AttentionHalfRowUnwritten(_Attention):
    """The second half of each output row is never written: it holds what the memory held."""

    def answer(self, output: Array, lse: Array) -> tuple[Array, Array]:
        held = np.full_like(output, 7.25)
        written = (self.dv + 1) // 2
        held[..., :written] = output[..., :written]
        return held, lse
