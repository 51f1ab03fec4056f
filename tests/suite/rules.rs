//! The rules beside the published algorithm: an independent recomputation in f64, a deliberate fault for each, and their way
//! through files.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::support::{is_long, proptest_config};
use doublecheck::algorithm::quantize::quantize_in_place;
use doublecheck::algorithm::rules::Epsilon;
use doublecheck::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, Error, Forced, HeadMode, Inputs, QuantisedLabels, Ranks, Rules,
    ScoreFactor, ScoreRule, Storage,
};
use doublecheck::cases::file::{sequence_to_bytes, to_bytes};
use doublecheck::cases::strategies::{Previous, plans};
use doublecheck::cases::{
    Answer, Call, Capabilities, Case, CaseFile, Feature, Instance, NoAnswer, Reader, RoundingModel,
    rule_names,
};
use doublecheck::subjects::{Engine, Reference, Subject};
use doublecheck::verdicts::bounds::Approximate;
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use doublecheck::{Options, check};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use rayon::prelude::*;

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/rules.txt");

fn rules() -> impl Strategy<Value = Rules> {
    (
        select(vec![QuantisedLabels::Both, QuantisedLabels::Keys, QuantisedLabels::Queries]),
        select(vec![ScoreRule::Dot, ScoreRule::Cosine, ScoreRule::Relu]),
        select(vec![ScoreFactor::LabelChannels, ScoreFactor::HeadDim, ScoreFactor::ONE]),
        select(vec![(0, 0), (0, 1), (2, 3)]),
        select(vec![(1, Storage::F32), (1, Storage::F32), (2, Storage::F32), (3, Storage::Bf16)]),
        any::<bool>(),
    )
        .prop_map(|(quantised, score, factor, (first, last), (ranks, parts), channel_weights)| Rules {
            quantised,
            channel_weights,
            score,
            epsilon: Epsilon::default(),
            factor,
            ranks: Ranks::new(ranks, parts).unwrap(),
            forced: Forced { first, last },
        })
}

fn cases() -> impl Strategy<Value = Case> {
    (plans(), rules(), select(HeadMode::EVERY.to_vec())).prop_map(|(plan, rules, heads)| {
        let capabilities = Capabilities { rules: vec![rules], heads: vec![heads], ..Capabilities::default() };
        plan.restricted(&capabilities).case().expect("plans make valid inputs")
    })
}

/// The labels of a query and of a key.
type Pair = (Vec<f64>, Vec<f64>);

/// The label of one position, from the numbers of its row of q or k.
fn label(case: &Case, numbers: Vec<f32>, channels: &[usize], quantised: bool) -> Option<Vec<f64>> {
    let mut label: Vec<f32> = channels.iter().map(|&channel| numbers[channel]).collect();
    let bits = case.instance.selection.label_bits;
    if quantised && bits.get() < 16 {
        quantize_in_place(&mut label, bits, case.call.inputs.storage()).ok()?;
    }
    Some(label.into_iter().map(f64::from).collect())
}

