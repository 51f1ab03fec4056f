"""Hostile memory: what a kernel is given lies amid numbers that it may not read, and may not be written to.

Each tensor is a view into a larger buffer, with an offset, gaps between its rows and the axes of heads and positions
swapped in about half of the calls. Before it, in the gaps and after it lie NaN, and then, as the call is asked again,
huge numbers (0 and 1 among integers): the answer must be the same, bit for bit. What torch gives as empty holds them,
too; with numpy it is memory that was just given back, where an answer is likely to be made. If answers differ, both are
asked again to see whether they differ anyway, and then with the numbers of one place at a time changed, to say on which
it depends. Afterwards every buffer must hold what it held. In torch the whole buffer is copied to the device.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from ._kernel import Convert, Kernel, reply

# Two numbers of each type, the halves as bits: NaN and a huge one.
POISONS: dict[str, tuple[Any, Any]] = {
    "f16": (np.uint16(0x7E00), np.uint16(0x7BFF)),
    "bf16": (np.uint16(0x7FC0), np.uint16(0x7F7F)),
    "float32": (np.float32(np.nan), np.float32(1e30)),
    "int32": (np.int32(0), np.int32(1)),
    "int64": (np.int64(0), np.int64(1)),
    "uint8": (np.uint8(0), np.uint8(1)),
}
# What fills empty memory: huge, and held by every floating type.
HUGE = 3e4
PLACES = ("before", "between the rows of", "after")
# How many numbers lie before, after each row, and after it all: odd, so that nothing is aligned by chance.
BEFORE, GAP, AFTER = 5, 3, 37
# How often both are asked again before a difference counts.
REPEATS = 3
# The place that is no tensor's.
OWN_MEMORY = ("the memory of the answer, which it does not write", "in")


class Surrounded:
    """A copy of an array amid other numbers."""

    def __init__(self, array: np.ndarray, poisons: tuple[Any, Any], huge: frozenset[str], strided: bool, swap: bool):
        axes = (0, 2, 1, 3) if strided and swap and array.ndim == 4 else tuple(range(array.ndim))
        swapped, gap = array.transpose(axes), GAP if strided else 0
        rows, width = swapped.shape[:-1], swapped.shape[-1]
        end = BEFORE + int(np.prod(rows, dtype=int)) * (width + gap)
        self.buffer = np.empty(end + AFTER, array.dtype)
        body = self.buffer[BEFORE:end].reshape(*rows, width + gap)
        for place, numbers in zip(PLACES, (self.buffer[:BEFORE], body[..., width:], self.buffer[end:]), strict=True):
            numbers[...] = poisons[place in huge]
        # An inverse of a swap is the swap.
        self.view = body[..., :width].transpose(axes)
        self.view[...] = array
        self.held = self.buffer.copy()
        self.uploaded: Any = None

    def on_device(self, convert: Convert, dtype: str) -> Any:
        """The view on a device, amid the same numbers."""
        self.uploaded = convert(self.buffer, dtype)
        strides = [stride // self.view.itemsize for stride in self.view.strides]
        return self.uploaded.as_strided(self.view.shape, strides, BEFORE)

    def written(self) -> str | None:
        """Where something was written, if anywhere: inside it, or around it."""
        if self.uploaded is not None:
            self.buffer.view(np.uint8)[...] = self.uploaded.cpu().view(sys.modules["torch"].uint8).numpy()
        changed = self.buffer.view(np.uint8) != self.held.view(np.uint8)
        if not changed.any():
            return None
        inside = self.view.copy()
        self.buffer[...] = self.held
        return "" if inside.tobytes() != self.view.tobytes() else "around "


class HostileKernel(Kernel):
    """A kernel that is asked each call twice, amid other numbers."""

    strided = True

    def ask(self, message: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """The answer to a question; `failed` if it depends on what it may not read, or if something was written to."""
        nothing = frozenset[tuple[str, str]]()
        everything = frozenset((name, place) for name in tensors for place in PLACES) | {OWN_MEMORY}
        first = self.once(message, tensors, nothing)
        if first[0] != "answer" or same(first, second := self.once(message, tensors, everything)):
            return first
        for _ in range(REPEATS):
            alike = same(first, self.once(message, tensors, nothing))
            if not (alike and same(second, self.once(message, tensors, everything))):
                return first  # it differs from time to time, which the check itself looks into
        places = [of for of in sorted(everything) if not same(first, self.once(message, tensors, frozenset({of})))]
        where = ", ".join(f"{place} {name}" for name, place in places) or "around several tensors together"
        return "failed", f"the answer depends on what lies {where}: it differs with NaN and with huge numbers there"

    def once(
        self, message: dict[str, Any], tensors: dict[str, np.ndarray], huge: frozenset[tuple[str, str]]
    ) -> tuple[Any, ...]:
        """Asks with huge numbers in some places of some tensors and NaN in the others."""
        # By the question itself, so that whoever asks it again gives the same.
        swap = bool(zlib.crc32(b"".join(array.tobytes() for array in tensors.values())) & 1)
        surrounded = {}
        for name, array in tensors.items():
            poisons = POISONS[message["dtype"] if array.dtype == np.uint16 else array.dtype.name]
            places = frozenset(place for of, place in huge if of == name)
            surrounded[name] = Surrounded(array, poisons, places, self.strided, swap)
        views = {name: one.view for name, one in surrounded.items()}
        if self.arrays.source == "torch":
            with poisoned_empty(sys.modules["torch"], OWN_MEMORY in huge):
                answer = reply(*self.server.reply(message, self.uploaded(message, surrounded)))
        else:
            given = self.arrays.all(message, views)
            with poisoned_numpy(OWN_MEMORY in huge):
                answer = reply(*self.server.reply(message, given))
        if answer[0] == "answer":
            # An answer may be a view of what was given.
            answer = "answer", [(name, kind, array.copy()) for name, kind, array in answer[1]]
        for name, one in surrounded.items():
            if (where := one.written()) is not None:
                return "failed", f"the kernel wrote {where or 'to '}{name}, which is not its own"
        return answer

    def uploaded(self, message: dict[str, Any], surrounded: dict[str, Surrounded]) -> dict[str, Any]:
        """The tensors of a question in torch: views of whole buffers, on the device."""
        convert = self.arrays.convert
        assert convert is not None, "torch converts"
        tensors: dict[str, Any] = {"numpy": {name: one.view for name, one in surrounded.items()}, "convert": convert}
        for name, one in surrounded.items():
            dtype = one.buffer.dtype
            tensors[name] = one.on_device(convert, message["dtype"] if dtype == np.uint16 else dtype.name)
        return tensors


@contextmanager
def poisoned_numpy(huge: bool) -> Iterator[None]:
    """While it is entered, what numpy gives as empty is full of NaN or huge numbers (1 or 0 among integers)."""

    def poisoned(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def empty(*arguments: Any, **named: Any) -> Any:
            array = function(*arguments, **named)
            if array.dtype.kind in "fc":
                array.fill(HUGE if huge else np.nan)
            elif array.dtype.kind in "iub":
                array.fill(int(huge))
            return array

        return empty

    with mock.patch.multiple(np, empty=poisoned(np.empty), empty_like=poisoned(np.empty_like)):
        yield


def poisoned_empty(torch: ModuleType, huge: bool) -> Any:
    """While it is entered, what torch gives as empty is full of NaN or huge numbers."""
    empty = {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}

    class Poisoned(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(self, function: Any, _types: Any, arguments: Any = (), named: Any = None) -> Any:
            result = function(*arguments, **(named or {}))
            if function in empty:
                floating = HUGE if huge else float("nan")
                result.fill_(floating if result.dtype.is_floating_point else int(huge))
            return result

    return Poisoned()


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two answers are the same, bit for bit."""
    if a[0] != "answer" or b[0] != "answer":
        return a == b
    return [(name, kind, x.shape, x.tobytes()) for name, kind, x in a[1]] == [
        (name, kind, x.shape, x.tobytes()) for name, kind, x in b[1]
    ]
