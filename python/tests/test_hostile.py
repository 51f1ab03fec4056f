"""Hostile memory: kernels that read or write what is not theirs are told, and where; others conform."""

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, right

OPTIONS = {**DECLARED, "cases": 60, "goldens": False, "shrink_seconds": 3, "probes": False}


def beyond(x, count):
    """The numbers that lie so far after the end of a view, where its memory goes on."""
    flat = np.lib.stride_tricks.as_strided(x[-1, -1, -1, -1:], (count + 1,), (x.itemsize,))
    return flat[1:]


def problem(kernel, hostile=True):
    """What findings say is wrong with a kernel in hostile memory."""
    report = doublecheck.check(kernel, hostile=hostile, **OPTIONS)
    return "\n".join(line for finding in report.findings for line in finding.explanations)


def test_a_right_kernel_conforms():
    for hostile in (True, "contiguous"):
        report = doublecheck.check(right, hostile=hostile, **OPTIONS)
        assert report.conforms, str(report)


def test_what_is_given_is_strided_and_lies_amid_other_numbers():
    seen = set()

    def kernel(call):
        seen.add((call.k.flags.c_contiguous, bool(np.isnan(beyond(call.k, 3)).all())))
        return right(call)

    doublecheck.check(kernel, hostile=True, **OPTIONS)
    assert seen == {(False, True), (False, False)}
    seen.clear()
    doublecheck.check(kernel, hostile="contiguous", **OPTIONS)
    assert seen == {(True, True), (True, False)}


def test_a_kernel_that_reads_beyond_a_tensor_is_told_where():
    def kernel(call):
        mask = right(call)
        if mask.shape[3] % 2 and beyond(call.v, 1)[0] > 1e29:
            mask[..., 0] = 1 - mask[..., 0]
        return mask

    assert "depends on what lies between the rows of v:" in problem(kernel)
    assert "depends on what lies after v:" in problem(kernel, "contiguous")


def test_a_kernel_that_ignores_strides_is_told():
    def kernel(call):
        # As a kernel in C that takes a pointer and the sizes.
        k = np.lib.stride_tricks.as_strided(call.k, strides=np.empty(call.k.shape, np.float32).strides)
        call.k = np.nan_to_num(k, nan=0.0, posinf=0.0)
        return right(call)

    assert "depends on what lies between the rows of k" in problem(kernel)


@pytest.mark.parametrize("name", ["q", "k", "attention_mask"])
def test_a_kernel_that_writes_to_what_it_is_given_is_told(name):
    def kernel(call):
        mask = right(call)
        if (tensor := getattr(call, name)) is not None:
            tensor[..., 0] = 3.5
        return mask

    assert f"the kernel wrote to {name}, which is not its own" in problem(kernel)


def test_a_kernel_that_writes_beyond_is_told():
    def kernel(call):
        mask = right(call)
        if mask.shape[3] > 2:
            beyond(call.k, 2)[1] = 7
        return mask

    assert "the kernel wrote around k, which is not its own" in problem(kernel)


def test_what_differs_from_time_to_time_is_left_to_the_check():
    random = np.random.default_rng(1)

    def kernel(call):
        return {"mask": right(call), "scores": None, "lse": random.standard_normal(call.q.shape[:3]).astype("f4")}

    report = doublecheck.check(kernel, hostile=True, **OPTIONS)
    assert all("depends on" not in line for finding in report.findings for line in finding.explanations)


def test_a_kernel_that_leaves_a_row_unwritten_is_told():
    def kernel(call):
        mask = np.empty((*call.q.shape[:3], call.k.shape[2]), np.float32)
        mask[:, :, :-1] = right(call)[:, :, :-1]
        return mask

    assert "in the memory of the answer, which it does not write" in problem(kernel)


def test_options_that_do_not_go_together_are_errors():
    with pytest.raises(ValueError, match="replay: found 'cuda-graph' with hostile=True and device='cpu', expected"):
        doublecheck.check(right, hostile=True, replay="cuda-graph", **OPTIONS)
    with pytest.raises(ValueError, match="hostile: found 'very'"):
        doublecheck.check(right, hostile="very", **OPTIONS)
