//! The language model inside (feature `torch`), against what transformers and llama.cpp make of the same file
//! (`golden/model`), and a small slice of `doublecheck eval`. The model is `DOUBLECHECK_MODEL`, or what `ci/model` has put into its
//! cache; where there is none, the tests are counted as ignored, never as passed, and a line says so.

use std::path::{Path, PathBuf};

use doublecheck::model::llama::Dense;
use doublecheck::model::{Cache, Error, Gguf, Llama, Model};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Failed>;

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where `ci/model` puts it.
fn model_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("DOUBLECHECK_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("doublecheck")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/doublecheck")));
    let file = variable("DOUBLECHECK_MODEL").or_else(|| cache.map(|folder| folder.join(NAME)));
    file.filter(|file| file.is_file())
}

fn main() {
    let arguments = Arguments::from_args();
    let file = model_file();
    if file.is_none() {
        eprintln!(
            "ignored: every test of a real model: found none in the cache, expected DOUBLECHECK_MODEL, or ci/model run once"
        );
    }
    let tests: [(&str, fn() -> Outcome); 4] = [
        ("tokens_are_those_of_llama_cpp", tokens),
        ("logits_are_those_of_transformers", logits),
        ("greedy_continuations_are_those_of_transformers", greedy),
        ("what_does_not_fit_is_refused", refusals),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, test).with_ignored_flag(file.is_none()));
    libtest_mimic::run(&arguments, trials.into()).exit();
}

fn read(kind: Kind) -> Result<Model, Error> {
    Model::read(&model_file().expect("tests without a model are ignored"), Device::Cpu, kind)
}

#[derive(Deserialize)]
struct Golden {
    model_sha256: String,
    logits_step: i64,
    prompts: Vec<Prompt>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    text: String,
    tokens: Vec<u32>,
    logits: Vec<f64>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: Vec<u32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/model/smollm2-135m-q4_1.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Digits, spaces, contractions, letters beyond ASCII, control tokens; and back to the text.
fn tokens() -> Outcome {
    let (model, golden) = (read(Kind::Float)?, golden());
    assert_eq!(model.sha256, golden.model_sha256, "golden/model is of another file");
    let prompts = golden.prompts.into_iter().map(|prompt| Text { text: prompt.text, tokens: prompt.tokens });
    for Text { text, tokens } in golden.texts.into_iter().chain(prompts) {
        assert_eq!(model.tokenizer.encode(&text)?, tokens, "{text:?}");
        if !text.contains("<|im_") {
            assert_eq!(model.tokenizer.decode(&tokens)?, text);
        }
    }
    Ok(())
}

fn last_logits(llama: &Llama, tokens: &[u32]) -> Result<Tensor, Error> {
    let mut cache = llama.cache(tokens.len())?;
    let hidden = llama.forward(tokens, &mut cache, &mut Dense)?;
    Ok(llama.logits(&hidden.narrow(0, -1, 1))?.to_kind(Kind::Double).view([-1]))
}

/// To first order an error is a constant times the unit roundoff. The constant is measured: it is the distance of the f32 run from
/// the f64 run over 2^-24. What transformers computed in f64 may be as far from the exact logits as our f64 run, each with
/// that constant times 2^-53; since it sums in another order, 8 times as much is allowed on each side.
fn logits() -> Outcome {
    let (single, double, golden) = (read(Kind::Float)?, read(Kind::Double)?, golden());
    for prompt in golden.prompts {
        let (f32, f64) =
            (last_logits(&single.llama, &prompt.tokens)?, last_logits(&double.llama, &prompt.tokens)?);
        let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        let rounding = distance(&f32, &f64);
        let bound = 2.0 * 8.0 * rounding * 2f64.powi(-29);
        let theirs = Tensor::from_slice(&prompt.logits);
        let ours = f64.slice(0, 0, None, golden.logits_step);
        let found = distance(&ours, &theirs);
        eprintln!(
            "{}: f32 off by {rounding:.2e}, f64 off from transformers by {found:.2e}, bound {bound:.2e}",
            prompt.name
        );
        assert!(found <= bound, "{}: {found:e} exceeds {bound:e}", prompt.name);
        // The constant is that of f32 arithmetic and not of a fault: logits are of the order of 10.
        assert!(rounding < 1e-3, "{}: f32 is off by {rounding:e}", prompt.name);
    }
    Ok(())
}

fn continuation(llama: &Llama, tokens: &[u32], count: usize) -> Result<Vec<u32>, Error> {
    let mut cache: Cache = llama.cache(tokens.len() + count)?;
    let (mut next, mut found) = (tokens.to_vec(), Vec::new());
    for _ in 0..count {
        let hidden = llama.forward(&next, &mut cache, &mut Dense)?;
        let best = llama.logits(&hidden.narrow(0, -1, 1))?.argmax(-1, false).int64_value(&[0]) as u32;
        found.push(best);
        next = vec![best];
    }
    Ok(found)
}

fn greedy() -> Outcome {
    let model = read(Kind::Float)?;
    for prompt in golden().prompts {
        let found = continuation(&model.llama, &prompt.tokens, prompt.greedy.len())?;
        assert_eq!(found, prompt.greedy, "{}", prompt.name);
    }
    Ok(())
}

fn refusals() -> Outcome {
    let file = model_file().unwrap();
    let folder = tempfile::tempdir()?;
    let whole = std::fs::read(&file)?;
    for (name, bytes) in [
        ("text", b"Not a model.".to_vec()),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("head", whole[..2000].to_vec()),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        match Model::read(&path, Device::Cpu, Kind::Float) {
            Err(Error::Model(_)) => {}
            other => {
                return Err(
                    format!("{name}: expected a refusal, found {:?}", other.map(|model| model.name)).into()
                );
            }
        }
    }
    assert!(matches!(Gguf::read(Path::new("nowhere.gguf")), Err(Error::Access { .. })));
    let model = read(Kind::Float)?;
    let llama = &model.llama;
    assert!(matches!(llama.cache(0), Err(Error::Tokens(_))));
    assert!(matches!(llama.cache(1 << 20), Err(Error::Tokens(_))));
    let mut cache = llama.cache(2)?;
    for tokens in [&[][..], &[1, 2, 3], &[49_152]] {
        assert!(matches!(llama.forward(tokens, &mut cache, &mut Dense), Err(Error::Tokens(_))), "{tokens:?}");
        assert!(cache.is_empty());
    }
    Ok(())
}
