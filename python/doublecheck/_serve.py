"""Answers the questions of `doublecheck check` in Python: hand `serve` a function from a call to a mask.

This file is complete: copied as doublecheck.py it needs numpy only. The package `doublecheck` is the same and more.

The protocol is docs/PROTOCOL.md: frames of safetensors over standard input and output. f16 and bf16 arrive as float32,
results may be numpy arrays, torch tensors or anything numpy can read. If the suite started the process, whatever it
writes to standard output after this import, from Python or C or a child process, goes to standard error: import this
first. There breakpoint() talks to the terminal.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterable
from typing import Any

import numpy as np

TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


class Refused(Exception):
    """The input is not allowed. `kind` is one of the protocol's names, or None."""

    def __init__(self, kind: str | None, message: str):
        super().__init__(message)
        self.kind = kind


class Failed(Exception):
    """A question or a result that this file cannot handle."""


# --- frames -----------------------------------------------------------------------------------------------------------


def frame(message: dict[str, Any], tensors: Iterable[tuple[str, str, Any]] = ()) -> bytes:
    """The bytes of one frame; `tensors` are (name, type, array) with a type of safetensors."""
    file = safetensors({"doublecheck": json.dumps(message, separators=(",", ":"))}, tensors)
    return struct.pack("<Q", len(file)) + file


def safetensors(metadata: dict[str, str], tensors: Iterable[tuple[str, str, Any]] = ()) -> bytes:
    """The bytes of a safetensors file; `metadata` are texts."""
    header: dict = {"__metadata__": metadata}
    data, end = [], 0
    for name, kind, array in tensors:
        array = np.ascontiguousarray(array, TYPES[kind])
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        data.append(array.tobytes())
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *data])


def read_frame(stream: Any, memory: int | None = None) -> Any:
    """(message, {name: array}) of the next frame, None at the end of input. BF16 and F16 become float32.

    `memory` is the number of the memory that is shared with the suite, where a message may have tensors.
    """
    length = stream.read(8)
    if len(length) < 8:
        return None
    length = int.from_bytes(length, "little")
    body = stream.read(length)
    if len(body) < length:
        return None
    start = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:start])
    message = json.loads(header.pop("__metadata__")["doublecheck"])
    tensors = {name: decode(body, start, **entry) for name, entry in header.items()}
    if memory is not None and (shared := message.get("shared")):
        end = max(entry["data_offsets"][1] for entry in shared.values())
        mapped = mmap.mmap(memory, end, access=mmap.ACCESS_COPY)  # what is written to it stays in this process
        tensors |= {name: decode(mapped, 0, **entry, copy=False) for name, entry in shared.items()}
    return message, tensors


