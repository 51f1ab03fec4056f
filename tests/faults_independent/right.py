"""Right implementations that differ in the order of sums, in rounding, ties, memory and form of the answer."""

from __future__ import annotations

import heapq
from typing import ClassVar

import numpy as np

from plain import INFINITY, Array, Plain, doublecheck


class RowByRow(Plain):
    """The base itself: float32, ties to the lowest position."""


class Batched(Plain):
    """All rows at once, by einsum, with a partial sort; shares only the labels' arithmetic with the base."""

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        self.open_call(call)
        with np.errstate(all="ignore"):
            weights = self.all_weights(call)
            return {"mask": weights, "output": self.all_outputs(call, weights)}

    def all_labels(self, x: Array) -> Array:
        rows = self.call.channels[:, : self.r]
        rows = np.repeat(rows, self.h // len(rows), axis=0)
        picked = np.take_along_axis(x, rows[None, :, None], 3)
        return self.quantise(picked.reshape(-1, self.r)).reshape(picked.shape)

    def all_weights(self, call: doublecheck.Call) -> Array:
        shape = self.b, self.h, self.m, self.n
        before = np.zeros(shape, np.float32) if call.previous is None else call.previous.copy()
        if self.dense():
            return np.where(before == 0, np.float32(1), before)
        queries, keys = self.all_labels(call.q), self.all_labels(np.repeat(call.k, self.g, axis=1))
        if call.instance.heads == "summed-labels":
            queries, keys = queries.sum(1, keepdims=True), keys.sum(1, keepdims=True)
        scores = np.einsum("zhmr,zhnr->zhmn", queries, keys) / np.float32(np.sqrt(self.r)) + call.additive()
        taken = before != 0
        if self.summed:
            taken = taken.any(1, keepdims=True)
        if call.instance.heads == "summed-scores":
            scores = scores.sum(1, keepdims=True)
        scores = np.where(taken, -INFINITY, np.broadcast_to(scores, shape))
        chosen = np.zeros(shape, bool)
        np.put_along_axis(chosen, np.argpartition(-scores, self.size() - 1, axis=3)[..., : self.size()], True, 3)
        return np.where(chosen & (scores > -INFINITY), np.float32(1), before)

    def all_outputs(self, call: doublecheck.Call, weights: Array) -> Array:
        keys, values = (np.repeat(x, self.g, axis=1).astype(np.float64) for x in (call.k, call.v))
        logits = np.einsum("zhmd,zhnd->zhmn", call.q.astype(np.float64), keys) * call.scaling + call.additive()
        logits = np.where(weights != 0, logits, -np.inf)
        top = logits.max(3, keepdims=True)
        shares = np.exp(logits - np.where(top == -np.inf, 0, top)) / np.where(weights == 0, 1, weights)
        total = shares.sum(3, keepdims=True)
        return np.einsum("zhmn,zhnv->zhmv", shares, values) / np.where(total == 0, 1, total)


class Double(Plain):
    """Scores in float64 from the same labels."""

    model: ClassVar = {"labels": "exact", "kept": "f32", "accumulation": "f64"}

    def dots(self, keys: Array, query: Array) -> Array:
        return keys.astype(np.float64) @ query.astype(np.float64)

    def over_heads(self, rows: list[Array]) -> Array:
        return np.sum(rows, axis=0)


class OneByOne(Plain):
    """Every sum of products is taken one product after another, the last channel first."""

    def dots(self, keys: Array, query: Array) -> Array:
        total = np.zeros(len(keys), np.float32)
        for channel in reversed(range(self.r)):
            total += keys[:, channel] * query[channel]
        return total


class FourLanes(Plain):
    """Four partial sums, added in pairs at the end, as vector units do; heads are added from the last."""

    def dots(self, keys: Array, query: Array) -> Array:
        products = keys * query
        lanes = [products[:, lane::4].sum(1, dtype=np.float32) for lane in range(4)]
        return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])

    def over_heads(self, rows: list[Array]) -> Array:
        return super().over_heads(rows[::-1])


