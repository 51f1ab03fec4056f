//! What a CUDA device does with the goldens, with random cases and with time: one JSON record, for `golden/records/`.
//!
//!     cuda RECORD [RANDOM_CASES]
//!
//! Times are medians over CUDA events on the default stream, taken as `triton.testing.do_bench` takes them. `scaled_dot_product_attention` of the same tensors
//! is timed in the same run. `DOUBLECHECK_TORCH_VERSION` names the library's version in the record.

#[path = "support/timing.rs"]
mod timing;

use doublecheck::algorithm::{ChannelOrder, GroupFactor, HeadMode, HeavySize, LabelBits, Selection, Storage};
use doublecheck::cases::bundled::{self, sha256};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::strategies::plans;
use doublecheck::runner::judged_cases::random_cases;
use doublecheck::runner::random::VerifyOptions;
use doublecheck::runner::verify::verify;
use doublecheck::subjects::{Subject, Torch};
use doublecheck::torch::{DeviceChoice, Layer, TorchMasker, attention, device};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use timing::median_ms;

use timing::{Failure, WARM_UP};

fn main() -> Result<(), Failure> {
    // Cargo adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some(path) = arguments.first() else {
        eprintln!("usage: cuda RECORD [RANDOM_CASES]; on a machine with CUDA, see ci/gpu");
        return Ok(());
    };
    let cases = arguments.get(1).map_or(Ok(20_000), |number| number.parse())?;
    let mut torch = Torch::new(DeviceChoice::Cuda(0))?;
    let speed = speed(torch.device())?;
    eprintln!("{speed:#}");
    let record = json!({
        "device": device::describe(torch.device()),
        "torch": std::env::var("DOUBLECHECK_TORCH_VERSION").unwrap_or_else(|_| "not known".into()),
        "arithmetic": device::arithmetic(torch.device()),
        "doublecheck": env!("CARGO_PKG_VERSION"),
        "goldens_sha256": sha256(&bundled::read("SHA256SUMS")?),
        "speed": speed,
        "goldens": goldens(&mut torch)?,
        "repeats": repeats(&mut torch)?,
        "random_cases": random_cases(&mut torch, VerifyOptions::new(cases, 2)),
    });
    std::fs::write(path, format!("{record:#}\n"))?;
    println!("{record:#}");
    Ok(())
}

fn goldens(torch: &mut Torch) -> Result<Value, Failure> {
    let files = bundled::cases()?;
    let report = verify(&files, torch, VerifyOptions::new(0, 0), &mut |_| {});
    Ok(json!({
        "exit_code": report.exit_code(),
        "total": report.total(),
        "groups": report.groups,
        "findings": report.findings,
        "seconds": report.seconds,
    }))
}

/// Asks for the same masks again and again; random cases hold many ties.
fn repeats(torch: &mut Torch) -> Result<Value, Failure> {
    const CASES: usize = 300;
    const REPEATS: usize = 5;
    let mut runner = TestRunner::deterministic();
    let mut differ = 0;
    for _ in 0..CASES {
        let case = plans().new_tree(&mut runner).map_err(|reason| reason.to_string())?.current().case()?;
        let first = torch.answer(&case).map(|answer| answer.mask);
        let again = (1..REPEATS).map(|_| torch.answer(&case).map(|answer| answer.mask));
        differ += usize::from(again.into_iter().any(|mask| mask != first));
    }
    // Large rows take another path through top-k: many keys, few different scores.
    let layer = layer(131_072, torch.device(), true)?;
    let settings = selection(2048, 16, 4)?;
    let masker =
        TorchMasker::new(&layer.dims, &channels(HEAD_DIM), &settings, Storage::Bf16, torch.device())?;
    let mask = || -> Result<Tensor, Failure> { Ok(masker.select(&layer, None)?.mask(&layer, None)?) };
    let first = mask()?;
    let mut large_differ = 0;
    for _ in 1..10 {
        large_differ += usize::from(!mask()?.f_equal(&first)?);
    }
    Ok(json!({
        "random_cases": CASES, "repeats": REPEATS, "cases_whose_masks_differ": differ,
        "tied_rows_of_131072_keys": { "repeats": 10, "masks_that_differ": large_differ },
    }))
}

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;