def decode(body, start, dtype, shape, data_offsets, copy=True, **_):
    begin, end = data_offsets
    kind = np.dtype(TYPES[dtype])
    array = np.frombuffer(body, kind, (end - begin) // kind.itemsize, start + begin).reshape(shape)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    # A copy can be written to, and so can shared memory.
    return array.astype(np.float32 if dtype == "F16" else kind, copy=copy)


# --- what a subject is given ------------------------------------------------------------------------------------------


class Instance:
    """The settings of one `configure`."""

    heavy_size: int | float  # 1 is one key, 1.0 is every key
    group_factor: int
    label_bits: int
    heads: str
    dense_fallback: bool

    def __init__(self, message: dict[str, Any]):
        self.settings = message["settings"]
        for name in ("heavy_size", "group_factor", "label_bits", "heads", "dense_fallback"):
            setattr(self, name, self.settings.get(name))
        self.rules = self.settings.get("rules", {})  # what is left out has its default (SPEC 2.12)
        self.earlier_maskers = self.settings.get("earlier_maskers", [])
        self.channel_selection = message.get("channel_selection", "qk_proj")
        self.dense_layers = message.get("dense_layers", [])
        self.channel_file_text = message["channel_file"]
        self._channels: dict[int, np.ndarray] = {}

    @functools.cached_property
    def channel_file(self) -> dict[str, Any]:
        try:
            return json.loads(self.channel_file_text)
        except ValueError as error:
            raise Refused("format", f"channel_file: found {error}, expected JSON") from None

    def channels(self, layer: int) -> np.ndarray:
        """The channel order of one layer, int64 [rows, d]; rows are the query heads, the KV heads, or one for all."""
        if layer not in self._channels:
            prefix = f"model.layers.{layer}.self_attn."
            if prefix + self.channel_selection not in self.channel_file:
                keys = (key for key in self.channel_file if not key.endswith(".weights"))
                kinds = [key[len(prefix) :] for key in keys if key.startswith(prefix)]
                found, expected = kinds or "nothing", self.channel_selection
                raise Refused(
                    "channel_kind" if kinds else "missing_layer",
                    f"channel_file: layer {layer} found {found}, expected {expected}",
                )
            rows = self.channel_file[prefix + self.channel_selection]
            if not isinstance(rows, list) or not all(
                isinstance(row, list) and set(map(type, row)) <= {int} for row in rows
            ):
                raise Refused("format", f"channel_file: layer {layer} found {rows!r:.60}, expected integer rows")
            if len(widths := set(map(len, rows))) != 1:
                raise Refused("channel_rows", f"channel_file: layer {layer} found widths {widths}, expected equal rows")
            self._channels[layer] = np.array(rows, np.int64)
        return self._channels[layer]

    def channel_weights(self, layer: int) -> np.ndarray | None:
        """The channel weights of one layer, float32 [rows, >= r], or None: 1 everywhere (SPEC 2.12)."""
        rows = self.channel_file.get(f"model.layers.{layer}.self_attn.{self.channel_selection}.weights")
        return None if rows is None or not self.rules.get("channel_weights") else np.array(rows, np.float32)

    def write_channel_file(self) -> str:
        """The path of a file with the channel orders, for a subject that reads one; removed with the instance."""
        self._file = tempfile.NamedTemporaryFile("w", prefix="doublecheck-", suffix=".json")  # noqa: SIM115
        self._file.write(self.channel_file_text)
        self._file.flush()
        return self._file.name


class Call:
    """One `mask`: q [b, h, m, d], k [b, hk, n, d] and v [b, hk, n, dv] are float32 and hold values of `dtype`.

    `lengths` [b] says how many keys each entry has, and is None unless hello offers `ragged`: then k and v hold NaN or
    large numbers beyond, and query i of entry b has the position lengths[b] - m + i.
    """

    def __init__(self, instance: Instance, message: dict[str, Any], tensors: dict[str, Any]):
        self.instance, self.layer, self.causal = instance, message["layer"], message["causal"]
        self.dtype, self.scaling = message["dtype"], message["scaling"]
        self.q, self.k, self.v = tensors["q"], tensors["k"], tensors["v"]
        self.attention_mask, self.previous = tensors.get("attention_mask"), tensors.get("previous")
        self.lengths = tensors.get("lengths")
        self.head_weights = tensors.get("head_weights")  # [b, h, m] for the rule relu, or None: 1 everywhere
        # Where tensors are not of numpy: what they were, and what makes such a tensor.
        self._numpy, self._convert = tensors.get("numpy", tensors), tensors.get("convert")

    @property
    def channels(self) -> np.ndarray:
        """The channel order, int64 [rows, d]."""
        return self.instance.channels(self.layer)

    @property
    def channel_weights(self) -> np.ndarray | None:
        """The channel weights, float32 [rows, >= r], or None: 1 everywhere."""
        return self.instance.channel_weights(self.layer)

    def additive(self) -> Any:
        """A, float32 and broadcastable to [b, h, m, n]: the attention mask and, where causal, -inf for later keys.

        Where there are lengths, also for padding, and for every key where a query has no position.
        """
        additive = self._additive(self._numpy.get("attention_mask"), self._numpy.get("lengths"))
        return additive if self._convert is None else self._convert(np.ascontiguousarray(additive), "float32")

    def _additive(self, attention_mask, lengths):
        m, n = self.q.shape[2], self.k.shape[2]
        if lengths is not None:
            lengths = lengths.astype(np.int64)[:, None, None, None]
            positions = lengths - m + np.arange(m)[:, None]  # [b, 1, m, 1]
            out = (np.arange(n) >= lengths) | (positions < 0)
            if self.causal:
                out |= np.arange(n) > positions
            given = 0 if attention_mask is None else attention_mask
            return np.where(out, np.float32(-np.inf), np.float32(given))
        additive = np.zeros((1, 1, m, n), np.float32) if attention_mask is None else attention_mask
        if self.causal:
            later = np.arange(n) > np.arange(n - m, n)[:, None]
            additive = np.where(later, np.float32(-np.inf), additive)
        return additive


class ScoresCall:
    """One `select`: scores [b, h, m, n] are float32 and hold values of `dtype`; -inf is no candidate.

    Neither is a key at or beyond `lengths` [b], where there are lengths, whatever its score.
    """

    def __init__(self, _instance: Any, message: dict[str, Any], tensors: dict[str, Any]):
        self.scores, self.heavy_size, self.dtype = tensors["scores"], message["heavy_size"], message["dtype"]
        self.lengths = tensors.get("lengths")


class SelectionCall:
    """One `attend`: q, k and v as in a Call; selected [b, h, m, .] holds ascending key indices, then -1."""

    def __init__(self, _instance: Any, message: dict[str, Any], tensors: dict[str, Any]):
        self.dtype, self.scaling = message["dtype"], message["scaling"]
        self.q, self.k, self.v = (tensors[name] for name in "qkv")
        self.selected, self.lengths = tensors["selected"], tensors.get("lengths")


# --- answers ----------------------------------------------------------------------------------------------------------


def to_numpy(x: Any) -> tuple[str, np.ndarray]:
    """A tensor as (type of safetensors, row-major array); bf16 as bits, which numpy has no type for."""
    if isinstance(x, np.ndarray):
        pass
    elif hasattr(x, "detach"):  # a torch tensor; numpy has no bfloat16
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":
            return "BF16", np.ascontiguousarray(x.view(sys.modules["torch"].int16).numpy()).view(np.uint16)
        x = x.numpy()
    elif not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
        x = np.from_dlpack(x)
    array = np.asarray(x)
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":  # that of ml_dtypes, which JAX has
        return "BF16", np.ascontiguousarray(array).view(np.uint16)
    if array.dtype == np.float16:
        return "F16", np.ascontiguousarray(array)
    if array.dtype in (np.bool_, np.uint8):
        return "U8", np.ascontiguousarray(array).view(np.uint8)
    return "F32", np.ascontiguousarray(array, np.float32)


# What may be taken: the type of the question, which is also the name of a subject's method for it, the class of the
# call, the names of a tuple's parts, all names, and those of which an answer needs one.
STAGES = {
    "inputs": (
        "mask",
        Call,
        ("mask", "output"),
        ("mask", "selected", "output", "q_labels", "k_labels", "scores", "lse"),
        ("mask", "selected"),
    ),
    "scores": ("select", ScoresCall, ("mask",), ("mask", "selected"), ("mask", "selected")),
    "selection": ("attend", SelectionCall, ("output", "lse"), ("output", "lse"), ("output", "lse")),
}


def answer_tensors(result: Any, takes: str = "inputs") -> list[tuple[str, str, np.ndarray]]:
    _, _, parts, known, needed = STAGES[takes]
    if isinstance(result, tuple):
        result = dict(zip(parts, result))
    elif not isinstance(result, dict):
        result = {parts[0]: result}
    tensors, is_answer = [], False
    for name, x in result.items():
        if name not in known:
            raise Failed(f"answer: found {sorted(result.keys() - known)}, expected {', '.join(known)}")
        if x is not None:
            tensors.append((name, *answer_tensor(name, x)))
            is_answer = is_answer or name in needed
    if not is_answer:
        raise Failed(f"answer: found {sorted(name for name, _, _ in tensors)}, expected {' or '.join(needed)}")
    return tensors


def answer_tensor(name: str, x: Any) -> tuple[str, np.ndarray]:
    """One tensor of an answer as (type of safetensors, row-major array): indices as I64, lse as F32."""
    if name == "selected":
        return "I64", np.ascontiguousarray(x.detach().cpu() if hasattr(x, "detach") else x, np.int64)
    kind, array = to_numpy(x)
    if kind == "U8" and name != "mask":
        return "F32", array.astype(np.float32)
    if name == "lse" and kind != "F32":
        return "F32", decode(array, 0, kind, array.shape, (0, array.nbytes))
    return kind, array


def describe(error):
    """What the error says and where it was raised; all of the traceback goes to standard error."""
    traceback.print_exception(type(error), error, error.__traceback__)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno}: {where.line})"


