"""A top-k kernel in Triton, checked alone: it takes scores and gives the selected keys (SPEC 2.9).

The threshold is found bit by bit, so that a row of any length needs no memory but its own; of keys that tie the lowest
are selected. Runs on CUDA, or on the CPU by Triton's interpreter where there is none. As a command it is asked by

    doublecheck check --command "python3 examples/python/triton_topk.py"
"""

import os
import pathlib
import sys
from typing import Any

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
import triton
import triton.language as tl

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SUPPORTS: dict[str, Any] = {
    "name": "triton top-k",
    "takes": "scores",
    "gives": ["selected"],
    "promises": ["ties-lowest", "repeatable"],
}
# The lowest finite f32, as `ordered` has it.
LOWEST = tl.constexpr(-2139095040)


@triton.jit
def ordered(scores, keys, n):
    """Scores as integers of the same order, zeros of either sign as one; those of -inf are below LOWEST."""
    score = tl.load(scores + keys, keys < n, -float("inf")).to(tl.float32)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def select_row(scores, selected, n, size, TILE: tl.constexpr):
    """The keys [size] of one row of scores [n], in ascending order; places without a candidate keep what they hold."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * n
    selected += row * size
    places = tl.arange(0, TILE)
    # The largest threshold that at least `size` scores reach.
    threshold = tl.full((), LOWEST, tl.int64)
    for bit in range(32):
        higher = threshold + (tl.full((), 1, tl.int64) << (31 - bit))
        reach = 0
        for start in range(0, n, TILE):
            reach += tl.sum((ordered(scores, start + places, n) >= higher).to(tl.int32), 0)
        threshold = tl.where(reach >= size, higher, threshold)
    above = 0
    for start in range(0, n, TILE):
        above += tl.sum((ordered(scores, start + places, n) > threshold).to(tl.int32), 0)
    ties, written = 0, 0
    for start in range(0, n, TILE):
        score = ordered(scores, start + places, n)
        tie = (score == threshold).to(tl.int32)
        chosen = (score > threshold) | ((tie == 1) & (ties + tl.cumsum(tie, 0) <= size - above))
        place = written + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(selected + place, start + places, chosen)
        ties += tl.sum(tie, 0)
        written += tl.sum(chosen.to(tl.int32), 0)


def select(call):
    """The selected keys [b, h, m, H] of scores [b, h, m, n], -1 where there is no candidate."""
    scores = torch.as_tensor(call.scores).to(DTYPES[call.dtype]).to(DEVICE).contiguous()
    n = scores.shape[3]
    size = min(call.heavy_size, n)
    selected = torch.full((*scores.shape[:3], size), -1, dtype=torch.int32, device=DEVICE)
    select_row[(scores.shape[:3].numel(),)](scores, selected, n, size, TILE=1024)
    return {"selected": selected}


if __name__ == "__main__":
    doublecheck.serve(select, version=f"{triton.__version__}, {DEVICE}", **SUPPORTS)
