"""What kernels are given and may answer: numpy, torch, anything with DLPack."""

import pathlib
import runpy

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, right

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
EVERY = {**DECLARED, "dtypes": ["f32", "f16", "bf16"], "model": {"kept": "f32"}, "cases": 80, "goldens": False}


def seen_dtypes(arrays, to_numpy, **options):
    """The dtypes of calls and of their tensors, from a check of a right kernel, which has to conform."""
    seen = set()

    def kernel(call):
        assert call.q.shape[3] == call.k.shape[3]
        seen.add((call.dtype, str(call.q.dtype)))
        call.q, call.k, call.v = (np.asarray(to_numpy(x), np.float32) for x in (call.q, call.k, call.v))
        for name in ("attention_mask", "previous", "head_weights"):
            if getattr(call, name) is not None:
                setattr(call, name, np.array(to_numpy(getattr(call, name))))
        additive = np.asarray(to_numpy(call.additive()))
        call.additive = lambda: additive
        return right(call)

    report = doublecheck.check(kernel, arrays=arrays, **{**EVERY, **options})
    assert report.conforms, str(report)
    return seen


def test_numpy_has_float32():
    assert seen_dtypes("numpy", np.asarray) == {(dtype, "float32") for dtype in ("f32", "f16", "bf16")}


def test_a_kernel_may_answer_in_half_precision():
    """What comes back is compared as it is: widened on the way it would be the same numbers."""

    def kernel(call):
        mask = right(call)
        return {"mask": mask.astype(np.float16) if call.previous is None else mask}

    report = doublecheck.check(kernel, **EVERY)
    assert report.conforms, str(report)


def test_dlpack_gives_what_numpy_reads_and_bits_of_bf16():
    seen = set()

    def kernel(call):
        if call.dtype == "bf16":
            capsule = call.q.__dlpack__()
            seen.add((type(capsule).__name__, call.q.__dlpack_device__()))
            raise RuntimeError("numpy has no bf16")
        seen.add((call.dtype, np.from_dlpack(call.q).dtype.name))
        return np.zeros((*call.q.shape[:3], call.k.shape[2]), bool)

    doublecheck.check(kernel, arrays="dlpack", **{**EVERY, "shrink_seconds": 0, "cases": 30})
    assert seen >= {("PyCapsule", (1, 0)), ("f16", "float16"), ("f32", "float32")}, seen


def test_torch_has_the_types_of_the_calls():
    torch = pytest.importorskip("torch", reason="no torch here: what it is given is not tested")
    to_numpy = lambda x: x.float().numpy()  # noqa: E731
    types = {("f32", "torch.float32"), ("f16", "torch.float16"), ("bf16", "torch.bfloat16")}
    assert seen_dtypes("torch", to_numpy) == types
    assert seen_dtypes(torch.from_dlpack, to_numpy) == types
    for arrays in ("torch", torch.from_dlpack):
        assert seen_dtypes(arrays, to_numpy, hostile=True) == types


def test_the_example_in_torch_conforms():
    pytest.importorskip("torch", reason="no torch here: examples/python/torch_masker.py is not tested")
    example = runpy.run_path(str(EXAMPLES / "torch_masker.py"))
    for hostile in (False, True):
        options = {**example["SUPPORTS"], "arrays": "torch", "cases": 150, "goldens": False}
        report = doublecheck.check(example["mask"], hostile=hostile, **options)
        assert report.conforms, str(report)


@pytest.mark.parametrize(("name", "kernel"), [("triton_topk", "select"), ("triton_attention", "attend")])
def test_the_examples_in_triton_conform(name, kernel):
    pytest.importorskip("triton", reason=f"no triton here: examples/python/{name}.py is not tested")
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    for hostile in (False, True):
        options = {**example["SUPPORTS"], "arrays": "torch", "cases": 40, "seconds": 20, "probes": False}
        report = doublecheck.check(example[kernel], hostile=hostile, **options)
        assert report.conforms, str(report)


def test_torch_answers_in_bf16():
    torch = pytest.importorskip("torch", reason="no torch here: its answers are not tested")

    def attention(call):
        q, k, v = (x.double() for x in (call.q, call.k, call.v))
        group = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(group, 1).transpose(2, 3) * call.scaling
        keys = logits.shape[3]
        # Padding of -1 goes to a column that is cut off.
        places = torch.where(call.selected < 0, keys, call.selected).long()
        chosen = torch.zeros((*logits.shape[:3], keys + 1), dtype=torch.bool).scatter(3, places, True)[..., :keys]
        weights = torch.where(chosen, logits, -torch.inf).softmax(-1).nan_to_num(0)
        return (weights @ v.repeat_interleave(group, 1)).to(call.q.dtype)

    report = doublecheck.check(attention, arrays="torch", takes="selection", cases=60)
    assert report.conforms, str(report)

    wrong = doublecheck.check(lambda call: attention(call) * 1.02, arrays="torch", takes="selection", cases=60)
    assert not wrong.conforms
    call = wrong.findings[0].call
    assert isinstance(call.q, torch.Tensor) and call.selected.dtype == torch.int32
    assert doublecheck.judge(call, output=attention(call))
    verdict = doublecheck.judge(call, output=attention(call) * 1.02)
    assert not verdict and "output" in str(verdict), str(verdict)


def test_jax_has_the_types_of_the_calls_and_answers():
    jax = pytest.importorskip("jax", reason="no jax here: it is not tested")
    types = {("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")}
    assert seen_dtypes(jax.numpy.from_dlpack, np.asarray) == types

    def kernel(call):
        mask = right(call)
        return {"mask": jax.numpy.asarray(mask), "lse": jax.numpy.asarray(call.q, jax.numpy.bfloat16)[..., 0]}

    report = doublecheck.check(kernel, **EVERY)
    assert report.findings and all(finding.stage == "attention" for finding in report.findings), str(report)
