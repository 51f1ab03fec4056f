"""Counterexamples and other case files: calls as tensors, what the reference answers, verdicts on any answer."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _serve
from ._check import asked, ends_cleanly, isolated, run
from ._kernel import Arrays, Kernel, made, native
from ._paged import PAGE_SIZE
from ._report import Report

if TYPE_CHECKING:
    from ._native import Question


@dataclass(frozen=True)
class Certificate:
    """What any conforming answer to a call satisfies (SPEC 5).

    `classes` [b, h, m, n] are BEFORE (attended before), EXCLUDED (no candidate), OUT, OPEN (rounding alone decides) and
    IN; `fewest` and `most` [b, h, m] say how many keys a row may select. `scores` and `radii` [b, h, m, n] are float64:
    a conforming score may be so far from the one recomputed. None where nothing is ranked or entries have lengths.
    """

    classes: np.ndarray
    fewest: np.ndarray
    most: np.ndarray
    scores: np.ndarray | None
    radii: np.ndarray | None

    BEFORE = 0
    EXCLUDED = 1
    OUT = 2
    OPEN = 3
    IN = 4


@dataclass(frozen=True)
class Verdict:
    """Whether an answer conforms, and what is wrong with it. True where it conforms; print it to see why not."""

    conforms: bool
    explanations: list[str]

    def __bool__(self) -> bool:
        return self.conforms

    def __str__(self) -> str:
        return "conforms" if self.conforms else "DIVERGES:\n" + "\n".join(f"  {line}" for line in self.explanations)


class Case:
    """A sequence of calls, or a question to one stage."""

    def __init__(self, question: Question, arrays: Arrays, declared: dict[str, Any]):
        self._question, self._arrays, self._declared = question, arrays, declared

    @functools.cached_property
    def instance(self) -> Any:
        """What is configured before its calls; None for a question to one stage."""
        configuration = self._question.configuration()
        return None if configuration is None else _serve.Instance(json.loads(configuration))

    @functools.cached_property
    def calls(self) -> list[Any]:
        """Its calls, as a kernel is given them."""
        kind = _serve.STAGES[self._question.takes][1]
        calls = []
        for index, (message, tensors) in enumerate(self._question.calls(self._arrays.bits)):
            call: Any = kind(self.instance, message, self._arrays.all(message, tensors))
            call.origin = (self._question, index)
            calls.append(call)
        return calls

    def reference(self, call: int = -1) -> dict[str, np.ndarray]:
        """What the reference answers to one of its calls, the last one by default, after those before it.

        `mask` [b, h, m, n] holds weights and `output` [b, h, m, dv] the attention; a sparse attention gives `output`
        and `lse` [b, h, m]. Errors: ValueError where the call must be refused.
        """
        tensors, refused = self._question.reference()[call]
        if tensors is None:
            raise ValueError(f"this call must be refused: {refused}")
        return tensors

    def certificate(self, call: int = -1, *, model: dict[str, Any] | None = None) -> Certificate:
        """What any conforming answer to one of its calls satisfies, under a rounding model.

        Without `model` it is that of the kernel of the finding, or the default. Errors: ValueError where the call must
        be refused, or is a question to a sparse attention, which selects nothing.
        """
        if self._question.takes == "selection":
            raise ValueError(
                "certificate: found a question to a sparse attention, expected one in which keys are ranked"
            )
        found = self._question.certificate(call % len(self.calls), self._said(model))
        return Certificate(found["classes"], found["fewest"], found["most"], found.get("scores"), found.get("radii"))

    def judge(
        self, answer: Any = None, call: int = -1, *, model: dict[str, Any] | None = None, **tensors: Any
    ) -> Verdict:
        """The verdict on an answer to one of its calls: whatever a kernel may return, or tensors by name."""
        return _judge(self._question, call % len(self.calls), self._said(model), answer, tensors)

    def ask(
        self,
        kernel: Any,
        *,
        arrays: str | Callable[[Any], Any] | None = None,
        device: str | None = None,
        refusals: Iterable[type[BaseException]] = (),
        hostile: bool | str = False,
        replay: str | None = None,
        layout: str | None = None,
        page_size: int = PAGE_SIZE,
        **declared: Any,
    ) -> Verdict:
        """Asks a kernel all calls again, and first what has to be asked before. The verdict holds all of it as text.

        `arrays`, `device`, `refusals`, `hostile`, `replay`, `layout`, `page_size` and what is declared are as in
        `check`; arrays and declaration are those of the finding where they are left out.
        """
        ways = hostile, replay, layout, page_size
        subject, said = self._asked(made(kernel), arrays, device, refusals, declared, ways)
        stop = native().Stop()
        with ends_cleanly(stop):
            conforms, text = self._question.ask(subject, said, subject.arrays.bits, stop)
        return Verdict(conforms, text.splitlines())

    def check(
        self,
        kernel: Any,
        *,
        shrink_seconds: float = 60.0,
        arrays: str | Callable[[Any], Any] | None = None,
        device: str | None = None,
        refusals: Iterable[type[BaseException]] = (),
        hostile: bool | str = False,
        replay: str | None = None,
        layout: str | None = None,
        page_size: int = PAGE_SIZE,
        isolate: bool = False,
        timeout: float = 30.0,
        **declared: Any,
    ) -> Report:
        """Asks a kernel all calls again, as `ask`; a failure is shrunk and explained as by `check`."""
        asks = kernel if isolate else made(kernel)
        subject, said = self._asked(asks, arrays, device, refusals, declared, (hostile, replay, layout, page_size))
        options: dict[str, Any] = {"only": self._question, "shrink_seconds": float(shrink_seconds), "cases": 0}
        if isolate:
            ways = {"hostile": hostile, "replay": replay, "layout": layout}
            options |= isolated(kernel, subject.arrays, refusals, said, timeout, ways)
        return run(subject, said, False, options)

    def _asked(
        self,
        kernel: Any,
        arrays: str | Callable[[Any], Any] | None,
        device: str | None,
        refusals: Iterable[type[BaseException]],
        declared: dict[str, Any],
        ways: tuple[bool | str, str | None, str | None, int],
    ) -> tuple[Kernel, str]:
        given = self._arrays
        if arrays is not None or device is not None:
            given = Arrays(given.source if arrays is None else arrays, device or "cpu")
        declared = {**self._declared, **declared, "takes": self._question.takes}
        # Whether it holds keys is seen in the kernel that is asked now.
        declared["offers"] = [offer for offer in declared.get("offers", ()) if offer != "sessions"]
        if isinstance(self, Session):
            declared["offers"].append("sessions")
        said = json.dumps(_serve.declaration(kernel, **declared))
        return asked(kernel, given, refusals, self._question.takes, *ways), said

    def _said(self, model: dict[str, Any] | None) -> str:
        return json.dumps(self._declared if model is None else {**self._declared, "model": model})


@dataclass(frozen=True)
class Step:
    """One step of a session: the method `name` of an engine, and its arguments.

    `calls` are the calls that an `attend` stands for, one for each request, with all keys that it holds; nothing for
    other steps, and where the step must be refused. `print(step)` tells it in a line.
    """

    name: str
    arguments: tuple[Any, ...]
    calls: list[Any]
    _message: dict[str, Any]
    _tensors: dict[str, Any]

    def ask(self, engine: Any) -> Any:
        """Asks an engine this step: the answer to an `attend`, which may be judged call by call."""
        return _serve.ask_step(engine, self._message, self._tensors)

    def __str__(self) -> str:
        rows = [f"{name} {list(x.shape)}" for name, x in self._tensors.items() if name in ("q", "k", "v")]
        said = {name: x for name, x in self._message.items() if name not in ("type", "dtype")}
        return ", ".join([f"{self.name}: " + ", ".join(f"{name} {x}" for name, x in said.items()), *rows])


class Session(Case):
    """A session of an engine that holds keys itself. Its `calls` are those that its attends stand for.

    `print(session)` is the story of its steps. To go through them in a debugger:

        session.start(engine)
        for step in session.steps:
            answer = step.ask(engine)
    """

    @functools.cached_property
    def opening(self) -> Any:
        """What it is opened with, an `Opening`."""
        message = json.loads(self._question.opening() or "")
        return _serve.Opening(self.instance, message, self._arrays.convert)

    @functools.cached_property
    def steps(self) -> list[Step]:
        """Its steps, with tensors as an engine is given them."""
        steps = []
        for (message, tensors), places in self._question.steps(self._arrays.bits):
            given = self._arrays.all(message, tensors)
            calls = [self.calls[place] for place in places]
            steps.append(Step(message["type"], _serve.step_arguments(message, given), calls, message, given))
        return steps

    def start(self, engine: Any) -> None:
        """Configures an engine, if it wants that, and opens the session."""
        if hasattr(engine, "configure"):
            engine.configure(self.instance)
        engine.open(self.opening)

    def __str__(self) -> str:
        return self._question.story().rstrip("\n")


def case_of(question: Question, arrays: Arrays, declared: dict[str, Any]) -> Case:
    """A case of what is asked."""
    return (Case if question.opening() is None else Session)(question, arrays, declared)


def load(path: str | os.PathLike[str], *, arrays: str | Callable[[Any], Any] = "numpy", device: str = "cpu") -> Case:
    """Reads a case file: a counterexample of a check, or any case of an attention layer or of one stage. Of a session
    it gives a `Session`.

    Errors: OSError; ValueError that names file, field, what was found and what was expected.
    """
    question = native().load(path)
    return case_of(question, Arrays(arrays, device), {} if question.takes == "inputs" else {"takes": question.takes})


def case(
    q: Any,
    k: Any,
    v: Any,
    channels: Any,
    *,
    heavy_size: int | float,
    group_factor: int,
    label_bits: int = 16,
    heads: str = "per-head",
    causal: bool = True,
    scaling: float | None = None,
    dtype: str | None = None,
    attention_mask: Any = None,
    previous: Any = None,
    arrays: str | Callable[[Any], Any] = "numpy",
    device: str = "cpu",
    **settings: Any,
) -> Case:
    """One call with tensors of your own: numpy, torch or anything with DLPack.

    q [b, h, m, d], k [b, hk, n, d], v [b, hk, n, dv]; channels [rows, >= r], rows being h, hk or 1; attention_mask
    float32, broadcastable to [b, h, m, n]; previous float32 [b, h, m, n]. `dtype` is that of q unless it is given: f32,
    f16 or bf16. The settings are those of SPEC 2: `heavy_size` 1 is one key and 1.0 every key; others, such as
    `dense_fallback` and `rules`, go by their names.

    Errors: ValueError with the field, what was found and what was expected.
    """
    given = {"q": q, "k": k, "v": v, "attention_mask": attention_mask, "previous": previous}
    tensors = [(name, *_serve.to_numpy(x)) for name, x in given.items() if x is not None]
    tensors.append(("channels", *_serve.answer_tensor("selected", channels)))
    said = {
        "heavy_size": heavy_size,
        "group_factor": group_factor,
        "label_bits": label_bits,
        "heads": heads,
        "dense_fallback": False,
        "causal": causal,
        "dtype": dtype or tensors[0][1].lower(),
        "scaling": scaling,
        **settings,
    }
    question = native().parse(_serve.safetensors({"case": json.dumps(said)}, tensors), "case")
    return Case(question, Arrays(arrays, device), {})


def judge(call: Any, answer: Any = None, *, model: dict[str, Any] | None = None, **tensors: Any) -> Verdict:
    """The verdict on an answer to a call of a case or of a finding: whatever a kernel may return, or tensors by name.

    `judge(call, mask=mask, output=output)`: mask [b, h, m, n] or selected [b, h, m, .], output [b, h, m, dv], and
    q_labels, k_labels, scores, lse where there are any. `model` is how the kernel rounds.

    Errors: ValueError for a call that comes from elsewhere; Failed for tensors that no answer may have.
    """
    if getattr(call, "origin", None) is None:
        raise ValueError("call: found one that is asked right now, expected one of `load(...).calls` or of a finding")
    question, index = call.origin
    declared = {"model": model} if model is not None else {}
    if question.takes != "inputs":
        declared["takes"] = question.takes
    return _judge(question, index, json.dumps(declared), answer, tensors)


def _judge(question: Question, index: int, declaration: str, answer: Any, tensors: dict[str, Any]) -> Verdict:
    if (answer is None) == (not tensors):
        raise ValueError("answer: found none or two, expected an answer, or tensors by name")
    given = _serve.answer_tensors(tensors if answer is None else answer, question.takes)
    return Verdict(*question.judge(index, declaration, given))
