"""Tests of the one-file server, which is run as the suite runs it: a process of its own behind two pipes."""

import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np

HERE = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
import doublecheck

SUBJECT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import doublecheck

class Subject:
    def configure(self, instance):
        if instance.group_factor == 0:
            raise doublecheck.Refused("group_factor", "found 0, expected at least 1")
        with open(instance.write_channel_file()) as file:
            assert file.read() == instance.channel_file_text

    def mask(self, call):
        print("printed")
        os.write(1, b"written")
        os.system("echo hi; cat")
        if call.layer == 7:
            raise ValueError("no layer 7")
        if call.layer == 8:
            raise RuntimeError("broke on purpose")
        assert call.channels.dtype == "int64" and type(call.instance.heavy_size) is float
        return {"mask": call.additive() == 0, "output": call.q, "k_labels": call.k.astype("f8")}

doublecheck.serve(Subject(), name="test", dtypes=["f32"], lacks=["previous"], promises=["repeatable"],
                  refusals=[ValueError])
"""
CONFIGURE: dict = {
    "type": "configure",
    "id": 1,
    "channel_selection": "q_proj",
    "dense_layers": [],
    "settings": {"heavy_size": 1.0, "group_factor": 2, "label_bits": 4, "heads": "per-head", "dense_fallback": False},
    "channel_file": '{"model.layers.0.self_attn.q_proj":[[1,0]],"model.layers.1.self_attn.k_proj":[[1,0]]}',
}
MASK = {"type": "mask", "id": 2, "layer": 0, "causal": True, "dtype": "f32", "scaling": 0.5}
BYE = "4000000000000000 3800000000000000" + b'{"__metadata__":{"doublecheck":"{\\"type\\":\\"bye\\"}"}}   '.hex()


def inputs(kind, array):
    return [(name, kind, array) for name in "qkv"]


class SharedMemory(unittest.TestCase):
    def test_tensors_are_views_that_can_be_written_to(self):
        numbers = np.arange(12, dtype="<f4").reshape(1, 1, 3, 4)
        halves = numbers.astype("<f2")
        with tempfile.TemporaryFile() as file:
            file.write(numbers.tobytes() + bytes(16) + halves.tobytes())
            file.flush()
            shared = {
                "k": {"dtype": "F32", "shape": [1, 1, 3, 4], "data_offsets": [0, 48]},
                "v": {"dtype": "F16", "shape": [1, 1, 3, 4], "data_offsets": [64, 88]},
            }
            frame = doublecheck.frame({"type": "mask", "shared": shared}, [("lengths", "I32", np.array([3]))])
            _, tensors = doublecheck.read_frame(io.BytesIO(frame), file.fileno())
            for name in "kv":
                np.testing.assert_array_equal(tensors[name], numbers)
                self.assertEqual(tensors[name].dtype, np.float32)
            np.testing.assert_array_equal(tensors["lengths"], [3])
            self.assertFalse(tensors["k"].flags.owndata)
            tensors["k"][:] = 7
            file.seek(0)
            self.assertEqual(file.read(48), numbers.tobytes())
        self.assertEqual(set(doublecheck.read_frame(io.BytesIO(frame))[1]), {"lengths"})


class Frames(unittest.TestCase):
    def test_bye_is_the_bytes_of_the_protocol(self):
        self.assertEqual(doublecheck.frame({"type": "bye"}), bytes.fromhex(BYE))
        self.assertEqual(len(bytes.fromhex(BYE)), 72)


class Conversation(unittest.TestCase):
    home = HERE

    def setUp(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUBJECT, str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.hello = self.ask({"type": "hello", "protocol": 1, "version": "0"})[0]

    def tearDown(self):
        """However a conversation ends, the process ends, too, and has written nothing else to standard output."""
        rest, errors = self.process.communicate()
        self.assertEqual((rest, self.process.returncode), (b"", 0), errors.decode())
        self.errors = errors.decode()

    def send(self, message, tensors=()):
        assert self.process.stdin is not None
        self.process.stdin.write(doublecheck.frame(message, tensors))
        self.process.stdin.flush()

    def ask(self, message, tensors=()):
        self.send(message, tensors)
        return doublecheck.read_frame(self.process.stdout)

    def test_hello_leaves_out_what_is_not_declared(self):
        self.assertEqual(
            self.hello,
            {
                "type": "hello",
                "protocol": 1,
                "name": "test",
                "dtypes": ["f32"],
                "promises": ["repeatable"],
                "lacks": ["previous"],
            },
        )
        self.send({"type": "bye"})

    def test_values_of_every_type_arrive_whatever_else_is_printed(self):
        self.assertEqual(self.ask(CONFIGURE)[0], {"type": "configured", "id": 1})
        # 1, 1 + 1/128, -2 and the smallest positive value, as bfloat16
        halves = np.array([0x3F80, 0x3F81, 0xC000, 0x0001], np.uint16).reshape(1, 1, 2, 2)
        normal = np.array([1, 1 / 3, -65504, 6e-8], np.float16).reshape(1, 1, 2, 2)
        widened = [1, 1 + 1 / 128, -2, 2.0**-133]
        for kind, array, expected in (
            ("BF16", halves, widened),
            ("F16", normal, normal.ravel()),
            ("F32", normal.astype("f4"), normal.ravel()),
        ):
            reply, answer = self.ask(MASK, inputs(kind, array))
            self.assertEqual(reply, {"type": "answer", "id": 2})
            for name in ("output", "k_labels"):
                self.assertEqual(answer[name].dtype, np.float32)
                np.testing.assert_array_equal(answer[name].ravel(), np.array(expected, np.float32))
            np.testing.assert_array_equal(answer["mask"], [[[[1, 0], [1, 1]]]])

    def test_refusals_and_failures_are_answers(self):
        one = inputs("F32", np.ones((1, 1, 1, 2)))
        self.assertEqual(self.ask(MASK, one)[0]["type"], "failed")
        self.assertEqual(self.ask(CONFIGURE)[0]["type"], "configured")
        reply = self.ask({**MASK, "layer": 7}, one)[0]
        self.assertEqual(reply, {"type": "refused", "id": 2, "message": "ValueError: no layer 7"})
        self.assertEqual(self.ask({**MASK, "layer": 1}, one)[0]["kind"], "channel_kind")
        self.assertEqual(self.ask({**MASK, "layer": 2}, one)[0]["kind"], "missing_layer")
        reply = self.ask({**MASK, "layer": 8}, one)[0]
        self.assertEqual(reply["type"], "failed")
        self.assertIn("RuntimeError: broke on purpose", reply["message"])
        self.assertEqual(self.ask({"type": "dance", "id": 9})[0]["type"], "failed")
        reply = self.ask({**CONFIGURE, "settings": {**CONFIGURE["settings"], "group_factor": 0}})[0]
        self.assertEqual((reply["type"], reply["kind"]), ("refused", "group_factor"))
        self.assertEqual(self.ask({"type": "hello", "protocol": 1})[0], self.hello)


class OneFile(Conversation):
    """The same with a copy of one file in place of the package."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = pathlib.Path(folder.name)
        shutil.copy(HERE / "doublecheck" / "_serve.py", self.home / "doublecheck.py")
        super().setUp()


