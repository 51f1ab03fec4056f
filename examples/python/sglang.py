"""Serves Double Sparsity of SGLang (first version) out of its published package to `doublecheck check`.

    pip install --no-deps --target packages/sglang-0.5.2 sglang==0.5.2
    doublecheck check --command "python examples/python/sglang.py --package packages/sglang-0.5.2"

What runs is the package's own: DoubleSparseAttnBackend, its Triton kernels, the pools of keys and labels, the table
from requests to slots and the allocator. This file plays the scheduler: which request holds which slots, and what is
decoded. The prompt's own attention, which is dense, is left out. Needs torch, triton and numpy; without CUDA kernels
run in Triton's interpreter, which wants numpy 2.2.
"""

import argparse
import json
import pathlib
import sys
import types
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[2] / "python"))
import doublecheck
import foreign

import torch

REAL = [
    "sglang.srt.constants",
    "sglang.srt.layers.attention.base_attn_backend",
    "sglang.srt.layers.attention.double_sparsity_backend",
    "sglang.srt.layers.attention.triton_ops.double_sparsity_attention",
    "sglang.srt.mem_cache.allocator",
    "sglang.srt.mem_cache.memory_pool",
    "sglang.srt.torch_memory_saver_adapter",
    "sglang.srt.utils.torch_memory_saver_adapter",
]
ALLOCATOR = "TokenToKVPoolAllocator"


class SGLang:
    """The package's modules, and what a server would be started with."""

    def __init__(self, arguments):
        self.arguments = arguments
        server = types.SimpleNamespace(triton_attention_reduce_in_fp32=arguments.reduce_in_fp32)
        utils = {
            "is_cuda": lambda: foreign.ON_CUDA,
            "get_bool_env_var": lambda *_: False,
            "next_power_of_2": lambda n: 1 << (n - 1).bit_length(),
            "debug_timing": lambda function: function,
            **dict.fromkeys(("is_hip", "is_npu", "is_cpu"), lambda: False),
        }
        given: dict[str, dict[str, Any]] = {
            "sglang.srt.utils": utils,
            "sglang.srt.managers.schedule_batch": {"global_server_args_dict": vars(server)},
            "sglang.srt.server_args": {"get_global_server_args": lambda: server},
        }
        foreign.Package("sglang", arguments.package, REAL, given)
        sys.modules.setdefault("psutil", types.ModuleType("psutil"))
        attention, pools = "sglang.srt.layers.attention", "sglang.srt.mem_cache"
        self.backends = foreign.module(f"{attention}.double_sparsity_backend")
        self.kernels = foreign.module(f"{attention}.triton_ops.double_sparsity_attention")
        self.pools = foreign.module(f"{pools}.memory_pool")
        # In older versions the allocator is in the file of the pools.
        allocators = foreign.module(f"{pools}.allocator")
        self.allocator = vars(self.pools).get(ALLOCATOR) or vars(allocators)[ALLOCATOR]
        self.torch = foreign.Torch(arguments.unwritten)
        self.backends.torch = self.kernels.torch = self.torch
        self.torch.topk = self.topk

    def topk(self, scores, *options, **others):
        """The package's selection, seen."""
        answer = torch.topk(scores, *options, **others)
        self.selected = scores, answer.indices
        return answer


