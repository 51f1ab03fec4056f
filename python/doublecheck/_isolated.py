"""A kernel in a process of its own, which may crash or hang: `check(..., isolate=True)` asks it as a command.

The command imports the kernel again, as `multiprocessing` does: a function or a class at the top of a module, whose
file is run once more where that is the main program.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import _serve
from ._kernel import Arrays, Convert

# What a main program that is run again is called, as by multiprocessing: `if __name__ == "__main__"` is not entered.
MAIN = "__mp_main__"


def name_of(found: Any, field: str) -> str:
    """Where to import a function or a class from. Errors: ValueError where it cannot be."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    expected = f"{field}: found {found!r}, expected a function or a class at the top of a module, for isolate=True"
    if module is None or not name.isidentifier():
        raise ValueError(expected)
    if module in ("__main__", MAIN):
        module = getattr(sys.modules["__main__"], "__file__", None)
        if module is None:
            raise ValueError(expected)
        module = os.path.abspath(module)
    return f"{module}:{name}"


def command(
    kernel: Any, arrays: str | Callable[[Any], Any], device: str, refusals: Iterable[type[BaseException]], said: dict
) -> str:
    """The command that serves a kernel, for sh. Errors: ValueError where something cannot be imported."""
    job = {
        "path": sys.path,
        "kernel": name_of(kernel, "kernel"),
        "arrays": arrays if isinstance(arrays, str) else name_of(arrays, "arrays"),
        "device": device,
        "refusals": [name_of(refusal, "refusals") for refusal in refusals],
        "said": said,
    }
    text = base64.b64encode(json.dumps(job).encode()).decode()
    # The package is found first wherever this process found it.
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = f"import sys; sys.path.insert(0, {folder!r}); from doublecheck._isolated import main; main()"
    return shlex.join([sys.executable, "-c", program, text])


def find(where: str) -> Any:
    """What a name stands for."""
    module, _, name = where.rpartition(":")
    if not os.path.isabs(module):
        return getattr(importlib.import_module(module), name)
    if MAIN not in sys.modules:
        namespace = runpy.run_path(module, run_name=MAIN)
        sys.modules[MAIN] = type(sys)(MAIN)
        sys.modules[MAIN].__dict__.update(namespace)
    return getattr(sys.modules[MAIN], name)


class Converted:
    """A kernel that gets its tensors as it wants them."""

    def __init__(self, kernel: Any, convert: Convert, takes: str):
        self.convert = convert
        question = _serve.STAGES[takes][0]
        setattr(self, question, self.ask)
        self.method = getattr(kernel, question, kernel)
        if hasattr(kernel, "configure"):
            self.configure = kernel.configure

    def ask(self, call: Any) -> Any:
        """The kernel's answer to a call."""
        call._convert = self.convert
        for name in ("q", "k", "v", "scores"):
            if isinstance(tensor := getattr(call, name, None), np.ndarray):
                setattr(call, name, self.convert(bits(tensor, call.dtype), call.dtype))
        for name in ("attention_mask", "previous", "lengths", "head_weights", "selected"):
            if isinstance(tensor := getattr(call, name, None), np.ndarray):
                setattr(call, name, self.convert(tensor, tensor.dtype.name))
        return self.method(call)


class ConvertedEngine(Converted):
    """A kernel that holds keys, and gets its tensors as it wants them."""

    def __init__(self, kernel: Any, convert: Convert, takes: str):
        super().__init__(kernel, convert, takes)
        self.fork, self.truncate, self.free = kernel.fork, kernel.truncate, kernel.free
        self.kernel, self.dtype = kernel, ""

    def open(self, opening: Any) -> None:
        """A new session."""
        opening.convert, self.dtype = self.convert, opening.dtype
        self.kernel.open(opening)

    def append(self, layer: int, requests: list[tuple[int, int]], *rows: np.ndarray) -> None:
        """New keys and values."""
        self.kernel.append(layer, requests, *self.given(rows))

    def attend(self, layer: int, requests: list[tuple[int, int]], *rows: np.ndarray) -> Any:
        """The kernel's answer to queries."""
        return self.kernel.attend(layer, requests, *self.given(rows))

    def given(self, rows: tuple[np.ndarray, ...]) -> list[Any]:
        """Rows as the kernel wants them; what a Cached keeps is of numpy."""
        arrays = [bits(array, self.dtype) for array in rows]
        return arrays if isinstance(self.kernel, _serve.Cached) else [self.convert(x, self.dtype) for x in arrays]


def bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of a type in the form in which they are converted: f16 and bf16 as bits. They are exact."""
    if dtype == "f16":
        return values.astype(np.float16).view(np.uint16)
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values


def main() -> None:
    """Serves the kernel that the last argument describes."""
    job = json.loads(base64.b64decode(sys.argv[-1]))
    sys.path[:] = job["path"]
    kernel = find(job["kernel"])
    if isinstance(kernel, type):
        kernel = kernel()
    arrays = Arrays(find(job["arrays"]) if ":" in job["arrays"] else job["arrays"], job["device"])
    takes = job["said"].get("takes", "inputs")
    subject = kernel
    if arrays.convert is not None:
        converted = ConvertedEngine if _serve.holds_keys(kernel) else Converted
        subject = converted(kernel, arrays.convert, takes)
    _serve.serve(subject, refusals=[find(name) for name in job["refusals"]], shared_memory=True, **job["said"])
