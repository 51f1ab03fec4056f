"""CUDA graphs: a kernel is captured once for each shape, and answers by replays with new numbers in the same memory.

What it is captured with are zeros, so that an answer of a replay that holds anything of the capture is wrong: a number
read on the host, a result that was kept, a choice that depended on values.
"""

from __future__ import annotations

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
        # What is no tensor is part of a graph. An instance is known by itself, as it is kept along.
        others = {name: x for name, x in vars(call).items() if not is_tensor(x) and not name.startswith("_")}
        key = (shapes, tuple(others.items()))
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
        # Places in a list of keys have to be such; anything else may be zero.
        held = {name: torch.zeros_like(x) if x.is_floating_point() else x.clone() for name, x in tensors.items()}
        for name, x in held.items():
            setattr(call, name, (lambda x=x: x) if name == "additive" else x)
        # What is compiled or allocated at the first call is no part of the graph, as torch's documentation asks.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.method(call)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.method(call)
        return graph, held, result
