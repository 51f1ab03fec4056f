//! Decode steps through the label cache against dense attention on a CUDA device: one JSON record.
//!
//!     decode_cuda RECORD
//!
//! For each row of the table: times of a step and of its parts (medians of CUDA events, see `timing`), of
//! `scaled_dot_product_attention` on the same tensors in the same run, the bytes a step must move, and which part bounds it.
//! `candidates` holds times of the ways in which each part could be done, which is how the cache's layout was chosen.
//! The figures that others gave for the same rows stand beside ours: `stated`.

#[path = "support/timing.rs"]
mod timing;

use std::time::Duration;

use doublecheck::algorithm::{
    ChannelOrder, Dims, GroupFactor, HeadMode, HeavySize, LabelBits, Selection, Storage,
};
use doublecheck::cases::Precision;
use doublecheck::cases::recipe::Words;
use doublecheck::torch::layer::kind;
use doublecheck::torch::{DeviceChoice, LabelledKvCache, device};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};
use timing::{Failure, median_ms};

const HEAD_DIM: i64 = 128;
const BYTES_PER_MS: f64 = 3e9;
/// The clocks are high already.
const WARM_UP: Duration = Duration::from_millis(40);

/// One row of the table; times in ms.
struct Row {
    heads: usize,
    kv_heads: usize,
    storage: Storage,
    keys: usize,
    label_channels: usize,
    heavy_size: usize,
    label_bits: u64,
    /// Dense attention, as stated with the other two.
    dense: f64,
    /// Score, top-k, sparse attention and whole step of the author's fast path.
    author: Option<[f64; 4]>,
    /// The step of the port.
    port: Option<f64>,
}

impl Row {
    const fn new(
        heads: [usize; 2],
        keys: usize,
        label_channels: usize,
        heavy_size: usize,
        dense: f64,
    ) -> Self {
        let grouped = heads[1] < heads[0];
        Self {
            heads: heads[0],
            kv_heads: heads[1],
            storage: if grouped { Storage::Bf16 } else { Storage::F16 },
            keys,
            label_channels,
            heavy_size,
            label_bits: if grouped { 4 } else { 16 },
            dense,
            author: None,
            port: None,
        }
    }

    const fn author(self, author: [f64; 4]) -> Self {
        Self { author: Some(author), ..self }
    }

    const fn port(self, port: f64) -> Self {
        Self { port: Some(port), ..self }
    }
}

const ROWS: [Row; 6] = [
    Row::new([32, 32], 32_768, 16, 1024, 0.184).author([0.092, 0.117, 0.283, 0.401]).port(0.90),
    Row::new([32, 32], 32_768, 32, 256, 0.183).author([0.073, 0.093, 0.052, 0.284]),
    Row::new([32, 32], 131_072, 8, 2048, 0.698).author([0.193, 0.144, 1.153, 1.409]),
    Row::new([32, 32], 131_072, 8, 512, 0.699).author([0.134, 0.131, 0.093, 0.353]),
    Row::new([32, 8], 131_072, 8, 2048, 0.184).port(9.66),
    Row::new([32, 8], 524_288, 8, 2048, 0.698).port(39.9),
];

fn main() -> Result<(), Failure> {
    // Cargo adds --bench.
    let Some(path) = std::env::args().skip(1).find(|argument| argument != "--bench") else {
        eprintln!("usage: decode_cuda RECORD; on a machine with CUDA, see ci/gpu");
        return Ok(());
    };
    let device = device::open(DeviceChoice::Cuda(0))?;
    tch::manual_seed(1);
    let ones = Tensor::f_ones([1 << 24], (Kind::Float, device))?;
    median_ms(timing::WARM_UP, || Ok(ones.f_neg()?))?;
    let mut rows = Vec::new();
    for row in &ROWS {
        let measured = measure(row, device)?;
        eprintln!("{measured:#}");
        rows.push(measured);
    }
    let record = json!({
        "device": device::describe(device),
        "torch": std::env::var("DOUBLECHECK_TORCH_VERSION").unwrap_or_else(|_| "not known".into()),
        "doublecheck": env!("CARGO_PKG_VERSION"),
        "method": "medians of 101 repeats between CUDA events, cold L2, no waits between repeats",
        "rows": rows,
    });
    std::fs::write(path, format!("{record:#}\n"))?;
    Ok(())
}

