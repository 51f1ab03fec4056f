"""Tests of the installed package: the command, and checks in this process."""

import os
import pathlib
import pty
import re
import select
import subprocess
import sys
import time
from typing import Any

import doublecheck
import numpy as np
import pytest
from kernels import DECLARED, misses_a_channel, raises, right, top_k

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = pathlib.Path(sys.executable).parent / "doublecheck"
# A shell starts what runs behind it with Ctrl-C ignored, and its children inherit that.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def check(kernel, **options):
    return doublecheck.check(kernel, **{"cases": 60, "goldens": False, "shrink_seconds": 5, **DECLARED, **options})


@pytest.fixture(scope="module")
def wrong():
    """The report on a kernel that misses a label channel."""
    return check(misses_a_channel)


class TestCommand:
    def run(self, *arguments):
        return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, cwd="/")

    def test_verify_has_the_bundled_cases(self):
        found = self.run("verify", "--random-cases", "0", "--no-times")
        assert found.returncode == 0, found.stderr
        assert "307 of 307 cases conform" in found.stdout

    def test_it_is_the_command_of_the_checkout(self):
        assert re.fullmatch(r"doublecheck \d+\.\d+\.\d+\n", self.run("--version").stdout)
        wrong = self.run("check", "--no-such-option")
        assert wrong.returncode == 2 and "--no-such-option" in wrong.stderr

    def test_it_says_how_to_make_one_with_libtorch(self):
        files = ["--model", "m.gguf", "--text", "t.txt"]
        for arguments in (
            ["verify", "--subject", "torch"],
            ["eval", "perplexity", *files],
            ["calibrate", *files, "-o", "channels.json"],
        ):
            found = self.run(*arguments)
            assert found.returncode == 2, found.stdout
            assert "cargo build --release --features torch" in found.stderr

    def test_it_checks_commands(self):
        command = f"{sys.executable} {HERE / 'kernels.py'}"
        options = ["--cases", "60", "--no-goldens", "--shrink-seconds", "5"]
        found = self.run("check", "--command", command, *options)
        assert found.returncode == 1, found.stderr
        assert "FINDING 1: wrong keys" in found.stdout

    def test_it_is_a_module_too(self):
        found = subprocess.run([sys.executable, "-m", "doublecheck", "--version"], capture_output=True, text=True)
        assert found.stdout == self.run("--version").stdout

    def test_a_breakpoint_talks_to_the_terminal_under_replay(self, wrong, tmp_path):
        kernel = tmp_path / "kernel.py"
        kernel.write_text(
            f"import sys\nsys.path.append({str(HERE)!r})\nimport doublecheck\nimport kernels\n\n\n"
            "def kernel(call):\n    keys = call.k.shape[2]\n    breakpoint()\n    return kernels.right(call)\n\n\n"
            "doublecheck.serve(kernel, **kernels.DECLARED)\n"
        )
        wrong.findings[0].save(tmp_path / "finding.safetensors")
        keys = wrong.findings[0].call.k.shape[2]
        arguments = ["replay", str(tmp_path / "finding.safetensors"), "--command", f"{sys.executable} {kernel}"]
        process, terminal = pty.fork()
        if process == 0:
            os.execv(COMMAND, ["doublecheck", *arguments])
        found = read_until(terminal, b"(Pdb) ")
        os.write(terminal, b"'keys', keys\n")
        found += read_until(terminal, b"(Pdb) ")
        assert f"('keys', {keys})".encode() in found, found.decode()
        while True:
            os.write(terminal, b"c\n")
            more = read_until(terminal, b"(Pdb) ")
            found += more
            if not more.endswith(b"(Pdb) "):
                break
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, found.decode()
        assert b"conforms" in found, found.decode()


def read_until(terminal, end):
    """What a terminal says until it ends so, or until it is closed."""
    found, deadline = b"", time.monotonic() + 20
    while not found.endswith(end) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                found += os.read(terminal, 4096)
            except OSError:  # closed
                break
    return found


