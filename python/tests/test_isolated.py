"""Kernels in a process of their own: they crash and hang, and the check goes on."""

import os
import subprocess
import sys
import time
from typing import Any

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, misses_a_channel, right

BRIEFLY: dict[str, Any] = {"cases": 40, "goldens": False, "shrink_seconds": 3, "probes": False, "conditions": False}
OPTIONS: dict[str, Any] = {**DECLARED, **BRIEFLY, "isolate": True}


def crashes(call):
    if call.k.shape[2] > 3:
        os.abort()
    return right(call)


def hangs(call):
    if call.k.shape[2] > 20:
        time.sleep(600)
    return right(call)


class Layer:
    """A kernel with state, and an exception that means a refusal."""

    def __init__(self):
        self.layers = []

    def configure(self, instance):
        self.layers = []

    def mask(self, call):
        if call.instance.group_factor == 0:
            raise ZeroDivisionError
        self.layers.append(call.layer)
        return right(call)


def test_it_answers_as_in_this_process():
    assert doublecheck.check(right, **OPTIONS).conforms
    assert doublecheck.check(Layer, refusals=[ZeroDivisionError], **OPTIONS).conforms
    both = [doublecheck.check(misses_a_channel, **{**OPTIONS, "isolate": isolate}) for isolate in (True, False)]
    assert both[0].findings[0].explanations == both[1].findings[0].explanations


# Each question of the probes that a process does not outlive would start another one.
BRIEFER: dict[str, Any] = {**OPTIONS, "cases": 3, "stop_after": 1, "shrink_seconds": 0, "probes": False}


def test_a_crash_is_a_finding():
    report = doublecheck.check(crashes, **BRIEFER)
    assert "the command ended without an answer" in str(report.findings[0]), str(report)
    assert report.findings[0].call.k.shape[2] > 3
    again = report.findings[0].case.check(crashes, isolate=True, shrink_seconds=0)
    assert "the command ended without an answer" in str(again.findings[0]), str(again)


def test_a_hang_is_a_finding():
    report = doublecheck.check(hangs, **BRIEFER, timeout=0.2)
    assert "no answer within" in str(report.findings[0]), str(report)


def test_a_main_program_is_run_again(tmp_path):
    program = tmp_path / "program.py"
    here = os.path.dirname(__file__)
    program.write_text(
        f"import sys\nsys.path.append({here!r})\nimport doublecheck, kernels\n\n\n"
        "def kernel(call):\n    return kernels.right(call)\n\n\n"
        "if __name__ == '__main__':\n"
        "    report = doublecheck.check(kernel, cases=20, goldens=False, isolate=True, **kernels.DECLARED)\n"
        "    print(report.conforms)\n"
    )
    found = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert found.stdout == "True\n", found.stderr


def test_what_cannot_be_imported_is_an_error():
    for kernel in (lambda call: right(call), Layer()):
        with pytest.raises(ValueError, match="expected a function or a class at the top of a module"):
            doublecheck.check(kernel, **OPTIONS)


def with_torch(call):
    import torch

    kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    assert call.q.dtype == kinds[call.dtype]
    call.q, call.k, call.v = (x.float().numpy() for x in (call.q, call.k, call.v))
    for name in ("attention_mask", "previous"):
        if getattr(call, name) is not None:
            setattr(call, name, np.asarray(getattr(call, name)))
    additive = np.asarray(call.additive())
    call.additive = lambda: additive
    return torch.from_numpy(right(call))


def test_torch_has_the_types_of_the_calls():
    pytest.importorskip("torch", reason="no torch here: it is not tested in a process of its own")
    options = {**OPTIONS, "dtypes": ["f32", "f16", "bf16"], "model": {"kept": "f32"}, "arrays": "torch"}
    report = doublecheck.check(with_torch, **options)
    assert report.conforms, str(report)