/// q [1, h, 1, d], and k and v [1, hk, n, d], random.
struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Tensors {
    fn random(row: &Row, device: Device) -> Result<Self, Failure> {
        // Made in the storage type at once: f32 would take twice the memory.
        let normal = |heads: usize, count: usize| {
            let shape = [1, heads as i64, count as i64, HEAD_DIM];
            Tensor::f_randn(shape, (kind(row.storage), device))
        };
        Ok(Self {
            q: normal(row.heads, 1)?,
            k: normal(row.kv_heads, row.keys)?,
            v: normal(row.kv_heads, row.keys)?,
        })
    }
}

fn measure(row: &Row, device: Device) -> Result<Value, Failure> {
    let tensors = Tensors::random(row, device)?;
    let none: Option<&Tensor> = None;
    let Tensors { q, k, v } = &tensors;
    let grouped = row.kv_heads < row.heads;
    let scaling = 1.0 / (HEAD_DIM as f64).sqrt();
    let dense = median_ms(WARM_UP, || {
        Ok(Tensor::f_scaled_dot_product_attention(q, k, v, none, 0.0, false, scaling, grouped)?)
    })?;
    let mut steps = Vec::new();
    for heads in HeadMode::ALL {
        if grouped || heads == HeadMode::PerHead {
            for kept in [Precision::Storage, Precision::F32] {
                steps.push(step(row, &tensors, heads, kept, dense)?);
            }
        }
    }
    Ok(json!({
        "heads": row.heads, "kv_heads": row.kv_heads, "dtype": row.storage.to_string(), "keys": row.keys,
        "label_channels": row.label_channels, "heavy_size": row.heavy_size, "label_bits": row.label_bits,
        "dense_ms": dense,
        "stated": {
            "dense_ms": row.dense,
            "author_ms": row.author.map(|[score, top_k, sparse, step]| json!({
                "score": score, "top_k": top_k, "sparse": sparse, "step": step,
            })),
            "port_ms": row.port,
        },
        "steps": steps,
        "candidates": candidates(row, &tensors)?,
    }))
}

/// A random channel order: a row for each query head, or one for all.
fn channels(rows: usize) -> Result<ChannelOrder, Failure> {
    let words = Words::new(3, 0);
    let width = HEAD_DIM as usize;
    let row = |head: usize| {
        let mut row: Vec<usize> = (0..width).collect();
        row.sort_by_key(|&c| words.word((head * width + c) as u64));
        row
    };
    Ok(ChannelOrder::new((0..rows).map(row).collect())?)
}

/// The row's cache, filled in pieces.
fn cache(row: &Row, tensors: &Tensors, heads: HeadMode, kept: Precision) -> Result<LabelledKvCache, Failure> {
    let d = HEAD_DIM as usize;
    let dims = Dims {
        batch: 1,
        heads: row.heads,
        kv_heads: row.kv_heads,
        queries: 1,
        keys: row.keys,
        head_dim: d,
        value_dim: d,
    };
    let selection = Selection {
        heavy_size: HeavySize::count(row.heavy_size)?,
        group_factor: GroupFactor::new((d / row.label_channels) as u64)?,
        label_bits: LabelBits::new(row.label_bits)?,
        heads,
        dense_fallback: false,
        rules: doublecheck::algorithm::Rules::default(),
    };
    let rows = if heads == HeadMode::SummedLabels { 1 } else { row.heads };
    let scaling = 1.0 / (HEAD_DIM as f64).sqrt();
    let device = tensors.q.device();
    let mut cache =
        LabelledKvCache::new(&dims, &channels(rows)?, &selection, row.storage, kept, scaling, device)?;
    let (mut held, keys) = (0, row.keys as i64);
    while held < keys {
        let count = 8191.min(keys - held);
        cache.append(&tensors.k.f_narrow(2, held, count)?, &tensors.v.f_narrow(2, held, count)?)?;
        held += count;
    }
    Ok(cache)
}

