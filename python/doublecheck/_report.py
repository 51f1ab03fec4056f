"""What a check found."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._kernel import native

if TYPE_CHECKING:
    from ._case import Case, Step
    from ._kernel import Kernel
    from ._native import Finding as NativeFinding
    from ._native import Report as NativeReport


class Report:
    """What a check found. `print(report)` is the report of the command; in a notebook it is its page."""

    def __init__(self, report: NativeReport, kernel: Kernel, declaration: str):
        self._report, self._kernel, self._declaration = report, kernel, declaration

    @property
    def conforms(self) -> bool:
        """Whether nothing diverged except as declared, and something was asked."""
        return self._report.conforms

    @property
    def interrupted(self) -> bool:
        """Whether it ended early: the report holds what was found until then."""
        return self._report.interrupted

    @functools.cached_property
    def findings(self) -> list[Finding]:
        """The first failure of each kind, shrunk."""
        return [Finding(finding, self._kernel, self._declaration) for finding in self._report.findings()]

    def text(self, *, times: bool = True) -> str:
        """The report as text; without `times` it is the same for each run with the same `cases`."""
        return self._report.text(times)

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """The report as `doublecheck check --json` writes it (docs/check.schema.json)."""
        return json.loads(self._report.json())

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as one HTML file. Errors: OSError."""
        pathlib.Path(path).write_text(self._page(), encoding="utf-8")

    def save(self, folder: str | os.PathLike[str]) -> list[pathlib.Path]:
        """Writes each counterexample to a folder, in place of those of an earlier run: as a case file, and as text.

        Returns the case files, which `load` reads. Errors: OSError.
        """
        return [pathlib.Path(path) for path in self._report.save(folder)]

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}

    def _page(self) -> str:
        name = json.loads(self._declaration)["name"]
        return self._report.html(f'--command "python3 {name}.py"')

    def _repr_html_(self) -> str:
        page = self._page().replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


class Merged:
    """What the shares of a check found. `print(merged)` is a summary; `merge` and `doublecheck.ray.check` make it."""

    def __init__(self, reports: list[tuple[str, str]], files: dict[str, bytes] | None = None):
        self._json, self._text, self.conforms = native().merge(reports)
        self._files = files or {}

    def __str__(self) -> str:
        return self._text

    def to_dict(self) -> dict[str, Any]:
        """The report of all shares, in the form of `doublecheck check --json` (docs/check.schema.json)."""
        return json.loads(self._json)

    def save(self, folder: str | os.PathLike[str]) -> list[pathlib.Path]:
        """Writes the counterexamples of all shares, a folder each, where the reports came with them.

        Returns the case files. Errors: OSError.
        """
        for share in {pathlib.Path(folder, name).parent for name in self._files}:
            for old in share.glob("finding-*"):
                old.unlink()
        written = []
        for name, content in self._files.items():
            path = pathlib.Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written += [path] if path.suffix == ".safetensors" else []
        return written


def merge(reports: Iterable[Report | dict[str, Any] | str | os.PathLike[str]]) -> Merged:
    """Puts the reports of `check(..., shard=(k, n))` together: reports, dicts of them, or paths of their JSON.

    Errors: ValueError for reports that do not belong together or hold a question twice; OSError.
    """

    files: dict[str, bytes] = {}

    def read(number: int, report: Any) -> tuple[str, str]:
        if isinstance(report, Report):
            files.update({f"share-{number}/{name}": content for name, content in report.files().items()})
            report = report.to_dict()
        if isinstance(report, dict):
            return f"report {number}", json.dumps(report)
        return str(report), pathlib.Path(report).read_text(encoding="utf-8")

    return Merged([read(number, report) for number, report in enumerate(reports, 1)], files)


class Finding:
    """One failure, shrunk. `print(finding)` tells it with its counterexample."""

    def __init__(self, finding: NativeFinding, kernel: Kernel, declaration: str):
        self._finding, self._kernel, self._declaration = finding, kernel, declaration

    @property
    def kind(self) -> str:
        """The kind of failure, in a few words."""
        return self._finding.kind

    @property
    def stage(self) -> str | None:
        """The first stage that is wrong on right input, where the answers say which one it is."""
        return self._finding.stage

    @property
    def diagnosis(self) -> str:
        """What is wrong, where the answers prove it, in a sentence."""
        return self._finding.diagnosis

    @property
    def explanations(self) -> list[str]:
        """What is wrong with the counterexample, one line each."""
        return self._finding.explanations

    @functools.cached_property
    def case(self) -> Case:
        """The counterexample: its calls, and what is right; a `Session` where it is one."""
        from ._case import case_of

        return case_of(self._finding.question(), self._kernel.arrays, json.loads(self._declaration))

    @property
    def call(self) -> Any:
        """The failing call, with plain tensors of the kind that the kernel was given: neither hostile nor in pages.

        In a session it is the call that the failing `attend` stands for, of the request whose answer is wrong. Errors:
        ValueError where another step fails.
        """
        if (index := self._finding.call) is None:
            raise ValueError("call: found another step that fails, expected an attend; finding.step is that step")
        return self.case.calls[index]

    @property
    def step(self) -> Step | None:
        """The failing step of a session; None where it is none, or was not opened."""
        index, steps = self._finding.step, getattr(self.case, "steps", [])
        return None if index is None else steps[index]

    def __str__(self) -> str:
        return self._finding.text().strip("\n")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the counterexample as a case file, and beside it as text. Errors: OSError."""
        self._finding.save(path)

    def as_test(self, path: str | os.PathLike[str], kernel: str = "my_kernel.kernel") -> str:
        """Writes the counterexample to `path`, and returns the source of a test of pytest that asks it again.

        `kernel` is how the test imports the kernel: module and name. Errors: OSError.
        """
        self.save(path)
        module, _, name = kernel.rpartition(".")
        file = pathlib.Path(path).name
        declared = {key: value for key, value in json.loads(self._declaration).items() if key != "name" and value != []}
        # Who holds keys offers sessions without saying so.
        if offers := [offer for offer in declared.pop("offers", []) if offer != "sessions"]:
            declared["offers"] = offers
        said = [
            name,
            *(
                f"{key}={value!r}"
                for key, value in {**self._kernel.arrays.named, **self._kernel.ways, **declared}.items()
            ),
        ]
        return "\n".join(
            [
                f'"""{self.kind}: found by doublecheck."""',
                "",
                "import pathlib",
                "",
                "import doublecheck",
                f"from {module} import {name}",
                "",
                "",
                f"def test_{pathlib.Path(path).stem.replace('-', '_')}():",
                f"    # {self.explanations[0].splitlines()[0] if self.explanations else self.kind}",
                f'    case = doublecheck.load(pathlib.Path(__file__).parent / "{file}")',
                f"    verdict = case.ask({', '.join(said)})",
                "    assert verdict.conforms, str(verdict)",
                "",
            ]
        )
