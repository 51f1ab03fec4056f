//! How many keys a row takes, as a function of H and of the candidates; H as a share of the keys, and where few keys make a
//! mask full.

use super::draft::Draft;
use super::question::{Asked, Asking, Read, Shown};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::Forced;
use crate::cases::{Feature, Takes};

const SIZES: [usize; 9] = [1, 2, 4, 7, 8, 20, 65, 130, 300];

const SHARES: [f64; 6] = [0.01, 0.2, 0.3, 0.5, 0.67, 1.0];

pub(super) fn ask(asking: &mut Asking) {
    for n in SIZES {
        let mut heavy = vec![1, 2, 3, 4, 5, 8, n / 2, n.saturating_sub(2), n - 1, n, n + 1, n + 3, 100];
        heavy.retain(|&heavy| heavy >= 1 && heavy <= n + 3);
        heavy.sort_unstable();
        heavy.dedup();
        for heavy in heavy {
            // The first keys excluded, or the last ones.
            for (excluded, from) in [(0, 0), (1, 0), (2, 0), (2, n.saturating_sub(2))] {
                if excluded < n {
                    counted(asking, n, heavy, excluded, from);
                }
            }
        }
    }
}

fn counted(asking: &mut Asking, n: usize, heavy: usize, excluded: usize, from: usize) {
    let takes_scores = asking.capabilities.stages.takes == Takes::Scores;
    let offered = takes_scores || asking.capabilities.offers(Feature::AttentionMask);
    if excluded > 0 && !asking.need(offered, "attention_mask") {
        return;
    }
    let Some(draft) = asking.fit(Draft { heavy, ..asking.draft(n) }) else { return };
    let additive = (excluded > 0).then(|| {
        let lost = from..from + excluded;
        draft.additive((1, 1, 1), |_, _, _, key| if lost.contains(&key) { f32::NEG_INFINITY } else { 0.0 })
    });
    // A permutation of steps that every type tells apart where there are few.
    let score = |_: usize, _: usize, key: usize| ((key * 7919 + 13) % n) as f32 / n as f32 + 1.0;
    let numbers = [("n", n), ("H", heavy), ("candidates", n - excluded)];
    asking.scored(("", &numbers), &draft, &score, additive);
}

pub(super) fn ask_shares(asking: &mut Asking) {
    for n in [3, 7, 10, 64] {
        for share in SHARES {
            let Some(draft) = asking.fit(Draft { fraction: Some(share), ..asking.draft(n) }) else {
                continue;
            };
            let score = |_: usize, _: usize, key: usize| ((key * 5 + 2) % n) as f32 / n as f32 + 1.0;
            let about = format!("a share of {share}");
            asking.scored((&about, &[("n", n)]), &draft, &score, None);
        }
    }
}

pub(super) fn ask_short(asking: &mut Asking) {
    for dense_fallback in [false, true] {
        for (n, queries) in [(2, 1), (4, 1), (5, 1), (6, 1), (7, 3), (8, 3), (9, 3), (70, 1)] {
            let heavy = 4;
            let wanted = Draft { heavy, queries, causal: true, dense_fallback, ..asking.draft(n) };
            let Some(draft) = asking.fit(wanted) else { continue };
            let offered = asking.capabilities.offers(Feature::DenseFallback);
            if dense_fallback && !asking.need(offered, "dense_fallback") {
                continue;
            }
            let score = |_: usize, _: usize, key: usize| key as f32 / n as f32 + 1.0;
            let about = if dense_fallback { "with dense fallback" } else { "without dense fallback" };
            asking.scored((about, &[("n", n), ("m", queries), ("H", heavy)]), &draft, &score, None);
        }
    }
    dense_layers(asking);
}

/// A dense layer beside a sparse one, also with weights of an earlier mask.
fn dense_layers(asking: &mut Asking) {
    let capabilities = asking.capabilities;
    if !asking.need(capabilities.offers(Feature::DenseLayers), "dense_layers") {
        return;
    }
    for weighted in [false, true] {
        if weighted && !asking.need(capabilities.offers(Feature::Weights), "weights") {
            continue;
        }
        let Some(draft) = asking.fit(Draft { heavy: 2, ..asking.draft(6) }) else { continue };
        let Some(mut instance) = draft.instance() else { continue };
        instance.dense_layers = vec![0];
        let mut file = (*instance.channel_file).clone();
        if let Ok(order) = instance.channels(0).cloned() {
            file.insert(instance.channel_selection, 1, order);
        }
        instance.channel_file = file.into();
        let call = |layer| {
            let k = Some(draft.scored_keys(|_, _, key| key as f32 / 6.0 + 1.0));
            let previous = weighted.then(|| draft.previous(|_, _, _, key| if key < 2 { 0.5 } else { 0.0 }));
            draft.call(Parts { k, previous, layer, ..Parts::default() })
        };
        let calls = [1, 0, 1].map(call).into_iter().collect();
        let read = Read::Keys { offset: draft.offset(), keys: draft.keys };
        let about = if weighted { "layer 0 dense, with an earlier mask" } else { "layer 0 dense" };
        asking.sequence((about, &[]), Some(instance), calls, read);
    }
}

/// A name, and how many of c candidates a row takes where H, at most n, is `heavy`.
type Rule = (&'static str, fn(usize, usize) -> usize);

const RULES: [Rule; 8] = [
    ("min(H, candidates)", |heavy, c| heavy.min(c)),
    ("min(H + 1, candidates)", |heavy, c| (heavy + 1).min(c)),
    ("min(H − 1, candidates)", |heavy, c| (heavy - 1).min(c)),
    ("H − 1 where candidates exceed H, otherwise all", |heavy, c| if c > heavy { heavy - 1 } else { c }),
    (
        "min(H, candidates), but none where candidates = H",
        |heavy, c| if c == heavy { 0 } else { heavy.min(c) },
    ),
    ("H, but all where candidates ≤ H + 1", |heavy, c| if c <= heavy + 1 { c } else { heavy }),
    ("min(H, candidates, 64)", |heavy, c| heavy.min(c).min(64)),
    ("all candidates", |_, c| c),
];

pub(super) fn tell(measured: &[Measured]) -> Told {
    let number = |one: &Measured, name: &str| {
        one.question.numbers.iter().find(|(own, _)| *own == name).map_or(0, |(_, number)| *number)
    };
    let fits = |rule: &Rule| {
        measured.iter().all(|one| {
            let heavy = number(one, "H").min(number(one, "n"));
            let expected = (rule.1)(heavy, number(one, "candidates"));
            one.found.iter().all(|found| matches!(&found.shows, Shown::Keys(keys) if keys.len() == expected))
        })
    };
    let rule = RULES.iter().find(|rule| fits(rule)).map(|rule| rule.0.to_owned());
    let forced = measured.iter().any(|one| match &one.question.asked {
        Asked::Sequence(sequence) => sequence.instance.selection.rules.forced != Forced::default(),
        Asked::Stage(_) => false,
    });
    let beside = if forced { " beside forced keys" } else { "" };
    match rule {
        Some(rule) if rule != RULES[0].0 => Told::Rule(rule + beside),
        _ => Told::or_examples(measured, || format!("{}{beside}", RULES[0].0)),
    }
}

pub(super) fn tell_short(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "only where it is set".into())
}

pub(super) fn tell_shares(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "⌊share · n⌋, at least 1".into())
}
