"""The questions: those that `doublecheck check` asks, written down meanwhile, and random ones as many tests use.

Run with a storage type and a file, it answers as the plain right implementation and writes each question to the file.
"""

from __future__ import annotations

import json
import pathlib
import pickle
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from subjects import KEEP, WIDE, Array, Plain, doublecheck, serve, stored

# A layer of four heads over two KV heads, one query, d / 4 channels of 4 bits.
RANDOM, KEYS, HEADS, KV_HEADS, HEAD_DIM, HEAVY_SIZE = 100, 4096, 4, 2, 64, 256
SETTINGS = {"heavy_size": HEAVY_SIZE, "group_factor": 4, "label_bits": 4, "heads": "per-head", "dense_fallback": False}

Question = tuple[doublecheck.Instance, bool, doublecheck.Call]


class Recorder:
    """Writes what the subject is asked to a file."""

    def __init__(self, subject: Plain, path: str) -> None:
        self.subject, self.file = subject, open(path, "wb")  # noqa: SIM115

    def __getattr__(self, name: str):
        return getattr(self.subject, name)

    def configure(self, instance: doublecheck.Instance) -> None:
        self.fresh, self.asked = True, vars(instance).copy()
        self.subject.configure(instance)

    def mask(self, call: doublecheck.Call) -> dict[str, Array]:
        given = {name: value for name, value in vars(call).items() if name != "instance"}
        pickle.dump((self.asked if self.fresh else None, given), self.file)
        self.file.flush()
        self.fresh = False
        return self.subject.mask(call)


def remade(kind: Any, attributes: dict) -> Any:
    made = kind.__new__(kind)
    vars(made).update(attributes)
    return made


def recorded(path: str) -> Iterator[Question]:
    """Instance, whether it is a new one, and call."""
    instance: Any = None
    with open(path, "rb") as file:
        while True:
            try:
                attributes, given = pickle.load(file)
            except EOFError:
                return
            if attributes is not None:
                instance = remade(doublecheck.Instance, attributes)
            yield instance, attributes is not None, remade(doublecheck.Call, {**given, "instance": instance})


def random_normal(dtype: str) -> Iterator[Question]:
    """Decode steps of n = 4,096 keys with normal numbers, one call for each instance, the same numbers in each type."""
    source = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return KEEP[dtype](source.standard_normal(shape, np.float32))

    for _ in range(RANDOM):
        rows = [source.permutation(HEAD_DIM).tolist() for _ in range(HEADS)]
        file = json.dumps({"model.layers.0.self_attn.qk_proj": rows})
        instance = doublecheck.Instance({"settings": SETTINGS, "channel_file": file})
        tensors = {
            "q": normal(1, HEADS, 1, HEAD_DIM),
            "k": normal(1, KV_HEADS, KEYS, HEAD_DIM),
            "v": normal(1, KV_HEADS, KEYS, HEAD_DIM),
        }
        message = {"layer": 0, "causal": True, "dtype": dtype, "scaling": HEAD_DIM**-0.5}
        yield instance, True, doublecheck.Call(instance, message, tensors)


def write_case(folder: pathlib.Path, number: int, question: Question) -> None:
    """A random question as a case file (SPEC 6), which `doublecheck verify` judges."""
    _, _, call = question
    dtype = call.dtype
    kind, of = {"f32": ("F32", np.float32), "f16": ("F16", np.float16), "bf16": ("BF16", np.uint16)}[dtype]
    header: dict = {"__metadata__": {"case": json.dumps({**SETTINGS, "causal": True, "dtype": dtype})}}
    data, end = [], 0
    for name, array, type_name in [
        *((name, getattr(call, name), kind) for name in "qkv"),
        ("channels", call.channels.astype(np.int64), "I64"),
    ]:
        stored_as = (
            array if type_name == "I64" else (array.view(np.uint32) >> 16 if dtype == "bf16" else array).astype(of)
        )
        content = stored_as.tobytes()
        header[name] = {"dtype": type_name, "shape": array.shape, "data_offsets": (end, end + len(content))}
        data.append(content)
        end += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / f"random-{number:03}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


if __name__ == "__main__":
    plain = stored(Plain, sys.argv[1])
    assert plain.model == WIDE
    serve(Recorder(plain, sys.argv[2]), "recorder")
