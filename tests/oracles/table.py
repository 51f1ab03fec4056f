"""The record as text: how many faults each oracle misses, how many right ones it rejects, and who is judged how.

Its lines that begin with | are also on the page docs/verdicts.md, where a test compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from subjects import DTYPES

if TYPE_CHECKING:
    from judge import Judged

SETS = {"check": "questions of `check`", "random": "100 random normal inputs"}
ALL = "all eight rivals"


def render(judged: list[Judged], names: list[str], asked: int) -> str:
    """The record of what was judged, of so many that were to be."""
    oracles = list(judged[0].rejected)
    for one in judged:
        one.rejected[ALL] = any(one.rejected[oracle] for oracle in oracles[1:])
    oracles.append(ALL)
    dtypes = [dtype for dtype in DTYPES if any(one.dtype == dtype for one in judged)]
    tables = [counts(judged, oracles, dtypes, questions) for questions in SETS]
    done = (
        f"Judged: {len(judged)} of {asked}, each implementation on two sets of inputs in each type that it is asked in."
    )
    return "\n\n".join([done, *tables, unlike(judged, oracles), each(judged, oracles, dtypes, names)])


def counts(judged: list[Judged], oracles: list[str], dtypes: list[str], questions: str) -> str:
    """Of the faults that act on these inputs those that are missed, and of the right ones those that are rejected."""

    def of(dtype: str, right: bool) -> list[Judged]:
        return [one for one in judged if (one.dtype, one.inputs, one.right) == (dtype, questions, right)]

    titles = "".join(f" {dtype}: missed | {dtype}: false alarms |" for dtype in dtypes)
    lines = [f"| {SETS[questions]} |{titles}", "|---|" + "---|---|" * len(dtypes)]
    cells = ""
    for dtype in dtypes:
        faults = of(dtype, False)
        cells += f" of {sum(one.acts for one in faults)} that act, of {len(faults)} | of {len(of(dtype, True))} |"
    lines.append(f"| |{cells}")
    for oracle in oracles:
        cells = ""
        for dtype in dtypes:
            missed = sum(one.acts and not one.rejected[oracle] for one in of(dtype, False))
            cells += f" {missed} | {sum(one.rejected[oracle] for one in of(dtype, True))} |"
        lines.append(f"| {oracle} |{cells}")
    return "\n".join(lines)


def unlike(judged: list[Judged], oracles: list[str]) -> str:
    """What the suite misses or rejects wrongly, by name, and which rivals see it."""
    ours, lines = oracles[0], []
    for one in sorted(judged, key=lambda one: (one.inputs, one.dtype, one.name)):
        if one.rejected[ours] == one.right and (one.acts or one.right):
            seen = [oracle for oracle in oracles[1:-1] if one.rejected[oracle]]
            kind = "right, and rejected" if one.right else "missed"
            lines.append(
                f"* {kind}: {one.name}, {one.dtype}, {SETS[one.inputs]}; rejected by {', '.join(seen) or 'no rival'}"
            )
    return "\n".join(["What doublecheck misses, and what is right and rejected by it:", *(lines or ["* nothing"])])


def each(judged: list[Judged], oracles: list[str], dtypes: list[str], names: list[str]) -> str:
    """One line for each implementation: x where an oracle rejects it, in the order of the tables."""
    known = {(one.name, one.dtype, one.inputs): one for one in judged}

    def marks(name: str, dtype: str, questions: str) -> str:
        one = known.get((name, dtype, questions))
        if one is None or not (one.acts or one.right):
            return "not asked" if one is None else "-"
        return "".join("x" if one.rejected[oracle] else "." for oracle in oracles[:-1])

    columns = [(dtype, questions) for questions in SETS for dtype in dtypes]
    lines = [f"{'':<30}" + "".join(f"{questions + ', ' + dtype:<14}" for dtype, questions in columns)]
    lines += [f"{name:<30}" + "".join(f"{marks(name, *column):<14}" for column in columns) for name in names]
    legend = (
        "Each implementation. Oracles are in the order of the tables: x rejects it, . accepts it; "
        "- marks a fault that does not act."
    )
    return "\n".join([legend, *(line.rstrip() for line in lines)])
