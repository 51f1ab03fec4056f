//! What the benches share: the tensors of one decode step, an engine that holds them, dense attention in libtorch, and figures
//! that criterion does not measure. Sizes are those of a Llama layer: 32 heads over 8 KV heads, d = dv = 128, f32, a channel
//! row for each query head, G = 8, H = 1024.

#![allow(dead_code, reason = "each bench uses a part")]

#[cfg(feature = "torch")]
pub mod dense;
pub mod estimates;

use std::time::Duration;

use criterion::Criterion;
use doublecheck::algorithm::{
    ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Selection, Storage,
};
use doublecheck::cases::Recipe;
use doublecheck::cases::recipe::{Generated, RecipeRows, SPLITMIX_1};
use doublecheck::engine::{Engine, EngineMasker, Layout};
use ndarray::{Array4, Axis, s};
use serde_json::json;

/// Anything that ends a bench.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub const HEADS: usize = 32;
pub const KV_HEADS: usize = 8;
pub const HEAD_DIM: usize = 128;
pub const HEAVY_SIZE: usize = 1024;
/// B: codes, and labels that are not quantised.
pub const LABEL_BITS: [u64; 2] = [4, 16];
/// Keys appended at a time.
const PORTION: usize = 8192;

/// Whether everything runs once and nothing is measured, by criterion's own rule.
pub fn testing() -> bool {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    has("--test") || !has("--bench")
}

/// The lengths n to be measured; short ones where nothing is measured.
pub fn lengths(lengths: &[usize]) -> Vec<usize> {
    if testing() { vec![1024, 2048] } else { lengths.to_vec() }
}

/// Few samples, as each takes long and lengths are many; criterion's options override it.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args()
}

/// Prints a figure that criterion does not measure, as one line of JSON.
pub fn figure(name: &str, value: f64, unit: &str) {
    println!("{}", json!({"figure": name, "value": value, "unit": unit}));
}

/// The inputs of m queries over n keys, and channel rows.
pub fn inputs(queries: usize, keys: usize) -> Result<(Inputs, ChannelOrder), Failure> {
    let tensors = tensors(queries, keys)?;
    let inputs = Inputs::new(InputParts {
        q: tensors.q,
        k: tensors.k,
        v: tensors.v,
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    })?;
    Ok((inputs, tensors.channels))
}

/// The tensors of m queries over n keys.
pub fn tensors(queries: usize, keys: usize) -> Result<Generated, Failure> {
    let recipe = Recipe {
        generator: SPLITMIX_1.into(),
        seed: 1,
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        queries,
        keys,
        head_dim: HEAD_DIM,
        rows: RecipeRows::PerHead,
    };
    Ok(recipe.generate()?)
}

/// Steps ask one query after the other: what one attends to would stay in the processor's caches.
pub const QUERIES: usize = 8;

/// The queries, each alone: [1, h, 1, d].
pub fn queries(tensors: &Generated) -> Vec<Array4<f32>> {
    tensors.q.axis_iter(Axis(2)).map(|query| query.insert_axis(Axis(2)).to_owned()).collect()
}

pub fn selection(label_bits: u64) -> Result<Selection, Failure> {
    Ok(Selection {
        heavy_size: HeavySize::count(HEAVY_SIZE)?,
        group_factor: GroupFactor::new(8)?,
        label_bits: LabelBits::new(label_bits)?,
        heads: HeadMode::PerHead,
        dense_fallback: false,
        rules: doublecheck::algorithm::Rules::default(),
    })
}

/// An empty cache.
pub fn engine(tensors: &Generated, label_bits: u64) -> Result<Engine, Failure> {
    let layout = Layout {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        storage: Storage::F32,
    };
    let channels = tensors.channels.clone();
    let masker = EngineMasker::DoubleSparsity { selection: selection(label_bits)?, channels };
    Ok(Engine::new(layout, vec![masker])?)
}

/// Appends keys until there are n.
pub fn fill(engine: &mut Engine, tensors: &Generated, keys: usize) -> Result<(), Failure> {
    while engine.keys() < keys {
        let new = s![.., .., engine.keys()..keys.min(engine.keys() + PORTION), ..];
        engine.append(tensors.k.slice(new), tensors.v.slice(new))?;
    }
    Ok(())
}