/// Scores of one row as the definition reads, key after key; `None` where labels must be refused.
fn scores(case: &Case, b: usize, head: usize, query: usize) -> Option<Vec<f64>> {
    let (inputs, dims, selection) = (&case.call.inputs, case.dims(), case.instance.selection);
    let rules = selection.rules;
    let r = dims.head_dim / selection.group_factor.get();
    let group = dims.heads / dims.kv_heads;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let heads = match selection.heads.name() {
        "per-head" => head..head + 1,
        name if name.starts_with("group-") => head / group * group..head / group * group + group,
        _ => 0..dims.heads,
    };
    // Which row of C a head uses, among one for each query head, one for each KV head, or one.
    let own_row = |head: usize, rows: usize| head / (dims.heads / rows);
    let labels = |head: usize, key: usize| {
        let channels = case.channels().ok()?;
        let row = &channels.rows()[own_row(head, channels.rows().len())][..r];
        let q = inputs.parts().q.slice(ndarray::s![b, head, query, ..]).to_vec();
        let k = inputs.parts().k.slice(ndarray::s![b, head / group, key, ..]).to_vec();
        let mut q = label(case, q, row, rules.quantised != QuantisedLabels::Keys)?;
        if let (true, Some(weights)) = (rules.channel_weights, channels.weights()) {
            let weights = &weights[own_row(head, weights.len())];
            q.iter_mut().zip(weights).for_each(|(x, weight)| *x *= f64::from(*weight));
        }
        let k = label(case, k, row, rules.quantised != QuantisedLabels::Queries)?;
        Some((q, k))
    };
    let score = |head: usize, key: usize, q: &[f64], k: &[f64]| {
        let factor = match rules.factor {
            ScoreFactor::LabelChannels => 1.0 / (r as f64).sqrt(),
            ScoreFactor::HeadDim => 1.0 / (dims.head_dim as f64).sqrt(),
            ScoreFactor::Number(factor) => factor,
        };
        let weight = inputs.head_weights().map_or(1.0, |weights| f64::from(weights[[b, head, query]]));
        let score = match rules.score {
            ScoreRule::Dot => dot(q, k),
            ScoreRule::Cosine => dot(q, k) / (dot(q, q).sqrt() * dot(k, k).sqrt() + 1e-6),
            ScoreRule::Relu => weight * dot(q, k).max(0.0),
        };
        factor * score + f64::from(inputs.additive(b, head, query).at(key))
    };
    let of_part = |key: usize, heads: std::ops::Range<usize>| {
        let labels: Vec<_> = heads.clone().map(|head| labels(head, key)).collect::<Option<_>>()?;
        if selection.heads == HeadMode::SummedLabels {
            let sum = |part: fn(&Pair) -> Vec<f64>| {
                let zero = vec![0.0; r];
                labels.iter().map(part).fold(zero, |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect())
            };
            return Some(score(
                heads.start,
                key,
                &sum(|label| label.0.clone()),
                &sum(|label| label.1.clone()),
            ));
        }
        let scores: Vec<f64> =
            heads.clone().zip(&labels).map(|(head, (q, k))| score(head, key, q, k)).collect();
        let sum = || scores.iter().sum::<f64>();
        Some(match selection.heads.name() {
            "max" | "group-max" => scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            "mean" | "group-mean" => sum() / scores.len() as f64,
            _ => sum(),
        })
    };
    let ranks = if selection.heads == HeadMode::PerHead { 1 } else { rules.ranks.count() };
    let size = heads.len() / ranks;
    let of_key = |key: usize| {
        let part = |rank: usize| {
            let first = heads.start + rank * size;
            let part = of_part(key, first..first + size)?;
            let rounded = ranks > 1 && rules.ranks.parts() == Storage::Bf16;
            Some(if rounded { f64::from(half::bf16::from_f64(part)) } else { part })
        };
        (0..ranks).map(part).sum::<Option<f64>>()
    };
    (0..dims.keys).map(of_key).collect()
}