/// One step in one head mode and one type of scores.
fn step(
    row: &Row,
    tensors: &Tensors,
    heads: HeadMode,
    kept: Precision,
    dense: f64,
) -> Result<Value, Failure> {
    let q = &tensors.q;
    let mut cache = cache(row, tensors, heads, kept)?;
    let answer = cache.step(q, None)?;
    cache.check(&answer.query_labels)?;
    let scores = cache.score(q, None, None)?.scores;
    let selected = cache.select(&scores, None, None)?;
    let whole = median_ms(WARM_UP, || Ok(cache.step(q, None)?))?;
    let parts = [
        ("score", median_ms(WARM_UP, || Ok(cache.score(q, None, None)?))?),
        ("top_k", median_ms(WARM_UP, || Ok(cache.select(&scores, None, None)?))?),
        ("sparse", median_ms(WARM_UP, || Ok(cache.attend(q, &selected, None)?))?),
    ];
    let longest = parts.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("none", |part| part.0);
    // What no way of doing it avoids: all labels once, and the selected keys and values once.
    let label_bytes = cache.label_bytes_of_a_key() * row.keys;
    let selections = if heads == HeadMode::PerHead { row.heads } else { row.kv_heads };
    let selected_bytes = selections * row.heavy_size * 2 * HEAD_DIM as usize * row.storage_bytes();
    let bytes = label_bytes + selected_bytes;
    // Appending goes last: it changes the cache.
    let (k, v) = (tensors.k.f_narrow(2, 0, 1)?, tensors.v.f_narrow(2, 0, 1)?);
    let append = median_ms(WARM_UP, || Ok(cache.append(&k, &v)?))?;
    let part = |(name, ms): &(&str, f64)| (format!("{name}_ms"), json!(ms));
    let parts: Map<String, Value> = parts.iter().map(part).collect();
    Ok(json!({
        "heads": heads.name(),
        "scores_in": if kept == Precision::F32 { "f32" } else { "storage" },
        "step_ms": whole, "parts": parts, "longest_part": longest, "append_ms": append,
        "label_bytes": label_bytes, "selected_bytes": selected_bytes,
        "bytes_at_3_TB_s_ms": bytes as f64 / BYTES_PER_MS,
        "share_of_3_TB_s": bytes as f64 / BYTES_PER_MS / whole,
        "times_dense": whole / dense,
        "times_author": row.author.map(|author| whole / author[3]),
        "port_over_this": row.port.map(|port| port / whole),
        "keys_as_in_f32": agreement(row, tensors, heads, &answer.selected.keys)?,
    }))
}

impl Row {
    fn storage_bytes(&self) -> usize {
        kind(self.storage).elt_size_in_bytes()
    }
}

/// The share of selected keys that scores in f32 select too.
fn agreement(row: &Row, tensors: &Tensors, heads: HeadMode, keys: &Tensor) -> Result<f64, Failure> {
    let expected = cache(row, tensors, heads, Precision::F32)?.step(&tensors.q, None)?.selected.keys;
    let size = keys.size();
    let mask = |keys: &Tensor| -> Result<Tensor, Failure> {
        let none = Tensor::f_zeros([size[1], row.keys as i64], (Kind::Bool, keys.device()))?;
        Ok({ none }.f_scatter_value_(1, &keys.f_view([size[1], -1])?, 1)?)
    };
    let shared = mask(keys)?.f_logical_and(&mask(&expected)?)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok(shared as f64 / keys.numel() as f64)
}

