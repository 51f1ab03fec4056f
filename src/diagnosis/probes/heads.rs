//! Which KV head and which channel row each head reads, what the attention reads, and how heads that share a selection are
//! combined.

use super::draft::Draft;
use super::question::{Asked, Asking, Read};
use super::tell::{KV_HEADS, Measured, ROWS, Told, formula};
use super::tensors::Parts;
use crate::algorithm::HeadMode;
use crate::cases::Feature;
use crate::cases::strategies::ChannelRows;

/// KV heads and heads of each.
const HEADS: [(usize, usize); 8] = [(1, 2), (2, 2), (3, 1), (3, 2), (2, 3), (4, 2), (1, 4), (2, 4)];

const ALL_ROWS: [ChannelRows; 3] = [ChannelRows::PerHead, ChannelRows::PerKvHead, ChannelRows::Shared];

/// Drafts of these heads, as far as more than one head of each kind is offered.
fn drafts(asking: &mut Asking, keys: fn(&Draft) -> usize) -> Vec<Draft> {
    let mut drafts = Vec::new();
    asking.need(asking.capabilities.offers(Feature::GroupedHeads), "grouped_heads");
    for (kv_heads, group) in HEADS {
        for rows in ALL_ROWS {
            let wanted = Draft { kv_heads, group, rows, ..asking.draft(1) };
            let Some(found) = asking.fit(wanted) else { continue };
            let wanted =
                Draft { kv_heads: found.kv_heads, group: found.group, rows, ..asking.draft(keys(&found)) };
            let Some(draft) = asking.fit(wanted) else { continue };
            let same = |other: &Draft| {
                (other.kv_heads, other.group, other.rows) == (draft.kv_heads, draft.group, draft.rows)
            };
            if draft.heads() > 1 && draft.rows == rows && !drafts.iter().any(same) {
                drafts.push(draft);
            }
        }
    }
    asking.need(!drafts.is_empty(), "two heads");
    drafts
}

fn name(draft: &Draft) -> String {
    let rows = match draft.rows {
        ChannelRows::Shared => "one channel row",
        ChannelRows::PerKvHead => "rows per KV head",
        ChannelRows::PerHead => "rows per head",
    };
    format!("{} heads over {}, {rows}", draft.heads(), draft.kv_heads)
}

/// In KV head x key x scores highest, and a key after these second in all of them, so that a sum would choose that one.
pub(super) fn ask_kv_heads(asking: &mut Asking) {
    for draft in drafts(asking, |draft| draft.kv_heads + 1) {
        let after = draft.kv_heads;
        let score = |_: usize, kv_head: usize, key: usize| match key {
            key if key == kv_head => 2.0,
            key if key == after => 1.5,
            _ => 0.0,
        };
        asking.scored((&name(&draft), &[]), &draft, &score, None);
    }
}

/// Values of KV head x are all x + 1, as a row that attends to nothing gives 0.
pub(super) fn ask_values(asking: &mut Asking) {
    for draft in drafts(asking, |_| 3) {
        let v = ndarray::Array4::from_shape_fn(
            (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim()),
            |(_, kv_head, ..)| kv_head as f32 + 1.0,
        );
        let k = Some(draft.scored_keys(|_, _, key| key as f32 / 2.0));
        asking.call((&name(&draft), &[]), &draft, Parts { k, v: Some(v), ..Parts::default() }, Read::Whole);
    }
}

/// With every key selected, key x of KV head x takes all of the attention; the value of key j is j + 1.
pub(super) fn ask_attended_keys(asking: &mut Asking) {
    for draft in drafts(asking, |draft| draft.kv_heads) {
        let wanted = Draft { keys: draft.kv_heads, heavy: draft.kv_heads, ..draft };
        let Some(draft) = asking.fit(wanted) else { continue };
        let mut q = draft.unit_queries();
        q.mapv_inplace(|x| 60.0 * x * (draft.head_dim() as f32).sqrt());
        let k = draft.scored_keys(|_, kv_head, key| if key == kv_head { 1.0 } else { 0.0 });
        let offset = draft.offset();
        let v = ndarray::Array4::from_shape_fn(
            (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim()),
            |(_, _, position, _)| (position + 1).saturating_sub(offset) as f32,
        );
        let parts = Parts { q: Some(q), k: Some(k), v: Some(v), ..Parts::default() };
        asking.call((&name(&draft), &[]), &draft, parts, Read::Whole);
    }
}

