"""The blocks of docs/python.md, and of the Python entrance of README.md, are run: code, files, commands, output."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def blocks(page):
    """Language and text of each fenced block of a page."""
    parts = (ROOT / page).read_text().split("```")[1::2]
    return [tuple(part.split("\n", 1)) for part in parts]


def check_lines(expected, found):
    """Each line of what a page shows is printed, in this order; a line may be cut short."""
    lines = iter(found.splitlines())
    for line in expected.splitlines():
        assert any(of_run.startswith(line) for of_run in lines), f"found no {line!r} in order, in:\n{found}"


def run_command(command, folder):
    """What a command prints where pytest, python3 and doublecheck are those of this environment."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    where = ROOT if "examples/" in command else folder
    found = subprocess.run(command, shell=True, cwd=where, capture_output=True, text=True, env=environment)
    return found.stdout + found.stderr


@pytest.mark.parametrize(("page", "expected"), [("docs/python.md", 22), ("README.md", 2)])
def test_a_page_does_what_it_says(page, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {}
    printed, done = "", 0
    for language, text in blocks(page):
        first, _, rest = text.partition("\n")
        if language == "python":
            done += 1
            if first.startswith("# ") and first.endswith(".py"):
                (tmp_path / first[2:]).write_text(text)
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, page, "exec"), namespace)
            printed = output.getvalue()
        elif language == "console":
            done += 1
            assert first.startswith("$ "), first
            check_lines(rest, run_command(first[2:], tmp_path))
        elif language == "text" and namespace:
            done += 1
            check_lines(text, printed)
    assert done == expected
