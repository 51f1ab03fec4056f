"""A kernel asked in this process: tensors as it wants them, its answers as arrays, its errors as answers."""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from . import _serve


def native() -> Any:
    """The compiled module. Errors: ImportError where the package is used without it."""
    try:
        return importlib.import_module("doublecheck._native")
    except ImportError as error:
        missing = f"doublecheck._native: found no compiled module ({error}), expected the wheel: pip install "
        raise ImportError(missing + "doublecheck-attention; without it `serve` works alone") from error


class Convert(Protocol):
    """Makes a tensor of an array; for f16 and bf16 the array holds bits, as u16."""

    def __call__(self, array: np.ndarray, dtype: str) -> Any: ...


class Arrays:
    """What kernels are given: float32 arrays of numpy, tensors of torch, or what a function makes of DLPack.

    `bits` says whether numbers of f16 and bf16 arrive as they are; numpy, which has no bf16, gets them as float32.
    """

    def __init__(self, arrays: str | Callable[[Any], Any] = "numpy", device: str = "cpu"):
        self.convert: Convert | None = None
        self.source, self.device = arrays, device
        self.named = {} if arrays == "numpy" or callable(arrays) else {"arrays": arrays, "device": device}
        if arrays == "torch":
            self.convert = torch_tensors(importlib.import_module("torch"), device)
        elif arrays == "dlpack":
            self.convert = dlpack_tensors(lambda tensor: tensor)
        elif callable(arrays):
            self.convert = dlpack_tensors(arrays)
        elif arrays != "numpy":
            raise ValueError(f"arrays: found {arrays!r}, expected 'numpy', 'torch', 'dlpack' or a function of a tensor")
        if device != "cpu" and arrays != "torch":
            raise ValueError(f"device: found {device!r} with arrays={arrays!r}, expected 'cpu', or arrays='torch'")
        self.bits = self.convert is not None

    def all(self, message: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
        """The tensors of a question. q, k, v and scores have the type of the question, the others their own."""
        if (convert := self.convert) is None:
            return tensors
        converted = {
            name: convert(array, message["dtype"] if array.dtype == np.uint16 else array.dtype.name)
            for name, array in tensors.items()
        }
        return {**converted, "numpy": tensors, "convert": convert}


def torch_tensors(torch: ModuleType, device: str) -> Convert:
    """Tensors over the memory of the arrays on the CPU, copies elsewhere."""
    halves = {"f16": torch.float16, "bf16": torch.bfloat16}

    def convert(array: np.ndarray, dtype: str) -> Any:
        tensor = (
            torch.from_numpy(array.view(np.int16)).view(halves[dtype]) if dtype in halves else torch.from_numpy(array)
        )
        return tensor if device == "cpu" else tensor.to(device)

    return convert


def dlpack_tensors(function: Callable[[Any], Any]) -> Convert:
    """What a function makes of something with `__dlpack__`."""

    def convert(array: np.ndarray, dtype: str) -> Any:
        if dtype == "bf16":
            return function(native().Bfloat16(array))
        return function(array.view(np.float16) if dtype == "f16" else array)

    return convert


def made(kernel: Any) -> Any:
    """The kernel itself: a class makes one without arguments."""
    return kernel() if isinstance(kernel, type) else kernel


class Kernel:
    """What the compiled module asks."""

    def __init__(self, subject: object, arrays: Arrays, refusals: Iterable[type[BaseException]], takes: str):
        self.arrays = arrays
        # How it is asked, where not plainly: options of `check`.
        self.ways: dict[str, Any] = {}
        self.server = _serve.Server(subject, refusals, takes)
        self.server.describe = describe  # type: ignore[method-assign]

    def configure(self, message: str) -> tuple[Any, ...]:
        """A new instance."""
        return reply(*self.server.reply({"type": "configure", **json.loads(message)}, {}))

    def open(self, message: str) -> tuple[Any, ...]:
        """A new session, whose steps are asked as questions."""
        return reply(*self.server.reply({"type": "open", **json.loads(message)}, {"convert": self.arrays.convert}))

    def ask(self, message: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """The answer to a question."""
        given = tensors if self.arrays.convert is None else self.arrays.all(message, tensors)
        return reply(*self.server.reply(message, given))


def reply(message: dict[str, Any], tensors: Iterable[tuple[str, str, np.ndarray]]) -> tuple[Any, ...]:
    """An answer as the compiled module reads it."""
    if message["type"] == "answer":
        return "answer", tensors
    if message["type"] == "refused":
        return "refused", message.get("kind"), message["message"]
    return (message["type"], message.get("message"))


def describe(error: BaseException) -> str:
    """The traceback of what a kernel raised, from the kernel on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (_serve.__file__, __file__):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return f"{type(error).__name__}: {error}\n" + "".join(lines).rstrip()
