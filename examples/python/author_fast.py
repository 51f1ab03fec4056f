"""The fast path of Double Sparsity's author: a static cache and Triton kernels, served by `author.py --fast`.

What runs is models/model.py out of a checkout of andy-yang-1/DoubleSparse: its Transformer sets up caches and masks,
its Attention writes keys and labels and decodes. Stand-ins for projections and rotary embedding hand it q, k and v.
Needs torch, triton and numpy; without CUDA kernels run in Triton's interpreter, which wants numpy 2.2.
"""

import json
import pathlib
import sys
import types

import foreign

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "python"))
import doublecheck

REAL = ["models.model", "models.triton_kernels.channel", "models.triton_kernels.sparse"]


class Given(torch.nn.Module):
    """Stands in for the projection of q, k and v: returns what it was given before."""

    def forward(self, _):
        return self.x


class Cache:
    """One static cache: a model that decodes `batch` entries at one position."""

    def __init__(self, fast, instance, layers, batch, room, shapes, dtype):
        (h, hk, d), self.fast, self.layers, self.dtype = shapes, fast, layers, foreign.DTYPES[dtype]
        r = d // instance.group_factor
        config = fast.module.ModelArgs(
            block_size=room + 8,
            vocab_size=1,
            n_layer=len(layers),
            n_head=h,
            n_local_heads=hk,
            dim=h * d,
            intermediate_size=1,
            heavy_const=instance.heavy_size,
            heavy_channel_num=r,
        )
        with torch.device("meta"):
            self.model = fast.module.Transformer(config)
        with torch.device(foreign.DEVICE):
            self.model.setup_caches(batch, room)
        self.attentions = [block.attention for block in self.model.layers]
        for layer, attention in zip(layers, self.attentions):
            attention.kv_cache.to(self.dtype)
            attention.wqkv, attention.wo = Given(), torch.nn.Identity()
            rows = torch.from_numpy(instance.channels(layer)[:, :r].copy())
            attention.sorted_channel = rows.to(foreign.DEVICE)

    def run(self, layer, start, q, k, v, decode):
        """Positions from `start`: q [b, t, h, d], k and v [b, t, hk, d]."""
        attention = self.attentions[self.layers.index(layer)]
        b, t = k.shape[:2]
        attention.wqkv.x = torch.cat([x.reshape(b, t, -1) for x in (q, k, v)], dim=-1)
        position = torch.arange(start, start + t, device=foreign.DEVICE)
        mask = self.model.label_mask[None, None, position]
        x = torch.empty(b, t, 1, device=foreign.DEVICE)
        return (attention.sparse_forward if decode else attention.forward)(x, None, mask, None, position)

    def prompt(self, layer, start, k, v):
        """Keys of a prompt or of a chunk of it, [b, t, hk, d]."""
        (b, t, _, d), h = k.shape, self.attentions[0].n_head
        self.run(layer, start, torch.zeros(b, t, h, d, dtype=k.dtype, device=k.device), k, v, decode=False)

    def decode(self, layer, n, q, k, v):
        """The step with n keys: q [b, 1, h, d]. What `mask` answers, [b, h, 1, .]."""
        output = self.run(layer, n - 1, q, k, v, decode=True)
        scores, indices = self.fast.selected
        b, h = scores.shape[:2]
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=foreign.DEVICE).scatter_(-1, indices, True)
        output = output.reshape(b, h, 1, -1).clone()
        # Slots at and beyond n have no place in an answer: what it selects there shows in the output alone.
        return {"mask": mask[..., :n], "scores": scores[..., :n], "output": output}


