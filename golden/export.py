"""Exports golden tensors: runs the author's code and sparse-attention-hub on inputs made for this project and writes case files.

The case-file format is described at the top of src/cases/file.rs, how every group of files comes about in
golden/README.md. The two systems are imported from checkouts and run; none of their code is here.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile
import types

NEEDS = """golden/export.py runs other people's code, which is not part of this project. It needs

  --doublesparse CHECKOUT   andy-yang-1/DoubleSparse, commit b0575e6
  --hub CHECKOUT            xAlg-ai/sparse-attention-hub, commit 1a048c9 (for the group hub only)
  --activations FOLDER      activation files with q, k, v and channels (for the group real only)

and a Python with torch 2.11.0, transformers 4.57.1, huggingface-hub 0.36.2 (below 1), numpy 2.4.6 and safetensors 0.8.0; for the
group hub also ray[tune] 2.60.0, scipy 1.17.1, matplotlib 3.11.2 and seaborn 0.13.2. For instance

  python golden/export.py --doublesparse ../DoubleSparse --hub ../sparse-attention-hub --activations ../activations
"""

GOLDEN = pathlib.Path(__file__).resolve().parent
GROUPS = ("grid", "lengths", "real", "small", "quantisation", "hub", "calibration")
WRITTEN = set()


# --- case files -------------------------------------------------------------------------------------------------------


def write_file(path, tensors, metadata):
    """Writes safetensors with sorted keys, so that the same content gives the same bytes."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8"}
    header, data = {"__metadata__": dict(sorted(metadata.items()))}, b""
    for name, tensor in sorted(tensors.items()):
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    WRITTEN.add(path)


def selected(mask):
    """A boolean mask [b, h, m, n] as ascending key indices, padded with -1 to the longest row."""
    counts = mask.sum(-1)
    width = int(counts.max())
    n = mask.shape[-1]
    indices = torch.where(mask, torch.arange(n), n).sort(-1).values[..., :width]
    return torch.where(indices < n, indices, -1).to(torch.int32)


DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def dtype_of(name):
    return getattr(torch, DTYPES[name])


class Case:
    """Inputs and settings of one case, as a case file holds them."""

    def __init__(self, *, q, k, v, channels, heavy_size, group_factor, label_bits, causal=True, dtype="f32",
                 attention_mask=None, previous=None, recipe=None, dense_fallback=False, earlier_maskers=None):
        self.inputs = {"q": q, "k": k, "v": v, "channels": channels}
        self.q, self.k, self.v = (x.to(dtype_of(dtype)) for x in (q, k, v))
        self.channels, self.recipe = channels, recipe
        self.attention_mask, self.previous = attention_mask, previous
        self.settings = {
            "heavy_size": heavy_size, "group_factor": group_factor, "label_bits": label_bits, "heads": "per-head",
            "dense_fallback": dense_fallback, "causal": causal, "dtype": dtype, "scaling": 1 / math.sqrt(q.shape[-1]),
        }
        if earlier_maskers:
            self.settings["earlier_maskers"] = earlier_maskers

    def additive(self):
        """A [b, 1, m, n] in the storage type: the additive mask and, where causal, -inf after the query's position."""
        b, _, m, _ = self.q.shape
        n = self.k.shape[2]
        total = torch.zeros(b, 1, m, n)
        if self.attention_mask is not None:
            total = total + self.attention_mask
        if self.settings["causal"]:
            later = torch.arange(n)[None, :] > torch.arange(n - m, n)[:, None]
            total = total.masked_fill(later, -math.inf)
        return total.to(self.q.dtype)

    def write(self, path, mask, output, source, known_divergence=None, as_mask=False):
        """`mask` [b, h, m, n]: the attended positions."""
        tensors = {"output": output.float()}
        tensors.update({"mask": mask.to(torch.uint8)} if as_mask else {"selected": selected(mask)})
        metadata = {"case": json.dumps(self.settings), "source": source}
        if self.recipe:
            metadata["recipe"] = json.dumps(self.recipe)
        else:
            tensors.update(self.inputs)
        if self.attention_mask is not None:
            tensors["attention_mask"] = self.attention_mask.float()
        if self.previous is not None:
            tensors["previous"] = self.previous.float()
        if known_divergence:
            metadata["known_divergence"] = known_divergence
        write_file(path, tensors, metadata)


