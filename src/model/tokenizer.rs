//! The tokenizer that a GGUF file holds, as one of the `tokenizers` crate: byte-level BPE (`tokenizer.ggml.model` gpt2), which
//! SmolLM2, Llama 3 and their like have, or SentencePiece BPE (`llama`), as Llama 2 and Mistral. How text is cut before merging
//! is named by `tokenizer.ggml.pre`; the cuts are those of the models' own tokenizer files.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::gguf::Gguf;
use super::{Error, Result};
use crate::algorithm::Detail;

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before a text, where the file says so.
    first: Option<u32>,
    /// Ids of control tokens, ascending.
    control: Vec<u32>,
    /// `tokenizer.chat_template`, a Jinja template, and the tokens that it may name.
    template: Option<String>,
    names: [String; 2],
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
/// `tokenizer.ggml.token_type` of tokens that are no text.
const CONTROL: i64 = 3;
/// The same of tokens that were added to a finished vocabulary.
const ADDED: i64 = 4;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn wrong(field: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> Error {
    Error::Tokenizer(Detail::new(field, found, expected))
}

/// How text is cut, as `pre_tokenizer` of a tokenizer file.
fn cuts(name: &str) -> Option<Value> {
    let bytes = |cut: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut});
    let sequence =
        |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    match name {
        "gpt-2" => Some(bytes(true)),
        "smollm" => Some(sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true))),
        "llama-bpe" | "llama3" => {
            let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
            Some(sequence(split, bytes(false)))
        }
        _ => None,
    }
}

/// Tokens that stand apart from the others, as `added_tokens` of a tokenizer file.
fn added(tokens: &[String], types: &[i64]) -> Vec<Value> {
    let apart =
        tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| matches!(**kind, CONTROL | ADDED));
    let token = |(id, (content, kind)): (usize, (&String, &i64))| {
        json!({"id": id, "content": content, "special": *kind == CONTROL, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    apart.map(token).collect()
}

/// Byte-level BPE: what differs between models is where text is cut before merging.
fn byte_level(file: &Gguf, pre: &str) -> Result<Value> {
    let cuts =
        cuts(pre).ok_or_else(|| wrong(PRE, format!("{pre:?}"), "gpt-2, smollm, llama-bpe or llama3"))?;
    let merges = file.texts("tokenizer.ggml.merges")?;
    let pairs: Option<Vec<_>> = merges.iter().map(|merge| merge.split_once(' ')).collect();
    let pairs =
        pairs.ok_or_else(|| wrong("tokenizer.ggml.merges", "an entry without a space", "pairs of tokens"))?;
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": cuts,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": matches!(pre, "llama-bpe" | "llama3"), "merges": pairs},
    }))
}

/// SentencePiece BPE: spaces are ▁, what no piece covers falls back to bytes, and the pair whose piece has the highest score is
/// merged first.
fn sentence_piece(file: &Gguf, tokens: &[String]) -> Result<Value> {
    let scores = file.reals("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let expected = format!("{}, one for each token", tokens.len());
        return Err(wrong("tokenizer.ggml.scores", scores.len(), expected));
    }
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges: Vec<(f64, usize, usize)> = Vec::new();
    for (piece, &score) in tokens.iter().zip(&scores) {
        for (cut, _) in piece.char_indices().skip(1) {
            if let (Some(&left), Some(&right)) = (ids.get(&piece[..cut]), ids.get(&piece[cut..])) {
                merges.push((score, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let pairs: Vec<_> = merges.iter().map(|&(_, left, right)| (&tokens[left], &tokens[right])).collect();
    let unknown = file.number("tokenizer.ggml.unknown_token_id").ok().and_then(|id| tokens.get(id));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prefix = file.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let first = if prefix { vec![json!({"type": "Prepend", "prepend": "▁"})] } else { Vec::new() };
    let strip = if prefix {
        vec![json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})]
    } else {
        Vec::new()
    };
    let text = [
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizers = [first, vec![spaces]].concat();
    let decoders = [text.to_vec(), strip].concat();
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"unk_token": unknown, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "merges": pairs},
    }))
}

