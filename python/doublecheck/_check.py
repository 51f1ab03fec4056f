"""`check`: a kernel is asked in this process, until a time is over or something interrupts it."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from . import _serve
from ._graphs import Graphs
from ._hostile import HostileKernel
from ._isolated import command
from ._kernel import Arrays, Kernel, made, native
from ._paged import PAGE_SIZE, Paged
from ._report import Report


def check(
    kernel: Any,
    *,
    seconds: float | None = None,
    cases: int | None = None,
    seed: int = 0,
    arrays: str | Callable[[Any], Any] = "numpy",
    device: str = "cpu",
    refusals: Iterable[type[BaseException]] = (),
    takes: str = "inputs",
    largest: int | None = None,
    known: Sequence[str] = (),
    goldens: bool = True,
    shrink_seconds: float = 60.0,
    stop_after: int | None = None,
    repeat: int = 1,
    probes: bool = True,
    conditions: bool = True,
    progress: bool | None = None,
    hostile: bool | str = False,
    replay: str | None = None,
    layout: str | None = None,
    page_size: int = PAGE_SIZE,
    shard: tuple[int, int] | None = None,
    isolate: bool = False,
    timeout: float = 30.0,
    **declared: Any,
) -> Report:
    """Asks a kernel random sequences of calls, judges every answer, and shrinks and explains what is wrong.

    `kernel` is a function of a Call that gives a mask [b, h, m, n], a pair of mask and output [b, h, m, dv], or a dict
    of tensors; or an object with `mask(call)` and, if it wants, `configure(instance)`: what `serve` takes. A class
    makes such an object. One with `open`, `append`, `attend`, `fork`, `truncate` and `free`, as `Cached` has them,
    holds keys itself, and is asked in sessions, too.

    `arrays` says what a call holds: "numpy" (float32, whatever the dtype), "torch" (tensors of the dtype on `device`),
    "dlpack" (objects with `__dlpack__`) or a function of such an object, like `jax.numpy.from_dlpack`. A kernel may
    write to what it is given. Answers may be any of these, on any device that copies to the CPU.

    `seconds` is for how long it is asked, 60 by default; with `cases` alone each run asks the same sequences, so many.
    `largest` is the most keys of a call. `known` names divergences that are accepted, `shrink_seconds=0` leaves
    counterexamples as they were found, `goldens=False` leaves out the bundled cases, `probes=False` the measurements
    that come first, `conditions=False` the search for what a finding depends on. `progress` tells how far it is on
    standard error: by default where that is a terminal.

    `hostile=True` gives each tensor as a view amid NaN and huge numbers, with gaps between its rows, and asks each call
    twice: an answer that depends on them, or on what its own memory held before, is a finding, and so is a tensor that
    was written to. "contiguous" leaves the gaps out, for kernels that demand that.

    `replay="cuda-graph"`, with `arrays="torch", device="cuda"`, captures the kernel in a CUDA graph once for each
    instance and shape, with zeros, and answers by replays.

    `layout="paged"`, in numpy or torch, gives keys and values in shuffled pages of `page_size` with spare ones amid
    them: `k_pages` [pages, page size, hk, d] and `v_pages` in place of k and v, `page_table` [b, pages of an entry] and
    `lengths` [b].

    `shard=(k, n)` asks the k-th of n shares of the same questions; `merge` puts their reports together.

    `isolate=True` asks it in a process of its own, which may crash or take more than `timeout` seconds for an answer:
    both are findings. The kernel is imported there, as by multiprocessing: a function, or a class that is made there.

    `declared` is what the kernel supports and how it rounds: name, model, dtypes, heads, rules, largest_keys, domain,
    promises, takes, gives, offers, shapes, lacks; docs/implementers.md says what each means.

    An exception of the kernel is a finding with its traceback. Ctrl-C ends the check after the answer it waits for, and
    the report holds what was found; a second one raises KeyboardInterrupt. A kernel that does not return is waited for
    unless it is isolated.

    Errors: ValueError for a declaration that cannot be, with the field, what was found and what was expected.
    """
    declaration = json.dumps(_serve.declaration(kernel, takes=takes, **declared))
    options: dict[str, Any] = {
        "seconds": 60.0 if seconds is None and cases is None else seconds,
        "cases": cases,
        "seed": seed,
        "largest_keys": largest,
        "known": list(known),
        "goldens": goldens,
        "shrink_seconds": float(shrink_seconds),
        "stop_after": stop_after,
        "repeat": repeat,
        "probes": probes,
        "conditions": conditions,
        "shard": shard,
    }
    given = Arrays(arrays, device)
    ways = {"hostile": hostile, "replay": replay, "layout": layout}
    if isolate:
        options |= isolated(kernel, given, refusals, declaration, timeout, ways)
    of = asked(kernel if isolate else made(kernel), given, refusals, takes, hostile, replay, layout, page_size)
    return run(of, declaration, progress, options)


def isolated(
    kernel: Any,
    arrays: Arrays,
    refusals: Iterable[type[BaseException]],
    declaration: str,
    timeout: float,
    ways: dict[str, Any],
) -> dict[str, Any]:
    """The options of a check that asks a kernel in a process of its own, where it is not asked in other `ways`."""
    for name, found in ways.items():
        if found:
            raise ValueError(f"isolate: found {name}={found!r} beside it, expected one of the two")
    served = command(kernel, arrays.source, arrays.device, refusals, json.loads(declaration))
    return {"command": served, "timeout": float(timeout)}


def asked(
    kernel: Any,
    arrays: Arrays,
    refusals: Iterable[type[BaseException]],
    takes: str,
    hostile: bool | str = False,
    replay: str | None = None,
    layout: str | None = None,
    page_size: int = PAGE_SIZE,
) -> Kernel:
    """The kernel, ready to be asked."""
    ways = {"hostile": hostile, "replay": replay, "layout": layout}
    if takes == "inputs" and _serve.holds_keys(kernel):
        for name, found in ways.items():
            if found:
                expected = "its function `mask` alone, since sessions are asked plainly"
                raise ValueError(f"{name}: found {found!r} for an object that holds keys, expected {expected}")
    if hostile not in (False, True, "contiguous"):
        raise ValueError(f"hostile: found {hostile!r}, expected True, False or 'contiguous'")
    if hostile:
        amid = HostileKernel(kernel, arrays, refusals, takes)
        amid.strided = hostile != "contiguous"
    of = amid if hostile else Kernel(kernel, arrays, refusals, takes)
    of.ways |= {name: found for name, found in ways.items() if found}
    if replay is not None:
        if (replay, hostile, arrays.device.partition(":")[0]) != ("cuda-graph", False, "cuda"):
            found = f"{replay!r} with hostile={hostile!r} and device={arrays.device!r}"
            raise ValueError(f"replay: found {found}, expected 'cuda-graph' without hostile memory and device='cuda'")
        of.server.method = Graphs(importlib.import_module("torch"), of.server.method)
    if layout is not None:
        if layout != "paged" or takes == "scores" or arrays.source not in ("numpy", "torch") or page_size < 1:
            found = f"{layout!r} with takes={takes!r}, arrays={arrays.source!r} and page_size={page_size}"
            raise ValueError(
                f"layout: found {found}, expected 'paged' for keys of numpy or torch, in pages of 1 or more"
            )
        if hostile:
            raise ValueError(f"layout: found {layout!r} with hostile={hostile!r}, expected one of the two")
        torch = importlib.import_module("torch") if arrays.source == "torch" else None
        of.server.method = Paged(of.server.method, torch, page_size)
        of.ways["page_size"] = page_size
    return of


def run(asked: Kernel, declaration: str, progress: bool | None, options: dict[str, Any]) -> Report:
    """A check with the options of the compiled module."""
    stop = native().Stop()
    kernel = None if "command" in options else asked
    with ends_cleanly(stop), Watch(progress) as watch:
        report = native().check(kernel, declaration, stop, watch, bits=asked.arrays.bits, **options)
    return Report(report, asked, declaration)


@contextlib.contextmanager
def ends_cleanly(stop: Any) -> Iterator[None]:
    """The first Ctrl-C stops the check, the second one raises KeyboardInterrupt. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(
            "doublecheck: interrupted; it ends after the answer it waits for. Again: it ends at once", file=sys.stderr
        )

    before = signal.getsignal(signal.SIGINT)
    if before is None or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Watch:
    """Tells how far a check is, on one line of a terminal."""

    def __init__(self, progress: bool | None):
        self.tells = sys.stderr.isatty() if progress is None else progress
        self.line = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, share: float | None, text: str) -> None:
        if not self.tells:
            return
        self.clear()
        if share is None:
            print(f"doublecheck: {text}", file=sys.stderr)
            return
        columns = shutil.get_terminal_size().columns
        self.line = True
        print(f"{100 * share:3.0f} %, {text}"[: columns - 1], end="\r", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away."""
        if self.line:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.line = False
