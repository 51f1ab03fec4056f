"""Writes golden/model/sentencepiece.gguf and .json: a small SentencePiece BPE vocabulary, trained on LICENSE-APACHE, as the metadata of
a GGUF file without tensors, and what SentencePiece makes of some texts. Needs sentencepiece 0.2 and gguf 0.19.0.

    python golden/export_sentencepiece.py golden/model
"""

import json
import pathlib
import sys
import tempfile

import gguf
import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = [
    "Licensed under the Apache License, Version 2.0",
    " two  spaces, and  a leading one",
    "Grüße, 日本語 and 🙂 fall back to bytes",
    "lines\n\tand tabs\nand 1234567890",
    "",
    "a",
]


def main(folder):
    folder = pathlib.Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            input=str(ROOT / "LICENSE-APACHE"), model_prefix=f"{scratch}/m", vocab_size=700, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
            split_digits=True,
        )
        model = sentencepiece.SentencePieceProcessor(model_file=f"{scratch}/m.model")
    ids = range(model.vocab_size())
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    writer = gguf.GGUFWriter(str(folder / "sentencepiece.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    golden = {
        "source": f"sentencepiece {sentencepiece.__version__}",
        "texts": [{"text": text, "tokens": model.encode(text)} for text in TEXTS + [(ROOT / "LICENSE-APACHE").read_text()]],
    }
    (folder / "sentencepiece.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