class Batch:
    """Requests of one opening: their slots in the package's pools, and its backend."""

    def __init__(self, sglang, instance, layers, capacity, requests, shapes, dtype, seed):
        (self.h, self.hk, self.d), self.sglang, self.layers = shapes, sglang, layers
        arguments, torch_dtype = sglang.arguments, foreign.DTYPES[dtype]
        r = self.d // instance.group_factor
        pool = {"size": capacity, "page_size": 1, "dtype": torch_dtype, "head_num": self.hk, "head_dim": self.d}
        pool |= {"layer_num": len(layers), "device": foreign.DEVICE, "heavy_channel_num": r}
        self.keys = sglang.pools.DoubleSparseTokenToKVPool(**pool, enable_memory_saver=False)
        self.table = sglang.pools.ReqToTokenPool(
            size=requests, max_context_len=capacity + 1, device=foreign.DEVICE, enable_memory_saver=False
        )
        options = {"size": capacity, "dtype": torch_dtype, "device": foreign.DEVICE, "kvcache": self.keys}
        names = sglang.allocator.__init__.__code__.co_varnames
        self.slots = sglang.allocator(**options, **({"need_sort": False} if "need_sort" in names else {}))
        # Slots and rows of the table in no order, as after hours of serving.
        order, name = np.random.default_rng(seed), "free_pages" if hasattr(self.slots, "free_pages") else "free_slots"
        setattr(self.slots, name, getattr(self.slots, name)[torch.from_numpy(order.permutation(capacity))])
        order.shuffle(self.table.free_slots)

        model = types.SimpleNamespace(
            num_attention_heads=self.h, hidden_size=self.h * self.d // arguments.head_dim_over
        )
        server = types.SimpleNamespace(
            ds_heavy_token_num=instance.heavy_size, ds_sparse_decode_threshold=arguments.threshold
        )
        channels = [torch.from_numpy(instance.channels(layer)[:, :r].copy()).to(foreign.DEVICE) for layer in layers]
        self.backend = sglang.backends.DoubleSparseAttnBackend(
            types.SimpleNamespace(model_config=model, server_args=server, sorted_channels=channels)
        )
        self.backend.extend_attention_fwd = lambda *_: None
        for name in ("decode_attention_fwd", "decode_sparse_attention_fwd"):
            setattr(self.backend, name, self.watched(name, getattr(self.backend, name)))

    def watched(self, name, forward):
        def run(*arguments):
            self.ran = name
            return forward(*arguments)

        return run

    def layer(self, layer, scaling):
        shape = {"tp_q_head_num": self.h, "qk_head_dim": self.d, "v_head_dim": self.d, "logit_cap": 0.0}
        return types.SimpleNamespace(layer_id=self.layers.index(layer), scaling=scaling, **shape)

    def forward(self, kind, rows, lengths, **others):
        """What the package calls a forward batch; `rows` are rows of its table."""
        return types.SimpleNamespace(
            forward_mode=types.SimpleNamespace(is_decode=lambda: kind == "decode"),
            req_to_token_pool=self.table,
            token_to_kv_pool=self.keys,
            req_pool_indices=torch.tensor(rows, device=foreign.DEVICE),
            seq_lens=torch.tensor(lengths, device=foreign.DEVICE),
            **{name: torch.tensor(x, device=foreign.DEVICE) for name, x in others.items()},
        )

    def slots_of(self, rows, starts, ends):
        return torch.cat([self.table.req_to_token[row, a:b] for row, a, b in zip(rows, starts, ends)]).long()

    def extend(self, layer, rows, starts, k, v, counts):
        """Keys of a prompt, or of a chunk of it: k and v [t, hk, d], those of the first row first."""
        ends = [start + count for start, count in zip(starts, counts)]
        batch = self.forward(
            "extend",
            rows,
            ends,
            extend_prefix_lens=starts,
            extend_seq_lens=counts,
            extend_start_loc=np.cumsum(counts) - counts,
        )
        batch.out_cache_loc = self.slots_of(rows, starts, ends)
        self.backend.init_forward_metadata(batch)
        q = torch.zeros(len(k), self.h, self.d, dtype=k.dtype, device=k.device)
        self.backend.forward_extend(q, k, v, self.layer(layer, self.d**-0.5), batch)

    def decode(self, layer, rows, lengths, q, k, v, scaling):
        """One decode step: q [b, h, d], and k and v [b, hk, d] of the newest token. What `mask` answers, [b, h, .]."""
        batch, made = self.forward("decode", rows, lengths), self.sglang.torch
        batch.out_cache_loc = self.slots_of(rows, [n - 1 for n in lengths], lengths)
        made.overrun()
        self.backend.init_forward_metadata(batch)
        output = self.backend.forward_decode(q.reshape(len(q), -1), k, v, self.layer(layer, scaling), batch)
        beyond = made.overrun()
        if self.sglang.arguments.guarded and beyond:
            raise MemoryError(f"found {beyond} numbers written behind the end of a buffer, expected none")
        answer = {"output": output.view(len(q), self.h, self.d)}
        if self.ran == "decode_attention_fwd":
            longest = torch.arange(max(lengths), device=foreign.DEVICE)
            mask = longest < torch.tensor(lengths, device=foreign.DEVICE)[:, None]
            return answer | {"mask": mask[:, None].expand(-1, self.h, -1)}
        scores, indices = self.sglang.selected
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=foreign.DEVICE).scatter_(-1, indices, True)
        return answer | {"mask": mask.transpose(0, 1), "scores": scores.transpose(0, 1)}