# --- recipe splitmix-1 (SPEC §6) --------------------------------------------------------------------------------------


def mix(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(seed, t, count, first=0):
    start = mix(np.array([(seed + t) & (2**64 - 1)], dtype=np.uint64))
    indices = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(start + indices * np.uint64(0x9E3779B97F4A7C15))


def values(seed, t, shape):
    word = words(seed, t, math.prod(shape))
    lanes = sum(((word >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.int64) for lane in range(4))
    return torch.from_numpy(((lanes - 131070) / 32768).astype(np.float32).reshape(shape))


def from_recipe(**sizes):
    """q, k, v, channels and the recipe's JSON."""
    recipe = {"generator": "splitmix-1", **sizes}
    b, h, hk, m, n, d = (sizes[name] for name in ("batch", "heads", "kv_heads", "queries", "keys", "head_dim"))
    seed = sizes["seed"]
    exponents = [min((int(word) & -int(word)).bit_length() - 1 if word else 64, 3) for word in words(seed, 3, d)]
    k = values(seed, 1, (b, hk, n, d)) * torch.tensor([2.0**x for x in exponents])
    order = words(seed, 4, h * d).reshape(h, d)
    count = {"per-head": h, "per-kv-head": hk, "shared": 1}[sizes.get("rows", "per-head")]
    channels = [sorted(range(d), key=lambda c: (-exponents[c], int(order[row, c]))) for row in range(count)]
    return {"q": values(seed, 0, (b, h, m, d)), "k": k, "v": values(seed, 2, (b, hk, n, d)),
            "channels": torch.tensor(channels), "recipe": recipe}


def check_recipe():
    """The check values of SPEC §6."""
    made = from_recipe(seed=1, batch=1, heads=2, kv_heads=1, queries=1, keys=3, head_dim=8)
    assert int(words(1, 0, 1)[0]) == 0xBFEF8030DDC2D772
    assert made["q"].flatten()[:2].tolist() == [1.916656494140625, -0.5511474609375]
    assert made["k"].flatten()[:2].tolist() == [-6.7115478515625, 0.0352783203125]
    assert made["v"].flatten()[0].item() == 1.053558349609375
    assert made["channels"].tolist() == [[4, 0, 6, 7, 1, 3, 2, 5], [4, 6, 0, 7, 1, 3, 5, 2]]
    for rows in ("per-kv-head", "shared"):
        fewer = from_recipe(seed=1, batch=1, heads=2, kv_heads=1, queries=1, keys=3, head_dim=8, rows=rows)
        assert fewer["channels"].tolist() == made["channels"].tolist()[:1]


# --- the author's code ------------------------------------------------------------------------------------------------


def load_module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit_of(checkout):
    found = subprocess.run(["git", "-C", checkout, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown commit"


@contextlib.contextmanager
def observed(owner, name):
    """Collects (arguments, named arguments, result) of every call of owner.name, not copied."""
    calls, original = [], getattr(owner, name)

    def call(*arguments, **options):
        result = original(*arguments, **options)
        calls.append((arguments, options, result))
        return result

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def same_bits(a, b):
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


class Author:
    """The author's evaluation attention on given q, k, v."""

    def __init__(self, checkout):
        self.checkout = pathlib.Path(checkout)
        self.module = load_module("modify_llama", self.checkout / "evaluation" / "modify_llama.py")
        self.name = f"andy-yang-1/DoubleSparse at {commit_of(checkout)}"
        self.source = f"{self.name}, evaluation/modify_llama.py, LlamaAttention_heavy_hitter, torch {torch.__version__} on CPU"

    def attend(self, case):
        """Kept positions [b, h, m, n] and output [b, h, m, d]."""
        from transformers import LlamaConfig

        class Returns(torch.nn.Module):
            """Stands in for a projection: returns a given tensor whatever it is given."""

            def __init__(self, x):
                super().__init__()
                self.x = x

            def forward(self, _):
                return self.x

        class Past:
            """Stands in for the cache: the keys and values of all positions."""

            def update(self, _k, _v, _layer, _arguments):
                return case.k, case.v

        b, h, m, d = case.q.shape
        hk = case.k.shape[1]
        config = LlamaConfig(hidden_size=h * d, num_attention_heads=h, num_key_value_heads=hk, num_hidden_layers=4)
        attention = self.module.LlamaAttention_heavy_hitter(config, layer_idx=2)
        flat = lambda x: x.transpose(1, 2).reshape(b, x.shape[2], -1)
        attention.q_proj = Returns(flat(case.q))
        attention.k_proj, attention.v_proj = Returns(flat(case.k[:, :, -m:])), Returns(flat(case.v[:, :, -m:]))
        attention.o_proj = torch.nn.Identity()
        # One row for each query head, whatever the case has (SPEC §1).
        attention.sorted_channel = case.channels.repeat_interleave(h // len(case.channels), 0)
        attention.heavy_const, attention.group_factor = case.settings["heavy_size"], case.settings["group_factor"]
        attention.label_bits = case.settings["label_bits"]
        # A rotation by 0 leaves q and k as they are.
        rotation = torch.ones(b, m, d, dtype=case.q.dtype), torch.zeros(b, m, d, dtype=case.q.dtype)
        with torch.no_grad(), observed(torch.Tensor, "masked_fill_") as drops, observed(torch, "matmul") as products, \
                observed(self.module, "pseudo_quantize") as labels:
            output, _, _ = attention(torch.zeros(b, m, h * d, dtype=case.q.dtype), attention_mask=case.additive(),
                                     past_key_value=Past(), position_embeddings=rotation)
        (queries, keys_across), _, _ = products[0]
        assert same_bits(queries, case.q), "q changed on its way to the first product"
        repeated = keys_across.transpose(2, 3).unflatten(1, (hk, h // hk)).unbind(2)
        assert all(same_bits(keys, case.k) for keys in repeated), "k changed on its way to the first product"
        assert all(made.isfinite().all() for _, _, made in labels), "labels are not finite (SPEC D9): choose other inputs"
        (_, dropped, _), _, _ = drops[-1]
        # Where there are fewer candidates than H this code keeps positions of score -inf, which then weigh nothing.
        return ~dropped & (case.additive() > -math.inf), output.reshape(b, m, h, d).transpose(1, 2)

    def export(self, case, path, **options):
        mask, output = self.attend(case)
        case.write(path, mask, output, self.source, **options)


def export_grid(author, _hub, _activations, folder):
    for keys in (8193, 16385, 32769):
        made = from_recipe(seed=1, batch=1, heads=32, kv_heads=8, queries=1, keys=keys, head_dim=128)
        for group_factor in (8, 16, 32):
            for label_bits in (4, 8, 16):
                for heavy_size in (128, 512, 1024):
                    case = Case(**made, heavy_size=heavy_size, group_factor=group_factor, label_bits=label_bits)
                    author.export(case, folder / f"n{keys}-g{group_factor}-b{label_bits}-h{heavy_size}.safetensors")


def export_lengths(author, _hub, _activations, folder):
    """For kernels with a fixed type and layout: real lengths whose last block of keys is a partial one, in half precision too."""
    shapes = {
        # name: heads, KV heads, d, channel rows, G, B, H
        "mha-d64-b16": (4, 4, 64, "per-head", 4, 16, 256),
        "mha-d64-b4": (4, 4, 64, "shared", 4, 4, 256),
        "mha-d128-b16": (4, 4, 128, "per-head", 8, 16, 512),
        "gqa-d64-b4": (8, 2, 64, "shared", 2, 4, 256),
        "gqa-d64-b16": (8, 2, 64, "shared", 4, 16, 128),
        "gqa-d128-b4": (8, 2, 128, "per-kv-head", 16, 4, 512),
        "gqa-d128-b16": (8, 2, 128, "per-kv-head", 8, 16, 256),
    }
    for keys in (4133, 8193):
        for dtype in ("bf16", "f16", "f32"):
            for name, (heads, kv_heads, d, rows, group_factor, label_bits, heavy_size) in shapes.items():
                # The grid has grouped heads in f32.
                if dtype == "f32" and (kv_heads < heads or label_bits < 16):
                    continue
                sizes = {} if rows == "per-head" else {"rows": rows}
                made = from_recipe(seed=2, batch=1, heads=heads, kv_heads=kv_heads, queries=1, keys=keys, head_dim=d, **sizes)
                case = Case(**made, heavy_size=heavy_size, group_factor=group_factor, label_bits=label_bits, dtype=dtype)
                author.export(case, folder / f"n{keys}-{dtype}-{name}.safetensors")


def load_activations(path):
    from safetensors.torch import load_file

    return load_file(path)


def export_real(author, _hub, activations, folder):
    """Layers x configurations; the oldest keys are dropped so that the queries stay the last positions."""
    configurations = [
        (1024, 64, 4, 4, "f32"), (512, 32, 8, 2, "f16"), (512, 128, 8, 8, "bf16"),
        (768, 16, 16, 16, "f16"), (512, 256, 4, 16, "f32"), (384, 100, 2, 3, "bf16"),
    ]
    for layer in ("00", "05", "17", "29"):
        if not (path := next(activations.glob(f"*layer{layer}*.safetensors"), None)):
            sys.exit(f"golden/export.py: found no *layer{layer}*.safetensors in {activations}, expected activation files")
        tensors = load_activations(path)
        for keys, heavy_size, group_factor, label_bits, dtype in configurations if layer in ("05", "17") else configurations[1:3]:
            case = Case(q=tensors["q"], k=tensors["k"][:, :, -keys:].contiguous(), v=tensors["v"][:, :, -keys:].contiguous(),
                        channels=tensors["channels"], heavy_size=heavy_size, group_factor=group_factor,
                        label_bits=label_bits, dtype=dtype)
            author.export(case, folder / f"layer{layer}-n{keys}-h{heavy_size}-g{group_factor}-b{label_bits}-{dtype}.safetensors")


def random_inputs(seed, *, b=1, h=4, hk=2, m=1, n=48, d=16, dv=None, dtype="f32"):
    """Normal q, k, v, channels of different magnitude, values as the storage type holds them, and a channel order per head."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    k = normal(b, hk, n, d) * torch.exp2(normal(d))
    cast = lambda x: x.to(dtype_of(dtype))
    channels = torch.stack([torch.randperm(d, generator=generator) for _ in range(h)])
    return {"q": cast(normal(b, h, m, d)), "k": cast(k), "v": cast(normal(b, hk, n, dv or d)), "channels": channels, "dtype": dtype}


def export_small(author, _hub, _activations, folder):
    base = {"heavy_size": 8, "group_factor": 4, "label_bits": 4}
    cases = {}
    for group in (1, 3, 4, 8):
        for shape, m in (("one", 1), ("some", 5), ("all", 24)):
            n = 24 if shape == "all" else 40
            cases[f"group{group}-{shape}"] = ({"h": 2 * group, "hk": 2, "m": m, "n": n}, base)
    for heavy_size in (1, 2, 39, 40, 41, 200):
        cases[f"heavy{heavy_size}"] = ({"n": 40}, {**base, "heavy_size": heavy_size})
    for n in (64, 65, 66):
        cases[f"short-n{n}-h64"] = ({"n": n}, {**base, "heavy_size": 64})
    for bits in (1, 2, 3, 15, 16):
        cases[f"bits{bits}"] = ({"m": 3}, {**base, "label_bits": bits})
    for dtype in ("f16", "bf16"):
        for bits in (2, 4, 8, 16):
            cases[f"{dtype}-bits{bits}"] = ({"m": 4, "n": 64, "d": 32, "dtype": dtype}, {**base, "label_bits": bits})
        cases[f"{dtype}-batch"] = ({"b": 2, "m": 6, "n": 30, "dtype": dtype}, base)
    for group_factor in (1, 2, 16):
        cases[f"factor{group_factor}"] = ({"m": 2}, {**base, "group_factor": group_factor})
    cases["batch"] = ({"b": 2, "m": 4}, base)
    cases["not-causal"] = ({"m": 4}, {**base, "causal": False})
    for index, (name, (sizes, settings)) in enumerate(cases.items()):
        made = random_inputs(100 + index, **sizes)
        author.export(Case(**made, **settings), folder / f"{name}.safetensors", as_mask=index % 5 == 0)
    for index, (name, dtype, low) in enumerate((("mask-finite", "f32", -4.0), ("mask-f16", "f16", -4.0), ("mask-excluding", "f32", -math.inf))):
        made = random_inputs(300 + index, b=2, m=3, n=30, dtype=dtype)
        generator = torch.Generator().manual_seed(400 + index)
        additive = torch.randn(2, 1, 3, 30, generator=generator).to(dtype_of(dtype)).float()
        additive[torch.rand(2, 1, 3, 30, generator=generator) < 0.3] = low
        author.export(Case(**made, **base, attention_mask=additive), folder / f"{name}.safetensors")


# --- quantisation -----------------------------------------------------------------------------------------------------


def quantisation_rows(bits, dtype, width=8):
    """Random rows, half-way points, constant rows, signed zeros, single outliers, large and tiny ranges."""
    generator = torch.Generator().manual_seed(bits)
    normal = lambda count: torch.randn(count, width, generator=generator)
    largest = 2**bits - 1
    halves = torch.randint(0, max(largest, 1), (12, width), generator=generator) + 0.5
    halves[:, 0], halves[:, 1] = 0.0, float(largest)
    zeros = torch.where(torch.rand(6, width, generator=generator) < 0.5, 0.0, -0.0)
    zeros[3:, -1] = 1.0
    outlier = normal(6) * 0.01
    outlier[:, 3] = torch.tensor([100.0, -100.0, 7.0, -7.0, 1.0, -1.0])
    constant = normal(6)[:, :1].expand(6, width)
    scaled = [normal(2) * 2.0**exponent for exponent in (-60, -30, -14, -12, -8, 8, 12, 13, 30, 60, 120)]
    edges = [torch.linspace(-1, 1, width)[None] * dtype_range * factor
             for dtype_range in (torch.finfo(dtype).max, torch.finfo(dtype).tiny) for factor in (1.0, 0.5, 0.25, 4.0)]
    rows = torch.cat([normal(40), halves, halves / 8 - 1, zeros, outlier, constant, *scaled, *edges]).to(dtype)
    return rows[rows.isfinite().all(-1)]


def export_quantisation(author, _hub, _activations, folder):
    for name in DTYPES:
        dtype, tensors = dtype_of(name), {}
        for bits in range(1, 16):
            rows = quantisation_rows(bits, dtype)
            labels = author.module.pseudo_quantize(rows.clone(), bits)
            finite = labels.isfinite().all(-1)
            assert not finite.all(), f"{name}, {bits} bits: no row is too large or too small for finite labels (SPEC D9)"
            tensors[f"bits_{bits:02}.rows"], tensors[f"bits_{bits:02}.labels"] = rows[finite], labels[finite]
            tensors[f"bits_{bits:02}.nonfinite_rows"] = rows[~finite]
        source = f"{author.name}, evaluation/modify_llama.py, pseudo_quantize, torch {torch.__version__} on CPU"
        write_file(folder / f"{name}.safetensors", tensors, {"quantisation": json.dumps({"dtype": name}), "source": source})


# --- sparse-attention-hub ---------------------------------------------------------------------------------------------


class Hub:
    """The hub's maskers and composed attention on given q, k, v."""

    def __init__(self, checkout):
        sys.path.insert(0, str(pathlib.Path(checkout).resolve()))
        self.source = (f"xAlg-ai/sparse-attention-hub at {commit_of(checkout)}, ResearchAttention with DoubleSparsityTopKMasker, "
                       f"torch {torch.__version__} on CPU")
        self.folder, self.numbers = tempfile.TemporaryDirectory(), itertools.count()

    def attention(self, settings, orders):
        """A composed attention over `orders`: {layer: channels}."""
        from sparse_attention_hub.sparse_attention.research_attention import ResearchAttentionConfig
        from sparse_attention_hub.sparse_attention.research_attention.base import ResearchAttention
        from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations.basic_fixed import LocalMaskerConfig, SinkMaskerConfig
        from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations.double_sparsity_top_k import DoubleSparsityTopKMaskerConfig

        # The masker reads its channel file at its first use, so the folder lives as long as this object.
        file = pathlib.Path(self.folder.name) / f"channels-{next(self.numbers)}.json"
        file.write_text(json.dumps({f"model.layers.{layer}.self_attn.qk_proj": order.tolist() for layer, order in orders.items()}))
        earlier = {"sink": lambda size: SinkMaskerConfig(sink_size=size), "local": lambda size: LocalMaskerConfig(window_size=size)}
        configs = [earlier[kind](config["size"]) for masker in settings.get("earlier_maskers", []) for kind, config in masker.items()]
        configs.append(DoubleSparsityTopKMaskerConfig(heavy_size=settings["heavy_size"], group_factor=settings["group_factor"],
                                                      label_bits=settings["label_bits"], sorted_channel_file=str(file)))
        return ResearchAttention.create_from_config(ResearchAttentionConfig(masker_configs=configs))

    def attend(self, attention, case, layer=0):
        """Attended positions [b, h, m, n] and output [b, h, m, dv]."""
        from sparse_attention_hub.sparse_attention.research_attention import base
        from sparse_attention_hub.sparse_attention.utils.mask import Mask

        empty = Mask.create_empty_mask

        def start(shape, dtype, device):
            return empty(shape, dtype=dtype, device=device) if case.previous is None else \
                Mask.create_mask_from_dense_mask(shape, case.previous.to(dtype, copy=True), dtype)

        Mask.create_empty_mask = start
        try:
            with torch.no_grad(), observed(base, "get_masked_attention_output") as calls:
                output, _ = attention.custom_attention(
                    module=torch.nn.Module().eval(), queries=case.q, keys=case.k, values=case.v, attention_mask=case.additive(),
                    scaling=case.settings["scaling"], dropout=0.0, sparse_meta_data={}, layer_idx=layer)
        finally:
            Mask.create_empty_mask = empty
        _, options, _ = calls[-1]
        attended = options["sparse_attention_mask"].get_dense_mask() != 0
        assert attended.all() or not (attended & (case.additive() == -math.inf)).any(), "attends to a position of score -inf"
        return attended, output.transpose(1, 2)

    def export(self, case, path, **options):
        mask, output = self.attend(self.attention(case.settings, {0: case.channels}), case)
        case.write(path, mask, output, self.source, **options)


def export_hub(_author, hub, _activations, folder):
    base = {"heavy_size": 6, "group_factor": 4, "label_bits": 4, "dense_fallback": True}
    composed = [{"sink": {"size": 3}}, {"local": {"size": 4}}]
    cases = {
        "sink-local-one": ({"n": 50}, {**base, "earlier_maskers": composed}),
        "sink-local-some": ({"m": 6, "n": 50}, {**base, "earlier_maskers": composed}),
        "sink-local-bf16": ({"m": 3, "n": 60, "dtype": "bf16", "d": 32}, {**base, "earlier_maskers": composed}),
        "sink-only": ({"m": 2, "n": 40}, {**base, "earlier_maskers": composed[:1]}),
        "local-only": ({"m": 2, "n": 40}, {**base, "earlier_maskers": composed[1:]}),
        "fraction-10": ({"m": 2, "n": 47}, {**base, "heavy_size": 0.1}),
        "fraction-29": ({"n": 100}, {**base, "heavy_size": 0.29}),
        "fraction-composed": ({"m": 2, "n": 64}, {**base, "heavy_size": 0.25, "earlier_maskers": composed}),
        "fraction-all": ({"n": 30}, {**base, "heavy_size": 1.0}),
        "d3-n65-h64": ({"n": 65}, {**base, "heavy_size": 64}),
        "d3-n66-h64": ({"n": 66}, {**base, "heavy_size": 64}),
        "d3-many-queries": ({"m": 10, "n": 16}, base),
        "value-dim-5": ({"m": 2, "n": 40, "dv": 5}, base),
        "value-dim-24": ({"n": 40, "dv": 24, "h": 6, "hk": 2}, base),
        "group1": ({"h": 3, "hk": 3, "m": 2}, base),
        "group4-bf16": ({"h": 8, "hk": 2, "m": 2, "dtype": "bf16"}, base),
        "batch": ({"b": 2, "m": 3}, base),
        "bits16": ({"m": 2}, {**base, "label_bits": 16}),
    }
    for index, (name, (sizes, settings)) in enumerate(cases.items()):
        hub.export(Case(**random_inputs(500 + index, **sizes), **settings), folder / f"{name}.safetensors")

    # D4: one instance, two layers; the second answer is stored with the channels it should have used.
    first, second = random_inputs(600, n=64), random_inputs(601, n=64)
    attention = hub.attention(base, {4: first["channels"], 5: second["channels"]})
    hub.attend(attention, Case(**first, **base), layer=4)
    case = Case(**second, **base)
    case.write(folder / "d4-second-layer.safetensors", *hub.attend(attention, case, layer=5), hub.source, known_divergence="D4")

    # D12: all but 4 keys are attended before, with weight 1/2; the hub selects 6 and resets weights to 1.
    made = random_inputs(602, n=40)
    previous = torch.full((1, 4, 1, 40), 0.5)
    previous[..., ::10] = 0.0
    hub.export(Case(**made, **base, previous=previous), folder / "d12-few-candidates.safetensors", known_divergence="D12")
    # With enough candidates the same earlier mask is treated as it should be.
    previous = torch.zeros(1, 4, 1, 40)
    previous[..., 1::2] = 1.0
    hub.export(Case(**made, **base, previous=previous), folder / "previous.safetensors")

    # D17: in f16 the inverse of a weight of 0 overflows before it is masked out, and every sparse output is NaN.
    hub.export(Case(**random_inputs(604, h=8, m=2, dtype="f16"), **base), folder / "d17-f16.safetensors", known_divergence="D17")

    # D7: 0.1 of 9 keys.
    hub.export(Case(**random_inputs(603, n=9), **{**base, "heavy_size": 0.1}), folder / "d7-no-keys.safetensors", known_divergence="D7")


# --- calibration ------------------------------------------------------------------------------------------------------


def load_hooks(author):
    """The author's calibration module; names that today's packages lack are stood in for."""
    import transformers.models.mllama.modeling_mllama as mllama

    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    sys.modules.setdefault("tqdm", types.ModuleType("tqdm"))
    if not hasattr(mllama, "MllamaTextSelfAttention"):
        mllama.MllamaTextSelfAttention = type("MllamaTextSelfAttention", (), {})
    return load_module("offline_calibration", author.checkout / "config" / "offline_calibration.py")


def calibration_block(seed, heads, kv_heads, tokens=40, d=16):
    """q and k whose channels differ in magnitude, by more between channels than between blocks."""
    scales = torch.exp2(torch.randn(heads, 1, d, generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, heads, tokens, d, generator=generator) * scales
    k = torch.randn(1, kv_heads, tokens, d, generator=generator) * scales[:kv_heads]
    return q, k


def export_calibration(author, _hub, _activations, folder):
    hooks = load_hooks(author)
    heads, kv_heads, d = 4, 2, 16
    source = f"{author.name}, config/offline_calibration.py, {{}}, torch {torch.__version__} on CPU"
    config = types.SimpleNamespace(hidden_size=heads * d, num_attention_heads=heads, num_key_value_heads=kv_heads)
    model = types.SimpleNamespace(config=config)
    blocks = [calibration_block(seed, heads, kv_heads) for seed in (11, 12, 13)]
    flat = lambda x: x.transpose(1, 2).reshape(1, x.shape[2], -1)

    def rows(sums, name):
        importance, order = torch.sort(sums[name], dim=-1, descending=True)
        gaps = (importance[:, :-1] - importance[:, 1:]) / importance[:, :-1]
        assert gaps.min() > 1e-4, "importances too close to each other for an unambiguous order"
        return order

    for kind, hook, index in (("q_proj", hooks.get_q_hook, 0), ("k_proj", hooks.get_k_hook, 1)):
        sums = {}
        for block in blocks:
            hook(None, None, flat(block[index]), kind, sums, model)
        tensors = {f"block_{i}.{kind[0]}": block[index].contiguous() for i, block in enumerate(blocks)}
        write_file(folder / f"{kind}.safetensors", {**tensors, "channels": rows(sums, kind)},
                   {"calibration": json.dumps({"kind": kind}), "source": source.format(hook.__name__)})

    # The qk hook projects and rotates by itself: a stand-in for the attention gives it q and k, and no rotation. It reshapes
    # [b, h, t, d] to [-1, h, d], which mixes tokens and heads (D16) unless there is one head; its key is overwritten (D10).
    one_head = [(q[:, :1].contiguous(), k[:, :1].contiguous()) for q, k in blocks]
    for name, used, divergence in (
        ("qk_proj-one-head", one_head[:1], None),
        ("qk_proj-last-block", one_head, "D10"),
        ("qk_proj-heads-mixed", blocks[:1], "D16"),
    ):
        sums = {}
        for q, k in used:
            attention = types.SimpleNamespace(
                q_proj=lambda _, q=q: flat(q), k_proj=lambda _, k=k: flat(k), v_proj=lambda _, k=k: flat(k),
                num_heads=q.shape[1], num_key_value_heads=k.shape[1], head_dim=d, num_key_value_groups=q.shape[1] // k.shape[1])
            given = {"hidden_states": torch.zeros(1, q.shape[2], heads * d), "position_ids": None}
            hooks.get_qk_hook(attention, (), given, None, "layer", sums)
        tensors = {f"block_{i}.{letter}": x for i, (q, k) in enumerate(used) for letter, x in (("q", q), ("k", k))}
        metadata = {"calibration": json.dumps({"kind": "qk_proj"}), "source": source.format("get_qk_hook")}
        if divergence:
            metadata["known_divergence"] = divergence
        write_file(folder / f"{name}.safetensors", {**tensors, "channels": rows(sums, "layer.qk_proj")}, metadata)


# --- command line -----------------------------------------------------------------------------------------------------


def write_checksums(folder):
    lines = []
    for path in sorted(folder.rglob("*.safetensors"), key=lambda path: path.relative_to(folder).as_posix()):
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog=NEEDS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doublesparse", metavar="CHECKOUT", help="andy-yang-1/DoubleSparse")
    parser.add_argument("--hub", metavar="CHECKOUT", help="xAlg-ai/sparse-attention-hub")
    parser.add_argument("--activations", metavar="FOLDER", type=pathlib.Path, help="activation files")
    parser.add_argument("--only", metavar="GROUPS", default=",".join(GROUPS), help="comma-separated: %(default)s")
    parser.add_argument("--out", metavar="FOLDER", type=pathlib.Path, default=GOLDEN, help="default: the folder of this file")
    arguments = parser.parse_args()
    groups = arguments.only.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"--only: found {', '.join(sorted(unknown))}, expected some of {', '.join(GROUPS)}")
    needed = [arguments.doublesparse, arguments.hub or "hub" not in groups, arguments.activations or "real" not in groups]
    if not all(needed):
        sys.stderr.write(NEEDS)
        sys.exit(2)

    global np, torch
    import numpy as np
    import torch

    np.seterr(over="ignore")
    torch.set_num_threads(2)  # the number of threads may change the order of sums
    check_recipe()
    author = Author(arguments.doublesparse)
    hub = Hub(arguments.hub) if "hub" in groups else None
    for group in groups:
        globals()[f"export_{group}"](author, hub, arguments.activations, arguments.out / group)
        files = list((arguments.out / group).glob("*.safetensors"))
        for stale in set(files) - WRITTEN:
            stale.unlink()
            files.remove(stale)
        print(f"{group}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")
    write_checksums(arguments.out)


if __name__ == "__main__":
    main()
