//! Which channels enter the labels, of which layer and of which kind of rows.

use std::sync::Arc;

use ndarray::Array4;

use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::channels::half_split_to_interleaved;
use crate::algorithm::{ChannelFile, ChannelKind, ChannelOrder};
use crate::cases::Feature;

/// Label channels and group factor.
const CHANNELS: [(usize, usize); 6] = [(1, 1), (1, 4), (2, 2), (3, 2), (4, 2), (5, 1)];

/// Key j has channel j alone, and those beyond the first r a little of the first channel, so that they come before a key whose channel
/// does not enter; as many are selected as channels enter.
pub(super) fn ask_entering(asking: &mut Asking) {
    let mut seen = Vec::new();
    for (label_channels, group_factor) in CHANNELS {
        let Some(draft) = asking.fit(Draft { label_channels, group_factor, ..asking.draft(1) }) else {
            continue;
        };
        let (r, d) = (draft.label_channels, draft.head_dim());
        let wanted = Draft { keys: d, heavy: r, ..draft };
        let Some(draft) = asking.fit(wanted) else { continue };
        if seen.contains(&(r, d)) || (draft.label_channels, draft.head_dim()) != (r, d) {
            continue;
        }
        seen.push((r, d));
        let order = scattered(d);
        let instance = draft.instance_with(vec![order.clone(); draft.row_count()]);
        let q = Array4::ones((draft.batch, draft.heads(), draft.queries, d));
        let k = draft.keys_of(|_, _, key, channel| match channel {
            channel if channel == order[key] => 2.0,
            channel if channel == order[0] && key >= r => 0.5,
            _ => 0.0,
        });
        let calls = draft.call(Parts { q: Some(q), k: Some(k), ..Parts::default() }).map(|call| vec![call]);
        let read = Read::Keys { offset: draft.offset(), keys: d };
        asking.sequence(("", &[("r", r), ("d", d)]), instance, calls, read);
    }
}

/// All channels, far from their own order: 1, 4, 7, … for steps of 3.
fn scattered(d: usize) -> Vec<usize> {
    let coprime = |step: &usize| (2..=*step).all(|x| !(step.is_multiple_of(x) && d.is_multiple_of(x)));
    let step =
        [3, 5, 7, 2, 11, 13].into_iter().find(|step| step % d.max(1) != 1 && coprime(step)).unwrap_or(1);
    (0..d).map(|place| (place * step + d / 2) % d).collect()
}

pub(super) fn tell_entering(measured: &[Measured]) -> Told {
    type Which = fn(usize, usize, usize) -> bool;
    let rules: [(&str, Which); 4] = [
        ("the first r of a row", |place, r, _| place < r),
        ("the last r of a row", |place, r, d| place >= d - r),
        ("the first r − 1 of a row where r is odd", |place, r, _| {
            place < if r > 1 { r - r % 2 } else { r }
        }),
        ("the first r of a row, each mapped to interleaved RoPE", |place, r, d| {
            let order = scattered(d);
            let mapped = |channel: &usize| half_split_to_interleaved(*channel, d).unwrap_or(*channel);
            order[..r].iter().any(|channel| mapped(channel) == order[place])
        }),
    ];
    let number = |one: &Measured, name: &str| {
        one.question.numbers.iter().find(|(own, _)| *own == name).map_or(1, |(_, number)| *number)
    };
    let fits = |which: Which| {
        measured.iter().all(|one| {
            let (r, d) = (number(one, "r"), number(one, "d"));
            let expected: Vec<usize> = (0..d).filter(|&place| which(place, r, d)).collect();
            one.found.iter().all(|found| found.shows == Shown::Keys(expected.clone()))
        })
    };
    match rules.iter().find(|rule| fits(rule.1)) {
        Some((name, _)) => Told::Rule((*name).into()),
        None => Told::or_examples(measured, || "others".into()),
    }
}

