"""Judges faulty and right implementations by this suite and by what other tests compare, and prints who sees what.

    python3 tests/oracles/judge.py DOUBLECHECK FOLDER [--so-far] [NAME...]

FOLDER takes what is in between: each judgement as soon as it is made, so that a run that ended goes on where it was.
Names are those of implementations or storage types; with names only those are judged. --so-far judges no more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field

import inputs
import numpy as np
import rivals
from table import render

import subjects

HERE = pathlib.Path(__file__).resolve().parent
# Probes and random sequences of `doublecheck check`, of up to 512 keys; only the verdict counts.
CHECK = ["--cases", "60", "--largest-keys", "512", "--no-goldens", "--no-shrink", "--no-causes"]
# So many random inputs are judged first; an implementation that fails there is not asked the others.
FIRST = 10
SETS = ("check", "random")
JUDGED = "judged.jsonl"


@dataclass
class Judged:
    """What was made of one implementation in one storage type on one set of inputs."""

    name: str
    dtype: str
    inputs: str
    right: bool
    acts: bool = False  # its answer differs from that of the same arithmetic without the fault
    rejected: dict[str, bool] = field(default_factory=dict)


class Judge:
    def __init__(self, doublecheck: str, folder: pathlib.Path) -> None:
        self.doublecheck, self.folder = doublecheck, folder

    def suite(self, command: str, program: str, arguments: list[str]) -> bool:
        """Whether the suite rejects what the program answers."""
        call = f"{shlex.quote(sys.executable)} {shlex.quote(str(HERE / program))}"
        run = subprocess.run(
            [self.doublecheck, command, "--command", f"{call} {arguments[0]}", *arguments[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if run.returncode not in (0, 1):
            raise RuntimeError(f"{command} {arguments}: exit code {run.returncode}: {run.stdout[-2000:]}")
        return run.returncode == 1

    def prepare(self, dtype: str) -> None:
        """Writes down what the suite asks in a type, computes what is expected, writes random inputs as case files."""
        path = self.folder / f"check-{dtype}.pickle"
        if self.suite("check", "inputs.py", [f"{dtype} {shlex.quote(str(path))}", *CHECK]):
            raise RuntimeError(f"{dtype}: the plain right implementation does not conform")
        self.cases = [self.folder / f"first-{dtype}", self.folder / f"others-{dtype}"]
        for folder in self.cases:
            folder.mkdir(exist_ok=True)
        for number, question in enumerate(inputs.random_normal(dtype)):
            inputs.write_case(self.cases[number >= FIRST], number, question)
        self.questions = {
            "check": expected(inputs.recorded(str(path))),
            "random": expected(inputs.random_normal(dtype)),
        }
        print(f"prepared {dtype}", file=sys.stderr, flush=True)

    def judge(self, task: tuple[str, str, str]) -> Judged:
        name, dtype, questions = task
        judged = Judged(name, dtype, questions, subjects.is_right(name))
        judged.acts, judged.rejected = by_rivals(subjects.make(name, dtype), self.questions[questions], judged.right)
        subject = f"{name} {dtype}"
        if questions == "check":
            ours = self.suite("check", "subjects.py", [subject, *CHECK, "--stop-after", "1"])
        else:
            # Where a fault does not act, the answers are those of the plain right implementation.
            ours = (judged.acts or judged.right) and any(
                self.suite("verify", "subjects.py", [subject, "--random-cases", "0", str(folder)])
                for folder in self.cases
            )
        judged.rejected = {"doublecheck": ours, **judged.rejected}
        return judged


def expected(questions) -> list[tuple]:
    """Each question with what rivals compare with, and the answer of a fault's own arithmetic without the fault."""
    made = []
    for instance, fresh, call in questions:
        references = subjects.Exact(), subjects.Eager(), subjects.stored(subjects.Plain, call.dtype)
        for reference in references:
            reference.configure(instance)
        exact, eager, plain = (rivals.answer(call, reference.mask(call)) for reference in references)
        compared = rivals.Expected(call.dtype, exact, references[0].ranked, eager.output)
        made.append((instance, fresh, call, compared, plain))
    return made


def by_rivals(subject, questions: list[tuple], right: bool) -> tuple[bool, dict[str, bool]]:
    """Whether the subject ever departs from what it would be without a fault, and which rivals ever reject it."""
    acts, rejected = False, dict.fromkeys(rivals.RIVALS, False)
    for instance, fresh, call, compared, plain in questions:
        if fresh:
            subject.configure(instance)
        with np.errstate(all="ignore"):
            found = rivals.answer(call, subject.mask(call))
            same = np.array_equal(found.selected, plain.selected) and rivals.close(
                found.output, plain.output, 1e-4, 1e-5
            )
            acts = acts or not same
            for rival, accepts in rivals.RIVALS.items():
                rejected[rival] = rejected[rival] or not accepts(found, compared)
        if acts and all(rejected.values()):
            break
    return acts and not right, rejected


def kept(folder: pathlib.Path) -> list[Judged]:
    """What earlier runs judged."""
    path = folder / JUDGED
    return [Judged(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def judge_type(doublecheck: str, folder: pathlib.Path, tasks: list[tuple[str, str, str]], answers, cores: int) -> None:
    """Judges what is left of one storage type, in so many processes."""
    try:
        judge = Judge(doublecheck, folder)
        judge.prepare(tasks[0][1])
        # Processes are forked: what was prepared is there.
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            for judged in pool.imap_unordered(judge.judge, tasks):
                answers.put(judged)
    finally:
        answers.put(None)


def judge_all(doublecheck: str, folder: pathlib.Path, tasks: list[tuple[str, str, str]]) -> list[Judged]:
    folder.mkdir(parents=True, exist_ok=True)
    done = kept(folder)
    known = {(one.name, one.dtype, one.inputs) for one in done}
    left = [task for task in tasks if task not in known]
    of_types = [of for dtype in subjects.DTYPES if (of := [task for task in left if task[1] == dtype])]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    # Types take turns in being the slow one: together they may have somewhat more processes than there are cores.
    cores = max(1, (os.cpu_count() or 1) // 2)
    types = [
        context.Process(target=judge_type, args=(doublecheck, folder, of_type, answers, cores)) for of_type in of_types
    ]
    for process in types:
        process.start()
    with (folder / JUDGED).open("a") as file:
        running = len(types)
        while running:
            judged = answers.get()
            if judged is None:
                running -= 1
                continue
            done.append(judged)
            print(json.dumps(asdict(judged)), file=file, flush=True)
    for process in types:
        process.join()
    if any(process.exitcode for process in types):
        raise RuntimeError("not everything was judged; see above")
    return done


def tasks_of(names: list[str], dtype: str) -> list[tuple[str, str, str]]:
    """Right ones first, as they are asked everything."""
    asked = sorted((name for name in names if subjects.is_asked(name, dtype)), key=subjects.is_right, reverse=True)
    return [(name, dtype, questions) for questions in SETS for name in asked]


def main(doublecheck: str, folder: pathlib.Path, options: list[str]) -> None:
    names = [name for name in subjects.classes() if name in options] or list(subjects.classes())
    dtypes = [dtype for dtype in subjects.DTYPES if dtype in options] or list(subjects.DTYPES)
    tasks = [task for dtype in dtypes for task in tasks_of(names, dtype)]
    done = kept(folder) if "--so-far" in options else judge_all(doublecheck, folder, tasks)
    done = [one for one in done if (one.name, one.dtype, one.inputs) in tasks]
    print(render(done, [name for name in names if any(one.name == name for one in done)], len(tasks)))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