/// Random bf16 inputs of one decode step, made on the device; tied inputs hold few different numbers.
fn layer(keys: usize, device: Device, tied: bool) -> Result<Layer, Failure> {
    let tensor = |shape: &[i64]| -> Result<Tensor, tch::TchError> {
        let normal = Tensor::f_randn(shape, (Kind::Float, device))?;
        let normal = if tied { normal.f_round()? } else { normal };
        normal.f_to_kind(Kind::BFloat16)
    };
    tch::manual_seed(1);
    let (h, hk, n, d) = (HEADS as i64, KV_HEADS as i64, keys as i64, HEAD_DIM as i64);
    let (q, k, v) = (tensor(&[1, h, 1, d])?, tensor(&[1, hk, n, d])?, tensor(&[1, hk, n, d])?);
    let layer = Layer::new(&q, &k, &v, None, 1.0 / (HEAD_DIM as f64).sqrt())?;
    // Normal numbers.
    Ok(Layer { labels_may_overflow: false, ..layer })
}

fn selection(heavy_size: usize, group_factor: u64, label_bits: u64) -> Result<Selection, Failure> {
    Ok(Selection {
        heavy_size: HeavySize::count(heavy_size)?,
        group_factor: GroupFactor::new(group_factor)?,
        label_bits: LabelBits::new(label_bits)?,
        heads: HeadMode::PerHead,
        dense_fallback: false,
        rules: doublecheck::algorithm::Rules::default(),
    })
}

/// A random channel order for each query head.
fn channels(head_dim: usize) -> ChannelOrder {
    let words = Words::new(3, 0);
    let row = |head: usize| {
        let mut row: Vec<usize> = (0..head_dim).collect();
        row.sort_by_key(|&c| words.word((head * head_dim + c) as u64));
        row
    };
    ChannelOrder::new((0..HEADS).map(row).collect()).expect("rows are permutations")
}

/// Masker alone, masker and attention over the selected keys, and dense attention.
fn speed(device: Device) -> Result<Value, Failure> {
    let mut rows = Vec::new();
    for (keys, heavy_size, group_factor, label_bits) in
        [(32_768, 1024, 8, 4), (32_768, 1024, 8, 16), (131_072, 2048, 16, 4), (524_288, 2048, 16, 4)]
    {
        let layer = layer(keys, device, false)?;
        let channels = channels(HEAD_DIM);
        let settings = selection(heavy_size, group_factor, label_bits)?;
        let masker = TorchMasker::new(&layer.dims, &channels, &settings, Storage::Bf16, device)?;
        let alone = median_ms(WARM_UP, || Ok(masker.select(&layer, None)?.mask(&layer, None)?))?;
        let whole = median_ms(WARM_UP, || {
            let selected = masker.select(&layer, None)?;
            Ok(attention::sparse(&layer, &selected.keys, &selected.weights()?)?)
        })?;
        let q = layer.q.f_reshape([1, HEADS as i64, 1, HEAD_DIM as i64])?;
        let (k, v) = (layer.k.f_unsqueeze(0)?, layer.v.f_unsqueeze(0)?);
        let dense = median_ms(WARM_UP, || {
            let none: Option<&Tensor> = None;
            let dense =
                Tensor::f_scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, layer.scaling, true);
            Ok(dense?)
        })?;
        // What cannot be avoided: reading each key once, in bf16.
        let key_bytes = KV_HEADS * keys * HEAD_DIM * 2;
        rows.push(json!({
            "keys": keys, "heavy_size": heavy_size, "group_factor": group_factor, "label_bits": label_bits,
            "masker_ms": alone, "attention_ms": whole, "dense_ms": dense,
            "key_bytes": key_bytes, "key_bytes_at_3_TB_s_ms": key_bytes as f64 / 3e9,
        }));
    }
    Ok(rows.into())
}
