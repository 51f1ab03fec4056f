"""CUDA graphs: a kernel is captured once for each instance and shape, and answers by replays with new numbers.

What it is captured with are zeros, so that an answer of a replay that holds anything of the capture is wrong: a number
read on the host, a result that was kept, a choice that depended on values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

# So many graphs are kept; each holds memory of its own.
MOST_GRAPHS = 16


class Graphs:
    """A function of a call with tensors of torch on a CUDA device, behind graphs."""

    def __init__(self, torch: ModuleType, method: Callable[[Any], Any]):
        self.torch, self.method = torch, method
        self.captured: dict[Any, tuple[Any, dict[str, Any], Any]] = {}

    def __call__(self, call: Any) -> Any:
        """The answer to a call, in memory that the next replay of its graph overwrites."""
        is_tensor = lambda x: isinstance(x, self.torch.Tensor)  # noqa: E731
        tensors = {name: x for name, x in vars(call).items() if is_tensor(x)}
        if hasattr(call, "additive"):
            tensors["additive"] = call.additive()
        shapes = tuple((name, x.shape, x.dtype) for name, x in tensors.items())
        # Whatever is not a tensor is baked into a graph. An instance is compared by identity: the key keeps it alive.
        others = {name: x for name, x in vars(call).items() if not (is_tensor(x) or name.startswith("_"))}
        others.pop("additive", None)
        key = (shapes, tuple(others.items()))
        with self.torch.cuda.device(next(iter(tensors.values())).device):
            if key not in self.captured:
                while len(self.captured) >= MOST_GRAPHS:
                    del self.captured[next(iter(self.captured))]
                self.captured[key] = self.capture(call, tensors)
            graph, held, result = self.captured[key]
            for name, x in tensors.items():
                held[name].copy_(x)
            graph.replay()
        return result

    def capture(self, call: Any, tensors: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        """A graph, the tensors that it reads and what it answers.

        Errors: those of the kernel, and of torch for what cannot be captured.
        """
        torch = self.torch
        # Integers are indices, which have to stay valid; anything else may be zero.
        held = {name: torch.zeros_like(x) if x.is_floating_point() else x.clone() for name, x in tensors.items()}
        for name, x in held.items():
            setattr(call, name, (lambda x=x: x) if name == "additive" else x)
        # What is compiled or allocated at the first call is no part of the graph, as torch's documentation asks.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                # A kernel may assign to what it is given.
                self.method(copy.copy(call))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.method(copy.copy(call))
        return graph, held, result
