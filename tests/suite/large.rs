//! Sequences of real sizes: what they contain, and that bugs which need size are found by them and shrunk to the edge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use doublecheck::algorithm::{Inputs, Mask, Storage};
use doublecheck::cases::large_plan::{Large, Scores, large_sequence};
use doublecheck::cases::{
    Answer, Call, Capabilities, Constraint, Domain, Feature, Instance, NoAnswer, Quantity, Sequence,
};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use doublecheck::{Options, check};

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
        *seen.entry(format!("d = {}", dims.head_dim)).or_default() += 1;
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
    for (sequence, scores) in drawn(&Capabilities::default(), 130, 2048) {
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
    let options = Options { cases: 320, ..Options::default() };
    let small_only = Options { largest_keys: 0, ..options.clone() };
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 64);
    assert_eq!(finding_of(dropped, &small_only), None);
    let (keys, found) = finding_of(dropped, &options).expect("found");
    assert_eq!(keys, 65, "{found}");
    let dropped: fn(&mut Reference, &Call) -> _ = |reference, call| without_last_tile(reference, call, 256);
    let (keys, found) = finding_of(dropped, &options).expect("found");
    assert_eq!(keys, 257, "{found}");
}

/// A key is lost wherever there are more than some number of keys: shrunk to that number and one.
#[test]
fn bugs_beyond_a_size_are_shrunk_to_it() {
    fn first_key_lost_above(reference: &mut Reference, call: &Call, most: usize) -> Result<Answer, NoAnswer> {
        let answer = reference.call(call)?;
        let dims = call.inputs.dims();
        if dims.keys <= most {
            return Ok(answer);
        }
        let mut weights = answer.mask.weights().clone();
        for (b, head, i) in dims.rows() {
            let first = (0..dims.keys).find(|&key| weights[[b, head, i, key]] > 0.0);
            if let Some(key) = first {
                weights[[b, head, i, key]] = 0.0;
            }
        }
        Ok(Answer::new(Mask::from_weights(weights, &dims)?, None))
    }
    let options = Options { cases: 160, largest_keys: 4096, ..Options::default() };
    for (most, call) in [
        (64, (|r, c| first_key_lost_above(r, c, 64)) as fn(&mut Reference, &Call) -> _),
        (1024, |r, c| first_key_lost_above(r, c, 1024)),
    ] {
        let (keys, found) = finding_of(call, &options).expect("found");
        assert!((most + 1..=most + 2).contains(&keys), "{keys} keys, {found}");
    }
}
