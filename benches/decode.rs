//! How long one decode step takes: the engine over a filled label cache against dense attention of libtorch on the same cores,
//! tensors and run. Appending is left out. "step" is the whole of it, "select" and "attend" are its halves. What bounds both is
//! memory: printed are the bytes that they must move and the bandwidth of a plain sum. DOUBLECHECK_DECODE_KEYS names other
//! lengths than 32,768 and 131,072.

mod support;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use doublecheck::cases::recipe::Generated;
use doublecheck::engine::{Attended, Query};
use rayon::prelude::*;
use support::{
    Failure, HEAD_DIM, HEADS, KV_HEADS, LABEL_BITS, QUERIES, engine, figure, fill, lengths, tensors, testing,
};

/// A key and its value.
const ROW_BYTES: usize = 2 * HEAD_DIM * size_of::<f32>();

fn steps(criterion: &mut Criterion, tensors: &Generated, keys: usize) -> Result<(), Failure> {
    let queries = support::queries(tensors);
    let queries: Vec<_> = queries.iter().map(|q| Query::causal(q.view())).collect();
    let mut group = criterion.benchmark_group("decode");
    for label_bits in LABEL_BITS {
        let mut engine = engine(tensors, label_bits)?;
        fill(&mut engine, tensors, keys)?;
        let attended = queries.iter().map(|query| engine.select(query)).collect::<Result<Vec<_>, _>>()?;
        let id = |part: &str| BenchmarkId::new(format!("{part} B={label_bits}"), keys);
        let mut next = queries.iter().zip(&attended).cycle();
        let mut next = || next.next().expect("a cycle has no end");
        group.bench_function(id("step"), |bencher| bencher.iter(|| engine.step(next().0).unwrap()));
        group.bench_function(id("select"), |bencher| bencher.iter(|| engine.select(next().0).unwrap()));
        group.bench_function(id("attend"), |bencher| {
            bencher.iter(|| {
                let (query, attended) = next();
                engine.attend(query, attended).unwrap()
            });
        });
        let rows: usize = attended.iter().map(|attended| rows_read(attended, keys)).sum();
        let bytes = engine.bytes().labels + ROW_BYTES * rows / queries.len();
        figure(&format!("bytes of a step B={label_bits}, n={keys}"), bytes as f64, "bytes");
    }
    Ok(())
}

/// How many different rows of all KV heads the query heads attend to.
fn rows_read(attended: &[Attended], keys: usize) -> usize {
    let of_kv_head = |heads: &[Attended]| {
        let mut read = vec![false; keys];
        heads.iter().flat_map(|head| &head.keys).for_each(|&key| read[key] = true);
        read.into_iter().filter(|&read| read).count()
    };
    attended.chunks(HEADS / KV_HEADS).map(of_kv_head).sum()
}

#[cfg(feature = "torch")]
fn dense(criterion: &mut Criterion, tensors: &Generated, keys: usize) -> Result<(), Failure> {
    use support::dense::{Dense, Way};
    let dense = Dense::new(tensors, keys)?;
    let mut group = criterion.benchmark_group("dense");
    for way in Way::ALL {
        let id = BenchmarkId::new(way.name(), keys);
        group.bench_function(id, |bencher| bencher.iter(|| dense.attend(way).unwrap()));
    }
    figure(&format!("bytes of dense attention, n={keys}"), (ROW_BYTES * KV_HEADS * keys) as f64, "bytes");
    Ok(())
}

/// The best rate at which all cores together sum an array that no cache holds, in bytes per second.
fn bandwidth() -> f64 {
    const PIECE: usize = 1 << 16;
    const LANES: usize = 64;
    let numbers = vec![1.0f32; if testing() { 1 << 20 } else { 1 << 28 }];
    let sum = |piece: &[f32]| {
        let mut lanes = [0.0f32; LANES];
        for numbers in piece.chunks_exact(LANES) {
            lanes.iter_mut().zip(numbers).for_each(|(lane, x)| *lane += x);
        }
        lanes.iter().sum::<f32>()
    };
    let seconds = |_| {
        let start = Instant::now();
        black_box(black_box(&numbers).par_chunks(PIECE).map(sum).sum::<f32>());
        start.elapsed().as_secs_f64()
    };
    let best = (0..10).map(seconds).fold(f64::INFINITY, f64::min);
    size_of_val(&numbers[..]) as f64 / best
}

fn main() -> Result<(), Failure> {
    let named = std::env::var("DOUBLECHECK_DECODE_KEYS").ok();
    let all = match &named {
        Some(named) => named.split(',').map(|keys| keys.trim().parse()).collect::<Result<_, _>>()?,
        None => lengths(&[32_768, 131_072]),
    };
    figure("memory bandwidth", bandwidth(), "bytes/s");
    let mut criterion = support::criterion();
    for keys in all {
        let tensors = tensors(QUERIES, keys)?;
        steps(&mut criterion, &tensors, keys)?;
        #[cfg(feature = "torch")]
        dense(&mut criterion, &tensors, keys)?;
    }
    criterion.final_summary();
    Ok(())
}