# --- sessions ---------------------------------------------------------------------------------------------------------


SESSION_STEPS = ("append", "attend", "fork", "truncate", "free")


class Opening:
    """What a session is opened with, for `open(opening)` of a subject that holds keys itself.

    `instance`; `layers`; `capacity` and `page_size` in tokens; `heads`, `kv_heads`, `head_dim`, `value_dim`; `dtype`
    and `scaling`, as in a Call.
    """

    def __init__(self, instance, message, convert=None):
        # Where tensors are not of numpy: what makes such a tensor of an array.
        self.convert = convert
        self.instance, self.layers = instance, message["layers"]
        self.capacity, self.page_size = message["capacity"], message["page_size"]
        self.heads, self.kv_heads = message["heads"], message["kv_heads"]
        self.head_dim, self.value_dim = message["head_dim"], message["value_dim"]
        self.dtype, self.scaling = message["dtype"], message["scaling"]


def holds_keys(subject):
    """Whether a subject has the methods of sessions."""
    return all(hasattr(subject, name) for name in ("open", *SESSION_STEPS))


def step_arguments(message, tensors):
    """What the method of a step is called with."""
    kind = message["type"]
    if kind in ("append", "attend"):
        requests = [(request, count) for request, count in message["requests"]]
        rows = (tensors["k"], tensors["v"]) if kind == "append" else (tensors["q"],)
        return (message["layer"], requests, *rows)
    names = {"fork": ("from", "to", "length"), "truncate": ("request", "length"), "free": ("request",)}[kind]
    return tuple(message[name] for name in names)


