//! Sequences of real sizes: what they contain, and that bugs which need size are found by them and shrunk to the edge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use doublecheck::algorithm::{Inputs, Mask, Storage};
use doublecheck::behaviours::Fault;
use doublecheck::cases::bundled;
use doublecheck::cases::history::deep_sequence;
use doublecheck::cases::large_plan::{Large, Scores, large_sequence};
use doublecheck::cases::recipe::mix;
use doublecheck::cases::stage_file;
use doublecheck::cases::{
    Answer, Call, Capabilities, Constraint, Domain, Feature, Instance, NoAnswer, Quantity, ScoresCall,
    Sequence, StageCall, Stages, Takes,
};
use doublecheck::reports::html;
use doublecheck::runner::check::check_sequence;
use doublecheck::runner::faults::Planted;
use doublecheck::runner::shrink::Limits;
use doublecheck::runner::shrink::stages::shrink_stage;
use doublecheck::subjects::{Faulty, Reference, Subject, ask_stage};
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use doublecheck::verdicts::judge_stage;
use doublecheck::{Options, check};
use ndarray::Array4;

use crate::support::is_long;

fn drawn(capabilities: &Capabilities, count: usize, largest: usize) -> Vec<(Sequence, Scores)> {
    let draw = |number| large_sequence(capabilities, Large::new(0, number, largest));
    (0..count).filter_map(draw).collect()
}

/// Sizes, edges, head dimensions, types, heads, batches and heavy sizes of real kernels all occur.
#[test]
fn real_sizes_occur() {
    let sequences = drawn(&Capabilities::default(), 200, 16_384);
    assert!(sequences.len() >= 190, "{}", sequences.len());
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (sequence, scores) in &sequences {
        let dims = sequence.calls[0].inputs.dims();
        assert!((41..=16_384).contains(&dims.keys));
        let heavy = sequence.instance.selection.heavy_size.resolve(dims.keys);
        let n = dims.keys;
        let near =
            |edge: usize| n.abs_diff(n / edge * edge) <= 1 || n.abs_diff(n.next_multiple_of(edge)) <= 1;
        for (name, is_so) in [
            ("up to 128 keys", n <= 128),
            ("up to 1024 keys", n > 128 && n <= 1024),
            ("up to 4096 keys", n > 1024 && n <= 4096),
            ("more keys", n > 4096),
            ("near a multiple of 64", near(64)),
            ("one key after a tile of 64", n % 64 == 1),
            ("near a multiple of 1024", near(1024)),
            ("one key is selected", heavy == 1),
            ("all keys are selected", heavy == n),
            ("all but one are selected", heavy + 1 == n),
            ("some are selected", heavy > 1 && heavy + 1 < n),
            ("several queries", dims.queries > 1),
            ("two entries", dims.batch == 2),
            ("grouped heads", dims.heads > dims.kv_heads),
        ] {
            *seen.entry(name.into()).or_default() += usize::from(is_so);
        }
        // Small sequences after a history have small ones.
        if dims.head_dim >= 64 {
            *seen.entry(format!("d = {}", dims.head_dim)).or_default() += 1;
        }
        let after_history = sequence.name.contains(" after ");
        *seen.entry("after a history".into()).or_default() += usize::from(after_history);
        *seen.entry("several calls".into()).or_default() += usize::from(sequence.calls.len() > 1);
        *seen.entry(sequence.calls[0].inputs.storage().to_string()).or_default() += 1;
        *seen.entry(scores.name().into()).or_default() += 1;
    }
    for d in [64, 80, 96, 128, 256] {
        assert!(seen.contains_key(&format!("d = {d}")), "{seen:?}");
    }
    for scores in Scores::ALL {
        assert!(seen.contains_key(scores.name()), "{seen:?}");
    }
    assert_eq!(Storage::ALL.iter().filter(|storage| seen.contains_key(&storage.to_string())).count(), 3);
    assert!(seen.values().all(|&count| count >= 3), "{seen:?}");
}