/// Rows of layer x begin with channel x, and so does key x.
pub(super) fn ask_layers(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Sequences), "sequences") {
        return;
    }
    let Some(draft) = one_hot(asking) else { return };
    let Some(mut instance) = draft.instance() else { return };
    let (r, d) = (draft.label_channels, draft.head_dim());
    let layers = (d / r).min(6);
    let mut file = ChannelFile::default();
    for layer in 0..layers {
        let row: Vec<usize> = (0..d).map(|channel| (layer * r + channel) % d).collect();
        if let Ok(order) = ChannelOrder::new(vec![row; draft.row_count()]) {
            file.insert(instance.channel_selection, layer, order);
        }
    }
    instance.channel_file = Arc::new(file);
    let order = [4, 2, 3, 0, 4, 1, 5, 5].map(|layer| layer % layers);
    let calls = order.into_iter().map(|layer| own_channels(&draft, layer, 0)).collect();
    let read = Read::Keys { offset: draft.offset(), keys: layers };
    asking.sequence(("layers in turn", &[]), Some(instance.clone()), calls, read);
    // The same layers after each other with the same keys, in the other order.
    let calls = (0..layers).rev().map(|layer| own_channels(&draft, layer, 0)).collect();
    asking.sequence(("layers from the last", &[]), Some(instance), calls, read);
}

/// A draft with as many keys as there are blocks of label channels.
fn one_hot(asking: &mut Asking) -> Option<Draft> {
    let draft = asking.fit(Draft { label_channels: 1, group_factor: 6, ..asking.draft(1) })?;
    let blocks = draft.head_dim() / draft.label_channels;
    if !asking.need(blocks > 1, "group_factor above 1") {
        return None;
    }
    let draft = asking.fit(Draft { keys: blocks, ..draft })?;
    (draft.head_dim() / draft.label_channels == blocks).then_some(draft)
}

/// A call in which key x has the block x of channels, shifted.
fn own_channels(draft: &Draft, layer: usize, shift: usize) -> Option<crate::cases::Call> {
    let (r, d) = (draft.label_channels, draft.head_dim());
    let q = Array4::ones((draft.batch, draft.heads(), draft.queries, d));
    let k = draft.keys_of(|_, _, key, channel| f32::from(u8::from(channel / r == (key + shift) % (d / r))));
    draft.call(Parts { q: Some(q), k: Some(k), layer, ..Parts::default() })
}

/// Rows of each kind begin with other channels. One instance after another, each with the next kind.
pub(super) fn ask_kinds(asking: &mut Asking) {
    let Some(draft) = one_hot(asking) else { return };
    let Some(instance) = draft.instance() else { return };
    let (r, d) = (draft.label_channels, draft.head_dim());
    let mut file = ChannelFile::default();
    for (place, kind) in ChannelKind::ALL.into_iter().enumerate() {
        let rows = if kind == ChannelKind::KProj { draft.kv_heads } else { draft.heads() };
        let row: Vec<usize> = (0..d).map(|channel| (place * r + channel) % d).collect();
        let rows = if draft.row_count() == 1 { 1 } else { rows };
        if let Ok(order) = ChannelOrder::new(vec![row; rows]) {
            file.insert(kind, 0, order);
        }
    }
    let file = Arc::new(file);
    for kind in [ChannelKind::QkProj, ChannelKind::QProj, ChannelKind::KProj, ChannelKind::QkProj] {
        let mut instance = instance.clone();
        (instance.channel_file, instance.channel_selection) = (file.clone(), kind);
        let calls = own_channels(&draft, 0, 0).map(|call| vec![call]);
        let read = Read::Keys { offset: draft.offset(), keys: draft.keys };
        asking.sequence((kind.name(), &[]), Some(instance), calls, read);
    }
}

/// What questions of several calls show: the call, and what it reads.
pub(super) fn tell_calls(measured: &[Measured]) -> Told {
    let lines = measured.iter().map(|one| one.question.about.clone()).collect::<Vec<_>>();
    Told::or_examples(measured, || format!("its own: {}", lines.join(", ")))
}

pub(super) fn tell_own(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "its own".into())
}