def ask_step(subject, message, tensors):
    """Asks one step of a session. What a Cached keeps is of numpy, whatever its kernel is given."""
    given = tensors.get("numpy", tensors) if isinstance(subject, Cached) else tensors
    return getattr(subject, message["type"])(*step_arguments(message, given))


def session_step(subject, message, tensors):
    """Asks one step of a session: the type of the answer, and its tensors."""
    result = ask_step(subject, message, tensors)
    return ("answer", list(answer_tensors(result))) if message["type"] == "attend" else ("done", [])


def parts(requests, *packed_rows):
    """Each request with its rows of packed tensors [t, ...]."""
    ends = np.cumsum([count for _, count in requests])[:-1]
    return zip([request for request, _ in requests], *(np.split(rows, ends) for rows in packed_rows))


def by_request(kernel, opening, layer, requests, q, held):
    """The answer to an attend by a function of a Call, which is asked once for each request.

    q is [t, h, d]; `held(request)` is a pair of all its k [n, hk, d] and v [n, hk, dv] in this layer.
    """
    message = {"layer": layer, "causal": True, "dtype": opening.dtype, "scaling": opening.scaling}
    results = []
    for request, rows in parts(requests, q):
        k, v = held(request)
        tensors = {name: of_call(x, opening) for name, x in (("q", rows), ("k", k), ("v", v))}
        if opening.convert is not None:
            tensors |= {"numpy": {}, "convert": opening.convert}
        answer = answer_tensors(kernel(Call(opening.instance, message, tensors)))
        results.append({name: np.moveaxis(wide(kind, x)[0], 1, 0) for name, kind, x in answer})
    return {name: packed(name, [result[name] for result in results]) for name in PACKED if name in results[0]}


def of_call(rows, opening):
    """Packed rows [n, heads, .] as a call has them, [1, heads, n, .]: copies of arrays, as kernels may write."""
    x = rows.swapaxes(0, 1)[None]
    if not isinstance(x, np.ndarray):
        return x.contiguous() if hasattr(x, "contiguous") else x
    x = np.array(x, order="C")
    if opening.convert is None:
        return x
    return opening.convert(x, opening.dtype if x.dtype == np.uint16 else x.dtype.name)


def wide(kind, array):
    """An array with numbers of this type of safetensors; those of bf16, for which numpy has no type, as float32."""
    return decode(array, 0, kind, array.shape, (0, array.nbytes)) if kind == "BF16" else array