/// Row x begins with its own channels, and key x has those alone.
pub(super) fn ask_channel_rows(asking: &mut Asking) {
    for draft in drafts(asking, |_| 1) {
        let rows = draft.row_count();
        let wanted = Draft { keys: rows, label_channels: 1, group_factor: rows.max(2), ..draft };
        let Some(draft) = asking.fit(wanted) else { continue };
        let (d, r, rows) = (draft.head_dim(), draft.label_channels, draft.row_count());
        let blocks = d / r;
        if rows > 1 && !asking.need(blocks > 1, "group_factor above 1") {
            continue;
        }
        let order = |row: usize| (0..d).map(|channel| (row % blocks * r + channel) % d).collect();
        let instance = draft.instance_with((0..rows).map(order).collect());
        let q = ndarray::Array4::ones((draft.batch, draft.heads(), draft.queries, d));
        let k = draft.keys_of(|_, _, key, channel| f32::from(u8::from(channel / r == key % blocks)));
        let calls = draft.call(Parts { q: Some(q), k: Some(k), ..Parts::default() }).map(|call| vec![call]);
        let read = Read::Keys { offset: draft.offset(), keys: draft.keys.min(blocks) };
        asking.sequence((&name(&draft), &[]), instance, calls, read);
    }
}

/// Heads whose scores differ, so that sum, mean, maximum, parts and single heads choose different keys.
pub(super) fn ask_modes(asking: &mut Asking) {
    let scores: [(&str, [[f32; 4]; 4]); 5] = [
        ("a sum above a maximum", [[3., 0., 0., 0.], [0., 2., 0., 0.], [0., 2., 0., 0.], [0., 0., 1., 0.]]),
        ("halves that differ", [[2., 0., 0., 0.], [2., 0., 0., 0.], [0., 3., 0., 0.], [0., 3., 0., 0.]]),
        ("every head its own", [[2., 0., 0., 0.], [0., 2., 0., 0.], [0., 0., 2., 0.], [0., 0., 0., 2.]]),
        ("a sum below a maximum", [[3., 2., 0., 0.], [0., 2., 0., 1.], [0., 0., 2., 1.], [0., 1., 2., 1.]]),
        ("neighbours and strides", [[2., 0., 3., 0.], [1., 3., 0., 0.], [2., 0., 0., 3.], [0., 3., 0., 1.]]),
    ];
    for &mode in &asking.capabilities.heads.clone() {
        for (kv_heads, group) in [(4, 1), (2, 2), (1, 4)] {
            for (about, scores) in scores {
                for biased in [false, true] {
                    of_mode(asking, (mode, kv_heads, group), (about, scores), biased);
                }
            }
        }
    }
}

/// The score of a head comes from its query, so that heads of one KV head may differ, too.
fn of_mode(
    asking: &mut Asking,
    (mode, kv_heads, group): (HeadMode, usize, usize),
    (about, scores): (&str, [[f32; 4]; 4]),
    biased: bool,
) {
    let heads = kv_heads * group;
    let label_channels = 4;
    let wanted =
        Draft { mode, kv_heads, group, label_channels, rows: ChannelRows::Shared, ..asking.draft(4) };
    let Some(draft) = asking.fit(wanted) else { return };
    if !asking.need(draft.heads() == heads && draft.label_channels >= 4, "four heads and four label channels")
    {
        return;
    }
    let shape = (draft.batch, heads, draft.queries, draft.head_dim());
    let q = ndarray::Array4::from_shape_fn(shape, |(_, head, _, channel)| {
        scores[head].get(channel).copied().unwrap_or(0.0)
    });
    let k = draft.keys_of(|_, _, key, channel| f32::from(u8::from(channel == key)));
    // A finite A on the last key: a mean is moved more than a sum.
    let factor = draft.rules.factor.get(draft.label_channels, draft.head_dim()) as f32;
    let additive =
        biased.then(|| draft.additive((1, 1, 1), |_, _, _, key| if key == 3 { 1.3 * factor } else { 0.0 }));
    if biased && !asking.need(asking.capabilities.offers(Feature::AttentionMask), "attention_mask") {
        return;
    }
    let parts = Parts { q: Some(q), k: Some(k), additive, ..Parts::default() };
    let read = Read::Keys { offset: draft.offset(), keys: draft.keys };
    let bias = if biased { " with A on key 3" } else { "" };
    let about = format!("{}, {heads} heads over {}: {about}{bias}", mode.name(), draft.kv_heads);
    asking.call((&about, &[]), &draft, parts, read);
}

fn told(measured: &[Measured], what: &str, formulas: &[super::tell::Formula]) -> Told {
    let all: Vec<&Measured> = measured.iter().collect();
    match formula(&all, |reading| reading.row.1, formulas) {
        Some(formula) => Told::Rule(format!("head i reads {what} {formula}")),
        None => Told::or_examples(measured, || format!("the {what} that the head mode says")),
    }
}

pub(super) fn tell_kv_heads(measured: &[Measured]) -> Told {
    told(measured, "KV head", KV_HEADS)
}

pub(super) fn tell_channel_rows(measured: &[Measured]) -> Told {
    told(measured, "channel row", ROWS)
}

/// By head mode: as the reference, or what differs.
pub(super) fn tell_modes(measured: &[Measured]) -> Told {
    let mode = |one: &Measured| match &one.question.asked {
        Asked::Sequence(sequence) => sequence.instance.selection.heads.name(),
        Asked::Stage(_) => "",
    };
    let mut modes: Vec<_> = measured.iter().map(mode).collect();
    modes.dedup();
    Told::or_examples(measured, || modes.join(", "))
}