/// The scores that the reference computes are of the kind that the sequence is named after.
#[test]
fn scores_are_what_they_are_called() {
    let mut applied: BTreeSet<&str> = BTreeSet::new();
    for (sequence, scores) in drawn(&Capabilities::default(), 200, 2048) {
        let call = &sequence.calls[0];
        if call.inputs.storage() != Storage::F32 || call.inputs.parts().attention_mask.is_some() {
            continue;
        }
        let before = sequence.instance.before(call).unwrap();
        let bounds = ScoreBounds::new(&sequence.instance, call, Default::default(), &before).unwrap();
        let Some(bounds) = bounds else { continue };
        let last_query = call.inputs.dims().queries - 1;
        let row = bounds.row((0, 0, last_query));
        let values: Vec<f64> = row
            .iter()
            .filter_map(|candidacy| match candidacy {
                Candidacy::Scored(score) => Some(score.value),
                _ => None,
            })
            .collect();
        let distinct: BTreeSet<u64> = values.iter().map(|x| (x + 0.0).to_bits()).collect();
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
        let holds = match scores {
            Scores::Random => continue,
            Scores::Equal => distinct.len() == 1,
            Scores::Plateaus => distinct.len() <= 2,
            Scores::Zeros => values.iter().filter(|&&x| x == 0.0).count() * 2 > values.len(),
            Scores::Crowded => distinct.len() * 2 > values.len() && most / least < 1.0 + 1.0 / 63.0,
            Scores::BinEdge => distinct.len() * 2 > values.len() && most / least < 1.0 + 1.0 / 250.0,
            Scores::Rising => values.windows(2).all(|pair| pair[0] <= pair[1]) && most > least,
            Scores::Falling => values.windows(2).all(|pair| pair[0] >= pair[1]) && most > least,
            Scores::OrganPipe => values[0] < values[values.len() / 2] && values[values.len() - 1] < most,
            Scores::FirstTile => values[..16].iter().all(|&x| 2.0 * x >= most),
            Scores::LastTile => 2.0 * values[values.len() - 1] >= most,
            Scores::EachTile => values.iter().filter(|&&x| 2.0 * x >= most).count() < values.len(),
            Scores::Outlier => values.iter().filter(|&&x| 10.0 * x >= most).count() == 1,
        };
        assert!(holds, "{}: {least} to {most}, {} of {}", sequence.name, distinct.len(), values.len());
        applied.insert(scores.name());
    }
    assert_eq!(applied.len(), Scores::ALL.len() - 1, "{applied:?}");
}

#[test]
fn the_domain_and_the_limit_are_kept() {
    let keys = Constraint::range(1, Some(300), 1).unwrap();
    let dims = Constraint::list(&[64, 128]).unwrap();
    let domain = Domain::default().with(Quantity::Keys, keys).unwrap().with(Quantity::HeadDim, dims).unwrap();
    let capabilities = Capabilities { domains: vec![domain], ..Capabilities::default() };
    let sequences = drawn(&capabilities, 100, 16_384);
    assert!(sequences.len() >= 50, "{}", sequences.len());
    for (sequence, _) in &sequences {
        let dims = sequence.calls[0].inputs.dims();
        assert!(dims.keys <= 300 && [64, 128].contains(&dims.head_dim));
    }
    assert!(drawn(&Capabilities::default(), 20, 40).is_empty());
    let few = Capabilities { largest_keys: Some(100), ..Capabilities::default() };
    assert!(drawn(&few, 40, 1024).iter().all(|(sequence, _)| sequence.calls[0].inputs.dims().keys <= 100));
}

/// The reference with something wrong in calls of many keys.
struct Wrong {
    reference: Reference,
    call: fn(&mut Reference, &Call) -> Result<Answer, NoAnswer>,
}

impl Subject for Wrong {
    fn name(&self) -> String {
        "wrong in calls of many keys".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lacks: [Feature::Output, Feature::Previous].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let answer = (self.call)(&mut self.reference, call)?;
        Ok(Answer::new(answer.mask, None))
    }
}

/// A kernel that drops the last, partial tile of `tile` keys where there are more than one: A excludes them.
fn without_last_tile(reference: &mut Reference, call: &Call, tile: usize) -> Result<Answer, NoAnswer> {
    let dims = call.inputs.dims();
    let kept = dims.keys / tile * tile;
    if kept == 0 || kept == dims.keys {
        return reference.call(call);
    }
    let mut parts = call.inputs.parts().clone();
    let old = parts.attention_mask.take();
    let (b, h, m, n) = dims.mask_shape();
    let mask = ndarray::Array4::from_shape_fn((b, h, m, n), |(b, head, i, key)| match &old {
        _ if key >= kept => f32::NEG_INFINITY,
        None => 0.0,
        Some(mask) => mask.broadcast((dims.batch, dims.heads, m, n)).unwrap()[[b, head, i, key]],
    });
    parts.attention_mask = Some(mask);
    let inputs = Inputs::new(parts)?.with_head_weights(call.inputs.head_weights().cloned())?;
    reference.call(&Call { inputs: Arc::new(inputs), ..call.clone() })
}