class SortedChannels(Plain):
    """Labels hold the channels in rising order: the same labels, summed in another order."""

    def channels(self, head: int) -> Array:
        return np.sort(super().channels(head))


class ScaledQuery(Plain):
    """The query label is divided by the root of r before the products are taken."""

    def head_scores(self, entry: int, head: int, query: int) -> Array:
        return self.dots(self.key_labels(entry, head), self.query_label(entry, head, query) / self.factor())


class TiesHighest(Plain):
    """Of equal scores the later position wins."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = np.flatnonzero(allowed)[::-1]
        return keys[np.argsort(-scores[keys], kind="stable")[:count]]


class TiesAnyOrder(Plain):
    """Of equal scores those that happen to come first win, in an order that no other call has; heads that must share
    a selection share it."""

    def order(self, parts: int) -> Array:
        entry, head, query = self.at
        at = "order", entry, 0 if self.summed else head, query
        if at not in self.memo:
            self.memo[at] = np.random.permutation(parts)
        return self.memo[at]

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        keys = self.order(self.n)
        keys = keys[allowed[keys]]
        return keys[np.argsort(-scores[keys], kind="stable")[:count]]


class HeapSelect(Plain):
    """A heap of the best keys so far."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        best: list[tuple[float, int]] = []
        for position in np.flatnonzero(allowed):
            entry = float(scores[position]), -int(position)
            if len(best) < count:
                heapq.heappush(best, entry)
            elif entry > best[0]:
                heapq.heapreplace(best, entry)
        return np.array([-position for _, position in best], int)


class RadixSelect(Plain):
    """Radix select by eight bits at a time on keys that order as the scores do."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        bits = (scores + np.float32(0)).view(np.uint32)
        ranks = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
        left, taken = np.flatnonzero(allowed), []
        for shift in (24, 16, 8, 0):
            digits = (ranks[left] >> np.uint32(shift)) & np.uint32(255)
            for digit in np.unique(digits)[::-1]:
                members = left[digits == digit]
                if len(members) > count:
                    left = members
                    break
                taken.extend(members)
                count -= len(members)
            else:
                left = left[:0]
        return np.array([*taken, *left[:count]], int)


class HalfStorage(Plain):
    """float16 and bfloat16 as PyTorch's own operations do it: scores are rounded to the type after each operation."""

    dtypes = ("f16", "bf16")
    model: ClassVar = {"labels": "exact", "kept": "storage", "accumulation": "f32"}

    def head_scores(self, entry: int, head: int, query: int) -> Array:
        dots = self.keep(self.dots(self.key_labels(entry, head), self.query_label(entry, head, query)))
        return self.keep(dots / self.factor())

    def scores(self, entry: int, head: int, query: int) -> Array:
        if self.instance.heads == "per-head":
            bias = self.keep(self.bias(entry, head, query))
            return self.keep(self.head_scores(entry, head, query) + bias)
        if self.instance.heads == "summed-scores":
            rows = [self.keep(self.head_scores(entry, i, query) + self.keep(self.bias(entry, i, query)))
                    for i in range(self.h)]
            return self.keep(self.over_heads(rows))
        return self.keep(self.summed_label_scores(entry, query) + self.keep(self.bias(entry, head, query)))

    def summed_label_scores(self, entry: int, query: int) -> Array:
        keys = self.keep(np.sum([self.key_labels(entry, i) for i in range(self.h)], axis=0, dtype=np.float32))
        label = np.sum([self.query_label(entry, i, query) for i in range(self.h)], axis=0, dtype=np.float32)
        return self.keep(self.keep(self.dots(keys, self.keep(label))) / self.factor())


class HalfStorageWideScores(Plain):
    """float16 and bfloat16 inputs and labels; scores stay in float32."""

    dtypes = ("f32", "f16", "bf16")
    model: ClassVar = {"labels": "exact", "kept": "f32", "accumulation": "f32"}