class TestCheck:
    def test_a_right_kernel_conforms(self):
        report = check(right)
        assert report.conforms, str(report)
        assert report.findings == [] and not report.interrupted
        assert "63 of 63 sequences conform" in str(report)  # 3 of them large

    def test_a_finding_holds_its_counterexample(self, wrong, tmp_path):
        assert not wrong.conforms
        finding = wrong.findings[0]
        assert finding.kind == "wrong keys" and finding.explanations
        call = finding.call
        assert call.q.shape[3] == call.k.shape[3] and call.channels.dtype == np.int64
        assert "FINDING 1: wrong keys" in str(finding) and str(finding) in str(wrong)
        (saved,) = wrong.save(tmp_path)[:1]
        assert saved.name == "finding-1.safetensors" and saved.with_suffix(".txt").exists()
        wrong.html(tmp_path / "report.html")
        assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
        assert wrong._repr_html_().startswith("<iframe srcdoc=")
        assert wrong.to_dict()["findings"][0]["kind"] == "wrong keys"

    def test_the_same_cases_are_asked_in_each_run(self, wrong):
        again = check(misses_a_channel)
        kept = [re.sub(r"[\d.]+ s\b|\d+ sequences a second", "", r.text(times=False)) for r in (wrong, again)]
        assert kept[0] == kept[1]

    def test_an_exception_is_a_finding_with_its_traceback(self):
        report = check(raises)
        text = str(report.findings[0])
        assert "RuntimeError: no more than three keys" in text
        assert "kernels.py" in text and 'raise RuntimeError("no more than three keys")' in text
        assert "_serve.py" not in text

    def test_objects_keep_state_and_refuse(self):
        class Layer:
            def configure(self, instance):
                self.instances = getattr(self, "instances", 0) + 1
                if instance.label_bits == 16:
                    raise ValueError("no sixteen bits")

            def mask(self, call):
                return right(call)

        layer = Layer()
        report = check(layer, refusals=[ValueError])
        assert not report.conforms and layer.instances > 20
        assert "refused what must be answered" in {finding.kind for finding in report.findings}

    def test_a_top_k_takes_scores(self):
        report = doublecheck.check(top_k, takes="scores", cases=40, promises=["ties-lowest", "padded"])
        assert report.conforms, str(report)
        wrong = doublecheck.check(
            lambda call: {"selected": np.sort(np.argsort(call.scores, axis=-1)[..., : call.heavy_size])},
            takes="scores", cases=20, shrink_seconds=2,
        )  # fmt: skip
        assert wrong.findings[0].call.scores.ndim == 4

    @pytest.mark.parametrize("hostile", [False, True])
    def test_lengths_reach_a_kernel_that_offers_ragged(self, hostile):
        seen = set()

        def kernel(call):
            if call.lengths is not None:
                seen.add(call.lengths.dtype.name)
                beyond = np.arange(call.k.shape[2]) >= call.lengths[:, None]
                beyond = np.broadcast_to(beyond[:, None], call.k.shape[:3])
                assert (np.isnan(call.k[beyond]) | (np.abs(call.k[beyond]) > 100)).all()
                call.k = np.where(beyond[..., None], 0, call.k)
            return right(call)

        options = {"dense_fallback", "previous", "fractions", *DECLARED["lacks"]}
        report = check(kernel, offers=["ragged"], hostile=hostile, probes=False, lacks=sorted(options))
        assert report.conforms and seen == {"int32"}, str(report)

    def test_a_kernel_may_write_to_what_it_is_given(self):
        def kernel(call):
            mask = right(call)
            for tensor in (call.q, call.k, call.v):
                tensor[:] = np.nan
            return mask

        report = check(kernel)
        assert report.conforms, str(report)

    def test_a_declaration_that_cannot_be_is_an_error(self):
        wrongs: list[tuple[dict[str, Any], str]] = [
            ({"dtypes": ["f64"]}, "f64"),
            ({"domain": {"keyz": 3}}, "keyz"),
            ({"takes": "nothing"}, "takes: found 'nothing'"),
            ({"arrays": "lists"}, "arrays: found 'lists'"),
            ({"device": "cuda"}, "device: found 'cuda'"),
            ({"known": ["D99"]}, 'known: found "D99"'),
        ]
        for wrong, message in wrongs:
            with pytest.raises(ValueError, match=re.escape(message)):
                doublecheck.check(right, cases=1, **wrong)

    def test_ctrl_c_ends_it_with_what_was_found(self):
        """The first one while a kernel runs, which then answers."""
        program = (
            INTERRUPTIBLE + "import os, signal, kernels, doublecheck\n"
            "calls = 0\n"
            "def kernel(call):\n"
            "    global calls\n"
            "    calls += 1\n"
            "    if calls == 200: os.kill(os.getpid(), signal.SIGINT)\n"
            "    return kernels.misses_a_channel(call)\n"
            "report = doublecheck.check(kernel, seconds=600, probes=False, goldens=False, **kernels.DECLARED)\n"
            "assert report.interrupted and report.findings, str(report)\n"
            "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
            "print('asked', calls)\n"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE, timeout=60)
        assert found.returncode == 0, found.stderr
        assert "interrupted; it ends after the answer" in found.stderr and found.stdout.startswith("asked 20")

    def test_a_second_ctrl_c_ends_it_at_once(self):
        program = (
            INTERRUPTIBLE + "import os, signal, kernels, doublecheck\n"
            "def kernel(call):\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    return kernels.right(call)\n"
            "doublecheck.check(kernel, seconds=600, **kernels.DECLARED)\n"
        )
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE, timeout=60)
        assert "KeyboardInterrupt" in found.stderr and found.returncode != 0

    def test_progress_is_told_where_it_is_asked_for(self, capsys):
        check(misses_a_channel, progress=True)
        assert "FINDING 1: wrong keys" in capsys.readouterr().err


