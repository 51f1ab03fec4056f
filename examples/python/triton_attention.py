"""A sparse decode kernel in Triton, checked alone: a selection in, output and log-sum-exp out (SPEC 2.11).

Only selected keys are read, tile by tile, with a softmax that goes along. Runs on CUDA, or on the CPU by Triton's
interpreter where there is none. As a command it is asked by

    doublecheck check --command "python3 examples/python/triton_attention.py"
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
    "name": "triton attention",
    "takes": "selection",
    "gives": ["output", "lse"],
    # The interpreter cuts bf16 off where CUDA rounds it.
    "dtypes": ["f32", "f16", "bf16"] if DEVICE == "cuda" else ["f32", "f16"],
    "model": {"kept": "f32", "accumulation": "f32"},
}


# Compiled once for each width and type, not for numbers that happen to be 1 or multiples of 16.
@triton.jit(do_not_specialize=["heads", "kv_heads", "m", "n", "size", "d", "dv"])
def attend_row(
    q, k, v, selected, output, lse, heads, kv_heads, m, n, size, d, dv, scaling,
    TILE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """One row: q [d], the keys [n, d] and values [n, dv] of its KV head, selected [size] gives output [dv] and lse."""
    row = tl.program_id(0).to(tl.int64)
    entry, head = row // (heads * m), row // m % heads
    kv_head = entry * kv_heads + head // (heads // kv_heads)
    channels, values = tl.arange(0, D), tl.arange(0, DV)
    query = tl.load(q + row * d + channels, channels < d, 0).to(tl.float32)
    largest = -float("inf")
    total = 0.0
    sums = tl.zeros((DV,), tl.float32)
    for start in range(0, size, TILE):
        places = start + tl.arange(0, TILE)
        key = tl.load(selected + row * size + places, places < size, -1)
        used = (key >= 0)[:, None]
        position = (kv_head * n + key)[:, None]
        keys = tl.load(k + position * d + channels[None, :], used & (channels < d)[None, :], 0).to(tl.float32)
        logits = tl.where(key >= 0, tl.sum(query[None, :] * keys, 1) * scaling, -float("inf"))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 0))
        # Nothing is subtracted while there is no logit.
        base = tl.where(largest == -float("inf"), 0.0, largest)
        weights, kept = tl.exp(logits - base), tl.exp(before - base)
        of_keys = tl.load(v + position * dv + values[None, :], used & (values < dv)[None, :], 0).to(tl.float32)
        total = total * kept + tl.sum(weights, 0)
        sums = sums * kept + tl.sum(weights[:, None] * of_keys, 0)
    tl.store(output + row * dv + values, sums / tl.where(total > 0, total, 1.0), values < dv)
    tl.store(lse + row, largest + tl.log(total))


def attend(call):
    """The output [b, h, m, dv] and the log-sum-exp [b, h, m] of attention over selected keys [b, h, m, H]."""
    q, k, v = (torch.as_tensor(x).to(DTYPES[call.dtype]).to(DEVICE).contiguous() for x in (call.q, call.k, call.v))
    selected = torch.as_tensor(call.selected).to(DEVICE).contiguous()
    (b, h, m, d), (_, hk, n, _), dv = q.shape, k.shape, v.shape[3]
    output = torch.empty((b, h, m, dv), dtype=q.dtype, device=DEVICE)
    lse = torch.empty((b, h, m), dtype=torch.float32, device=DEVICE)
    wide, wide_dv = triton.next_power_of_2(d), triton.next_power_of_2(dv)
    # Fused, `logits - base` is rounded otherwise where the compiler computes it again for `sums`: weights would not
    # cancel.
    attend_row[(b * h * m,)](q, k, v, selected, output, lse, h, hk, m, n, selected.shape[3], d, dv, call.scaling,
                             TILE=32, D=wide, DV=wide_dv, enable_fp_fusion=False)  # fmt: skip
    return output, lse


if __name__ == "__main__":
    doublecheck.serve(attend, version=f"{triton.__version__}, {DEVICE}", **SUPPORTS)
