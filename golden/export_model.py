"""Writes golden/model/*.json: what transformers computes from the weights of a GGUF file, in f64, and the tokens that llama.cpp
makes of the same texts. Needs torch 2.11.0, transformers 4.57.1, accelerate, gguf 0.19.0 and xllamacpp 2026.10.11549; see golden/README.md.

    python golden/export_model.py MODEL.gguf golden/model/smollm2-135m-q4_1.json

transformers rounds to f32 inside norms, the rotary embedding and the softmax, whatever the type of the weights. These casts are
left out here, so that the logits are those of the formulas to about 2^-53 and an implementation can be held to them closely.
"""

import hashlib
import json
import pathlib
import sys
import urllib.request

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

ROOT = pathlib.Path(__file__).resolve().parent.parent
GREEDY = 64
# Logits of every 48th token are kept: 1,024 of 49,152.
STEP = 48
CONTEXT, SCORED = 256, 64
# Of the calibration: tokens of a block, and layers that are kept.
BLOCK, LAYERS = 256, (0, 14, 29)


def norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary(self, x, position_ids):
    d = self.config.head_dim
    frequencies = self.config.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = position_ids[0].to(torch.float64)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)[None]
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def prompts():
    licence = (ROOT / "LICENSE-APACHE").read_text()
    return {
        "plain": "The capital of France is",
        "chat": "<|im_start|>user\nWhat is 12 times 12? Answer briefly.<|im_end|>\n<|im_start|>assistant\n",
        "long": licence[: licence.index("Contributor\" shall mean")],
    }


# What a tokenizer may get wrong: digits, spaces, contractions, letters beyond ASCII, control tokens within text.
TEXTS = [
    "In 1984 there were 1,024 keys; 3.14159 isn't 22/7.",
    "  leading and   inner spaces\n\n\tand tabs \r\n",
    "We'll see: they've said it's fine, I'D SAY.",
    "Grüße aus Köln – naïve café, Ελληνικά, 日本語, 🙂🚀",
    "fn main() { println!(\"{:?}\", v[..n]); } // a_b __c__",
    "<|im_start|>user\nhi<|im_end|>",
]


def main(model_file, out):
    path = pathlib.Path(model_file)
    modeling_llama.LlamaRMSNorm.forward = norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotary
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float64, attn_implementation="sdpa"
    ).eval()

    import xllamacpp

    tokenize = tokenizer(xllamacpp, path)
    cases = []
    for name, text in prompts().items():
        tokens = tokenize(text)
        ids = torch.tensor([tokens])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            greedy, gaps = [], []
            state = model(ids, use_cache=True)
            for _ in range(GREEDY):
                two = state.logits[0, -1].topk(2)
                greedy.append(int(two.indices[0]))
                gaps.append(float(two.values[0] - two.values[1]))
                state = model(torch.tensor([[greedy[-1]]]), past_key_values=state.past_key_values, use_cache=True)
        cases.append({"name": name, "text": text, "tokens": tokens, "logits": logits[::STEP].tolist(), "greedy": greedy,
                      "smallest_gap": min(gaps)})
        print(name, len(tokens), greedy[:8], min(gaps))
    licence = tokenize((ROOT / "LICENSE-APACHE").read_text())
    golden = {
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "source": f"transformers {transformers.__version__}, torch {torch.__version__}, f64 without casts to f32; "
                  f"tokens by llama.cpp (xllamacpp {xllamacpp.__version__})",
        "logits_step": STEP,
        "prompts": cases,
        "perplexity": perplexity(model, licence),
        "calibration": calibration(model, licence),
        "texts": [{"text": text, "tokens": tokenize(text)} for text in TEXTS],
    }
    pathlib.Path(out).write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


def perplexity(model, tokens):
    """Negative log likelihood of the 64 tokens after the 257 first ones of LICENSE-APACHE, by dense attention."""
    tokens = torch.tensor(tokens[: CONTEXT + 1 + SCORED])
    with torch.no_grad():
        likelihoods = model(tokens[None, :-1]).logits[0].log_softmax(-1)
    scored = torch.arange(CONTEXT, CONTEXT + SCORED)
    return {"context": CONTEXT, "scored": SCORED, "sum": -float(likelihoods[scored, tokens[scored + 1]].sum())}


def calibration(model, tokens):
    """Channel orders of some layers, of two blocks of 256 tokens of LICENSE-APACHE."""
    sums = {}

    def add(layer, kind, magnitudes):  # [1, heads, t, d]
        sums[layer, kind] = sums.get((layer, kind), 0) + magnitudes.abs().mean(2)[0]

    layer = [0]
    rotate = modeling_llama.apply_rotary_pos_emb

    def rotated(q, k, cosines, sines, **rest):
        add(layer[0], "q_proj", q)
        add(layer[0], "k_proj", k)
        q, k = rotate(q, k, cosines, sines, **rest)
        add(layer[0], "qk_proj", q * k.repeat_interleave(q.shape[1] // k.shape[1], 1))
        layer[0] += 1
        return q, k

    modeling_llama.apply_rotary_pos_emb = rotated
    for start in (0, BLOCK):
        layer[0] = 0
        with torch.no_grad():
            model.model(torch.tensor([tokens[start : start + BLOCK]]))
    modeling_llama.apply_rotary_pos_emb = rotate
    orders = {
        f"model.layers.{layer}.self_attn.{kind}": torch.sort(sums[layer, kind], dim=-1, descending=True, stable=True).indices.tolist()
        for layer in LAYERS
        for kind in ("q_proj", "k_proj", "qk_proj")
    }
    return {"block": BLOCK, "orders": orders}


def tokenizer(xllamacpp, path):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 512
    parameters.warmup = False
    server = xllamacpp.Server(parameters)

    def tokenize(text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    return tokenize


if __name__ == "__main__":
    main(*sys.argv[1:])