class TestCases:
    def test_a_counterexample_is_read_asked_and_judged_again(self, wrong, tmp_path):
        wrong.findings[0].save(tmp_path / "finding.safetensors")
        case = doublecheck.load(tmp_path / "finding.safetensors")
        call = case.calls[-1]
        np.testing.assert_array_equal(call.q, wrong.findings[0].call.q)
        reference = case.reference()
        assert reference["mask"].shape == (*call.q.shape[:3], call.k.shape[2])
        assert doublecheck.judge(call, reference) and case.judge(reference)
        verdict = doublecheck.judge(call, mask=misses_a_channel(call))
        assert not verdict and "but scores too low" in str(verdict), str(verdict)
        lacks = DECLARED["lacks"]
        assert case.ask(right, lacks=lacks) and not case.ask(misses_a_channel, lacks=lacks)
        assert "DIVERGES" in str(case.ask(misses_a_channel, lacks=lacks))
        assert wrong.findings[0].case.ask(right), "it knows what the kernel declared"
        again = case.check(misses_a_channel, shrink_seconds=2, **DECLARED)
        assert not again.conforms and again.findings[0].kind == "wrong keys"
        with pytest.raises(ValueError, match="answer: found none or two"):
            doublecheck.judge(call)
        with pytest.raises(doublecheck.Failed, match="maks"):
            doublecheck.judge(call, maks=reference["mask"])

    def test_the_certificate_says_what_any_answer_satisfies(self, wrong):
        case = wrong.findings[0].case
        certificate, reference = case.certificate(), case.reference()
        chosen = reference["mask"] != 0
        assert (certificate.classes[chosen] >= certificate.OPEN).all() or (certificate.classes == 0).any()
        assert not chosen[certificate.classes == certificate.OUT].any()
        selected = chosen.sum(-1)
        assert ((certificate.fewest <= selected) & (selected <= certificate.most)).all()
        assert (certificate.radii >= 0).all() and certificate.scores.dtype == np.float64

    def test_tensors_of_ones_own_make_a_case(self):
        random = np.random.default_rng(1)
        q, k, v = (random.standard_normal((1, 2, n, 4), np.float32) for n in (1, 9, 9))
        case = doublecheck.case(q, k, v, [[0, 2, 1, 3]], heavy_size=3, group_factor=2)
        (call,), reference = case.calls, case.reference()
        np.testing.assert_array_equal(call.k, k)
        assert (reference["mask"].sum(-1) == 3).all() and case.ask(right, lacks=DECLARED["lacks"])
        labels = (x[..., [0, 2]].astype(np.float64) for x in (q, k))
        scores = np.einsum("bhmc,bhnc->bhmn", *labels) / np.sqrt(2)
        certificate = case.certificate()
        assert (np.abs(certificate.scores - scores) <= certificate.radii).all()
        q16, k16, v16 = (x.astype(np.float16) for x in (q, k, v))
        half = doublecheck.case(q16, k16, v16, [[0, 1]], heavy_size=3, group_factor=2)
        assert half.calls[0].dtype == "f16"
        with pytest.raises(ValueError, match=r"k: found \[1, 2, 9, 3\]"):
            doublecheck.case(q, k[..., :3], v, [[0, 1]], heavy_size=3, group_factor=2)

    def test_a_file_that_is_no_case_is_named(self, tmp_path):
        path = tmp_path / "no.safetensors"
        path.write_bytes(b"no")
        with pytest.raises(ValueError, match=r"no\.safetensors"):
            doublecheck.load(path)
        with pytest.raises(OSError):
            doublecheck.load(tmp_path / "missing.safetensors")

    def test_a_finding_becomes_a_test(self, wrong, tmp_path):
        (tmp_path / "my_kernel.py").write_text(
            f"import sys\nsys.path.append({str(HERE)!r})\nfrom kernels import misses_a_channel, right\n"
        )
        for kernel, code in (("misses_a_channel", 1), ("right", 0)):
            source = wrong.findings[0].as_test(tmp_path / "missed-channel.safetensors", f"my_kernel.{kernel}")
            (tmp_path / "test_missed.py").write_text(source)
            found = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_missed.py"],
                cwd=tmp_path, capture_output=True, text=True,
            )  # fmt: skip
            assert found.returncode == code, found.stdout
