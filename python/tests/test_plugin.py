"""Tests of the pytest plugin, as it is installed: pytest in folders of its own."""

import pathlib
import subprocess
import sys
import xml.etree.ElementTree

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TESTS = f"""
import sys
sys.path.append({str(HERE)!r})
import pytest
from kernels import DECLARED, misses_a_channel, right, top_k
OPTIONS = {{**DECLARED, "goldens": False, "cases": 40}}
"""


@pytest.fixture
def run(tmp_path):
    """Writes a test file and runs pytest on it: exit code and output."""

    def run(source, *arguments):
        (tmp_path / "test_kernel.py").write_text(TESTS + source)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *arguments]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return found.returncode, found.stdout + found.stderr

    return run


def test_a_right_kernel_passes(run):
    code, text = run("def test(doublecheck):\n    assert doublecheck(right, **OPTIONS).conforms\n")
    assert code == 0 and "1 passed" in text, text


def test_a_wrong_kernel_fails_with_its_finding_and_is_asked_that_first(run, tmp_path):
    source = "def test(doublecheck):\n    doublecheck({}, **OPTIONS)\n"
    code, text = run(source.format("misses_a_channel"))
    assert code == 1 and "FINDING 1: wrong keys" in text and "diagnosis:" in text, text
    assert "pytest_plugin.py" not in text, "the finding, and no traceback of the plugin"
    (kept,) = (tmp_path / ".doublecheck").glob("*/*.safetensors")
    assert f"--doublecheck-replay {kept}" in text
    # Without random sequences only what was kept can fail.
    alone = source.replace("OPTIONS", "{{**OPTIONS, 'cases': 0, 'probes': False}}")
    code, text = run(alone.format("misses_a_channel"))
    assert code == 1 and "FINDING 1: wrong keys" in text, text
    code, text = run(alone.format("misses_a_channel"), "--doublecheck-replay", str(kept))
    assert code == 1 and "FINDING 1: wrong keys" in text, text
    code, text = run(source.format("right"))
    assert code == 0 and not kept.exists(), text


def test_a_marker_makes_one_test_of_each(run):
    code, text = run(
        "@pytest.mark.doublecheck(dtypes=['f32', 'f16'], heads=['per-head'])\n"
        "def test(doublecheck):\n"
        "    doublecheck(right, **{**OPTIONS, 'model': {'kept': 'f32'}})\n"
        "@pytest.mark.doublecheck(takes=['inputs', 'scores'])\n"
        "def test_stages(doublecheck, request):\n"
        "    takes = request.node.callspec.params['doublecheck']['takes']\n"
        "    options = {'inputs': OPTIONS, 'scores': {'cases': 20, 'promises': ['padded']}}[takes]\n"
        "    doublecheck({'inputs': right, 'scores': top_k}[takes], **options)\n",
        "-vv",
    )
    for node in ("test[f32-per-head]", "test[f16-per-head]", "test_stages[scores]"):
        assert f"{node} PASSED" in text, text
    code, text = run("@pytest.mark.doublecheck(types=['f32'])\ndef test(doublecheck):\n    pass\n")
    assert code != 0 and "found ['types'], expected dtypes, heads, takes" in text, text


def test_it_works_on_several_workers_and_in_junit(run, tmp_path):
    source = (
        "def test_wrong(doublecheck):\n    doublecheck(misses_a_channel, **OPTIONS)\n"
        "def test_right(doublecheck):\n    doublecheck(right, **OPTIONS)\n"
    )
    code, text = run(source, "-n", "2", "--junit-xml", "junit.xml", "--doublecheck-seed", "3")
    assert code == 1 and "1 failed, 1 passed" in text, text
    cases = xml.etree.ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    failures = {case.get("name"): case.findtext("failure") for case in cases}
    assert "FINDING 1: wrong keys" in (failures["test_wrong"] or "") and failures["test_right"] is None, failures


def test_seconds_bound_it(run):
    code, text = run(
        "def test(doublecheck):\n"
        "    report = doublecheck(right, **{**OPTIONS, 'cases': None})\n"
        "    assert report.to_dict()['planned_seconds'] == 0.5\n",
        "--doublecheck-seconds", "0.5",
    )  # fmt: skip
    assert code == 0, text