class Cached:
    """A subject that also holds keys, made of a kernel that does not: dense keys, and one call for each request.

    `kernel` is a function of a Call, or an object with `mask(call)`, as for `serve`. The methods below are those that
    `serve` wants of any subject with sessions; `requests` are (number, count), rows are packed: those of the first
    request first. They are of numpy, whatever tensors the kernel is given.
    """

    def __init__(self, kernel):
        self.kernel, self.mask = kernel, getattr(kernel, "mask", kernel)
        self.__name__ = getattr(kernel, "__name__", type(kernel).__name__)
        self.tokens = 0

    def configure(self, instance):
        if hasattr(self.kernel, "configure"):
            self.kernel.configure(instance)

    def open(self, opening):
        self.opening, self.held = opening, {}  # request: {layer: (number of each token, k [n, hk, d], v [n, hk, dv])}

    def append(self, layer, requests, k, v):
        """k [t, hk, d] and v [t, hk, dv]: new keys at the end of each request, which begins if it is not known."""
        opening, t = self.opening, sum(count for _, count in requests)
        self._check(layer, requests, k, (t, opening.kv_heads, opening.head_dim))
        self._check(layer, requests, v, (t, opening.kv_heads, opening.value_dim))
        room = opening.capacity - len({token for held in self.held.values() for token in held[layer][0].tolist()})
        if t > room:
            raise Refused("capacity", f"append: found {t} keys, expected at most {room}")
        tokens, self.tokens = np.arange(self.tokens, self.tokens + t), self.tokens + t
        for request, *new in parts(requests, tokens, k, v):
            empty = (tokens[:0], k[:0], v[:0])
            held = self.held.setdefault(request, {})
            for other in opening.layers:
                held.setdefault(other, empty)
            held[layer] = tuple(map(np.concatenate, zip(held[layer], new)))

    def attend(self, layer, requests, q):
        """q [t, h, d]: the last positions of each request. The answer has mask [t, h, n] or selected [t, h, .]."""
        opening = self.opening
        self._check(layer, requests, q, (sum(count for _, count in requests), opening.heads, opening.head_dim))
        for request, count in requests:
            if count > (most := len(self._known(request)[layer][0])):
                raise Refused("length", f"queries: found {count}, expected at most {most}")
        return by_request(self.mask, opening, layer, requests, q, lambda request: self.held[request][layer][1:])

    def fork(self, request, to, length):
        """`to` begins with the first keys of `request`, in every layer."""
        held = self._known(request, length)
        if to in self.held:
            raise Refused("request", f"to: found {to}, expected a request that is not in use")
        self.held[to] = {layer: tuple(x[:length] for x in tensors) for layer, tensors in held.items()}

    def truncate(self, request, length):
        """`request` keeps its first keys, in every layer."""
        held = self._known(request, length)
        self.held[request] = {layer: tuple(x[:length] for x in tensors) for layer, tensors in held.items()}

    def free(self, request):
        """`request` is over."""
        self._known(request)
        del self.held[request]

    def _known(self, request, length=0):
        if request not in self.held:
            raise Refused("request", f"request: found {request}, expected one of {sorted(self.held)}")
        most = max(len(tokens) for tokens, _, _ in self.held[request].values())
        if length > most:
            raise Refused("length", f"length: found {length}, expected at most {most}")
        return self.held[request]

    def _check(self, layer, requests, rows, shape):
        if layer not in self.opening.layers:
            raise Refused("missing_layer", f"layer: found {layer}, expected one of {self.opening.layers}")
        if len({request for request, _ in requests}) < len(requests):
            raise Refused("request", f"requests: found {requests}, expected each request once")
        if not requests or min(count for _, count in requests) < 1 or rows.shape != shape:
            raise Refused("shape", f"rows: found {rows.shape} for {requests}, expected {shape}, at least one of each")


# What an answer to an attend may hold, and what fills up rows of shorter requests.
PACKED = {"mask": 0, "selected": -1, "output": 0, "lse": 0}


