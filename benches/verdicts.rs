//! What a verdict costs beside the least that any check must do: certificate and output verdict of one call next to reading q, k and
//! v once on all cores, in one run. One query over 131,072 keys, and 128 over 4,096. Then what asking costs: a command that has its
//! answer ready (`replay.py`), asked through a pipe and in shared memory, with and without the verdict; the verdict alone; and the engine,
//! which is asked in this process.

mod support;

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use doublecheck::algorithm::ChannelOrder;
use doublecheck::cases::Expectation;
use doublecheck::cases::{Answer, Call, Instance, RoundingModel};
use doublecheck::subjects::{Engine, Process, Reference, Subject};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::judge::{judge, judge_call};
use doublecheck::verdicts::output::judge_output;
use rayon::prelude::*;
use support::{Failure, LABEL_BITS, inputs, lengths, selection, testing};

/// Queries and keys of a call.
const CALLS: [(usize, usize); 2] = [(1, 131_072), (128, 4096)];

/// The sum of all numbers, on all cores.
fn read(numbers: &[f32]) -> f32 {
    const PIECE: usize = 1 << 16;
    const LANES: usize = 64;
    let sum = |piece: &[f32]| {
        let mut lanes = [0.0f32; LANES];
        for numbers in piece.chunks_exact(LANES) {
            lanes.iter_mut().zip(numbers).for_each(|(lane, x)| *lane += x);
        }
        lanes.iter().sum::<f32>()
    };
    numbers.par_chunks(PIECE).map(sum).sum()
}

fn answered(instance: &Instance, call: &Call) -> Result<Answer, Failure> {
    let mut reference = Reference::default();
    reference.configure(instance)?;
    Ok(reference.call(call)?)
}

/// A call and its channel rows.
fn call(queries: usize, keys: usize) -> Result<(Call, ChannelOrder), Failure> {
    let (inputs, channels) = inputs(queries, keys)?;
    Ok((Call { layer: 0, inputs: inputs.into(), previous: None }, channels))
}

fn verdicts(criterion: &mut Criterion, queries: usize, keys: usize) -> Result<(), Failure> {
    let (call, channels) = call(queries, keys)?;
    // That of PyTorch, with which most subjects are judged.
    let model = RoundingModel::default();
    let mut group = criterion.benchmark_group(format!("verdict m={queries}"));
    group.bench_function(BenchmarkId::new("reading q, k and v", keys), |bencher| {
        let parts = call.inputs.parts();
        let all = [&parts.q, &parts.k, &parts.v].map(|tensor| tensor.as_slice().unwrap_or_default());
        bencher.iter(|| all.map(|numbers| black_box(read(black_box(numbers)))));
    });
    for label_bits in LABEL_BITS {
        let instance = Instance::of_layer(selection(label_bits)?, channels.clone(), &call.inputs.dims());
        let answer = answered(&instance, &call)?;
        let output = answer.output.clone().ok_or("the reference gives outputs")?;
        let id = |part: &str| BenchmarkId::new(format!("{part} B={label_bits}"), keys);
        group.bench_function(id("certificate"), |bencher| {
            bencher.iter(|| Certificate::derive(&instance, &call, model));
        });
        group.bench_function(id("output"), |bencher| {
            bencher.iter(|| judge_output(&call.inputs, &answer.mask, &output, model));
        });
        let answer = Ok(answer);
        group.bench_function(id("verdict"), |bencher| {
            bencher.iter(|| {
                let certificate = Certificate::derive(&instance, &call, model);
                assert!(judge(&instance, &call, &answer, model, &certificate).conforms());
            });
        });
    }
    Ok(())
}

/// A command that gives an answer whatever it is asked.
fn replay(answer: &Answer, folder: &Path, way: &str) -> Result<Process, Failure> {
    let expectation = Expectation::from_answer(answer, String::new());
    let selected = expectation.selected.ok_or("an answer selects keys")?;
    let output = answer.output.as_ref().ok_or("the reference gives outputs")?;
    let bytes: Vec<u8> = selected.iter().flat_map(|key| key.to_le_bytes()).collect();
    std::fs::write(folder.join("selected"), bytes)?;
    let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(folder.join("output"), bytes)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/replay.py");
    let command = format!("python3 '{}' '{}' {way}", script.display(), folder.display());
    Ok(Process::start(&command, Duration::from_secs(60))?)
}

fn asking(criterion: &mut Criterion, keys: usize) -> Result<(), Failure> {
    let (call, channels) = call(1, keys)?;
    let instance = Instance::of_layer(selection(4)?, channels, &call.inputs.dims());
    let answer = answered(&instance, &call)?;
    let mut group = criterion.benchmark_group("asking");
    let id = |function: &str| BenchmarkId::new(function, keys);
    let judged = |answer: Answer, model| assert!(judge_call(&instance, &call, &Ok(answer), model).conforms());
    group.bench_function(id("verdict"), |bencher| {
        bencher.iter(|| judged(answer.clone(), RoundingModel::default()));
    });
    let mut engine = Engine::default();
    engine.configure(&instance)?;
    let model = engine.rounding_model();
    group.bench_function(id("engine"), |bencher| bencher.iter(|| engine.call(&call).unwrap()));
    group.bench_function(id("engine and verdict"), |bencher| {
        bencher.iter(|| judged(engine.call(&call).unwrap(), model));
    });
    if !Command::new("python3")
        .args(["-c", "import numpy"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("left out: commands through a pipe and in shared memory, as there is no numpy for python3");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    for way in ["pipe", "shared"] {
        let mut process = replay(&answer, folder.path(), way)?;
        process.configure(&instance)?;
        let model = process.rounding_model();
        group.bench_function(id(way), |bencher| bencher.iter(|| process.call(&call).unwrap()));
        group.bench_function(id(&format!("{way} and verdict")), |bencher| {
            bencher.iter(|| judged(process.call(&call).unwrap(), model));
        });
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut criterion = support::criterion();
    for (queries, keys) in CALLS {
        verdicts(&mut criterion, queries, if testing() { 1024 } else { keys })?;
    }
    for keys in lengths(&[4096, 32_768]) {
        asking(&mut criterion, keys)?;
    }
    criterion.final_summary();
    Ok(())
}