class RoundedLabels(Plain):
    """Multiplies by (2^B - 1) / range in one rounding: other half steps, declared as rounded labels."""

    model: ClassVar = {"labels": "rounded", "kept": "f32", "accumulation": "f32"}

    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        top = np.float64(2**self.instance.label_bits - 1)
        low, high = picked.min(1, keepdims=True), picked.max(1, keepdims=True)
        span = (high - low).astype(np.float64)
        scale = (top / np.where(span == 0, 1, span)).astype(np.float32)
        return np.clip(np.rint((picked - low) * scale), 0, top).astype(np.float32), scale, low


class OnlineSoftmax(Plain):
    """Attention over tiles of 16 keys with a running maximum; empty tiles change nothing."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        logits, values = self.logits(entry, head, query), self.values(entry, head)
        top, total, output = -np.inf, 0.0, np.zeros(self.dv)
        for start in range(0, self.n, 16):
            keys = start + np.flatnonzero(weights[start : start + 16])
            peak = max(top, logits[keys].max(initial=-np.inf))
            if peak == -np.inf:
                continue
            shares = np.exp(logits[keys] - peak) / weights[keys]
            shrink = np.exp(top - peak)
            top, total, output = peak, total * shrink + shares.sum(), output * shrink + shares @ values[keys]
        return output / total if total else self.empty_row(entry, head)


class SplitKeys(Plain):
    """Three splits of the keys are attended to apart and merged by their sums of exponentials."""

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        logits, values = self.logits(entry, head, query), self.values(entry, head)
        parts = []
        for keys in np.array_split(np.arange(self.n), 3):
            keys = keys[weights[keys] != 0]
            peak = logits[keys].max(initial=-np.inf)
            if peak > -np.inf:
                shares = np.exp(logits[keys] - peak) / weights[keys]
                parts.append((peak, shares.sum(), shares @ values[keys]))
        if not parts:
            return self.empty_row(entry, head)
        top = max(peak for peak, _, _ in parts)
        total = sum(np.exp(peak - top) * share for peak, share, _ in parts)
        return sum(np.exp(peak - top) * output for peak, _, output in parts) / total


class AnswersPositions(Plain):
    """Answers with the positions chosen, ascending and padded by -1, in place of a mask."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        attended = weights != 0
        width = max(1, attended.sum(3).max())
        positions = np.sort(np.where(attended, np.arange(self.n), self.n), axis=3)[..., :width]
        return {"selected": np.where(positions == self.n, -1, positions), "output": outputs}


class GivesLabels(Plain):
    """Answers with the labels, too."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        shape = self.b, self.h, self.n, self.r
        keys, queries = np.zeros(shape, np.float32), np.zeros((self.b, self.h, self.m, self.r), np.float32)
        for entry, head in np.ndindex(self.b, self.h):
            keys[entry, head] = self.key_labels(entry, head)
            for query in range(self.m):
                queries[entry, head, query] = self.query_label(entry, head, query)
        return {"mask": weights, "output": outputs, "q_labels": queries, "k_labels": keys}


class CachedLabels(Plain):
    """Keeps labels between calls, and makes those anew whose key has changed."""

    def begin(self) -> None:
        self.cache: dict = {}

    def make_key_labels(self, entry: int, head: int) -> Array:
        labels, keys = [], self.key_vectors(entry, head)[:, self.channels(head)]
        for position, key in enumerate(keys):
            slot = self.call.layer, self.call.dtype, entry, head, position
            if slot not in self.cache or not np.array_equal(self.cache[slot][0], key):
                self.cache[slot] = key, self.quantise(key[None])[0]
            labels.append(self.cache[slot][1])
        return np.array(labels)


class ShuffledPages(TiesAnyOrder):
    """Keys lie in pages of four in any order; positions are mapped back at the end."""

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        table = np.concatenate([np.arange(page * 4, page * 4 + 4) for page in self.order(-(-self.n // 4))])
        table = table[table < self.n]
        return table[Plain.choose(self, scores[table], allowed[table], count)]


class BothTypesOfZero(Plain):
    """Labels of -0 and scores of -0 appear as +0, and the reverse."""

    def head_scores(self, entry: int, head: int, query: int) -> Array:
        scores = super().head_scores(entry, head, query)
        return np.where(scores == 0, -np.copysign(np.float32(0), scores), scores)
