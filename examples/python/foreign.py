"""Runs Triton code out of other people's packages and checkouts: on CUDA, or on CPU through Triton's interpreter.

Import this before triton. A package is loaded file by file: of its modules only those that are named, every other one
is a stand-in without content, so that a kernel needs neither the package's dependencies nor a GPU. What the code
allocates without writing to it holds numbers on purpose, and so does a margin behind it, since real memory does.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import pathlib
import random
import sys
import types
from typing import Any

import numpy as np

import torch

ON_CUDA = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if ON_CUDA else "cpu"
if not ON_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
    np.seterr(all="ignore")  # kernels overflow as they do on a GPU, silently
torch.set_num_threads(1)

MARGIN = 256  # numbers behind each allocation
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

# What decode kernels of serving engines do not offer, by the names of docs/PROTOCOL.md.
LACKS = [
    "attention_mask",
    "masks_per_head",
    "not_causal",
    "previous",
    "weights",
    "earlier_maskers",
    "dense_fallback",
    "dense_layers",
    "many_queries",
    "empty_rows",
    "channels_shared",
    "refusals",
]


class Anything:
    """A name that a stand-in has: it can be imported, inherited from and called, and does nothing."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return self


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class Package(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of a package: those of `real` in `folder`, the others as stand-ins that hold `given`."""

    def __init__(self, name: str, folder: str, real: list[str], given: dict[str, dict[str, Any]]):
        self.name, self.folder, self.real, self.given = name, pathlib.Path(folder), real, given
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname, _path=None, _target=None):
        if fullname != self.name and not fullname.startswith(self.name + "."):
            return None
        file = self.folder.joinpath(*fullname.split(".")).with_suffix(".py")
        if fullname in self.real and file.exists():
            return importlib.util.spec_from_file_location(fullname, file)
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        module.__dict__.update(self.given.get(module.__name__, {}))


class Torch:
    """torch as the code of a package sees it: "cuda" is the device at hand, and memory is never fresh.

    What `empty` and `empty_like` give is filled with `unwritten`: "nan", "large", "zero" or "random", the default,
    numbers of the size of scores.
    """

    def __init__(self, unwritten: str = "random"):
        self.unwritten = unwritten
        self.made: list[Any] = []  # buffer, how many numbers of it are used, and what its margin held
        self.topk: Any = torch.topk
        self.numbers = torch.Generator().manual_seed(0)

    def __getattr__(self, name):
        return getattr(torch, name)

    def filled(self, shape, dtype):
        count = int(np.prod(tuple(shape), dtype=int))
        buffer = torch.empty(count + MARGIN, dtype=dtype)
        if not dtype.is_floating_point:
            buffer.zero_()
        elif self.unwritten == "random":
            buffer.copy_(torch.randn(buffer.shape, generator=self.numbers) * 3)
        else:
            buffer.fill_({"nan": torch.nan, "large": torch.finfo(dtype).max / 4, "zero": 0.0}[self.unwritten])
        buffer = buffer.to(DEVICE)
        self.made.append((buffer, count, buffer[count:].clone()))
        return buffer[:count].view(tuple(shape))

    def empty(self, *shape, dtype=torch.float32, device=None, **_):
        return self.filled(shape[0] if shape and not isinstance(shape[0], int) else shape, dtype)

    def empty_like(self, other, **_):
        return self.filled(other.shape, other.dtype)

    def zeros(self, *shape, **options):
        return torch.zeros(*shape, **options | {"device": DEVICE})

    def overrun(self) -> int:
        """How many numbers behind allocations were written since this was asked last."""
        made, self.made = self.made, []
        return sum(int((~same(buffer[count:], margin)).sum()) for buffer, count, margin in made)


def same(x, y):
    return (x == y) | (x.isnan() & y.isnan())


def module(name: str) -> Any:
    """A module of a package."""
    return importlib.import_module(name)


def schedule(order: str, seed: int = 0) -> None:
    """In which order the interpreter runs the blocks of a grid: "forward" as ever, "backward" or "random".

    A GPU promises none, so that whatever depends on it is a race.
    """
    if ON_CUDA or order == "forward":
        return
    from triton.runtime import interpreter

    builder, numbers = interpreter.interpreter_builder, random.Random(seed)
    given_dim, given_idx = builder.set_grid_dim, builder.set_grid_idx
    order_of: dict[int, int] = {}

    def set_grid_dim(*dim):
        blocks = list(range(int(np.prod(dim))))[::-1]
        if order == "random":
            numbers.shuffle(blocks)
        order_of.clear()
        order_of.update(enumerate(blocks))
        given_dim(*dim)

    def set_grid_idx(x, y, z):
        dim = builder.grid_dim
        block = order_of[(x * dim[1] + y) * dim[2] + z]
        given_idx(block // (dim[1] * dim[2]), block // dim[2] % dim[1], block % dim[2])

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx


def patch_once() -> None:
    """The interpreter exchanges functions of triton.language anew for every function that a kernel calls; here once."""
    if ON_CUDA:
        return
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def patched(function):
        used = frozenset(
            id(x) for x in function.__globals__.values() if getattr(x, "__name__", "").startswith("triton")
        )
        if used not in done:
            done.add(used)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patched


def tensor(x: np.ndarray, dtype: str = "f32"):
    """An array as a tensor of `dtype` on the device."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(DTYPES[dtype]).to(DEVICE)


def commit_of(checkout: str) -> str:
    """The commit of a checkout, or what a file `commit` in it says where there is no repository."""
    file = pathlib.Path(checkout) / "commit"
    if file.exists():
        return file.read_text().strip()
    import subprocess

    command = ["git", "-C", checkout, "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
