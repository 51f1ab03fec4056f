"""Kernels in torch that read, write or keep what they may not: in hostile memory, and behind CUDA graphs."""

import pathlib
import runpy
from typing import Any

import doublecheck
import pytest

torch = pytest.importorskip("torch", reason="no torch here: its kernels are not asked in hostile memory")

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]
OPTIONS: dict[str, Any] = {"takes": "selection", "arrays": "torch", "cases": 60, "shrink_seconds": 3, "probes": False}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here: nothing is captured in a graph")


def attention(call):
    """The output [b, h, m, dv] of attention over selected keys."""
    q, k, v = (x.double() for x in (call.q, call.k, call.v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    n = k.shape[2]
    places = torch.where(call.selected < 0, n, call.selected).long()
    chosen = torch.zeros((*q.shape[:3], n + 1), dtype=torch.bool, device=q.device).scatter(3, places, True)[..., :n]
    logits = torch.where(chosen, q @ k.mT * call.scaling, -torch.inf)
    return (logits.softmax(-1).nan_to_num(0) @ v).to(call.q.dtype)


def beyond(x):
    """The number that lies after the end of a view, where its memory goes on; finite."""
    last = x[-1, -1, -1, -1:]
    after = last.as_strided((1,), (1,), last.storage_offset() + 1)
    return after.nan_to_num(0, 0, 0).clamp(-10, 10)


def reads_padding(call):
    call.v = call.v.as_strided((*call.v.shape[:3], call.v.shape[3] + 1), call.v.stride())
    output = attention(call)
    return output[..., :-1] + output[..., -1:].nan_to_num(0, 0, 0).clamp(-10, 10)


def reads_past_the_end(call):
    return attention(call) + beyond(call.v)


def writes_its_input(call):
    call.q.add_(1)
    call.q.sub_(0.5)
    return attention(call)


def leaves_rows_unwritten(call):
    whole = attention(call)
    output = torch.empty_like(whole)
    output[:, :, :-1] = whole[:, :, :-1]
    return output


def relies_on_contiguity(call):
    call.k = call.k.as_strided(call.k.shape, torch.empty(call.k.shape).stride()).nan_to_num(0, 0, 0)
    return attention(call)


FAULTS = [
    (reads_padding, True, "depends on what lies between the rows of v"),
    (reads_past_the_end, "contiguous", "depends on what lies after v"),
    (writes_its_input, True, "the kernel wrote to q, which is not its own"),
    (leaves_rows_unwritten, True, "in the memory of the answer, which it does not write"),
    (relies_on_contiguity, True, "depends on what lies between the rows of k"),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_right_kernel_conforms(device):
    for hostile in (True, "contiguous"):
        report = doublecheck.check(attention, hostile=hostile, device=device, **OPTIONS)
        assert report.conforms, str(report)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernel", "hostile", "told"), FAULTS)
def test_faults_of_memory_are_told(kernel, hostile, told, device):
    report = doublecheck.check(kernel, hostile=hostile, device=device, **OPTIONS)
    explanations = [line for finding in report.findings for line in finding.explanations]
    assert any(told in line for line in explanations), str(report)


@cuda
def test_a_kernel_behind_a_graph_conforms():
    options: dict[str, Any] = {**OPTIONS, "device": "cuda", "replay": "cuda-graph"}
    report = doublecheck.check(attention, **options)
    assert report.conforms, str(report)
    for name, kernel in (("triton_topk", "select"), ("triton_attention", "attend")):
        example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        report = doublecheck.check(example[kernel], **{**options, **example["SUPPORTS"]})
        assert report.conforms, str(report)


@cuda
def test_what_a_graph_does_not_repeat_is_a_finding():
    def scales_on_the_host(call):
        return attention(call) * (1 + float(call.q.abs().max()) - float(call.q.abs().max()))

    kept: dict[Any, Any] = {}

    def keeps_its_first_answer(call):
        key = (call.q.shape, call.k.shape, call.v.shape, call.q.dtype, call.selected.shape)
        return kept.setdefault(key, attention(call))

    options: dict[str, Any] = {**OPTIONS, "device": "cuda", "replay": "cuda-graph"}
    report = doublecheck.check(scales_on_the_host, **{**options, "stop_after": 1})
    assert not report.conforms and "captur" in str(report), str(report)
    report = doublecheck.check(keeps_its_first_answer, **options)
    assert not report.conforms, str(report)


def test_a_graph_needs_a_cuda_device():
    with pytest.raises(ValueError, match="replay: found 'cuda-graph' with hostile=False and device='cpu', expected"):
        doublecheck.check(attention, replay="cuda-graph", **OPTIONS)
