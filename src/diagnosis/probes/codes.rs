//! The grid of labels, for each number of bits: a label of known code is compared with keys that score a little less and a little
//! more. Key 0 holds the label; key 1 has channel 0 alone, so that its code is exact and its score is what one likes.

use ndarray::Array4;

use super::candidates::with_lanes;
use super::changes::LABELS;
use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::simulate::explained;
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::channels::ranges;

const BITS: [usize; 8] = [1, 2, 3, 4, 5, 8, 9, 12];

/// Codes to be read, in steps from the row's lowest value.
fn fractions(top: f32) -> Vec<f32> {
    let all = [0.3, 0.5, 0.7, 1.3, 1.5, 2.5, 5.0, 127.4, 130.0, 200.6, 300.0, top - 0.6, top - 0.4, top];
    all.into_iter().filter(|&x| x >= 0.0 && x <= top).collect()
}

/// A label to be read: the step of its grid, its lowest value, and its place in steps.
#[derive(Clone, Copy)]
struct Label {
    step: f32,
    low: f32,
    place: f32,
}

fn labels(bits: usize) -> Vec<Label> {
    let top = ((1u32 << bits) - 1) as f32;
    let grids = [(1.0, 0.0), (1.0, 5.0), (0.5, 0.0), (0.75, -3.0)];
    let of = |(step, low)| fractions(top).into_iter().map(move |place| Label { step, low, place });
    grids.into_iter().flat_map(of).collect()
}

pub(super) fn ask_keys(asking: &mut Asking) {
    for bits in BITS {
        ask_bits(asking, bits, false);
    }
}

pub(super) fn ask_queries(asking: &mut Asking) {
    for bits in BITS {
        ask_bits(asking, bits, true);
    }
}

/// Rows whose channels are all equal are labels of that number, also where there is one channel only.
pub(super) fn ask_equal(asking: &mut Asking) {
    for bits in BITS {
        for label_channels in [1, 3] {
            let wanted = Draft { label_channels, group_factor: 2, bits, ..asking.draft(2) };
            let Some(draft) = asking.fit(wanted) else { continue };
            if !asking.need(draft.bits == bits, "quantised") {
                continue;
            }
            for beside in [-0.5, 0.5] {
                let r = draft.label_channels;
                let q = draft.unit_queries();
                let k = draft.keys_of(|_, _, key, channel| match (key, channel) {
                    (0, channel) if channel < r => 3.0,
                    (1, 0) => 3.0 + beside,
                    _ => 0.0,
                });
                let read = Read::Keys { offset: draft.offset(), keys: 2 };
                let parts = Parts { q: Some(q), k: Some(k), ..Parts::default() };
                asking.call(("equal channels", &[("B", bits), ("r", r)]), &draft, parts, read);
            }
        }
    }
}

