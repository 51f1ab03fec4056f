"""A conformance suite for Double Sparsity attention, in Python.

`check(kernel)` asks a function or an object in this process, `serve(kernel)` makes a command of it that
`doublecheck check --command` asks; both take the same kernels. `load` reads counterexamples, `judge` says of one answer
whether it conforms and why, and the pytest plugin has a fixture `doublecheck`.

Without the compiled module `serve`, `Failed` and `Refused` work; the rest says what is missing.
"""

from ._case import Case, Certificate, Session, Step, Verdict, case, judge, load
from ._check import check
from ._report import Finding, Merged, Report, merge
from ._serve import (
    Cached,
    Call,
    Failed,
    Instance,
    Opening,
    Refused,
    ScoresCall,
    SelectionCall,
    answer_tensors,
    by_request,
    decode,
    frame,
    parts,
    read_frame,
    serve,
)

__all__ = [
    "Cached",
    "Call",
    "Case",
    "Certificate",
    "Failed",
    "Finding",
    "Instance",
    "Merged",
    "Opening",
    "Refused",
    "Report",
    "ScoresCall",
    "SelectionCall",
    "Session",
    "Step",
    "Verdict",
    "answer_tensors",
    "by_request",
    "case",
    "check",
    "decode",
    "frame",
    "judge",
    "load",
    "merge",
    "parts",
    "read_frame",
    "serve",
]
