"""The pytest plugin: a fixture `doublecheck`, which checks a kernel and fails with what it finds.

    def test_kernel(doublecheck):
        doublecheck(kernel, dtypes=["f32"], heads=["per-head"], lacks=["output"])

    @pytest.mark.doublecheck(dtypes=["f16", "bf16"], heads=["per-head", "summed-scores"])
    def test_each(doublecheck):  # four tests
        doublecheck(kernel, arrays="torch")

Counterexamples are kept in `.doublecheck/` below pytest's root, and asked first in the next run; one that conforms
again is removed.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from typing import Any

import pytest

import doublecheck as package

# Arguments of the marker, and the argument of `check` that each of its values becomes.
AXES = {"dtypes": lambda value: [value], "heads": lambda value: [value], "takes": lambda value: value}

FOLDER = ".doublecheck"

# Arguments of `check` that say nothing about one case.
OF_RANDOM_CASES = {
    *("seconds", "cases", "seed", "largest", "known"),
    *("goldens", "stop_after", "repeat", "probes", "conditions", "progress", "shard"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("doublecheck")
    group.addoption("--doublecheck-seconds", type=float, metavar="S", help="how long each kernel is asked; default: 10")
    group.addoption("--doublecheck-seed", type=int, metavar="N", help="seed of the random sequences; default: 0")
    group.addoption(
        "--doublecheck-replay", metavar="FILE", help="ask kernels this counterexample in place of anything else"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "doublecheck(dtypes, heads, takes): runs a test that uses the fixture `doublecheck` once for each of the "
        "listed dtypes, head rules and stages",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("doublecheck")
    if marker is None:
        return
    where = metafunc.definition.nodeid
    if unknown := set(marker.kwargs) - set(AXES):
        raise pytest.UsageError(f"{where}: doublecheck: found {sorted(unknown)}, expected {', '.join(AXES)}")
    if marker.args or "doublecheck" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{where}: doublecheck: expected keywords only, and the fixture `doublecheck`")
    axes = [[(name, value) for value in values] for name, values in marker.kwargs.items()]
    cases = [dict(case) for case in itertools.product(*axes)]
    ids = ["-".join(str(value) for value in case.values()) for case in cases]
    metafunc.parametrize("doublecheck", cases, indirect=True, ids=ids)


@pytest.fixture
def doublecheck(request: pytest.FixtureRequest) -> Checker:
    """Checks a kernel: call it as `doublecheck.check`. It returns the report if the kernel conforms, and fails else."""
    axes: dict[str, Any] = getattr(request, "param", {})
    return Checker(request, {name: AXES[name](value) for name, value in axes.items()})


class Checker:
    """What the fixture gives."""

    def __init__(self, request: pytest.FixtureRequest, declared: dict[str, Any]):
        self.config, self.node, self.declared = request.config, request.node.nodeid, declared
        name = re.sub(r"[^\w.-]+", "_", self.node)
        self.folder = pathlib.Path(self.config.rootpath) / FOLDER / name

    def __call__(self, kernel: Any, **options: Any) -> package.Report | None:
        """The report of `doublecheck.check` with the same arguments; None where one case was asked alone.

        Other defaults: `seconds` is 10, one finding ends it, and that is shrunk for 10 seconds at most.
        """
        __tracebackhide__ = True
        options = {"stop_after": 1, "shrink_seconds": 10.0, **options, **self.declared, "progress": False}
        for name in ("seconds", "seed"):
            if (given := self.config.getoption(f"doublecheck_{name}")) is not None:
                options[name] = given
        if options.get("cases") is None:
            options.setdefault("seconds", 10.0)
        if replay := self.config.getoption("doublecheck_replay"):
            self.again(kernel, pathlib.Path(replay), options)
            return None
        for path in sorted(self.folder.glob("*.safetensors")):
            self.again(kernel, path, options)
            path.unlink()
            path.with_suffix(".txt").unlink(missing_ok=True)
        report = package.check(kernel, **options)
        if report.findings:
            self.fail(report, report.save(self.folder)[0])
        if report.interrupted:
            raise KeyboardInterrupt
        if not report.conforms:
            pytest.fail(str(report), pytrace=False)
        return report

    def again(self, kernel: Any, path: pathlib.Path, options: dict[str, Any]) -> None:
        """Asks one counterexample, and fails if it still is one."""
        __tracebackhide__ = True
        alone = {name: option for name, option in options.items() if name not in OF_RANDOM_CASES}
        report = package.load(path).check(kernel, **alone)
        if report.findings:
            self.fail(report, path)

    def fail(self, report: package.Report, path: pathlib.Path) -> None:
        """Fails with the findings."""
        __tracebackhide__ = True
        findings = "\n\n".join(str(finding) for finding in report.findings)
        again = f"kept in {path}; this case alone: pytest '{self.node}' --doublecheck-replay {path}"
        pytest.fail(f"{findings}\n\n{again}", pytrace=False)