def packed(name, of_requests):
    """The rows of all requests, [t, h, .] or [t, h]; those of shorter requests are filled up."""
    if name in ("mask", "selected"):
        widest = max(rows.shape[-1] for rows in of_requests)
        pads = ([(0, 0), (0, 0), (0, widest - rows.shape[-1])] for rows in of_requests)
        of_requests = [np.pad(rows, pad, constant_values=PACKED[name]) for rows, pad in zip(of_requests, pads)]
    return np.concatenate(of_requests)


# --- serving ----------------------------------------------------------------------------------------------------------


class Server:
    """Answers the questions of one conversation, after hello."""

    def __init__(self, subject, refusals, takes):
        self.subject, self.refusals, self.takes = subject, tuple(refusals), takes
        self.instance: Any = None
        self.question, self.kind, *_ = STAGES[takes]
        self.method, self.opened = getattr(subject, self.question, subject), False
        self.steps = {"configure": self.configure, self.question: self.call}
        if holds_keys(subject):
            self.steps |= {"open": self.open, **dict.fromkeys(SESSION_STEPS, self.step)}

    def configure(self, message, _tensors):
        self.instance, self.opened = None, False
        instance = Instance(message)
        if hasattr(self.subject, "configure"):
            self.subject.configure(instance)
        self.instance = instance
        return {"type": "configured"}, ()

    def call(self, message, tensors):
        if self.instance is None and self.takes == "inputs":
            raise Failed("mask: found no instance, expected a configure that was not refused before it")
        result = self.method(self.kind(self.instance, message, tensors))
        return {"type": "answer"}, answer_tensors(result, self.takes)

    def open(self, message, tensors):
        if self.instance is None:
            raise Failed("open: found no instance, expected a configure that was not refused before it")
        self.subject.open(Opening(self.instance, message, tensors.get("convert")))
        self.opened = True
        return {"type": "opened"}, ()

    def step(self, message, tensors):
        if not self.opened:
            raise Failed(f"{message['type']}: found no session, expected an open that was not refused before it")
        kind, answer = session_step(self.subject, message, tensors)
        return {"type": kind}, answer

    def describe(self, error):
        return describe(error)

    def reply(self, message, tensors):
        """The message that answers a question, and its tensors; whatever the subject raises is an answer, too."""
        try:
            if message["type"] not in self.steps:
                raise Failed(f"type: found {message['type']!r}, expected hello, configure, {self.question} or bye")
            return self.steps[message["type"]](message, tensors)
        except KeyboardInterrupt:
            raise
        except Failed as error:
            return {"type": "failed", "message": str(error)}, ()
        except Refused as error:
            kind = {"kind": error.kind} if error.kind else {}
            return {"type": "refused", "message": str(error), **kind}, ()
        except self.refusals as error:
            return {"type": "refused", "message": f"{type(error).__name__}: {error}"}, ()
        except BaseException as error:  # some extensions raise outside Exception
            return {"type": "failed", "message": self.describe(error)}, ()

    def answer(self, message, tensors):
        """The frame that answers a question."""
        reply, tensors = self.reply(message, tensors)
        return frame({**reply, "id": message.get("id")}, tensors)


def private_streams():
    """Standard input and output for frames alone: 0 becomes the null device, 1 becomes standard error."""
    frames_in, frames_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout.flush()
    sys.stdout = sys.stderr
    return frames_in, frames_out


# The suite sets this variable; without it an import must not redirect any output.
STREAMS = private_streams() if "DOUBLECHECK_RUN" in os.environ else None