fn finding_of(
    call: fn(&mut Reference, &Call) -> Result<Answer, NoAnswer>,
    options: &Options,
) -> Option<(usize, String)> {
    let report = check(&mut Wrong { reference: Reference::default(), call }, options);
    let finding = report.findings.first()?;
    Some((
        finding.size.keys,
        format!("{} ({} tries, {:.1} s)", finding.first_seen, finding.tries, finding.shrinking_seconds),
    ))
}

#[test]
fn a_dropped_tile_is_found_and_shrunk_to_one_key_after_the_edge() {
    // Probes find it, too.
    let options = Options { cases: 320, probes: false, ..Options::default() };
    let small_only = Options { largest_keys: 0, ..options.clone() };
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 64);
    assert_eq!(finding_of(dropped, &small_only), None);
    let (keys, found) = finding_of(dropped, &options).expect("found");
    assert_eq!(keys, 65, "{found}");
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 256);
    let (keys, found) = finding_of(dropped, &options).expect("found");
    assert_eq!(keys, 257, "{found}");
}

/// One bug of each kind that needs one call, several calls, refusals, rules or lengths: right up to a size, it is shrunk to one
/// key more. `doublecheck faults --above` does the same for all of them; its record must hold them all.
#[test]
fn bugs_above_a_size_are_shrunk_to_it() {
    let planted = |name: &str| Planted::find_all(name)[0];
    let names =
        ["fills-up", "first-layers-channels", "floored-label-channels", "relu-left-out", "lengths-ignored"];
    for (above, names) in [(64, &names[..]), (1024, &names[..2])] {
        for name in names {
            let options = Options { cases: 64, largest_keys: 0, ..Options::default() };
            let (result, report) = planted(name).check_above(&options, above);
            assert!(result.right(), "{name} above {above}: {report}");
            let edge = &report.findings[0].edges[0];
            assert_eq!((edge.quantity, edge.conforms), ("n", above), "{name}: {edge}");
            assert!(edge.also_conforms.is_empty() && edge.also_fails.len() >= 3, "{name}: {edge}");
        }
    }
    // Up to that size nothing shows.
    let options = Options { cases: 60, largest_keys: 0, probes: false, ..Options::default() };
    for name in names {
        let report = check(planted(name).subject_above(64).as_mut(), &options);
        assert!(report.conforms(), "{name}: {report}");
    }
}

/// What conforms is let pass at any size.
#[test]
fn what_conforms_above_a_size_is_let_pass() {
    let options = Options { cases: 30, largest_keys: 0, ..Options::default() };
    let (result, report) = Planted::find_all("ties-to-highest")[0].check_above(&options, 64);
    assert!(result.right() && report.conforms(), "{report}");
}

/// Small sequences of every kind come after a history, and are what they were without it but for the keys before.
#[test]
fn small_sequences_come_after_a_history() {
    let (mut seen, mut calls) = (BTreeSet::new(), 0);
    for seed in 0..60 {
        let Some(sequence) = deep_sequence(&Capabilities::default(), seed, 500) else { continue };
        calls += sequence.calls.len();
        let keys = |call: &Call| call.inputs.dims().keys;
        assert!(sequence.calls.iter().all(|call| (501..=600).contains(&keys(call))), "{}", sequence.name);
        let call = &sequence.calls[0];
        let excluded = call.inputs.parts().attention_mask.as_ref().is_some_and(|mask| {
            mask.slice(ndarray::s![.., .., .., ..500.min(mask.dim().3)])
                .iter()
                .all(|x| *x == f32::NEG_INFINITY)
        });
        let attended = call
            .previous
            .as_ref()
            .is_some_and(|mask| mask.row_weights((0, 0, 0)).iter().take(500).all(|x| *x == 1.0));
        let counted = sequence.instance.selection.heavy_size.resolve(usize::MAX) > 500;
        seen.insert((excluded, attended, counted));
        // Calls of one layer start with the same keys.
        for other in sequence.calls.iter().filter(|other| other.layer == call.layer) {
            let first = |call: &Call| call.inputs.parts().k.slice(ndarray::s![..1, .., ..500, ..]).to_owned();
            assert_eq!(first(other), first(call), "{}", sequence.name);
        }
    }
    for history in [(true, false, false), (false, true, false), (false, false, true), (false, false, false)] {
        assert!(seen.contains(&history), "{seen:?}");
    }
    assert!(calls > 90, "{calls}");
}

