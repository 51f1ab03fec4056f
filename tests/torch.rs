//! Differential tests of libtorch (feature `torch`): the same tests run on CPU and, where there is a device, on CUDA. Where
//! there is none they are counted as ignored, never as passed, and a line says why.
//!
//! `DOUBLECHECK_TORCH_CASES` sets the number of random cases on each device (default 2,000).

use doublecheck::algorithm::config::LabelBits;
use doublecheck::algorithm::maskers::{Oracle, Sink};
use doublecheck::algorithm::{
    ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, Masker, Storage,
};
use doublecheck::cases::bundled;
use doublecheck::cases::strategies::plans;
use doublecheck::cases::{Case, RoundingModel};
use doublecheck::reports::text;
use doublecheck::runner::verify::{Options, random_cases, verify};
use doublecheck::subjects::torch::{DeviceChoice, Torch, device};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::judge::judge_mask;
use libtest_mimic::{Arguments, Failed, Trial};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

type Outcome = Result<(), Failed>;
type Check = fn(&mut Torch) -> Outcome;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, choice) in [("cpu", DeviceChoice::Cpu), ("cuda", DeviceChoice::Cuda(0))] {
        let missing = Torch::new(choice).err();
        if let Some(error) = &missing {
            eprintln!("ignored: every test on {name}: {error}");
        }
        let tests: [(&str, Check); 6] = [
            ("every_bundled_case_conforms", bundled_cases),
            ("random_cases_conform_with_bit_equal_labels", random),
            ("labels_of_wide_rows_are_bit_equal", wide_rows),
            ("oracle_and_its_composition_are_certified", oracle),
            ("the_same_case_twice_gives_the_same_mask", repeats),
            ("arithmetic_is_f32", arithmetic),
        ];
        for (test, check) in tests {
            let run = move || check(&mut Torch::new(choice)?);
            trials.push(Trial::test(format!("{name}::{test}"), run).with_ignored_flag(missing.is_some()));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn cases(default: u32) -> u32 {
    let number = std::env::var("DOUBLECHECK_TORCH_CASES").ok();
    number.map_or(default, |number| number.parse().expect("DOUBLECHECK_TORCH_CASES is a number"))
}

fn bundled_cases(torch: &mut Torch) -> Outcome {
    let files = bundled::find(&bundled::folder())?;
    let report = verify(&files, torch, Options { random_cases: 20, seed: 0 }, &mut |_| {});
    if report.exit_code() == 0 { Ok(()) } else { Err(text::render(&report, false).into()) }
}

fn random(torch: &mut Torch) -> Outcome {
    let report = random_cases(torch, Options { random_cases: cases(2000), seed: 1 });
    match report.finding {
        None => Ok(()),
        Some(finding) => Err(finding.explanations.join("\n").into()),
    }
}

/// Rows with magnitudes over most of each type's range, wider than random cases have them.
fn wide_rows(torch: &mut Torch) -> Outcome {
    let words = doublecheck::cases::recipe::Words::new(11, 0);
    for index in 0..600u64 {
        let storage = Storage::ALL[(index % 3) as usize];
        let bits = LabelBits::new(index / 3 % 15 + 1)?;
        let factor = 2.0f32.powi((words.word(index) % 24) as i32 - 12);
        let row: Vec<f32> = (0..33).map(|i| storage.round(words.value(index * 33 + i) * factor)).collect();
        let found = torch.labels(&row, bits, storage).ok_or("torch offers labels")?;
        let expected =
            Reference::default().labels(&row, bits, storage).ok_or("the reference offers labels")?;
        let equal = match (&found, &expected) {
            (Ok(found), Ok(expected)) => {
                found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()))
            }
            (found, expected) => found.is_err() == expected.is_err(),
        };
        if !equal {
            return Err(
                format!("{storage} {} bits {row:?}: {found:?}, expected {expected:?}", bits.get()).into()
            );
        }
    }
    Ok(())
}

/// Exact top-k is Double Sparsity with all channels and no quantisation (SPEC §2.6), so that the same certificate judges it;
/// after a sink, and before a second masker that must leave its keys alone.
fn oracle(torch: &mut Torch) -> Outcome {
    let mut runner = TestRunner::deterministic();
    for _ in 0..200 {
        let plan = plans().new_tree(&mut runner)?.current();
        let case = plan.case()?;
        let mut exact = without_scaling(&case)?;
        exact.settings.earlier_maskers.clear();
        let sink = Sink { size: HeavySize::count(2)? };
        let before = sink.add_mask(&exact.inputs, 0, &case.mask_before()?)?;
        exact.previous = Some(before.clone());
        let heavy_size = exact.settings.heavy_size;
        let mask = torch.oracle(&exact.inputs, heavy_size, &before)?;
        must_conform(&exact, &mask, torch.rounding_model())?;
        must_conform(
            &exact,
            &Oracle { heavy_size }.add_mask(&exact.inputs, 0, &before)?,
            RoundingModel::REFERENCE,
        )?;
        // The oracle's mask is what Double Sparsity then starts from.
        let composed = Case {
            previous: Some(mask),
            settings: case.settings.clone(),
            channels: case.channels.clone(),
            ..exact
        };
        let certificate = Certificate::derive(&composed, torch.rounding_model());
        let answer = torch.answer(&composed);
        let verdict = doublecheck::verdicts::judge(&composed, &answer, torch.rounding_model(), &certificate);
        if let Some(wrong) = verdict.explanations().first() {
            return Err(format!("{wrong}\n{plan:?}").into());
        }
    }
    Ok(())
}

fn without_scaling(case: &Case) -> Result<Case, Failed> {
    let inputs = Inputs::new(InputParts { scaling: None, ..case.inputs.parts().clone() })?;
    let mut exact = Case { inputs: inputs.into(), ..case.clone() };
    exact.settings.scaling = None;
    exact.settings.heads = HeadMode::PerHead;
    exact.settings.dense_fallback = false;
    exact.settings.label_bits = LabelBits::UNQUANTISED;
    exact.settings.group_factor = GroupFactor::new(1)?;
    exact.channels = ChannelOrder::new(vec![(0..case.inputs.dims().head_dim).collect()])?;
    Ok(exact)
}

fn must_conform(case: &Case, mask: &doublecheck::algorithm::Mask, model: RoundingModel) -> Outcome {
    let certificate = Certificate::derive(case, model)?;
    match judge_mask(case, &certificate, mask, model).divergences.first() {
        None => Ok(()),
        Some(divergence) => Err(divergence.to_string().into()),
    }
}

/// Ties included: random cases hold many.
fn repeats(torch: &mut Torch) -> Outcome {
    let mut runner = TestRunner::deterministic();
    for _ in 0..100 {
        let case = plans().new_tree(&mut runner)?.current().case()?;
        let mut answer = || torch.answer(&case).map(|answer| answer.mask);
        let first = answer();
        for _ in 0..3 {
            if answer() != first {
                return Err(format!("{}: another mask when asked again", case.name).into());
            }
        }
    }
    Ok(())
}

fn arithmetic(torch: &mut Torch) -> Outcome {
    // Opening a CUDA device refuses one whose arithmetic is less exact; this shows it, and checks the CPU too.
    let line = device::arithmetic(torch.device());
    println!("{line}");
    let expected = line.contains("is 1.000244140625") && line.contains("give 4096.5");
    if expected { Ok(()) } else { Err(line.into()) }
}
