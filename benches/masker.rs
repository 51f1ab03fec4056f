//! How long a mask takes from raw keys, labels included, as an implementation without a label cache needs for each step:
//! reference, engine (all keys appended, then selected) and libtorch on CPU. m = 1 over three lengths, and m = 128 at n = 2048.

mod support;

use criterion::{BatchSize, BenchmarkId, Criterion};
use doublecheck::algorithm::maskers::{ChannelSource, DoubleSparsity, Masker};
use doublecheck::algorithm::{InputParts, Inputs, Mask, Storage};
use doublecheck::engine::Query;
use support::{Failure, HEAD_DIM, HEADS, KV_HEADS, LABEL_BITS, engine, figure, lengths, selection, tensors};

fn maskers(criterion: &mut Criterion, queries: usize, keys: usize) -> Result<(), Failure> {
    let tensors = tensors(queries, keys)?;
    let inputs = Inputs::new(InputParts {
        q: tensors.q.clone(),
        k: tensors.k.clone(),
        v: tensors.v.clone(),
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    })?;
    let empty = Mask::empty(&inputs.dims());
    #[cfg(feature = "torch")]
    let layer = {
        tch::set_num_threads(i32::try_from(rayon::current_num_threads())?);
        doublecheck::torch::Layer::of_inputs(&inputs, tch::Device::Cpu)?
    };
    let mut group = criterion.benchmark_group(format!("masker m={queries}"));
    for label_bits in LABEL_BITS {
        let id = |subject: &str| BenchmarkId::new(format!("{subject} B={label_bits}"), keys);
        let selection = selection(label_bits)?;
        let masker = DoubleSparsity { selection, channels: ChannelSource::Order(tensors.channels.clone()) };
        group.bench_function(id("reference"), |bencher| {
            bencher.iter(|| masker.add_mask(&inputs, 0, &empty).unwrap());
        });
        let query = Query::causal(tensors.q.view());
        group.bench_function(id("engine"), |bencher| {
            let fill_and_select = |()| {
                let mut engine = engine(&tensors, label_bits).unwrap();
                engine.append(tensors.k.view(), tensors.v.view()).unwrap();
                // The cache is given back too, so that freeing it is not timed.
                (engine.select(&query).unwrap(), engine)
            };
            bencher.iter_batched(|| (), fill_and_select, BatchSize::PerIteration);
        });
        #[cfg(feature = "torch")]
        {
            use doublecheck::torch::TorchMasker;
            let channels = &tensors.channels;
            let masker = TorchMasker::new(&layer.dims, channels, &selection, Storage::F32, tch::Device::Cpu)
                .map_err(|refusal| refusal.to_string())?;
            group.bench_function(id("torch"), |bencher| {
                bencher.iter(|| masker.select(&layer, None).unwrap().mask(&layer, None).unwrap());
            });
        }
    }
    if queries == 1 {
        // Every key is read once, as label channels lie in all its cache lines, and the mask is written.
        let bytes = size_of::<f32>() * keys * (KV_HEADS * HEAD_DIM + HEADS);
        figure(&format!("bytes of a mask, n={keys}"), bytes as f64, "bytes");
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut criterion = support::criterion();
    for keys in lengths(&[8192, 32_768, 131_072]) {
        maskers(&mut criterion, 1, keys)?;
    }
    maskers(&mut criterion, if support::testing() { 8 } else { 128 }, 2048)?;
    criterion.final_summary();
    Ok(())
}