/// The sizes around a counterexample tell a period from a threshold, and nothing is said where size does not matter.
#[test]
fn the_report_says_what_holds_on_the_other_side() {
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 64);
    let options = Options { cases: 320, ..Options::default() };
    let report = check(&mut Wrong { reference: Reference::default(), call: dropped }, &options);
    let edges: Vec<String> = report.findings[0].edges.iter().map(ToString::to_string).collect();
    let expected = "n = 64 conforms, n = 65 fails; fails at 66, 129, 193, conforms at 128, 192";
    assert_eq!(edges, [expected]);
    assert!(report.to_string().contains(&format!("\n  edge: {expected}\n")), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["edges"][0]["also_conforms"], serde_json::json!([128, 192]));
    assert!(html::check(&report, "").contains(expected));
    let report =
        check(&mut Faulty::new(&[Fault::find_all("one-key-more")[0]]), &Options { cases: 40, ..options });
    assert!(!report.findings.is_empty() && report.findings.iter().all(|finding| finding.edges.is_empty()));
    assert!(!report.to_string().contains("edge:"), "{report}");
}

/// A subject that takes 100 ms for a call answers 600 questions in a minute: half of them are enough.
#[test]
fn a_few_hundred_questions_are_enough() {
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 64);
    let shrinking = Limits { tries: 300, time: Duration::MAX, ..Limits::default() };
    let options = Options { cases: 320, largest_keys: 8192, shrinking, ..Options::default() };
    let report = check(&mut Wrong { reference: Reference::default(), call: dropped }, &options);
    let finding = &report.findings[0];
    assert!(finding.tries <= 300 && finding.size.keys <= 130 && finding.size.heads == 1, "{report}");
}

/// A reference that takes long for a call, drops the last tile of 64, and may hang once it is asked by a deadline.
struct Slow {
    reference: Reference,
    pause: Duration,
    hangs: bool,
    patience: Option<Duration>,
}

impl Slow {
    fn new(pause: Duration, hangs: bool) -> Self {
        Self { reference: Reference::default(), pause, hangs, patience: None }
    }
}

impl Subject for Slow {
    fn name(&self) -> String {
        "slow".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lacks: [Feature::Output, Feature::Previous].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let hangs = self.patience.filter(|_| self.hangs);
        std::thread::sleep(hangs.unwrap_or(self.pause));
        if hangs.is_some() {
            return Err(NoAnswer::Failed("no answer".into()));
        }
        Ok(Answer::new(without_last_tile(&mut self.reference, call, 64)?.mask, None))
    }

    fn set_patience(&mut self, most: Option<Duration>) {
        self.patience = most;
    }
}

/// A sequence of one call of many heads and keys, of which the last is selected.
fn many_keys(keys: usize) -> Sequence {
    let of_size = |number| Large { least: keys - 64, ..Large::new(0, number, keys) };
    let some = (0..400).filter_map(|number| large_sequence(&Capabilities::default(), of_size(number)));
    let fitting = some.map(|(sequence, _)| sequence).find(|sequence| {
        let dims = sequence.calls[0].inputs.dims();
        // Whether it diverges is all that is asked here.
        let shrinking = Limits { tries: 0, ..Limits::default() };
        let (naming, conditions) = (Duration::ZERO, false);
        let options = Options { cases: 0, shrinking, naming, conditions, ..Options::default() };
        dims.heads > 2
            && dims.keys % 64 > 0
            && check_sequence(&mut Slow::new(Duration::ZERO, false), sequence, &options, &mut |_| {}).diverged
                > 0
    });
    fitting.expect("a sequence that fails")
}