impl Tokenizer {
    /// Errors: [`Error::Tokenizer`] for a kind of tokenizer that is not known, [`Error::Model`] for missing metadata.
    pub fn new(file: &Gguf) -> Result<Self> {
        let kind = file.text(MODEL)?;
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let types = file.numbers("tokenizer.ggml.token_type")?;
        let (mut description, wants_first) = match kind {
            "gpt2" => {
                let pre = file.text(PRE)?;
                (byte_level(file, pre)?, pre.starts_with("llama"))
            }
            "llama" => (sentence_piece(file, &tokens)?, true),
            other => {
                let expected = "\"gpt2\", byte-level BPE, or \"llama\", SentencePiece";
                return Err(wrong(MODEL, format!("{other:?}"), expected));
            }
        };
        let vocabulary: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        description["version"] = json!("1.0");
        description["added_tokens"] = json!(added(&tokens, &types));
        description["model"]["type"] = json!("BPE");
        description["model"]["vocab"] = Value::Object(vocabulary);
        let inner = tokenizers::Tokenizer::from_bytes(description.to_string())
            .map_err(|error| wrong("tokenizer.ggml", error, "tokens and merges of BPE"))?;
        let control = types.iter().enumerate().filter(|(_, kind)| **kind == CONTROL).map(|(id, _)| id as u32);
        let token = |key: &str| file.number(key).ok().and_then(|id| u32::try_from(id).ok());
        let wants_first = file.flag("tokenizer.ggml.add_bos_token").unwrap_or(wants_first);
        let names = ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"];
        Ok(Self {
            inner,
            first: token("tokenizer.ggml.bos_token_id").filter(|_| wants_first),
            control: control.collect(),
            template: file.text("tokenizer.chat_template").ok().map(str::to_owned),
            names: names
                .map(|key| token(key).and_then(|id| tokens.get(id as usize)).cloned().unwrap_or_default()),
        })
    }

    /// The tokens of a text, without any that are put before it.
    ///
    /// Errors: [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false);
        Ok(encoding
            .map_err(|error| wrong("text", error, "text that the tokenizer takes"))?
            .get_ids()
            .to_vec())
    }

    /// The text of tokens, without control tokens. Errors: [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|error| wrong("tokens", error, "tokens of the vocabulary"))
    }

    /// The token that begins every prompt, where the file asks for one.
    pub fn first(&self) -> Option<u32> {
        self.first
    }

    /// What stands before and after a user's message in a chat, up to where the answer begins, by the file's own template.
    ///
    /// Errors: [`Error::Tokenizer`] where there is no template, or one that does not show the message as it is.
    pub fn chat(&self) -> Result<(String, String)> {
        const TEMPLATE: &str = "tokenizer.chat_template";
        const MESSAGE: &str = "the message of the user";
        let template =
            self.template.as_ref().ok_or_else(|| wrong(TEMPLATE, "nothing", "a Jinja template"))?;
        let [first, last] = &self.names;
        let messages = json!([{"role": "user", "content": MESSAGE}]);
        // The first token is put before the prompt by the caller.
        let context =
            json!({"messages": messages, "add_generation_prompt": true, "bos_token": "", "eos_token": last});
        let rendered = minijinja::Environment::new()
            .render_str(template, context)
            .map_err(|error| wrong(TEMPLATE, error, "a Jinja template of a chat"))?;
        let (before, after) = rendered
            .split_once(MESSAGE)
            .ok_or_else(|| wrong(TEMPLATE, "a chat without the message", "one that holds it as it is"))?;
        Ok((before.trim_start_matches(first.as_str()).to_owned(), after.to_owned()))
    }

    /// Whether a token is no text: the end of a text or of a turn, and the like.
    pub fn is_control(&self, token: u32) -> bool {
        self.control.binary_search(&token).is_ok()
    }
}
