//! What scores are multiplied by before A is added: key 0 has a score, key 1 has none and a finite A. Where key 1 wins, A is larger.
//! Key 2 has neither.

use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::cases::Feature;

/// A in parts of the score that key 0 should have, in hundredths.
const PARTS: [usize; 12] = [10, 22, 40, 60, 80, 95, 105, 120, 160, 220, 450, 1200];

pub(super) fn ask(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::AttentionMask), "attention_mask") {
        return;
    }
    for part in PARTS {
        let wanted = Draft { label_channels: 4, group_factor: 4, ..asking.draft(3) };
        let Some(draft) = asking.fit(wanted) else { return };
        let k = draft.scored_keys(|_, _, key| if key == 0 { 4.0 } else { 0.0 });
        let heads = draft.heads() as f32;
        let shared = if draft.mode == crate::algorithm::HeadMode::SummedLabels { heads } else { 1.0 };
        let score = 4.0 * shared * factor(&draft);
        let added = score * part as f32 / 100.0;
        let additive = draft.additive((1, 1, 1), |_, _, _, key| if key == 1 { added } else { 0.0 });
        let parts = Parts { k: Some(k), additive: Some(additive), ..Parts::default() };
        let read = Read::Keys { offset: draft.offset(), keys: 2 };
        let numbers = [("percent", part), ("r", draft.label_channels), ("d", draft.head_dim())];
        asking.call(("", &numbers), &draft, parts, read);
    }
}

fn factor(draft: &Draft) -> f32 {
    draft.rules.factor.get(draft.label_channels, draft.head_dim()) as f32
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    let number = |one: &Measured, name: &str| {
        one.question.numbers.iter().find(|(own, _)| *own == name).map_or(0, |(_, number)| *number)
    };
    let all = |one: &Measured, key| one.found.iter().all(|found| found.shows == Shown::Keys(vec![key]));
    if !measured.iter().all(|one| all(one, 0) || all(one, 1)) {
        return Told::or_examples(measured, || "as the head mode says".into());
    }
    let wins = |one: &&Measured| all(one, 0);
    let (won, lost): (Vec<_>, Vec<_>) = measured.iter().partition(wins);
    let least = won.iter().map(|one| number(one, "percent")).max();
    let most = lost.iter().map(|one| number(one, "percent")).min();
    let (Some(first), true) = (measured.first(), least.zip(most).is_none_or(|(least, most)| least < most))
    else {
        return Told::or_examples(measured, || "no single factor".into());
    };
    let super::question::Asked::Sequence(sequence) = &first.question.asked else {
        return Told::Rule(String::new());
    };
    let (r, d) = (number(first, "r"), number(first, "d"));
    let factor = sequence.instance.selection.rules.factor.get(r, d);
    let range = match (least, most) {
        (Some(least), Some(most)) => {
            let bounds = [least, most].map(|part| factor * part as f64 / 100.0);
            let names = [("1/√r", (r as f64).sqrt().recip()), ("1/√d", (d as f64).sqrt().recip())];
            let more = [("1", 1.0), ("1/r", (r as f64).recip()), ("1/d", (d as f64).recip())];
            let inside = |(_, value): &(&str, f64)| bounds[0] < *value && *value < bounds[1];
            let name =
                names.into_iter().chain(more).find(inside).map_or(String::new(), |n| format!(" ({})", n.0));
            format!("between {:.3} and {:.3}{name}", bounds[0], bounds[1])
        }
        (None, _) => format!("below {:.3}, or A counts more", factor * PARTS[0] as f64 / 100.0),
        (_, None) => {
            format!("above {:.3}, or A does not count", factor * PARTS[PARTS.len() - 1] as f64 / 100.0)
        }
    };
    Told::Rule(format!("{range}, r = {r}, d = {d}"))
}
