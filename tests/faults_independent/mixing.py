"""Faults that mix entries of a batch, rows or queries with each other."""

from __future__ import annotations

from plain import INFINITY, Array, Plain


class QueryStrideOneToken(Plain):
    """Entries' queries are addressed one token apart where they lie m tokens apart."""

    def query_vector(self, entry: int, head: int, query: int) -> Array:
        place = entry + query
        return self.call.q[place // self.m, head, place % self.m]


class OutputsFolded(Plain):
    """The output's batch stride is 0: all entries write the first one's place, and the others' stays zero."""

    def answer(self, weights: Array, outputs: Array) -> dict[str, Array]:
        outputs[0], outputs[1:] = outputs[-1].copy(), 0
        return super().answer(weights, outputs)


class KeysOfFirstEntryRanked(Plain):
    """Labels of entry 0 serve all entries."""

    def make_key_labels(self, entry: int, head: int) -> Array:
        return super().make_key_labels(0, head)


class SelectionOfFirstEntry(Plain):
    def choose(self, scores: Array, allowed: Array, count: int) -> Array:
        _, head, query = self.at
        scores = self.scores(0, head, query)
        return super().choose(scores, self.allowed(0, head, query, scores), count)


class TileTailHitsNextRow(Plain):
    """Scores are stored in tiles of 8; what a row's last tile has left over lands on the first keys of the next row."""

    TILE = 8

    def scores(self, entry: int, head: int, query: int) -> Array:
        scores = super().scores(entry, head, query).copy()
        if query:
            scores[: -self.n % self.TILE] = -INFINITY
        return scores


class EarlierOfFirstEntry(Plain):
    """The earlier mask of entry 0 decides which keys are candidates in every entry."""

    def blocked(self, entry: int, head: int, query: int) -> Array:
        return super().blocked(0, head, query)
