"""Sessions in this process: engines that hold keys themselves, right and wrong, and counterexamples played again."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, misses_a_channel, right

HERE = pathlib.Path(__file__).resolve().parent


def check(engine, **options):
    return doublecheck.check(engine, **{"cases": 200, "goldens": False, "shrink_seconds": 10, **DECLARED, **options})


class Stale(doublecheck.Cached):
    """As Cached, but labels lie in slots, and what a slot held before counts as labelled when another request gets it.

    The masks of `right` depend on nothing but labels, so that its keys stand for them.
    """

    def __init__(self):
        super().__init__(right)

    def open(self, opening):
        super().open(opening)
        self.slots: dict[int, int] = {}  # by request
        self.labels: dict[tuple[int, int], np.ndarray] = {}  # by slot and layer

    def slot(self, request):
        return self.slots.setdefault(request, min(set(range(len(self.slots) + 1)) - set(self.slots.values())))

    def append(self, layer, requests, k, v):
        super().append(layer, requests, k, v)
        for request, keys in doublecheck.parts(requests, k):
            place = self.slot(request), layer
            labels = self.labels.get(place, keys[:0])
            start = len(self.held[request][layer][1]) - len(keys)
            self.labels[place] = np.concatenate([labels, keys[max(0, len(labels) - start) :]])

    def attend(self, layer, requests, q):
        super().attend(layer, requests, q)  # refuses

        def held(request):
            _, keys, values = self.held[request][layer]
            return self.labels[self.slot(request), layer][: len(keys)], values

        return doublecheck.by_request(self.mask, self.opening, layer, requests, q, held)

    def fork(self, request, to, length):
        super().fork(request, to, length)
        for layer in self.opening.layers:
            if (labels := self.labels.get((self.slot(request), layer))) is not None:
                shared = labels[: len(self.held[to][layer][1])]
                old = self.labels.get((self.slot(to), layer), labels[:0])
                self.labels[self.slot(to), layer] = np.concatenate([shared, old[len(shared) :]])

    def truncate(self, request, length):
        super().truncate(request, length)
        for layer in self.opening.layers:
            if (labels := self.labels.get((self.slot(request), layer))) is not None:
                self.labels[self.slot(request), layer] = labels[:length]

    def free(self, request):
        super().free(request)
        del self.slots[request]


@pytest.fixture(scope="module")
def stale():
    """The report on labels that are kept when a slot is used again."""
    return check(Stale())


def test_dense_keys_conform_in_sessions():
    report = check(doublecheck.Cached(right), cases=100)
    assert report.conforms, str(report)
    sessions = report.to_dict()["sessions"]
    assert sessions["conforming"] == sessions["asked"] > 10 and sessions["rows"] > 100
    assert re.search(r"sessions: (\d+) of \1 conform", str(report))


def test_a_step_that_is_not_refused_is_a_finding():
    class Engine(doublecheck.Cached):
        def __init__(self):
            super().__init__(right)

        def _known(self, request, length=0):
            return self.held.setdefault(request, dict.fromkeys(self.opening.layers, self.empty))

        def open(self, opening):
            super().open(opening)
            k, v = (np.zeros((0, opening.kv_heads, d), np.float32) for d in (opening.head_dim, opening.value_dim))
            self.empty = np.zeros(0, int), k, v

    report = check(Engine(), lacks=[feature for feature in DECLARED["lacks"] if feature != "refusals"], probes=False)
    (finding,) = [finding for finding in report.findings if finding.step is not None]
    assert finding.kind == "answered what must be refused" and finding.step.calls == []
    with pytest.raises(ValueError, match="call: found another step that fails, expected an attend"):
        _ = finding.call


def test_stale_labels_are_found_and_told_as_a_story(stale):
    assert not stale.conforms
    (finding,) = stale.findings
    told = "A request that begins in a slot of an earlier one keeps that one's labels."
    assert finding.kind == "wrong keys" and finding.diagnosis.startswith(told), str(finding)
    session = finding.case
    assert isinstance(session, doublecheck.Session)
    names = [step.name for step in session.steps]
    assert names == ["append", "free", "append", "attend"], str(session)
    assert "<- diverges" in str(finding) and "step 1: free request" in str(session)
    assert finding.step.name == "attend" and len(finding.step.calls) == 1 == len(session.calls)
    assert str(finding.step).startswith("attend: layer ")
    _, requests, q = finding.step.arguments
    assert q.shape == (1, session.opening.heads, session.opening.head_dim) and requests[0][1] == 1


def test_a_session_is_played_judged_and_asked_again(stale, tmp_path):
    finding = stale.findings[0]
    finding.save(tmp_path / "stale.safetensors")
    session = doublecheck.load(tmp_path / "stale.safetensors")
    assert isinstance(session, doublecheck.Session) and (tmp_path / "stale.txt").exists()
    np.testing.assert_array_equal(session.calls[-1].k, finding.call.k)
    for engine, conforms in ((Stale(), False), (doublecheck.Cached(right), True)):
        session.start(engine)
        answers = [step.ask(engine) for step in session.steps]
        mask = answers[-1]["mask"].swapaxes(0, 1)[None]
        verdict = doublecheck.judge(session.calls[-1], mask=mask)
        assert verdict.conforms == conforms, str(verdict)
        asked = session.ask(engine, lacks=DECLARED["lacks"])
        assert asked.conforms == conforms and ("DIVERGES" in str(asked)) != conforms
    assert session.reference()["mask"].shape[3] == session.calls[-1].k.shape[2]
    assert session.certificate().classes.shape == session.reference()["mask"].shape
    again = session.check(Stale, shrink_seconds=2, **DECLARED)
    assert not again.conforms and again.findings[0].kind == finding.kind
    with pytest.raises(ValueError, match="offers: found 'sessions' of <function right"):
        session.ask(right)


def test_a_session_becomes_a_test(stale, tmp_path):
    (tmp_path / "my_engine.py").write_text(
        f"import sys\nsys.path.append({str(HERE)!r})\nimport doublecheck\nfrom kernels import right\n"
        "from test_sessions import Stale\n\nfixed = doublecheck.Cached(right)\n"
    )
    for engine, code in (("Stale", 1), ("fixed", 0)):
        source = stale.findings[0].as_test(tmp_path / "stale-labels.safetensors", f"my_engine.{engine}")
        assert "offers" not in source
        (tmp_path / "test_stale.py").write_text(source)
        found = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_stale.py"],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert found.returncode == code, found.stdout


def test_a_fault_of_calls_is_found_as_a_call():
    report = check(doublecheck.Cached(misses_a_channel), stop_after=1)
    finding = report.findings[0]
    assert finding.step is None and not isinstance(finding.case, doublecheck.Session)
    assert not finding.case.ask(misses_a_channel) and finding.case.ask(right)


def test_an_exception_of_a_step_is_a_finding_with_its_traceback():
    class Engine(doublecheck.Cached):
        def __init__(self):
            super().__init__(right)

        def fork(self, request, to, length):
            raise RuntimeError("no forks today")

    report = check(Engine)
    finding = report.findings[0]
    assert "RuntimeError: no forks today" in str(finding) and "test_sessions.py" in str(finding)
    assert finding.step.name == "fork" and "_serve.py" not in str(finding)


def test_a_kernel_may_write_to_what_it_is_given():
    def kernel(call):
        assert all(x.flags.c_contiguous for x in (call.q, call.k, call.v))
        mask = right(call)
        for tensor in (call.q, call.k, call.v):
            tensor[:] = np.nan
        return mask

    report = check(doublecheck.Cached(kernel), cases=100)
    assert report.conforms, str(report)


def test_tensors_are_made_as_they_are_wanted():
    """By a function of DLPack: what arrives in sessions is of the type of the session."""
    seen: set[Any] = set()

    def kernel(call):
        seen.update((call.dtype, x.dtype.name) for x in (call.q, call.k, call.v))
        call.q, call.k = (x.astype(np.float32) for x in (call.q, call.k))
        return right(call)

    report = check(doublecheck.Cached(kernel), arrays=np.from_dlpack, dtypes=["f32", "f16"], probes=False, cases=100)
    assert {("f32", "float32"), ("f16", "float16")} == seen
    assert report.to_dict()["sessions"]["asked"] > 10


def test_bfloat16_outputs_keep_their_values():
    """numpy has no such type: in sessions they are put together as float32."""
    bits = np.array([0x3F80, 0xC000], np.uint16).reshape(1, 1, 2, 1)
    assert doublecheck._serve.wide("BF16", bits).ravel().tolist() == [1.0, -2.0]


class TestTorch:
    def test_sessions_in_torch(self):
        torch = pytest.importorskip("torch")
        seen: set[Any] = set()

        def kernel(call):
            seen.update((call.dtype, x.dtype) for x in (call.q, call.k, call.v))
            call.q, call.k = (x.float().numpy() for x in (call.q, call.k))
            call.additive = (lambda additive: lambda: additive)(call.additive().numpy())
            call.previous = None if call.previous is None else call.previous.float().numpy()
            return torch.from_numpy(right(call))

        report = check(doublecheck.Cached(kernel), arrays="torch", cases=100)
        assert report.conforms and seen == {("f32", torch.float32)}, str(report)


class Importable(doublecheck.Cached):
    """An engine that ends its process with a third key."""

    def __init__(self):
        super().__init__(right)

    def append(self, layer, requests, k, v):
        super().append(layer, requests, k, v)
        if max(len(held[layer][0]) for held in self.held.values()) > 2:
            os._exit(3)


def test_an_engine_may_end_a_process_of_its_own():
    report = check(Importable, isolate=True, probes=False, cases=40, stop_after=1)
    assert "exit status: 3" in str(report.findings[0]), str(report)
    assert report.findings[0].step.name == "append"


def test_what_is_only_for_calls_is_said():
    wrongs: list[dict[str, Any]] = [{"hostile": True}, {"layout": "paged"}, {"replay": "cuda-graph"}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found .* for an object that holds keys"):
            check(doublecheck.Cached(right), cases=1, **wrong)
    with pytest.raises(ValueError, match="offers: found 'sessions'"):
        check(right, offers=["sessions"])