class Adapter:
    def __init__(self, sglang):
        self.sglang, self.seed = sglang, sglang.arguments.seed

    def configure(self, instance):
        self.instance = instance

    def batch(self, layers, capacity, requests, shapes, dtype):
        return Batch(self.sglang, self.instance, layers, capacity, requests, shapes, dtype, self.seed)

    # --- calls: every key is given, so a prompt without its last token comes before one decode step -----------------

    def mask(self, call):
        (b, h, _, d), (_, hk, n, _) = call.q.shape, call.k.shape
        lengths = [n] * b if call.lengths is None else call.lengths.tolist()
        batch = self.batch([call.layer], sum(lengths), b, (h, hk, d), call.dtype)
        rows = batch.table.alloc(b)
        k, v = (
            [foreign.tensor(x[e, :, : lengths[e]], call.dtype).transpose(0, 1) for e in range(b)]
            for x in (call.k, call.v)
        )
        for row, length in zip(rows, lengths):
            batch.table.req_to_token[row, :length] = batch.slots.alloc(length).to(torch.int32)
        if some := [e for e in range(b) if lengths[e] > 1]:
            before = [lengths[e] - 1 for e in some]
            k_new, v_new = (torch.cat([x[e][:-1] for e in some]) for x in (k, v))
            batch.extend(call.layer, [rows[e] for e in some], [0] * len(some), k_new, v_new, before)
        k_last, v_last = (torch.stack([x[e][-1] for e in range(b)]) for x in (k, v))
        q = foreign.tensor(call.q[:, :, 0], call.dtype)
        answer = batch.decode(call.layer, rows, lengths, q, k_last, v_last, call.scaling)
        if self.sglang.arguments.no_scores or not same_factor(call.scaling, d):
            answer.pop("scores", None)  # it ranks by scores that are multiplied with the attention's own scaling
        answer = {name: x.cpu()[:, :, None] for name, x in answer.items()}
        for name, filler in (("mask", False), ("scores", -torch.inf)):
            if name in answer:  # n may be more than the longest entry has
                answer[name] = torch.nn.functional.pad(answer[name], (0, n - answer[name].shape[-1]), value=filler)
        return answer

    # --- sessions ---------------------------------------------------------------------------------------------------

    def open(self, opening):
        self.opening = opening
        shapes = opening.heads, opening.kv_heads, opening.head_dim
        # Requests are as many as keys at most, and each has a row of the table.
        self.held = self.batch(opening.layers, opening.capacity, opening.capacity, shapes, opening.dtype)
        self.requests, self.users = {}, np.zeros(opening.capacity + 1, int)

    def append(self, layer, requests, k, v):
        """All but the newest key of each request are a chunk of its prompt; the newest waits for its decode step."""
        for request, keys, values in doublecheck.parts(
            requests, *(foreign.tensor(x, self.opening.dtype).cpu() for x in (k, v))
        ):
            if request not in self.requests:
                self.requests[request] = Request(self.held.table.alloc(1)[0], self.opening.layers)
            known = self.requests[request]
            start = known.lengths[layer]
            known.lengths[layer] += len(keys)
            self.place(known, max(known.lengths.values()))
            keys, values = (
                torch.cat([*old, torch.as_tensor(new)]) for old, new in zip(known.take(layer), (keys, values))
            )
            start -= len(keys) - (known.lengths[layer] - start)
            if len(keys) > 1:
                self.extend(layer, known, start, keys[:-1], values[:-1])
            known.newest[layer] = keys[-1:], values[-1:]

    def extend(self, layer, known, start, keys, values):
        k, v = keys.to(foreign.DEVICE), values.to(foreign.DEVICE)
        self.held.extend(layer, [known.row], [start], k, v, [len(k)])

    def place(self, known, length):
        """Slots for the first `length` positions of a request."""
        table = self.held.table.req_to_token
        if (more := length - known.slots) > 0:
            new = self.held.slots.alloc(more)
            if new is None:
                raise doublecheck.Refused("capacity", f"append: found {more} keys, expected fewer")
            self.users[new.cpu()] = 1
            table[known.row, known.slots : length] = new.to(torch.int32)
            known.slots = length

    def release(self, known, length):
        slots = self.held.table.req_to_token[known.row, length : known.slots].cpu().numpy()
        self.users[slots] -= 1
        if len(unused := slots[self.users[slots] == 0]):
            self.held.slots.free(torch.from_numpy(unused.astype(np.int64)).to(foreign.DEVICE))
        known.slots = min(known.slots, length)

    def attend(self, layer, requests, q):
        known = [self.requests[request] for request, _ in requests]
        k, v = (torch.cat([one.newest[layer][i] for one in known]).to(foreign.DEVICE) for i in (0, 1))
        rows, lengths = [one.row for one in known], [one.lengths[layer] for one in known]
        q = foreign.tensor(q, self.opening.dtype)
        answer = self.held.decode(layer, rows, lengths, q, k, v, self.opening.scaling)
        # Places beyond a request's own keys have none in an answer: what it selects there shows as missing keys.
        own = torch.arange(max(lengths), device=foreign.DEVICE) < torch.tensor(lengths, device=foreign.DEVICE)[:, None]
        return {"mask": answer["mask"] & own[:, None], "output": answer["output"]}

    def settle(self, known):
        """Writes what waits for a decode step."""
        for layer, newest in known.newest.items():
            if newest is not None:
                self.extend(layer, known, known.lengths[layer] - 1, *newest)

    def fork(self, request, to, length):
        known = self.requests[request]
        self.settle(known)
        new = self.requests[to] = Request(self.held.table.alloc(1)[0], self.opening.layers)
        new.lengths = {layer: min(n, length) for layer, n in known.lengths.items()}
        table, shared = self.held.table.req_to_token, min(new.lengths.values())
        table[new.row, :shared] = table[known.row, :shared]
        self.users[table[new.row, :shared].cpu()] += 1
        new.slots = shared
        # A real scheduler gives all layers a token at once. What one layer has alone is not shared.
        self.place(new, max(new.lengths.values()))
        old_slots, new_slots = (table[row, shared : new.slots].long() for row in (known.row, new.row))
        keys = self.held.keys
        for buffer in (x for kind in (keys.k_buffer, keys.v_buffer, keys.label_buffer) for x in kind):
            buffer[new_slots] = buffer[old_slots]
        self.remember(new)

    def truncate(self, request, length):
        known = self.requests[request]
        self.settle(known)
        known.lengths = {layer: min(n, length) for layer, n in known.lengths.items()}
        self.release(known, max(known.lengths.values()))
        self.remember(known)

    def remember(self, known):
        """The newest key of each layer, out of the pools: the next decode step writes it again."""
        for index, layer in enumerate(self.opening.layers):
            slots = self.held.table.req_to_token[known.row, : known.lengths[layer]][-1:].long()
            buffers = self.held.keys.k_buffer[index], self.held.keys.v_buffer[index]
            known.newest[layer] = tuple(x[slots].cpu() for x in buffers) if len(slots) else None

    def free(self, request):
        known = self.requests.pop(request)
        self.release(known, 0)
        self.held.table.free(known.row)