/// Of a subject that takes 100 ms for a call, a minute of shrinking makes twice the smallest number of keys at most; here a tenth
/// of both, unless long tests are asked for.
#[test]
fn a_slow_subject_is_shrunk_within_its_time() {
    let parts = if is_long() { 1 } else { 10 };
    let time = Duration::from_secs(60) / parts;
    let shrinking = Limits { time, ..Limits::default() };
    let (naming, conditions) = (Duration::ZERO, false);
    let options = Options { cases: 0, shrinking, naming, conditions, ..Options::default() };
    let mut subject = Slow::new(Duration::from_millis(100) / parts, false);
    let report = check_sequence(&mut subject, &many_keys(16_385), &options, &mut |_| {});
    let finding = &report.findings[0];
    assert!(finding.size.keys <= 130 && finding.size.heads == 1, "{report}");
    assert!(finding.shrinking_seconds < time.as_secs_f64() + 1.0, "{report}");
}

/// A question that is not answered ends with the time for shrinking, and what was found before stays.
#[test]
fn a_question_is_not_waited_for_until_long_after_the_time() {
    let shrinking = Limits { time: Duration::from_secs(2), ..Limits::default() };
    let options =
        Options { cases: 0, shrinking, naming: Duration::ZERO, conditions: false, ..Options::default() };
    let report = check_sequence(&mut Slow::new(Duration::ZERO, true), &many_keys(200), &options, &mut |_| {});
    let finding = &report.findings[0];
    assert_eq!((finding.kind, finding.shrunk, finding.tries), ("wrong keys", false, 1), "{report}");
    assert!((2.9..4.5).contains(&finding.shrinking_seconds), "{report}");
}

/// A top-k that loses the last of its keys where there are more than some number.
struct LosesOne(usize);

impl Subject for LosesOne {
    fn name(&self) -> String {
        "loses one key".into()
    }

    fn capabilities(&self) -> Capabilities {
        let stages = Stages::new(Takes::Scores, None).unwrap();
        Capabilities { stages, ..Capabilities::default() }
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let mut mask = Reference::default().select(call)?;
        for row in call.dims().rows().filter(|_| call.dims().keys > self.0) {
            let last = mask.row(row).last();
            if let Some((key, _)) = last {
                mask.remove(row, key);
            }
        }
        Ok(mask)
    }
}

/// Questions to one stage are shrunk by bisection, too.
#[test]
fn a_stage_is_shrunk_to_the_edge() {
    let scores =
        Array4::from_shape_fn((1, 2, 1, 20_000), |(_, head, _, key)| (key * 7919 % 20_011 + head) as f32);
    let call = StageCall::Scores(ScoresCall::new(scores, Storage::F32, 300.try_into().unwrap()).unwrap());
    let mut subject = LosesOne(4096);
    let mut fails = |call: &StageCall| {
        judge_stage(call, &ask_stage(&mut subject, call), Default::default()).kind.is_some()
    };
    let shrunk = shrink_stage(call, Limits::default(), &LosesOne(0).capabilities(), &mut fails);
    let StageCall::Scores(call) = &shrunk.call else { panic!("another stage") };
    assert_eq!((call.scores().dim(), call.heavy_size().get()), ((1, 1, 1, 4097), 1));
    assert!(shrunk.tries < 1000, "{} tries", shrunk.tries);
}

/// A counterexample of a million keys is a few lines of text and a small page, and both name the keys that are wrong.
#[test]
fn a_million_keys_are_told_in_a_few_lines() {
    let keys = 1_000_000;
    let score = |key: usize| (mix(key as u64) >> 40) as f32;
    let scores = Array4::from_shape_fn((1, 1, 1, keys), |(_, _, _, key)| score(key));
    let call = ScoresCall::new(scores, Storage::F32, 2048.try_into().unwrap()).unwrap();
    let lost = Reference::default().select(&call).unwrap().row((0, 0, 0)).last().unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("million.safetensors");
    std::fs::write(&path, stage_file::to_bytes(&StageCall::Scores(call), "a test")).unwrap();
    let shrinking = Limits { tries: 0, ..Limits::default() };
    let goldens = bundled::find(&path).unwrap();
    let options = Options { cases: 0, shrinking, goldens, ..Options::default() };
    let report = check(&mut LosesOne(100_000), &options);
    let text = report.to_string();
    assert_eq!(report.findings.len(), 1, "{text}");
    let tile = lost / 64 * 64;
    for part in
        [format!("missing   {lost}\n"), format!("{tile}–{} lost 1 of ", tile + 63), format!("[{lost}]=")]
    {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert!(text.lines().count() < 80 && text.lines().all(|line| line.chars().count() < 1000), "{text}");
    let page = html::check(&report, "");
    assert!(page.len() < 2 << 20 && page.contains(&lost.to_string()), "{} bytes", page.len());
}