class Stages(unittest.TestCase):
    def conversation(self, subject, question):
        """The hello of a subject and its answer to one question."""
        program = f"import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, doublecheck; {subject}"
        frames = [({"type": "hello", "protocol": 1}, ()), question, ({"type": "bye"}, ())]
        done = subprocess.run(
            [sys.executable, "-c", program, str(HERE)],
            input=b"".join(doublecheck.frame(*frame) for frame in frames),
            stdout=subprocess.PIPE,
            check=True,
        )
        stream = io.BytesIO(done.stdout)
        return doublecheck.read_frame(stream)[0], doublecheck.read_frame(stream)

    def test_a_top_k_takes_scores(self):
        scores = [("scores", "F16", np.array([[[[1, 3, 2]]]]))]
        hello, (reply, answer) = self.conversation(
            "doublecheck.serve(lambda call: {'selected': call.scores.argsort()[..., -call.heavy_size:]},"
            " name='t', takes='scores')",
            ({"type": "select", "id": 4, "heavy_size": 2, "dtype": "f16"}, scores),
        )
        self.assertEqual((hello["protocol"], hello["takes"]), (2, "scores"))
        self.assertEqual((reply["type"], reply["id"], answer["selected"].tolist()), ("answer", 4, [[[[2, 1]]]]))

    def test_an_attention_takes_a_selection(self):
        selected = ("selected", "I32", np.array([[[[0, -1]]]]))
        tensors = [*inputs("F32", np.ones((1, 1, 1, 1))), selected]
        hello, (reply, answer) = self.conversation(
            "doublecheck.serve(lambda call: (call.v, call.selected[..., 0] * call.scaling),"
            " name='t', takes='selection', gives=['output', 'lse'])",
            ({"type": "attend", "id": 5, "dtype": "f32", "scaling": 1.0}, tensors),
        )
        self.assertEqual((hello["takes"], hello["gives"]), ("selection", ["output", "lse"]))
        self.assertEqual((reply["type"], answer["output"].shape, answer["lse"].shape), ("answer", (1,) * 4, (1,) * 3))

    def test_lengths_reach_a_kernel_that_offers_ragged(self):
        nan = np.array([1, 2, 3, np.nan, 7, np.nan, np.nan, np.nan, *[np.nan] * 4], np.float32).reshape(3, 1, 4, 1)
        tensors = [
            ("q", "F32", np.ones((3, 1, 2, 1))),
            ("k", "F32", nan),
            ("v", "F32", nan),
            ("lengths", "I32", np.array([3, 1, 0])),
        ]
        program = (
            "kernel = lambda call: {'mask': call.additive() == 0, 'output': np.where(call.additive() == 0,"
            " np.swapaxes(call.v, 2, 3), 0).sum(3, keepdims=True)};"
            " kernel.configure = lambda instance: None;"
            " doublecheck.serve(kernel, name='t', offers=['ragged'], shapes=8)"
        )
        module = f"import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, doublecheck; {program}"
        frames = [({"type": "hello", "protocol": 1}, ()), (CONFIGURE, ()), (MASK, tensors), ({"type": "bye"}, ())]
        done = subprocess.run(
            [sys.executable, "-c", module, str(HERE)],
            input=b"".join(doublecheck.frame(*frame) for frame in frames),
            stdout=subprocess.PIPE,
            check=True,
        )
        stream = io.BytesIO(done.stdout)
        hello, _, (reply, answer) = (doublecheck.read_frame(stream) for _ in range(3))
        self.assertEqual((hello[0]["protocol"], hello[0]["offers"], hello[0]["shapes"]), (2, ["ragged"], 8))
        self.assertEqual(reply["type"], "answer")
        # Three keys: queries at 1 and 2. One key: only the second query has a position, 0. None: nothing.
        expected = [[[1, 1, 0, 0], [1, 1, 1, 0]], [[0, 0, 0, 0], [1, 0, 0, 0]], [[0] * 4] * 2]
        np.testing.assert_array_equal(answer["mask"][:, 0], expected)
        np.testing.assert_array_equal(answer["output"][:, 0, :, 0], [[3, 6], [0, 7], [0, 0]])


