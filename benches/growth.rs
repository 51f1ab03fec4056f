//! How a decode step grows: its time over n = 2^10 … 2^18 with the exponent of the power law closest to it, beside dense attention
//! of libtorch; its time on one thread and on two; and the memory of one cached key.

mod support;

use criterion::{BenchmarkId, Criterion};
use doublecheck::cases::recipe::Generated;
use doublecheck::engine::Query;
use rayon::ThreadPoolBuilder;
use support::{Failure, LABEL_BITS, QUERIES, engine, estimates, figure, fill, lengths, tensors, testing};

fn steps(criterion: &mut Criterion, tensors: &Generated, lengths: &[usize]) -> Result<(), Failure> {
    let queries = support::queries(tensors);
    let mut next = queries.iter().map(|q| Query::causal(q.view())).cycle();
    let mut next = || next.next().expect("a cycle has no end");
    for label_bits in LABEL_BITS {
        let function = format!("step B={label_bits}");
        let mut engine = engine(tensors, label_bits)?;
        let mut group = criterion.benchmark_group("growth");
        for &keys in lengths {
            fill(&mut engine, tensors, keys)?;
            let id = BenchmarkId::new(&function, keys);
            group.bench_function(id, |bencher| bencher.iter(|| engine.step(&next()).unwrap()));
        }
        group.finish();
        let mut group = criterion.benchmark_group("threads");
        for threads in [1, 2] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
            let id = BenchmarkId::new(&function, threads);
            group.bench_function(id, |bencher| {
                pool.install(|| bencher.iter(|| engine.step(&next()).unwrap()));
            });
        }
        let (bytes, keys) = (engine.bytes(), engine.keys() as f64);
        figure(&format!("bytes of a key's labels, B={label_bits}"), bytes.labels as f64 / keys, "bytes");
        figure(&format!("bytes of a key and its value, B={label_bits}"), bytes.rows as f64 / keys, "bytes");
    }
    Ok(())
}

#[cfg(feature = "torch")]
fn dense(criterion: &mut Criterion, tensors: &Generated, lengths: &[usize]) -> Result<(), Failure> {
    use support::dense::{Dense, Way};
    let mut group = criterion.benchmark_group("growth dense");
    for &keys in lengths {
        let dense = Dense::new(tensors, keys)?;
        for way in Way::ALL {
            let id = BenchmarkId::new(way.name(), keys);
            group.bench_function(id, |bencher| bencher.iter(|| dense.attend(way).unwrap()));
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let lengths = lengths(&(10..=18).map(|power| 1 << power).collect::<Vec<_>>());
    let tensors = tensors(QUERIES, lengths.iter().copied().max().unwrap_or(1))?;
    let mut criterion = support::criterion();
    steps(&mut criterion, &tensors, &lengths)?;
    #[cfg(feature = "torch")]
    dense(&mut criterion, &tensors, &lengths)?;
    criterion.final_summary();
    if !testing() {
        let estimates = estimates::read(&estimates::folder())?;
        for label_bits in LABEL_BITS {
            let points = estimates::points(&estimates, "growth", &format!("step B={label_bits}"));
            if let Some(exponent) = estimates::exponent(&points) {
                println!("step B={label_bits} grows with n^{exponent:.2}");
            }
        }
    }
    Ok(())
}