/// Ways in which each part of a per-head step could be done, in ms.
fn candidates(row: &Row, tensors: &Tensors) -> Result<Value, Failure> {
    let (h, hk, n) = (row.heads as i64, row.kv_heads as i64, row.keys as i64);
    let (r, d, size) = (row.label_channels as i64, HEAD_DIM, row.heavy_size as i64);
    let (group, device, stored) = (h / hk, tensors.q.device(), kind(row.storage));
    let mut times = Map::new();
    let mut time = |name: &str, work: &mut dyn FnMut() -> Result<Tensor, tch::TchError>| {
        median_ms(WARM_UP, || Ok(work()?)).map(|ms| drop(times.insert(name.into(), json!(ms))))
    };
    let query = Tensor::f_randn([h, 1, r], (stored, device))?;
    let labels = Tensor::f_randn([h, n, r], (stored, device))?;
    let transposed = labels.f_transpose(1, 2)?;
    let channels_first = transposed.f_contiguous()?;
    time("score, [h, n, r], in storage", &mut || query.f_bmm(&transposed))?;
    time("score, [h, n, r], in f32", &mut || query.f_bmm_dtype(&transposed, Kind::Float))?;
    time("score, [h, r, n], in storage", &mut || query.f_bmm(&channels_first))?;
    time("score, [h, r, n], in f32", &mut || query.f_bmm_dtype(&channels_first, Kind::Float))?;
    for pack in [4, 8, 16, 32] {
        let blocks = Tensor::f_zeros([h, pack * r, pack], (stored, device))?;
        let packed = labels.f_view([h, n / pack, pack * r])?;
        time(&format!("score, {pack} keys as one row, in storage"), &mut || packed.f_bmm(&blocks))?;
        let wide = &mut || packed.f_bmm_dtype(&blocks, Kind::Float);
        time(&format!("score, {pack} keys as one row, in f32"), wide)?;
    }
    let codes = Tensor::f_zeros([h, n, r], (Kind::Uint8, device))?;
    time("score, codes of one byte, made storage first", &mut || {
        query.f_bmm(&codes.f_to_kind(stored)?.f_transpose(1, 2)?)
    })?;
    let scores = query.f_bmm_dtype(&transposed, Kind::Float)?.f_view([h, n])?;
    let rounded = scores.f_to_kind(stored)?;
    time("top-k, in f32", &mut || Ok(scores.f_topk(size, -1, true, false)?.1))?;
    time("top-k, in storage", &mut || Ok(rounded.f_topk(size, -1, true, false)?.1))?;
    let keys = scores.f_topk(size, -1, true, false)?.1;
    let together = Tensor::f_cat(&[&tensors.k, &tensors.v], 3)?.f_view([hk, n, 2 * d])?;
    let first = Tensor::f_arange(h, (Kind::Int64, device))?.f_floor_divide_scalar(group)?.f_mul_scalar(n)?;
    let index = keys.f_add(&first.f_unsqueeze(1)?)?.f_view([-1])?;
    let flat = together.f_view([hk * n, 2 * d])?;
    let (k, v) = (tensors.k.f_view([hk * n, d])?, tensors.v.f_view([hk * n, d])?);
    time("gather, index_select of keys beside values", &mut || flat.f_index_select(0, &index))?;
    time("gather, index_select of keys, then of values", &mut || {
        let _ = k.f_index_select(0, &index)?;
        v.f_index_select(0, &index)
    })?;
    let by_key = keys.f_view([hk, -1, 1])?;
    let numbers = by_key.f_expand([hk, -1, 2 * d], false)?;
    time("gather, numbers of 2 bytes", &mut || together.f_gather(1, &numbers, false))?;
    let wide = together.f_view_dtype(Kind::Int64)?;
    let numbers = by_key.f_expand([hk, -1, wide.size()[2]], false)?;
    time("gather, numbers of 8 bytes", &mut || wide.f_gather(1, &numbers, false))?;
    let read = flat.f_index_select(0, &index)?.f_view([1, h, size, 2 * d])?;
    let (k, v) = (read.f_narrow(3, 0, d)?, read.f_narrow(3, d, d)?);
    let none: Option<&Tensor> = None;
    time("attention, scaled_dot_product_attention", &mut || {
        Tensor::f_scaled_dot_product_attention(&tensors.q, &k, &v, none, 0.0, false, 0.1, false)
    })?;
    let (q, k, v) = (tensors.q.f_view([h, 1, d])?, k.f_squeeze_dim(0)?, v.f_squeeze_dim(0)?);
    time("attention, products and softmax in f32", &mut || {
        let logits = q.f_bmm_dtype(&k.f_transpose(1, 2)?, Kind::Float)?.f_mul_scalar(0.1)?;
        logits.f_softmax(-1, Kind::Float)?.f_bmm(&v.f_to_kind(Kind::Float)?)
    })?;
    time("attention, products and softmax in storage", &mut || {
        q.f_bmm(&k.f_transpose(1, 2)?)?.f_softmax(-1, stored)?.f_bmm(&v)
    })?;
    Ok(times.into())
}