class Request:
    """Its row of the table, how many slots it has there, and for each layer its length and newest key."""

    def __init__(self, row, layers):
        self.row, self.slots = row, 0
        self.lengths, self.newest = dict.fromkeys(layers, 0), dict.fromkeys(layers)

    def take(self, layer):
        newest = self.newest[layer]
        return ([newest[0]], [newest[1]]) if newest is not None else ([], [])


def same_factor(scaling, d):
    return np.float32(scaling) == np.float32(d**-0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", required=True, help="the folder into which pip installed sglang")
    parser.add_argument("--reduce-in-fp32", action="store_true", help="as the server's option of that name")
    parser.add_argument("--threshold", type=int, default=0, help="the server's ds_sparse_decode_threshold")
    parser.add_argument("--head-dim-over", type=int, default=1, help="d is so many times hidden size / heads")
    parser.add_argument("--seed", type=int, default=0, help="the order of slots")
    parser.add_argument("--schedule", default="forward", choices=["forward", "backward", "random"])
    parser.add_argument("--unwritten", default="random", choices=["random", "nan", "large", "zero"])
    parser.add_argument("--guarded", action="store_true", help="writing behind the end of a buffer is a failure")
    parser.add_argument("--calls-only", action="store_true", help="do not offer sessions")
    parser.add_argument("--no-scores", action="store_true", help="answer without the scores by which keys were ranked")
    parser.add_argument("--lacks", default="", help="more that is not asked, separated by commas")
    parser.add_argument("--ragged", action="store_true", help="calls have entries of unequal lengths, too")
    parser.add_argument("--dtypes", default="f16,bf16,f32" if foreign.ON_CUDA else "f16,f32")
    parser.add_argument("--domain", default="{}", help="narrower than its own, as JSON")
    parser.add_argument("--scores", default="f16", choices=["f32", "storage", "f16"], help="what scores are kept in")
    parser.add_argument("--largest-keys", type=int, default=None if foreign.ON_CUDA else 2048)
    arguments = parser.parse_args()
    foreign.patch_once()
    foreign.schedule(arguments.schedule, arguments.seed)
    (metadata,) = pathlib.Path(arguments.package).glob("sglang-*.dist-info")
    sizes = {"head_dim": [16, 32, 64, 128], "label_channels": [16, 32, 64, 128], "value_dim": "d", "queries": [1]}
    adapter = Adapter(SGLang(arguments))
    doublecheck.serve(
        types.SimpleNamespace(configure=adapter.configure, mask=adapter.mask) if arguments.calls_only else adapter,
        name="sglang, double sparsity 1",
        version=f"{metadata.name.split('-')[1].removesuffix('.dist')}, {foreign.DEVICE}",
        model={"scores_kept": arguments.scores, "weights_kept": "f32"},
        dtypes=arguments.dtypes.split(","),
        heads=["per-head"],
        rules=["sglang-v1"],
        domain=sizes | json.loads(arguments.domain),
        largest_keys=arguments.largest_keys,
        offers=["ragged"] if arguments.ragged else [],
        lacks=[
            *foreign.LACKS,
            "fractions",
            "value_dim",
            "quantised",
            *filter(None, arguments.lacks.split(",")),
        ],
    )


if __name__ == "__main__":
    main()