/// Every score lies within the certificate's radius, and the reference selects the forced candidates and the largest of the
/// others.
#[test]
fn scores_and_selections_are_those_of_the_definition() {
    let (compared, forced_rows, weighted) = (RefCell::new(0), RefCell::new(0), RefCell::new(0));
    let mut runner = TestRunner::new(proptest_config(if is_long() { 6000 } else { 3000 }, REGRESSIONS));
    let outcome = runner.run(&cases(), |case| {
        let before = case.before().unwrap();
        let model = RoundingModel::REFERENCE;
        let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before);
        *weighted.borrow_mut() += usize::from(case.channels().unwrap().weights().is_some());
        let answer = Reference::default().answer(&case);
        let Ok(Some(bounds)) = bounds else {
            prop_assert_eq!(bounds.is_err(), answer.is_err());
            return Ok(());
        };
        let mask = answer.unwrap().mask;
        let (dims, selection) = (case.dims(), case.instance.selection);
        let heavy_size = selection.heavy_size.resolve(dims.keys);
        let sharing = selection.heads.sharing(&dims);
        for row @ (b, head, i) in dims.rows() {
            let scores = scores(&case, b, head, i).expect("labels are finite");
            let first = head / sharing * sharing;
            let earlier = |key| (first..first + sharing).any(|head| before.attends(b, head, i, key));
            let candidate = |key: usize| scores[key] > f64::NEG_INFINITY && !earlier(key);
            let position = dims.keys - dims.queries + i;
            let Forced { first, last } = selection.rules.forced;
            let forced = |key: usize| key < first || (key <= position && key + last > position);
            // What may be −∞ may be no candidate.
            let within = |score: Approximate| match score.low() {
                f64::NEG_INFINITY => f64::INFINITY,
                _ => score.radius,
            };
            let radius = |candidacy: Candidacy| match candidacy {
                Candidacy::Scored(score) | Candidacy::Forced(score) => Some((score.value, within(score))),
                Candidacy::Before | Candidacy::Excluded => None,
            };
            let radii: Vec<_> = bounds.row(row).into_iter().map(radius).collect();
            for key in 0..dims.keys {
                let at = (row, key, scores[key], radii[key]);
                // What may be NaN may be a candidate wherever it is masked.
                if radii[key].is_some_and(|(_, radius)| radius == f64::INFINITY) {
                    continue;
                }
                prop_assert_eq!(radii[key].is_some(), candidate(key), "{:?}", at);
                if let Some((value, radius)) = radii[key] {
                    *compared.borrow_mut() += 1;
                    prop_assert!((value - scores[key]).abs() <= radius, "{:?}", at);
                }
            }
            let selected = |key: &usize| mask.attends(b, head, i, *key) && !before.attends(b, head, i, *key);
            let candidates: Vec<usize> = (0..dims.keys).filter(|&key| candidate(key)).collect();
            let (taken, left): (Vec<usize>, Vec<usize>) = candidates.iter().partition(|&&key| selected(&key));
            prop_assert_eq!(taken.len(), heavy_size.min(candidates.len()));
            prop_assert!((0..dims.keys).all(|key| candidate(key) || !selected(&key)));
            prop_assert!(left.iter().all(|&key| !forced(key)), "a forced key of {:?} is left", row);
            *forced_rows.borrow_mut() += usize::from(taken.iter().any(|&key| forced(key)));
            let within = |key: usize| radii[key].map_or(0.0, |(_, radius)| radius);
            for &key in taken.iter().filter(|&&key| !forced(key)) {
                let beaten = |&other: &usize| scores[other] - within(other) > scores[key] + within(key);
                prop_assert!(!left.iter().any(beaten), "row {:?}: key {} is selected", row, key);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(compared.into_inner() > 50_000 && forced_rows.into_inner() > 500 && weighted.into_inner() > 500);
}

/// The reference with other rules and another head mode than those it is asked for.
struct Confuses {
    asked: (Rules, HeadMode),
    does: (Rules, HeadMode),
    without_weights: bool,
    reference: Reference,
}

impl Subject for Confuses {
    fn name(&self) -> String {
        "confuses rules".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        let (rules, heads) = self.asked;
        Capabilities { rules: vec![rules], heads: vec![heads], ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        assert_eq!((instance.selection.rules, instance.selection.heads), self.asked);
        let mut instance = instance.clone();
        (instance.selection.rules, instance.selection.heads) = self.does;
        self.reference.configure(&instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let mut call = call.clone();
        if self.without_weights {
            call.inputs = std::sync::Arc::new((*call.inputs).clone().with_head_weights(None)?);
        }
        self.reference.call(&call)
    }
}

/// Each is caught within 1,000 sequences and not misnamed; what does as it is asked conforms.
#[test]
fn confused_rules_are_found() {
    let plain = Rules::default();
    let alone = HeadMode::PerHead;
    let keys = Rules { quantised: QuantisedLabels::Keys, ..plain };
    let queries = Rules { quantised: QuantisedLabels::Queries, ..plain };
    let head_dim = Rules { factor: ScoreFactor::HeadDim, ..plain };
    let one = Rules { factor: ScoreFactor::ONE, ..plain };
    let cosine = Rules { score: ScoreRule::Cosine, ..plain };
    let wide = Rules { epsilon: Epsilon::new(1.0).unwrap(), ..cosine };
    let relu = Rules { score: ScoreRule::Relu, ..plain };
    let forced = |first, last| Rules { forced: Forced { first, last }, ..plain };
    let weighted = Rules { channel_weights: true, ..plain };
    let weighted_cosine = Rules { channel_weights: true, ..cosine };
    let ranks = |count, parts| Rules { ranks: Ranks::new(count, parts).unwrap(), ..plain };
    // What reproduces all answers alike is not decided between, and what the catalogue lacks is unknown.
    let unknown: &[&str] = &[];
    let confusions = [
        ((keys, alone), (plain, alone), &["both-quantised"][..]),
        ((queries, alone), (keys, alone), unknown),
        ((head_dim, alone), (plain, alone), &["label-channel-factor"]),
        ((one, alone), (plain, alone), &["label-channel-factor"]),
        ((cosine, alone), (plain, alone), &["cosine-ignored"]),
        // 10⁻⁶ in place of 1 is as good as none.
        ((wide, alone), (cosine, alone), &["cosine-without-epsilon"]),
        ((relu, alone), (plain, alone), &["head-weights-ignored", "relu-left-out"]),
        ((forced(0, 1), alone), (plain, alone), &["forced-keys-ignored"]),
        // It accepts an H of 4, too.
        ((forced(2, 3), alone), (forced(2, 2), alone), &["forced-unchecked"]),
        ((forced(2, 0), alone), (forced(0, 2), alone), &["forced-ends-swapped"]),
        ((plain, HeadMode::Max), (plain, HeadMode::SummedScores), unknown),
        ((plain, HeadMode::Mean), (plain, HeadMode::Max), &["heads-largest"]),
        ((plain, HeadMode::GroupSum), (plain, HeadMode::SummedScores), unknown),
        ((plain, HeadMode::GroupMax), (plain, HeadMode::GroupSum), &["heads-summed-for-largest"]),
        ((plain, HeadMode::GroupMean), (plain, HeadMode::PerHead), &["heads-alone"]),
        ((relu, HeadMode::SummedScores), (relu, HeadMode::Mean), &["head-weights-ignored"]),
        ((weighted, alone), (plain, alone), &["channel-weights-ignored"]),
        ((weighted_cosine, alone), (cosine, alone), &["channel-weights-ignored"]),
        // The sum of maxima is not the maximum, and neither is that of other parts.
        ((plain, HeadMode::Max), (ranks(2, Storage::F32), HeadMode::Max), unknown),
        ((ranks(2, Storage::F32), HeadMode::Max), (plain, HeadMode::Max), &["ranks-ignored"]),
        ((ranks(2, Storage::F32), HeadMode::Max), (ranks(4, Storage::F32), HeadMode::Max), unknown),
        ((ranks(2, Storage::F32), HeadMode::GroupMax), (plain, HeadMode::GroupMax), &["ranks-ignored"]),
        (
            (ranks(2, Storage::F32), HeadMode::SummedLabels),
            (plain, HeadMode::SummedLabels),
            &["ranks-ignored"],
        ),
        (
            (ranks(2, Storage::F32), HeadMode::SummedScores),
            (ranks(2, Storage::Bf16), HeadMode::SummedScores),
            unknown,
        ),
    ];
    // Every eighth of them, unless tests run in full.
    let confusions: Vec<_> = confusions.into_iter().step_by(if is_long() { 1 } else { 8 }).collect();
    let check_one = |(asked, does, names): ((Rules, HeadMode), (Rules, HeadMode), &[&str])| {
        let without_weights = asked == (relu, HeadMode::SummedScores);
        let mut confused = Confuses { asked, does, without_weights, reference: Reference::default() };
        let options = Options { cases: 1000, largest_keys: 0, ..Options::default() };
        let report = check(&mut confused, &options);
        assert!(!report.findings.is_empty(), "{asked:?} {does:?}");
        let mut named: Vec<_> =
            report.findings.iter().flat_map(|finding| finding.diagnosis.iter().copied()).collect();
        named.sort_unstable();
        named.dedup();
        let misnamed =
            (named != names).then(|| format!("{named:?}, not {names:?}: {asked:?} {does:?}: {report}"));
        for finding in &report.findings {
            assert!(finding.size.keys <= 8, "{asked:?}: {}", finding.size);
            let (selection, sequence) =
                (finding.observation.sequence.instance.selection, &finding.observation.sequence);
            assert_eq!((selection.rules, selection.heads), asked);
            let bytes = sequence_to_bytes(sequence, "a test");
            let Ok(CaseFile::Sequence(read)) = Reader::default().parse(&bytes, &sequence.name) else {
                panic!("{asked:?}: its file is read");
            };
            assert_eq!(read.sequence, *sequence);
        }
        let mut right =
            Confuses { asked, does: asked, without_weights: false, reference: Reference::default() };
        let report = check(&mut right, &Options { cases: 100, ..options });
        assert!(report.conforms() && report.answered > 50, "{asked:?}");
        misnamed
    };
    let misnamed: Vec<String> = confusions.into_par_iter().with_max_len(1).filter_map(check_one).collect();
    assert!(misnamed.is_empty(), "{}", misnamed.join("\n"));
}

/// A forced key that comes on top of H is one key too many.
#[test]
fn forced_keys_count_within_the_heavy_size() {
    struct OnTop(Reference, Rules);
    impl Subject for OnTop {
        fn name(&self) -> String {
            "forces on top".into()
        }
        fn rounding_model(&self) -> RoundingModel {
            RoundingModel::REFERENCE
        }
        fn capabilities(&self) -> Capabilities {
            let lacks = [Feature::Output].into();
            Capabilities { rules: vec![self.1], lacks, ..Capabilities::default() }
        }
        fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
            let mut instance = instance.clone();
            instance.selection.rules = Rules::default();
            self.0.configure(&instance)
        }
        fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
            let mut answer = self.0.call(call)?;
            for row @ (b, head, i) in call.inputs.dims().rows() {
                let key = call.inputs.dims().position(i);
                let excluded = call.inputs.additive(b, head, i).at(key) == f32::NEG_INFINITY;
                if !excluded && !answer.mask.attends(b, head, i, key) {
                    answer.mask.add(row, [key]);
                }
            }
            Ok(Answer { output: None, ..answer })
        }
    }
    let rules = Rules { forced: Forced { first: 0, last: 1 }, ..Rules::default() };
    let options = Options { naming: Duration::ZERO, conditions: false, ..Options::default() };
    let report = check(&mut OnTop(Reference::default(), rules), &options);
    let kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind != "gave no usable answer"), "{kinds:?}");
    assert!(report.findings[0].explanations.iter().any(|line| line.contains("key")), "{kinds:?}");
}

#[test]
fn what_offers_no_other_rules_refuses_them() {
    let mut runner = TestRunner::deterministic();
    let tree = plans().new_tree(&mut runner).unwrap();
    let mut case = proptest::strategy::ValueTree::current(&tree).case().unwrap();
    for change in [
        |case: &mut Case| case.instance.selection.rules.score = ScoreRule::Cosine,
        |case: &mut Case| {
            case.instance.selection.rules = Rules::default();
            case.instance.selection.heads = HeadMode::Max;
        },
    ] {
        change(&mut case);
        let answer = Engine::default().answer(&case);
        assert!(matches!(answer, Err(NoAnswer::Refused(Error::HeadMode(_)))), "{answer:?}");
    }
}

#[test]
fn every_name_has_rules_and_only_new_ones_change_a_file() {
    let mut runner = TestRunner::deterministic();
    let tree = plans().new_tree(&mut runner).unwrap();
    let mut case = proptest::strategy::ValueTree::current(&tree).case().unwrap();
    let text = |case: &Case| String::from_utf8_lossy(&to_bytes(case)).into_owned();
    assert!(!text(&case).contains("rules"));
    for name in rule_names::NAMES {
        case.instance.selection.rules = rule_names::find(name).unwrap();
        assert_eq!(text(&case).contains("rules"), name != "double-sparsity", "{name}");
        let Ok(CaseFile::Attention(read)) = Reader::default().parse(&to_bytes(&case), name) else {
            panic!("{name} is read");
        };
        assert_eq!(read.instance.selection, case.instance.selection);
    }
    assert_eq!(rule_names::find("flat"), None);
}

fn any_case() -> Case {
    let mut runner = TestRunner::deterministic();
    let tree = plans().new_tree(&mut runner).unwrap();
    let plan = proptest::strategy::ValueTree::current(&tree);
    let rules = Rules { channel_weights: true, ..Rules::default() };
    let capabilities =
        Capabilities { rules: vec![rules], heads: vec![HeadMode::SummedScores], ..Capabilities::default() };
    // Six heads, and a seed that gives weights.
    let plan = doublecheck::cases::strategies::Plan { kv_heads: 2, group: 3, seed: 2, ..plan };
    let plan = doublecheck::cases::strategies::Plan { previous: Previous::Absent, ..plan };
    plan.restricted(&capabilities).case().unwrap()
}

/// Ranks that do not divide the heads that share a selection are refused by the reference and by the certificate, others not.
#[test]
fn ranks_must_divide_the_heads_that_share_a_selection() {
    let mut case = any_case();
    for (heads, count, allowed) in [
        (HeadMode::SummedScores, 2, true),
        (HeadMode::SummedScores, 6, true),
        (HeadMode::SummedScores, 4, false),
        (HeadMode::Max, 12, false),
        (HeadMode::GroupMax, 3, true),
        (HeadMode::GroupMax, 2, false),
        (HeadMode::PerHead, 4, true),
    ] {
        case.instance.selection.heads = heads;
        case.instance.selection.rules.ranks = Ranks::new(count, Storage::F32).unwrap();
        let answer = Reference::default().answer(&case);
        let refused =
            matches!(&answer, Err(NoAnswer::Refused(Error::HeadMode(detail))) if detail.field == "ranks");
        assert!(if allowed { answer.is_ok() } else { refused }, "{heads:?} {count}: {answer:?}");
        let before = case.before().unwrap();
        let bounds = ScoreBounds::new(&case.instance, &case.call, RoundingModel::REFERENCE, &before);
        assert_eq!(bounds.is_err(), refused, "{heads:?} {count}");
    }
}

/// Weights that do not fit are refused where they are read, and survive a file where they do.
#[test]
fn channel_weights_must_fit_their_rows() {
    let order = ChannelOrder::new(vec![vec![0, 1, 2], vec![2, 1, 0]]).unwrap();
    for (weights, field) in [
        (vec![vec![1.0]], "channel_weights rows"),
        (vec![vec![1.0], vec![1.0, 2.0]], "channel_weights[1]"),
        (vec![vec![1.0; 4]; 2], "channel_weights[0]"),
        (vec![vec![1.0], vec![f32::NAN]], "channel_weights[1, 0]"),
    ] {
        let refused = order.clone().with_weights(weights).unwrap_err();
        assert!(refused.to_string().contains(field), "{refused}");
    }
    let key = "model.layers.3.self_attn.k_proj";
    let read = |weights: &str| {
        ChannelFile::from_json(&format!(r#"{{"{key}": [[0, 1], [1, 0]], "{key}.weights": {weights}}}"#))
    };
    let file = read("[[1, -0.5], [0, 1e-3]]").unwrap();
    let order = file.order(ChannelKind::KProj, 3).unwrap();
    assert_eq!(order.weights(), Some(&[vec![1.0, -0.5], vec![0.0, 1e-3]][..]));
    assert_eq!(ChannelFile::from_json(&file.to_json()).unwrap(), file);
    for wrong in ["[[1, 2]]", "[[1], [1, 2]]", "[[1], [1e300]]", "[1, 2]", "[[\"1\"], [2]]"] {
        let refused = read(wrong).unwrap_err().to_string();
        assert!(refused.contains(key), "{refused}");
    }
    assert!(ChannelFile::from_json(&format!(r#"{{"{key}.weights": [[1]]}}"#)).is_err());

    // Fewer than there are label channels, found where these are known.
    let case = any_case();
    let channels = case.channels().unwrap();
    assert!(channels.weights().is_some());
    let Ok(CaseFile::Attention(read)) = Reader::default().parse(&to_bytes(&case), "weights") else {
        panic!("a case with weights is read");
    };
    assert_eq!(read.channels().unwrap(), channels);
    let rows = channels.rows().to_vec();
    let short = ChannelOrder::new(rows).unwrap().with_weights(vec![Vec::new(); channels.rows().len()]);
    let answer = Reference::default().answer(&case.with_channels(short.unwrap()));
    assert!(matches!(answer, Err(NoAnswer::Refused(Error::ChannelRows(_)))), "{answer:?}");
}

/// The reference with the additive mask of head 0 for every head.
struct FirstHeadsMask(Reference, HeadMode);

impl Subject for FirstHeadsMask {
    fn name(&self) -> String {
        "reads the mask of head 0".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { heads: vec![self.1], ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.0.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let mut parts = call.inputs.parts().clone();
        parts.attention_mask =
            parts.attention_mask.map(|mask| mask.slice_move(ndarray::s![.., ..1, .., ..]).to_owned());
        let inputs = Inputs::new(parts)?.with_head_weights(call.inputs.head_weights().cloned())?;
        self.0.call(&Call { inputs: std::sync::Arc::new(inputs), ..call.clone() })
    }
}

#[test]
fn additive_masks_differ_between_heads() {
    for heads in [HeadMode::PerHead, HeadMode::SummedScores, HeadMode::Max, HeadMode::GroupSum] {
        let mut subject = FirstHeadsMask(Reference::default(), heads);
        let options = Options {
            cases: 300,
            naming: Duration::ZERO,
            conditions: false,
            stop_after: NonZeroUsize::new(1),
            ..Options::default()
        };
        let report = check(&mut subject, &options);
        assert!(!report.findings.is_empty(), "{heads:?}");
    }
}