class Sessions(unittest.TestCase):
    def test_dense_keys_are_kept_for_a_kernel_that_has_none(self):
        """Each answer names the keys by the sums of their values; steps are those of the page on the protocol."""
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, doublecheck;"
            " kernel = lambda call: {'mask': call.additive() == 0, 'output': np.where(call.additive() == 0,"
            " np.swapaxes(call.v, 2, 3), 0).sum(3, keepdims=True), 'lse': call.q[..., 0]};"
            " doublecheck.serve(doublecheck.Cached(kernel), name='t')"
        )
        opening = {"layers": [0, 1], "capacity": 6, "page_size": 2, "heads": 1, "kv_heads": 1, "head_dim": 1}
        opening |= {"value_dim": 1, "dtype": "f32", "scaling": 1.0}

        def rows(names, *numbers):
            return [(name, "F32", np.array(numbers, np.float32).reshape(-1, 1, 1)) for name in names]

        attend = {"type": "attend", "layer": 0}
        steps = [
            ({"type": "open", **opening}, [], "opened"),
            ({"type": "append", "layer": 0, "requests": [[7, 3], [2, 1]]}, rows("kv", 1, 2, 4, 8), "done"),
            ({**attend, "requests": [[2, 1], [7, 2]]}, rows("q", 1, 1, 1), [[8], [3], [7]]),
            ({"type": "fork", "from": 7, "to": 9, "length": 2}, [], "done"),
            ({"type": "append", "layer": 0, "requests": [[9, 2]]}, rows("kv", 16, 32), "done"),
            ({"type": "append", "layer": 0, "requests": [[2, 1]]}, rows("kv", 64), "capacity"),
            ({**attend, "requests": [[9, 1], [7, 1]]}, rows("q", 1, 1), [[51], [7]]),
            ({"type": "truncate", "request": 7, "length": 1}, [], "done"),
            ({"type": "append", "layer": 0, "requests": [[7, 1]]}, rows("kv", 64), "done"),
            ({**attend, "requests": [[7, 1]]}, rows("q", 1), [[65]]),
            ({**attend, "layer": 1, "requests": [[7, 1]]}, rows("q", 1), "length"),
            ({"type": "free", "request": 7}, [], "done"),
            ({**attend, "requests": [[7, 1]]}, rows("q", 1), "request"),
            ({**attend, "layer": 5, "requests": [[9, 1]]}, rows("q", 1), "missing_layer"),
            ({**attend, "requests": [[9, 2]]}, rows("q", 1), "shape"),
            ({**attend, "requests": [[9, 1]]}, rows("q", 1), [[51]]),
        ]
        frames = [({"type": "hello", "protocol": 1}, ()), (CONFIGURE, ())]
        frames += [({**message, "id": index}, tensors) for index, (message, tensors, _) in enumerate(steps)]
        done = subprocess.run(
            [sys.executable, "-c", program, str(HERE)],
            input=b"".join(doublecheck.frame(*frame) for frame in [*frames, ({"type": "bye"}, ())]),
            stdout=subprocess.PIPE,
            check=True,
        )
        stream = io.BytesIO(done.stdout)
        hello, _ = doublecheck.read_frame(stream), doublecheck.read_frame(stream)
        self.assertEqual((hello[0]["protocol"], hello[0]["offers"]), (2, ["sessions"]))
        for index, (message, _, expected) in enumerate(steps):
            reply, answer = doublecheck.read_frame(stream)
            self.assertEqual(reply["id"], index)
            if isinstance(expected, str):
                self.assertEqual(reply.get("kind", reply["type"]), expected, message)
            else:
                self.assertEqual(answer["output"][:, 0].tolist(), expected, message)
                self.assertEqual(answer["lse"].tolist(), [[1]] * len(expected))
                self.assertEqual(answer["mask"].shape[:2], (len(expected), 1))


if __name__ == "__main__":
    unittest.main()
