"""Double Sparsity in batched PyTorch, written from docs/SPEC.md: two head modes, every type, with the attention.

In a test or a notebook `doublecheck.check(mask, **SUPPORTS, arrays="torch")` asks it, on `device="cuda"` if you like.
As a command it is asked by

    doublecheck check --command "python3 examples/python/torch_masker.py"
"""

import pathlib
import sys
from typing import Any

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Labels are those of the type of q and k; scores and attention are kept in f32.
SUPPORTS: dict[str, Any] = {
    "name": "torch",
    "heads": ["per-head", "summed-scores"],
    "model": {"kept": "f32"},
    "lacks": ["earlier_maskers", "refusals"],
}


def labels(x, order, bits):
    """The labels of x [b, h, t, d] by the channels [h, r] of each head, quantised to so many bits: [b, h, t, r]."""
    x = x.gather(3, order[None, :, None].expand(x.shape[0], -1, x.shape[2], -1))
    if bits == 16:
        return x
    low, high, top = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), 2**bits - 1
    scale = 1 / torch.where(high == low, 1, high - low) * top
    return ((x - low) * scale).round().clamp(0, top) / scale + low


def select(call, q, k, additive, before):
    """The weights [b, h, m, n] of all attended keys: those before, and 1 for the H that score highest."""
    settings, (_, h, m, d), n = call.instance, q.shape, k.shape[2]
    size = settings.heavy_size
    size = max(1, min(n, size if isinstance(size, int) else int(size * n)))
    if call.layer in settings.dense_layers or (settings.dense_fallback and n - m <= size):
        return torch.where(before == 0, 1, before)
    r = d // settings.group_factor
    order = torch.as_tensor(call.channels, device=q.device).repeat_interleave(h // len(call.channels), 0)[:, :r]
    q, k = (labels(x, order, settings.label_bits).float() for x in (q, k))
    scores, excluded = q @ k.mT * r**-0.5 + additive, before != 0
    if settings.heads == "summed-scores":
        scores = scores.sum(1, keepdim=True).expand(-1, h, -1, -1)
        excluded = excluded.any(1, keepdim=True)
    best, keys = scores.masked_fill(excluded, -torch.inf).topk(size, -1)
    return before.scatter(3, keys, torch.where(best > -torch.inf, 1, before.gather(3, keys)))


def attend(q, k, v, additive, weights, scaling):
    """The attention over attended keys, [b, h, m, dv]; a row that attends to nothing yields zeros."""
    logits = (q.float() @ k.float().mT * scaling + additive).masked_fill(weights == 0, -torch.inf)
    e = (logits - logits.amax(-1, keepdim=True).clamp(min=torch.finfo().min)).exp()
    e = e / torch.where(weights == 0, 1, weights)
    total = e.sum(-1, keepdim=True)
    return e @ v.float() / torch.where(total == 0, 1, total)


def mask(call):
    """The mask and the output of one call."""
    q, k, v = (torch.as_tensor(x).to(DTYPES[call.dtype]) for x in (call.q, call.k, call.v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    additive = torch.as_tensor(call.additive(), device=q.device)
    before = torch.zeros((*q.shape[:3], k.shape[2]), device=q.device)
    if call.previous is not None:
        before = torch.as_tensor(call.previous)
    weights = select(call, q, k, additive, before)
    return weights, attend(q, k, v, additive, weights, call.scaling).to(q.dtype)


if __name__ == "__main__":
    doublecheck.serve(mask, **SUPPORTS)
