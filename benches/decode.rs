//! How long one decode step of the engine takes: one query, 32 heads over 8 KV heads, d = dv = 128, f32, a channel row for
//! each query head, H = 1024. Appending is left out. "step" is the whole of it, "select" and "attend" are its halves;
//! "growth" is the step over n. `cargo bench --bench decode`; DOUBLECHECK_DECODE_KEYS names other lengths than 32,768 and
//! 131,072.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use doublecheck::algorithm::{ChannelOrder, GroupFactor, HeadMode, HeavySize, LabelBits, Selection, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::engine::{Engine, Layout, Masker, Query};
use ndarray::Array4;

type Failure = Box<dyn std::error::Error>;

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
/// Keys appended at a time.
const PORTION: usize = 8192;

fn engine(group_factor: u64, label_bits: u64) -> Result<Engine, Failure> {
    let selection = Selection {
        heavy_size: HeavySize::count(1024)?,
        group_factor: GroupFactor::new(group_factor)?,
        label_bits: LabelBits::new(label_bits)?,
        heads: HeadMode::PerHead,
        dense_fallback: false,
    };
    let words = Words::new(3, 0);
    let row = |head: usize| {
        let mut row: Vec<usize> = (0..HEAD_DIM).collect();
        row.sort_by_key(|&c| words.word((head * HEAD_DIM + c) as u64));
        row
    };
    let channels = ChannelOrder::new((0..HEADS).map(row).collect())?;
    let layout = Layout {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        storage: Storage::F32,
    };
    Ok(Engine::new(layout, vec![Masker::DoubleSparsity { selection, channels }])?)
}

fn normal(seed: u64, shape: [usize; 4]) -> Array4<f32> {
    let words = Words::new(seed, 1);
    let mut index = 0;
    Array4::from_shape_simple_fn(shape, || {
        index += 1;
        words.value(index)
    })
}

fn fill(engine: &mut Engine, keys: usize) -> Result<(), Failure> {
    while engine.keys() < keys {
        let new = PORTION.min(keys - engine.keys());
        let shape = [1, KV_HEADS, new, HEAD_DIM];
        let seed = engine.keys() as u64;
        engine.append(normal(2 * seed, shape).view(), normal(2 * seed + 1, shape).view())?;
    }
    Ok(())
}

fn parts(criterion: &mut Criterion, keys: usize) -> Result<(), Failure> {
    let q = normal(1 << 40, [1, HEADS, 1, HEAD_DIM]);
    let query = Query::causal(q.view());
    for (group_factor, label_bits) in [(8, 4), (8, 16)] {
        let mut engine = engine(group_factor, label_bits)?;
        fill(&mut engine, keys)?;
        let attended = engine.select(&query)?;
        let mut group = criterion.benchmark_group(format!("n={keys} G={group_factor} B={label_bits}"));
        group.bench_function("step", |bencher| bencher.iter(|| engine.step(&query)));
        group.bench_function("select", |bencher| bencher.iter(|| engine.select(&query)));
        group.bench_function("attend", |bencher| bencher.iter(|| engine.attend(&query, &attended)));
    }
    Ok(())
}

fn growth(criterion: &mut Criterion) -> Result<(), Failure> {
    let q = normal(1 << 40, [1, HEADS, 1, HEAD_DIM]);
    let query = Query::causal(q.view());
    for label_bits in [4, 16] {
        let mut engine = engine(8, label_bits)?;
        let mut group = criterion.benchmark_group(format!("growth G=8 B={label_bits}"));
        for keys in (10..=18).map(|power| 1 << power) {
            fill(&mut engine, keys)?;
            group.throughput(Throughput::Elements(keys as u64));
            let id = BenchmarkId::from_parameter(keys);
            group.bench_function(id, |bencher| bencher.iter(|| engine.step(&query)));
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let lengths = std::env::var("DOUBLECHECK_DECODE_KEYS").unwrap_or("32768,131072".into());
    for keys in lengths.split(',').filter(|keys| !keys.is_empty()) {
        parts(&mut criterion, keys.trim().parse()?)?;
    }
    growth(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
