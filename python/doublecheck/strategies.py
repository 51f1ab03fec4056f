"""Strategies for Hypothesis: `@given(calls({"head_dim": [64], "queries": [1]}))` draws cases of one call.

Hypothesis then shrinks them, and keeps them. `check` draws harder questions and finds causes; this is for tests that
say something else of a kernel, such as that two kernels answer alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from ._case import Case, case

T = TypeVar("T")

# What each size of a domain is where a domain does not say, and the largest that is drawn where it says no end.
SMALL: dict[str, Sequence[int]] = {
    "batch": [1, 2],
    "heads": range(1, 7),
    "kv_heads": range(1, 65),
    "group": range(1, 65),
    "queries": range(1, 5),
    "keys": range(1, 17),
    "head_dim": range(1, 9),
    "value_dim": range(1, 5),
    "group_factor": range(1, 257),
    "label_channels": range(1, 257),
    "heavy_size": range(1, 18),
    "label_bits": [16, *range(1, 9)],
}
DTYPES = ("f32", "f16", "bf16")
END = 256


def values(domain: dict[str, Any], name: str) -> Sequence[int]:
    """What a size may be. Errors: ValueError where nothing is left."""
    found = domain.get(name, SMALL[name])
    if isinstance(found, dict):
        if unknown := set(found) - {"from", "to", "multiple_of"}:
            raise ValueError(f"domain.{name}: found {sorted(unknown)}, expected from, to and multiple_of")
        step = found.get("multiple_of", 1)
        start = max(1, -(-found.get("from", 1) // step)) * step
        found = range(start, found.get("to", max(END, start)) + 1, step)
    if not found:
        raise ValueError(f"domain.{name}: found {domain[name]!r}, expected something to ask")
    return found


def one_of(name: str, found: list[T]) -> st.SearchStrategy[T]:
    """One of several. Errors: ValueError where there is none."""
    if not found:
        raise ValueError(f"domain: found no {name} that fit one another, expected some")
    return st.sampled_from(found)


def calls(
    domain: dict[str, Any] | list[dict[str, Any]] | None = None,
    *,
    heads: Sequence[str] = ("per-head",),
    arrays: str | Callable[[Any], Any] = "numpy",
    device: str = "cpu",
) -> st.SearchStrategy[Case]:
    """Cases of one call inside a domain, or inside one of several: `case.calls[0]`, `case.judge(answer)`.

    A domain is what a kernel declares (docs/PROTOCOL.md, hello): batch, heads, kv_heads, group, queries, keys,
    head_dim, value_dim, group_factor, label_channels, heavy_size, label_bits and dtype, each a list or an object of
    from, to and multiple_of. What it does not say is small here. `heads` are the head rules; arrays and device are
    those of `check`.

    Errors: ValueError for an unknown name, or a domain in which there is nothing to ask.
    """
    if isinstance(domain, list):
        return st.one_of([calls(one, heads=heads, arrays=arrays, device=device) for one in domain])
    said = domain or {}
    if unknown := set(said) - {*SMALL, "dtype"}:
        raise ValueError(f"domain: found {sorted(unknown)}, expected {', '.join(SMALL)} and dtype")
    of = {name: values(said, name) for name in SMALL if said.get(name) != "d"}
    shared = [
        (h, hk) for h in of["heads"] for hk in of["kv_heads"] if hk <= h and h % hk == 0 and h // hk in of["group"]
    ]
    widths = [
        (d, factor)
        for d in of["head_dim"]
        for factor in of["group_factor"]
        if factor <= d and d % factor == 0 and d // factor in of["label_channels"]
    ]
    lengths = [(m, n) for m in of["queries"] for n in of["keys"] if m <= n]
    strategies = (one_of("heads", shared), one_of("head_dim", widths), one_of("queries and keys", lengths))

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        (h, hk), (d, factor), (m, n) = (draw(strategy) for strategy in strategies)
        b = draw(st.sampled_from(of["batch"]))
        dv = draw(st.sampled_from(of["value_dim"])) if "value_dim" in of else d
        # Quarters: exact in every type, and they tie.
        number = st.integers(-16, 16).map(lambda x: x / 4)
        q, k, v = (
            draw(arrays_of.arrays(np.float32, shape, elements=number))
            for shape in ((b, h, m, d), (b, hk, n, d), (b, hk, n, dv))
        )
        rule = draw(st.sampled_from(heads))
        rows = draw(st.sampled_from([1] if rule == "summed-labels" else sorted({1, hk, h})))
        return case(
            q,
            k,
            v,
            [draw(st.permutations(range(d))) for _ in range(rows)],
            heavy_size=draw(st.sampled_from(of["heavy_size"])),
            group_factor=factor,
            label_bits=draw(st.sampled_from(of["label_bits"])),
            heads=rule,
            causal=draw(st.booleans()),
            dtype=draw(st.sampled_from(said.get("dtype", DTYPES))),
            arrays=arrays,
            device=device,
        )

    return draw_case()