class Fast:
    def __init__(self, checkout, room):
        self.room = room
        foreign.patch_once()
        foreign.Package("models", checkout, REAL, {})
        for kernel in ("channel", "sparse"):
            sys.modules[f"triton_kernels.{kernel}"] = foreign.module(f"models.triton_kernels.{kernel}")
        foreign.Package("triton_kernels", checkout, [], {})
        self.module = foreign.module("models.model")
        self.module.apply_rotary_emb = lambda x, _: x
        self.module.torch = self.torch = foreign.Torch()
        self.torch.topk = self.topk

    def topk(self, scores, *options, **others):
        answer = torch.topk(scores, *options, **others)
        self.selected = scores, answer.indices
        return answer

    def configure(self, instance):
        self.instance = instance

    @torch.no_grad()
    def mask(self, call):
        (b, h, _, d), (_, hk, n, _) = call.q.shape, call.k.shape
        room = max(n, self.instance.heavy_size) + self.room
        cache = Cache(self, self.instance, [call.layer], b, room, (h, hk, d), call.dtype)
        q, k, v = (foreign.tensor(x, call.dtype).transpose(1, 2) for x in (call.q, call.k, call.v))
        if n > 1:
            cache.prompt(call.layer, 0, k[:, :-1], v[:, :-1])
        return cache.decode(call.layer, n, q, k[:, -1:], v[:, -1:])

    # --- sessions: each request has a static cache; one that is over is used again as it is --------------------------

    def open(self, opening):
        self.opening, self.unused, self.requests = opening, [], {}

    def begin(self, request):
        opening = self.opening
        if not self.unused:
            room = max(opening.capacity, self.instance.heavy_size)
            shapes = opening.heads, opening.kv_heads, opening.head_dim
            self.unused.append(Cache(self, self.instance, opening.layers, 1, room, shapes, opening.dtype))
        self.requests[request] = Request(self.unused.pop(), dict.fromkeys(opening.layers, 0))
        return self.requests[request]

    @torch.no_grad()
    def append(self, layer, requests, k, v):
        """All but the newest key are a chunk of a prompt; the newest is written in its decode step."""
        for request, keys, values in doublecheck.parts(requests, k, v):
            known = self.requests.get(request) or self.begin(request)
            keys, values = (foreign.tensor(x[None], self.opening.dtype) for x in (keys, values))
            start = known.lengths[layer]
            known.lengths[layer] += keys.shape[1]
            if layer in known.newest:
                keys, values = (torch.cat(pair, dim=1) for pair in zip(known.newest[layer], (keys, values)))
                start -= 1
            if keys.shape[1] > 1:
                known.cache.prompt(layer, start, keys[:, :-1], values[:, :-1])
            known.newest[layer] = keys[:, -1:], values[:, -1:]

    @torch.no_grad()
    def attend(self, layer, requests, q):
        ((request, _),) = requests
        known = self.requests[request]
        q = foreign.tensor(q[None], self.opening.dtype)
        answer = known.cache.decode(layer, known.lengths[layer], q, *known.newest[layer])
        return {name: answer[name].permute(0, 2, 1, 3)[0] for name in ("mask", "output")}

    @torch.no_grad()
    def fork(self, request, to, length):
        known = self.requests[request]
        self.settle(known)
        new = self.begin(to)
        for old_attention, attention in zip(known.cache.attentions, new.cache.attentions):
            attention.kv_cache.load_state_dict(old_attention.kv_cache.state_dict())
        new.lengths = {layer: min(n, length) for layer, n in known.lengths.items()}
        self.remember(new)

    @torch.no_grad()
    def truncate(self, request, length):
        known = self.requests[request]
        self.settle(known)
        known.lengths = {layer: min(n, length) for layer, n in known.lengths.items()}
        self.remember(known)

    def free(self, request):
        self.unused.append(self.requests.pop(request).cache)

    def settle(self, known):
        """Writes what waits for a decode step."""
        for layer, newest in known.newest.items():
            known.cache.prompt(layer, known.lengths[layer] - 1, *newest)

    def remember(self, known):
        """The newest key of each layer, out of the cache: the next decode step writes it again."""
        known.newest = {}
        for layer, n in known.lengths.items():
            cache = known.cache.attentions[self.opening.layers.index(layer)].kv_cache
            if n:
                known.newest[layer] = cache.k_cache[:, n - 1 : n].clone(), cache.v_cache[:, n - 1 : n].clone()


class Request:
    def __init__(self, cache, lengths):
        self.cache, self.lengths, self.newest = cache, lengths, {}


def serve(arguments):
    powers = [1 << i for i in range(12)]
    sizes = {
        "queries": [1],
        "head_dim": [16, 32, 64, 128],
        "value_dim": "d",
        "heavy_size": powers,
        "label_channels": powers,
    }
    fast = Fast(arguments.checkout, arguments.room)
    doublecheck.serve(
        types.SimpleNamespace(configure=fast.configure, mask=fast.mask) if arguments.calls_only else fast,
        name="andy-yang-1/DoubleSparse, fast path",
        version=f"{foreign.commit_of(arguments.checkout)}, {foreign.DEVICE}",
        model={"scores_kept": "storage", "weights_kept": "f32"},
        dtypes=(arguments.dtypes or ("f16,bf16,f32" if foreign.ON_CUDA else "f16,f32")).split(","),
        heads=["per-head"],
        rules=[{"factor": 1}],
        domain=sizes | json.loads(arguments.domain),
        largest_keys=16384 if foreign.ON_CUDA else 256,
        lacks=[
            *foreign.LACKS,
            "fractions",
            "scaling",
            "value_dim",
            "quantised",
            "channels_per_kv_head",
            *filter(None, arguments.lacks.split(",")),
        ],
    )