/// Each label is compared twice: with a key below and with one above what its code stands for.
fn ask_bits(asking: &mut Asking, bits: usize, of_queries: bool) {
    let top = ((1u32 << bits) - 1) as f32;
    let compared: Vec<(Label, f32)> =
        labels(bits).into_iter().flat_map(|label| [-0.25, 0.25].map(|beside| (label, beside))).collect();
    let wanted = Draft { label_channels: 3, group_factor: 2, bits, ..asking.draft(2) };
    let Some(draft) = with_lanes(asking, wanted, compared.len().min(16)) else { return };
    if !asking.need(draft.label_channels >= 3, "three label channels")
        || !asking.need(draft.bits == bits, "quantised")
    {
        return;
    }
    let (r, d) = (draft.label_channels, draft.head_dim());
    for chunk in compared.chunks(draft.lanes().min(compared.len())) {
        let of = |lane: usize| chunk[lane % chunk.len()];
        // The label's row: its place, both ends of the grid, and a number outside of it in a channel that does not enter.
        let row = |label: Label, channel: usize| match channel {
            0 => label.low + label.place * label.step,
            1 => label.low + top * label.step,
            channel if channel < r => label.low,
            _ => -50.0,
        };
        let beside = |label: Label, beside: f32| {
            label.low + (label.place.round_ties_even().clamp(0.0, top) + beside) * label.step
        };
        let unit = |channel: usize, wanted: usize, value: f32| if channel == wanted { value } else { 0.0 };
        let q = Array4::from_shape_fn(
            (draft.batch, draft.heads(), draft.queries, d),
            |(entry, head, _, channel)| match of_queries {
                true => row(of(draft.lane(entry, head / draft.group)).0, channel),
                false => unit(channel, 0, 1.0),
            },
        );
        let k = draft.keys_of(|entry, kv_head, key, channel| {
            let (label, side) = of(draft.lane(entry, kv_head));
            match (of_queries, key) {
                (false, 0) => row(label, channel),
                (false, _) => unit(channel, 0, beside(label, side)),
                (true, 0) => unit(channel, 0, 1.0),
                // The label of channel 1 is the top of the grid.
                (true, _) => unit(channel, 1, beside(label, side) / (label.low + top * label.step)),
            }
        });
        let read = Read::Keys { offset: draft.offset(), keys: 2 };
        let about = chunk.iter().map(|(label, side)| {
            let side = if *side < 0.0 { "lower" } else { "higher" };
            format!(
                "{} steps of {} above {} against a key a quarter step {side}",
                label.place, label.step, label.low
            )
        });
        let about = if chunk.len() == 1 { about.collect::<String>() } else { String::new() };
        asking.call(
            (&about, &[("B", bits)]),
            &draft,
            Parts { q: Some(q), k: Some(k), ..Parts::default() },
            read,
        );
    }
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    let bits = |one: &Measured| one.question.numbers.first().map_or(0, |(_, bits)| *bits);
    let mut wrong: Vec<usize> = Vec::new();
    let mut examples = Vec::new();
    for one in measured {
        for (found, expected) in one.pairs() {
            let Some(expected) = expected.filter(|expected| expected.shows != found.shows) else { continue };
            wrong.push(bits(one));
            if let Some(example) = example(one, found.row, &found.shows, &expected.shows) {
                examples.push(example);
            }
        }
    }
    wrong.sort_unstable();
    wrong.dedup();
    let mut asked: Vec<usize> = measured.iter().map(bits).collect();
    asked.sort_unstable();
    asked.dedup();
    if wrong.is_empty() {
        let fallback = || format!("the grid of SPEC §2.5 for B = {}", ranges(asked));
        return Told::or_examples(measured, fallback);
    }
    if let Some(told) = explained(measured, LABELS) {
        return Told::Rule(format!("{told}, B = {}", ranges(asked)));
    }
    examples.truncate(2);
    Told::Examples(format!("off the grid for B = {}: {}", ranges(wrong), examples.join("; ")))
}

pub(super) fn tell_equal(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "the number itself".into())
}

/// What one comparison says, from the numbers asked.
fn example(
    one: &Measured,
    (entry, head, query): crate::algorithm::Row,
    found: &Shown,
    expected: &Shown,
) -> Option<String> {
    let super::question::Asked::Sequence(sequence) = &one.question.asked else { return None };
    let call = sequence.calls.first()?;
    let Read::Keys { offset, .. } = one.question.read else { return None };
    let dims = call.inputs.dims();
    let queries = call.inputs.queries(entry, head);
    let keys = call.inputs.keys(entry, dims.kv_head(head));
    let r = sequence.instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
    let show = |row: ndarray::ArrayView1<f32>| format!("{:?}", row.iter().take(r.min(4)).collect::<Vec<_>>());
    Some(format!(
        "q {} with keys {} and {}: {found} selected, expected {expected}",
        show(queries.row(query)),
        show(keys.row(offset)),
        show(keys.row(offset + 1))
    ))
}
