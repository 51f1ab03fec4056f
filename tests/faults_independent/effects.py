"""Shows that every faulty implementation departs from the right base on some random calls, without the suite.

An implementation whose fault never acts would prove nothing. Calls are of many kinds: ties, additive masks of every
shape, earlier masks with weights, layers and batches that change, lengths that grow and shrink, up to 1,500 keys.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from plain import Array, Plain, doublecheck

LOWEST = np.finfo(np.float32).min


class Source:
    """Random instances and calls, the same for the same seed."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.random, self.dtype = np.random.default_rng(seed), dtype

    def one_of(self, *choices):
        return choices[self.random.integers(len(choices))]

    def numbers(self, *shape: int) -> Array:
        """Whole numbers, which tie often, or normal ones; in float16 large enough to overflow in products."""
        numbers = self.random.integers(-2, 3, shape) if self.whole else self.random.normal(size=shape) + self.offset
        numbers = numbers * (100 if self.dtype == "f16" else 1)
        return numbers.astype(np.float16 if self.dtype == "f16" else np.float32).astype(np.float32)

    def instance(self) -> doublecheck.Instance:
        self.whole, self.offset = self.one_of(False, True), self.one_of(0, 3)
        self.hk, self.g = self.one_of(1, 2, 3), self.one_of(1, 2, 3)
        self.h, self.d, self.dv = self.hk * self.g, self.one_of(2, 4, 6, 12), self.one_of(4, 6)
        factors = [factor for factor in (1, 2, 4, 6) if self.d % factor == 0]
        rows = self.one_of(1, self.hk, self.h)
        layers = {f"model.layers.{layer}.self_attn.qk_proj":
                  [self.random.permutation(self.d).tolist() for _ in range(rows)] for layer in range(2)}
        settings = {"heavy_size": self.one_of(1, 2, 5, 12, 100, 0.3, 0.55), "group_factor": int(self.one_of(*factors)),
                    "label_bits": self.one_of(2, 4, 8, 12, 16), "dense_fallback": False,
                    "heads": self.one_of("per-head", "per-head", "summed-scores", "summed-labels")}
        return doublecheck.Instance({"settings": settings, "channel_file": json.dumps(layers)})

    def call(self, instance: doublecheck.Instance, length: int) -> doublecheck.Call:
        b, m = self.one_of(1, 1, 2, 3), min(length, self.one_of(1, 1, 3, 6) if length < 100 else 1)
        tensors = {"q": self.numbers(b, self.h, m, self.d), "k": self.numbers(b, self.hk, length, self.d),
                   "v": self.random.normal(size=(b, self.hk, length, self.dv)).astype(np.float32)}
        if self.one_of(True, False):
            shape = self.one_of(1, b), self.one_of(1, self.h), self.one_of(1, m), length
            mask = self.random.normal(size=shape) * self.one_of(0, 3)
            tensors["attention_mask"] = np.where(self.random.random(shape) < 0.4, self.one_of(-np.inf, LOWEST), mask)
        if self.one_of(True, False, False):
            weights = self.random.choice(np.array([0, 0, 0, 1, 0.5]), (b, self.h, m, length))
            tensors["previous"] = weights
        tensors = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        message = {"layer": int(self.one_of(0, 0, 1)), "causal": bool(self.one_of(True, False)), "dtype": self.dtype,
                   "scaling": float(self.one_of(self.d**-0.5, 0.25))}
        return doublecheck.Call(instance, message, tensors)

    def lengths(self) -> list[int]:
        """Lengths of the calls of one instance: growing, shrinking, or one long."""
        first = self.one_of(1, 3, 8, 9, 13, 20)
        return self.one_of([first] * 3, [first, first + 1, first + 4], [first + 9, first + 1, first + 7],
                           [self.one_of(65, 129, 200, 300, 700, 1500)])


def departs(faulty: Plain, sequences: int = 400) -> int | None:
    """After how many sequences the answer is another one than the base's; None where it never is."""
    random.seed(1)  # for faults that show now and then
    base = type(faulty).__mro__[1]() if hasattr(faulty, "offers") else Plain()
    source = Source(1, faulty.dtypes[0])
    for number in range(1, sequences + 1):
        instance = source.instance()
        for subject in (faulty, base):
            subject.configure(instance)
        for length in source.lengths():
            call = source.call(instance, length)
            if hasattr(faulty, "offers"):
                call.attention_mask = call.previous = None
                call.lengths = source.random.integers(0, length + 1, len(call.q))
            found, expected = faulty.mask(call), base.mask(call)
            if not all(np.allclose(found[name], expected[name], 1e-4, 1e-5) for name in ("mask", "output")):
                return number
    return None


def stage_departs(faulty: Any, questions: int = 400) -> int | None:
    """The same for an implementation of one stage."""
    source = np.random.default_rng(1)
    base = type(faulty).__mro__[1]()
    for number in range(1, questions + 1):
        b, hk, g, m = (int(source.integers(1, 4)) for _ in range(4))
        n, d, dv = int(source.choice([1, 3, 9, 17, 40, 300])), int(source.integers(1, 5)), int(source.integers(1, 5))
        heavy_size = int(source.integers(1, n + 1))
        scores = source.normal(size=(b, hk * g, m, n)).astype(np.float32)
        scores[source.random(scores.shape) < source.choice([0, 0.3])] = -np.inf
        if faulty.takes == "scores":
            tensors = {"scores": scores}
            call = doublecheck.ScoresCall(None, {"heavy_size": heavy_size, "dtype": "f32"}, tensors)
            found, expected = ([subject.select(call)] for subject in (faulty, base))
        else:
            order = np.sort(np.argsort(-scores, axis=3)[..., :heavy_size], axis=3).astype(np.int32)
            kept = source.integers(0, heavy_size + 1, order.shape[:3])[..., None]
            shapes = {"q": (b, hk * g, m, d), "k": (b, hk, n, d), "v": (b, hk, n, dv)}
            tensors = {name: source.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
            tensors["selected"] = np.where(np.arange(heavy_size) < kept, order, -1)
            call = doublecheck.SelectionCall(None, {"dtype": "f32", "scaling": d**-0.5}, tensors)
            found, expected = (subject.attend(call) for subject in (faulty, base))
        if not all(np.allclose(*pair, 1e-4, 1e-5) for pair in zip(found, expected)):
            return number
    return None
