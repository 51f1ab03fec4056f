"""`run.py NAME` answers `doublecheck check` as that implementation.

`run.py --list` names them all; `run.py --check` tests that key.toml fits them, `run.py --effects` that every fault acts.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from typing import Any

from plain import HERE, Plain, doublecheck

# Those that take a call of entries of equal lengths and give a mask and an output; others are asked otherwise.
OTHERS = ("ragged", "stages")
MODULES = ("right", "selection", "labels", "heads", "masks", "state", "output", "mixing", "sizes", "flaky")
JUDGED = ("cause", "kind", "source", "right", "incomplete", "needs")
KINDS = {"candidates", "count", "kv head", "channel row", "channels", "codes", "scale", "mask", "earlier mask",
         "causality", "ties", "labels over calls", "heads", "output", "batch", "repeat"}


def name_of(implementation: type) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=[0-9])|(?<=K)(?=[A-Z])", "_", implementation.__name__).lower()


def implementations(modules: tuple[str, ...] = MODULES) -> dict[str, type[Plain]]:
    found: dict[str, type[Plain]] = {}
    for module in modules:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, type) and value.__module__ == module and not value.__name__.startswith("_"):
                assert name_of(value) not in found, f"{name_of(value)} is there twice"
                found[name_of(value)] = value
    return found


def check_key() -> str:
    """Every implementation has an entry of the right form, and every entry an implementation."""
    key = tomllib.loads((HERE / "key.toml").read_text())
    faults = {**key["fault"], **key["ragged"], **key["stage"]}
    entries, known = {**faults, **key["right"]}, implementations(MODULES + OTHERS)
    assert not faults.keys() & key["right"].keys(), "a name is both a fault and right"
    assert entries.keys() == known.keys(), f"without a partner: {sorted(entries.keys() ^ known.keys())}"
    for name, entry in faults.items():
        assert entry.keys() == set(JUDGED), f"{name}: found {sorted(entry)}, expected {sorted(JUDGED)}"
        assert entry["kind"] and set(entry["kind"]) <= KINDS, f"{name}: kind {entry['kind']}"
        assert entry["right"], f"{name}: nothing counts as right"
    for name, entry in key["right"].items():
        assert known[name].__module__ == "right", f"{name}: the key calls it right, and it is not in right.py"
        assert entry.keys() == {"what"}, f"{name}: found {sorted(entry)}, expected what"
    return f"{len(faults)} faults, {len(key['right'])} right implementations"


def check_effects() -> str:
    """Every faulty implementation answers otherwise than the base somewhere."""
    effects = importlib.import_module("effects")
    faults = {name: found for name, found in implementations(MODULES + OTHERS).items() if found.__module__ != "right"}
    after: dict[str, int | None] = {}
    for name, found in faults.items():
        departs = effects.stage_departs if hasattr(found, "takes") else effects.departs
        after[name] = departs(found())
    without = [name for name, sequences in after.items() if sequences is None]
    assert not without, f"without an effect: {without}"
    return f"{len(after)} faults act, the latest after {max(after.values())} sequences"


def main(argument: str) -> None:
    if argument == "--list":
        print("\n".join(implementations(MODULES + OTHERS)))
    elif argument == "--check":
        print(check_key())
    elif argument == "--effects":
        print(check_effects())
    else:
        serve(argument, implementations(MODULES + OTHERS)[argument]())


def serve(name: str, subject: Any) -> None:
    """A stage takes and gives what it says; another one is asked for whole layers."""
    optional = {"model": getattr(subject, "model", None)}
    if hasattr(subject, "takes"):
        doublecheck.serve(subject, name=name, takes=subject.takes, gives=subject.gives, **optional)
        return
    optional["largest_keys"] = subject.largest_keys
    doublecheck.serve(subject, name=name, dtypes=list(subject.dtypes), heads=list(subject.heads),
                      lacks=list(subject.lacks), offers=list(getattr(subject, "offers", ())), **optional)


if __name__ == "__main__":
    main(sys.argv[1])
