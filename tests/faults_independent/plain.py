"""Double Sparsity on numpy, one row at a time, written from docs/SPEC.md.

`Plain` is right. Each step of the algorithm is a method that answers for one entry, head and query, so that an
implementation with another step overrides that step. It keeps nothing between calls.
"""

from __future__ import annotations

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, os.environ.get("DOUBLECHECK_PYTHON") or str(HERE.parents[1] / "python"))
import doublecheck
import numpy as np

Array = np.ndarray
INFINITY = np.float32(np.inf)


def keep_f32(x: Array) -> Array:
    return np.asarray(x, np.float32)


def keep_f16(x: Array) -> Array:
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def keep_bf16(x: Array) -> Array:
    """Rounds float32 to the nearest bfloat16, ties to even; the numbers here are never NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(np.shape(x))


KEEP = {"f32": keep_f32, "f16": keep_f16, "bf16": keep_bf16}


class Plain:
    """A right implementation; see the module."""

    dtypes: tuple[str, ...] = ("f32",)
    heads: tuple[str, ...] = ("per-head", "summed-scores", "summed-labels")
    lacks: tuple[str, ...] = ("earlier_maskers", "refusals")
    model: dict[str, str] | None = None
    largest_keys: int | None = None

    # --- an instance and its calls ------------------------------------------------------------------------------------

    def configure(self, instance: doublecheck.Instance) -> None:
        self.begin()

    def begin(self) -> None:
        """A new instance: what is kept between calls starts anew."""

    def open_call(self, call: doublecheck.Call) -> None:
        """A new call: its sizes, and nothing remembered of the call before."""
        self.call, self.instance = call, call.instance
        self.b, self.h, self.m, self.d = call.q.shape
        self.hk, self.n, self.dv = call.k.shape[1], call.k.shape[2], call.v.shape[3]
        self.g, self.r = self.h // self.hk, self.d // call.instance.group_factor
        self.summed = call.instance.heads != "per-head"
        self.keep = KEEP[call.dtype]
        self.memo: dict = {}

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        self.open_call(call)
        weights = np.zeros((self.b, self.h, self.m, self.n), np.float32)
        outputs = np.zeros((self.b, self.h, self.m, self.dv), np.float32)
        with np.errstate(all="ignore"):
            for entry, head, query in np.ndindex(self.b, self.h, self.m):
                self.at = entry, head, query
                weights[self.at] = self.row_weights(entry, head, query)
                outputs[self.at] = self.attend(entry, head, query, weights[self.at])
        return self.answer(weights, outputs)

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        return {"mask": weights, "output": outputs}

    # --- which keys a row attends to ----------------------------------------------------------------------------------

    def size(self) -> int:
        """H of this call."""
        asked = self.instance.heavy_size
        return max(1, min(self.n, asked if isinstance(asked, int) else int(np.floor(asked * self.n))))

    def dense(self) -> bool:
        fallback = self.instance.dense_fallback and self.n - self.m <= self.size()
        return bool(fallback) or self.call.layer in self.instance.dense_layers

    def row_weights(self, entry: int, head: int, query: int) -> Array:
        """The mask's row: earlier weights, and 1 at the keys that are chosen."""
        weights = self.earlier(entry, head, query).copy()
        if self.dense():
            weights[weights == 0] = 1
            return weights
        scores = self.scores(entry, head, query)
        allowed = self.allowed(entry, head, query, scores)
        weights[self.choose(scores, allowed, self.size())] = 1
        return weights

    def earlier(self, entry: int, head: int, query: int) -> Array:
        previous = self.call.previous
        return np.zeros(self.n, np.float32) if previous is None else previous[entry, head, query]

    def blocked(self, entry: int, head: int, query: int) -> Array:
        """Keys that an earlier mask attends to already."""
        if not self.summed:
            return self.earlier(entry, head, query) != 0
        return np.any([self.earlier(entry, i, query) != 0 for i in range(self.h)], axis=0)

    def allowed(self, entry: int, head: int, query: int, scores: Array) -> Array:
        """The candidates, bool [n]."""
        return (scores > -INFINITY) & ~self.blocked(entry, head, query)

    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        """The positions of the `count` largest scores among the candidates; ties go to the lowest."""
        keys = np.flatnonzero(allowed)
        return keys[np.argsort(-scores[keys], kind="stable")[:count]]

    # --- scores -------------------------------------------------------------------------------------------------------

    def bias(self, entry: int, head: int, query: int) -> Array:
        """A of one row, float32 [n], with causality in it."""
        given = self.call.attention_mask
        bias = np.zeros(self.n, np.float32)
        if given is not None:
            e, i, t = (0 if size == 1 else at for size, at in zip(given.shape, (entry, head, query)))
            bias += given[e, i, t]
        if self.call.causal:
            bias[np.arange(self.n) > self.position(query)] = -INFINITY
        return bias

    def position(self, query: int) -> int:
        return self.n - self.m + query

    def dots(self, keys: Array, query: Array) -> Array:
        """The products of all key labels [n, r] with a query label [r], summed in float32."""
        return keys @ query

    def factor(self) -> np.float32:
        return np.float32(np.sqrt(self.r))

    def head_scores(self, entry: int, head: int, query: int) -> Array:
        """Scores of one head alone, without A."""
        return self.dots(self.key_labels(entry, head), self.query_label(entry, head, query)) / self.factor()

    def scores(self, entry: int, head: int, query: int) -> Array:
        """What the row's keys are ranked by, in the head mode of the instance."""
        mode = self.instance.heads
        if mode == "per-head":
            return self.head_scores(entry, head, query) + self.bias(entry, head, query)
        if mode == "summed-scores":
            known = self.memo.get(("scores", entry, query))
            if known is None:
                rows = [self.head_scores(entry, i, query) + self.bias(entry, i, query) for i in range(self.h)]
                known = self.memo["scores", entry, query] = self.over_heads(rows)
            return known
        return self.summed_label_scores(entry, query) + self.bias(entry, head, query)

    def over_heads(self, rows: list[Array]) -> Array:
        return np.sum(rows, axis=0, dtype=np.float32)

    def summed_label_scores(self, entry: int, query: int) -> Array:
        known = self.memo.get(("labels", entry, query))
        if known is None:
            keys = np.sum([self.key_labels(entry, i) for i in range(self.h)], axis=0, dtype=np.float32)
            label = np.sum([self.query_label(entry, i, query) for i in range(self.h)], axis=0, dtype=np.float32)
            known = self.memo["labels", entry, query] = self.dots(keys, label) / self.factor()
        return known

    # --- labels -------------------------------------------------------------------------------------------------------

    def kv_head(self, head: int) -> int:
        return head // self.g

    def channel_row(self, head: int) -> int:
        """Rows are the query heads, the KV heads, or one for all."""
        return head * len(self.call.channels) // self.h

    def channels(self, head: int) -> Array:
        return self.call.channels[self.channel_row(head)][: self.r]

    def query_vector(self, entry: int, head: int, query: int) -> Array:
        return self.call.q[entry, head, query]

    def key_vectors(self, entry: int, head: int) -> Array:
        return self.call.k[entry, self.kv_head(head)]

    def query_label(self, entry: int, head: int, query: int) -> Array:
        at = "query", entry, head, query
        if at not in self.memo:
            picked = self.query_vector(entry, head, query)[self.channels(head)]
            self.memo[at] = self.quantise_query(picked)
        return self.memo[at]

    def key_labels(self, entry: int, head: int) -> Array:
        at = "keys", entry, head
        if at not in self.memo:
            self.memo[at] = self.make_key_labels(entry, head)
        return self.memo[at]

    def make_key_labels(self, entry: int, head: int) -> Array:
        return self.quantise_keys(self.key_vectors(entry, head)[:, self.channels(head)])

    def quantise_query(self, picked: Array) -> Array:
        return self.quantise(picked[None])[0]

    def quantise_keys(self, picked: Array) -> Array:
        return self.quantise(picked)

    def quantise(self, picked: Array) -> Array:
        """Labels [n, r] of the picked channels [n, r]."""
        return picked if self.instance.label_bits == 16 else self.decode(*self.encode(picked))

    def encode(self, picked: Array) -> tuple[Array, Array, Array]:
        """Codes [n, r], and scale and low [n, 1]."""
        keep, top = self.keep, np.float32(2**self.instance.label_bits - 1)
        low, high = picked.min(1, keepdims=True), picked.max(1, keepdims=True)
        span = keep(high - low)
        scale = keep(keep(1 / np.where(span == 0, np.float32(1), span)) * top)
        codes = np.clip(np.rint(keep(keep(picked - low) * scale)), 0, keep(top))
        return codes, scale, low

    def decode(self, codes: Array, scale: Array, low: Array) -> Array:
        return self.keep(self.keep(codes / scale) + low)

    # --- attention ----------------------------------------------------------------------------------------------------

    def value_head(self, head: int) -> int:
        return head // self.g

    def values(self, entry: int, head: int) -> Array:
        return self.call.v[entry, self.value_head(head)]

    def scaling(self) -> float:
        return self.call.scaling

    def products(self, entry: int, head: int, query: int) -> Array:
        """q·k·scaling of one row, float64 [n]."""
        keys = self.key_vectors(entry, head).astype(np.float64)
        return keys @ self.query_vector(entry, head, query).astype(np.float64) * self.scaling()

    def logits(self, entry: int, head: int, query: int) -> Array:
        """q·k·scaling + A of one row, float64 [n]."""
        return self.products(entry, head, query) + self.bias(entry, head, query)

    def attend(self, entry: int, head: int, query: int, weights: Array) -> Array:
        """The output row [dv]; zeros where nothing is attended to."""
        keys = np.flatnonzero(weights)
        logits = self.logits(entry, head, query)[keys]
        if not len(keys) or logits.max() == -np.inf:
            return self.empty_row(entry, head)
        shares = np.exp(logits - logits.max()) / weights[keys]
        return shares @ self.values(entry, head)[keys] / shares.sum()

    def empty_row(self, entry: int, head: int) -> Array:
        return np.zeros(self.dv, np.float32)