def break_on_terminal():
    """What breakpoint() does in a process that the suite started: standard input is no terminal there, and the process
    is not in the terminal's foreground. Without a terminal the kernel goes on."""
    import io
    import pdb
    import signal

    try:
        terminal = open("/dev/tty", "r+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        print(f"breakpoint: found no terminal ({error}), so the kernel goes on", file=sys.stderr)
        return

    def to_foreground(group):
        ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # sent to who is not in the foreground yet
        try:
            os.tcsetpgrp(terminal.fileno(), group)
        finally:
            signal.signal(signal.SIGTTOU, ignored)

    class Debugger(pdb.Pdb):
        def interaction(self, *arguments, **others):
            before = os.tcgetpgrp(terminal.fileno())
            to_foreground(os.getpgrp())
            try:
                super().interaction(*arguments, **others)
            finally:
                to_foreground(before)

    text = io.TextIOWrapper(terminal, write_through=True)
    text.write("breakpoint: the suite waits for this answer as long as --timeout says, 30 seconds by default\n")
    Debugger(stdin=text, stdout=text).set_trace(sys._getframe(1))


if STREAMS and "PYTHONBREAKPOINT" not in os.environ:
    sys.breakpointhook = break_on_terminal


def declaration(
    subject: Any,
    *,
    name: str | None = None,
    version: str | None = None,
    model: dict[str, Any] | None = None,
    dtypes: list[str] | None = None,
    heads: list[str] | None = None,
    rules: list[Any] | None = None,
    largest_keys: int | None = None,
    domain: Any = None,
    promises: Iterable[str] | None = None,
    takes: str = "inputs",
    gives: Iterable[str] | None = None,
    offers: Iterable[str] = (),
    shapes: int | None = None,
    lacks: Iterable[str] = (),
) -> dict[str, Any]:
    """What hello declares; what is left out has its default. A subject that holds keys offers sessions.

    Errors: ValueError with the field, what was found and what was expected.
    """
    if takes not in STAGES:
        raise ValueError(f"takes: found {takes!r}, expected {', '.join(STAGES)}")
    offered = {*offers}
    if takes == "inputs" and holds_keys(subject):
        offered.add("sessions")
    elif "sessions" in offered:
        expected = f"one with open, {', '.join(SESSION_STEPS)}, such as doublecheck.Cached(kernel)"
        raise ValueError(f"offers: found 'sessions' of {subject!r} that takes {takes}, expected {expected}")
    declared = {
        "name": name or getattr(subject, "__name__", type(subject).__name__),
        "version": version,
        "model": model,
        "dtypes": dtypes,
        "heads": heads,
        "rules": rules,
        "largest_keys": largest_keys,
        "domain": domain,
        "promises": None if promises is None else list(promises),
        "lacks": list(lacks),
        "takes": takes if takes != "inputs" or gives is not None else None,
        "gives": None if gives is None else list(gives),
        "offers": sorted(offered) or None,
        "shapes": shapes,
    }
    return {key: value for key, value in declared.items() if value is not None}


def serve(
    subject: Any,
    *,
    takes: str = "inputs",
    shared_memory: bool = False,
    refusals: Iterable[type[BaseException]] = (),
    **declared: Any,
) -> None:
    """Answers questions until the suite says bye or closes the input.

    `subject` is a function of a Call, or an object with `mask(call)` and, if it wants, `configure(instance)`. A call
    gives a mask [b, h, m, n], a pair of mask and output, or a dict with mask or selected, output, q_labels, k_labels,
    scores, lse. With `takes="scores"` it is a function of a ScoresCall, or has `select`, and gives a mask or a dict of
    selected. With `takes="selection"` it is a function of a SelectionCall, or has `attend`, and gives an output, a pair
    of output and lse, or a dict. `gives` names what every answer holds.
    `offers` names what is asked only of those who offer it: "ragged", batches of entries of unequal lengths. An object
    with `open` and the other methods of `Cached` holds keys itself, and offers "sessions".
    `shapes` is for a subject that compiles for each new shape: how many distinct ones it is worth asking.
    `shared_memory=True` takes tensors without copying them, where the suite offers it: those of f32 are then views of
    memory that holds other numbers from the next question on, so copy what you keep.
    `refusals` are exception types that mean "not allowed"; Refused names the kind. Any other exception is `failed`.
    The rest is what hello declares, as in `declaration`: name, version, model, dtypes, heads, rules, largest_keys,
    domain, promises, lacks.
    """
    hello = declaration(subject, takes=takes, **declared)
    frames_in, frames_out = STREAMS or private_streams()
    server = Server(subject, refusals, takes)
    memory = None
    while (question := read_frame(frames_in, memory)) and question[0]["type"] != "bye":
        if question[0]["type"] == "hello":
            memory = question[0].get("memory_file") if shared_memory else None
            said = hello if memory is None else {**hello, "shared_memory": True}
            protocol = 2 if {"takes", "offers", "shapes", "shared_memory"} & said.keys() else 1
            frames_out.write(frame({"type": "hello", "protocol": protocol, **said}))
        else:
            frames_out.write(server.answer(*question))
        frames_out.flush()
