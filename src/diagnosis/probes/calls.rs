//! What carries over from call to call of an instance, and from one instance to the next: a row should read the call's own keys. In
//! each call one key scores highest, and keys of earlier calls at the same positions score otherwise.

use std::sync::Arc;

use super::changes::SOURCES;
use super::draft::Draft;
use super::question::{Asking, Read};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::ChannelFile;
use crate::cases::Feature;

/// One call: layer, entries, queries, keys, and the key that scores highest.
type Step = (usize, usize, usize, usize, usize);

const STORIES: [(&str, &[Step]); 24] = [
    ("the same sizes with other keys", &[(0, 1, 1, 4, 1), (0, 1, 1, 4, 3)]),
    ("the same sizes three times", &[(0, 1, 1, 4, 1), (0, 1, 1, 4, 3), (0, 1, 1, 4, 2)]),
    ("the same sizes on another layer", &[(0, 1, 1, 4, 1), (1, 1, 1, 4, 3)]),
    ("two layers in turn", &[(0, 1, 1, 4, 1), (1, 1, 1, 4, 3), (0, 1, 1, 4, 2), (1, 1, 1, 4, 1)]),
    ("grown by one, the newest best", &[(0, 1, 1, 4, 1), (0, 1, 1, 5, 4)]),
    ("grown by one twice, the newest best", &[(0, 1, 1, 4, 1), (0, 1, 1, 5, 4), (0, 1, 1, 6, 5)]),
    ("grown by one, an old position best", &[(0, 1, 1, 4, 1), (0, 1, 1, 5, 2)]),
    ("grown by a chunk, its first best", &[(0, 1, 4, 4, 1), (0, 1, 3, 7, 4)]),
    ("grown by a chunk, its second best", &[(0, 1, 4, 4, 1), (0, 1, 3, 7, 5)]),
    ("grown by a chunk, its last best", &[(0, 1, 4, 4, 1), (0, 1, 3, 7, 6)]),
    ("a chunk and one more", &[(0, 1, 4, 4, 1), (0, 1, 2, 6, 5), (0, 1, 1, 7, 6)]),
    ("grown by several without queries for them", &[(0, 1, 1, 4, 1), (0, 1, 1, 8, 6)]),
    ("started again, shorter", &[(0, 1, 1, 6, 1), (0, 1, 1, 4, 3)]),
    ("started again, equally long", &[(0, 1, 5, 5, 1), (0, 1, 5, 5, 3)]),
    ("started again, longer, an old position best", &[(0, 1, 4, 4, 1), (0, 1, 8, 8, 2)]),
    ("started again, longer, a new position best", &[(0, 1, 4, 4, 1), (0, 1, 8, 8, 6)]),
    ("long, short, long again", &[(0, 1, 1, 8, 6), (0, 1, 1, 4, 2), (0, 1, 1, 8, 5)]),
    ("long, short, one more", &[(0, 1, 1, 8, 6), (0, 1, 1, 4, 2), (0, 1, 1, 5, 4)]),
    ("long, short, two more", &[(0, 1, 1, 8, 6), (0, 1, 1, 4, 2), (0, 1, 1, 7, 3)]),
    ("a larger batch", &[(0, 1, 1, 4, 1), (0, 3, 1, 4, 3)]),
    ("a smaller batch", &[(0, 3, 1, 4, 1), (0, 1, 1, 4, 3)]),
    ("the same batch with other keys", &[(0, 2, 1, 4, 1), (0, 2, 1, 4, 3)]),
    ("a batch that grows by one", &[(0, 2, 1, 4, 1), (0, 2, 1, 5, 4)]),
    ("past a page of 16", &[(0, 1, 15, 15, 1), (0, 1, 1, 16, 15), (0, 1, 1, 17, 16), (0, 1, 1, 18, 9)]),
];

pub(super) fn ask(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Sequences), "sequences") {
        return;
    }
    for (about, steps) in STORIES {
        for quantised in [false, true] {
            story(asking, about, steps, quantised);
        }
    }
}

fn fitted(asking: &mut Asking, step: Step, bits: usize) -> Option<Draft> {
    let (_, batch, queries, n, _) = step;
    let draft = asking.fit(Draft { batch, queries, bits, causal: true, ..asking.draft(n) })?;
    let all =
        asking.need(draft.batch == batch, "batch") && asking.need(draft.queries == queries, "many_queries");
    (all && asking.need(draft.bits == bits, if bits == 16 { "not_quantised" } else { "quantised" }))
        .then_some(draft)
}

fn story(asking: &mut Asking, about: &str, steps: &[Step], quantised: bool) {
    let bits = if quantised { 4 } else { 16 };
    let mut calls = Vec::new();
    let mut last = None;
    for &step in steps {
        let Some(draft) = fitted(asking, step, bits) else { return };
        let (layer, _, _, n, best) = step;
        let k = draft.scored_keys(|_, kv_head, key| {
            let other = (key * 3 + best + kv_head) % n;
            if key == best { 2.0 } else { other as f32 / n as f32 / 2.0 }
        });
        let Some(call) = draft.call(Parts { k: Some(k), layer, ..Parts::default() }) else { return };
        calls.push(call);
        last = Some(draft);
    }
    let Some(draft) = last else { return };
    // All calls are of one instance: H, and so the fillers, must be the same in each.
    let keys = Read::Keys { offset: draft.offset(), keys: draft.keys };
    let about = if quantised { format!("{about}, quantised") } else { about.to_owned() };
    asking.sequence((&about, &[]), two_layers(&draft), Some(calls), keys);
}

/// The instance with the same rows for layers 0 and 1.
fn two_layers(draft: &Draft) -> Option<crate::cases::Instance> {
    let mut instance = draft.instance()?;
    let order = instance.channels(0).ok()?.clone();
    let mut file = ChannelFile::default();
    (0..2).for_each(|layer| file.insert(instance.channel_selection, layer, order.clone()));
    instance.channel_file = Arc::new(file);
    Some(instance)
}

/// The same keys with another A, P, q or v than before.
pub(super) fn ask_others(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Sequences), "sequences") {
        return;
    }
    let Some(draft) = asking.fit(asking.draft(4)) else { return };
    let keys = Read::Keys { offset: draft.offset(), keys: 4 };
    let at = |on: usize, value: f32| {
        move |_: usize, _: usize, _: usize, key: usize| if key == on { value } else { 0.0 }
    };
    let parts = || Parts { k: Some(draft.scored_keys(|_, _, key| 4.0 - key as f32)), ..Parts::default() };
    if asking.need(asking.capabilities.offers(Feature::AttentionMask), "attention_mask") {
        let of =
            |on| Parts { additive: Some(draft.additive((1, 1, 1), at(on, f32::NEG_INFINITY))), ..parts() };
        let calls = [0, 1, 0].map(|on| draft.call(of(on))).into_iter().collect();
        asking.sequence(("another A than before", &[]), two_layers(&draft), calls, keys);
    }
    if asking.need(asking.capabilities.offers(Feature::Previous), "previous") {
        let of = |on| Parts { previous: Some(draft.previous(at(on, 1.0))), ..parts() };
        let calls = [0, 1, 3].map(|on| draft.call(of(on))).into_iter().collect();
        asking.sequence(("another P than before", &[]), two_layers(&draft), calls, keys);
    }
    values_over_calls(asking, &draft);
}

/// Values and queries that differ from the call before, and nothing else.
fn values_over_calls(asking: &mut Asking, draft: &Draft) {
    let k = || Some(draft.scored_keys(|_, _, key| 4.0 - key as f32));
    let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
    let of = |seed| Parts { k: k(), v: Some(draft.random(seed, 2, shape)), ..Parts::default() };
    let calls = [1, 2, 3].map(|seed| draft.call(of(seed))).into_iter().collect();
    asking.sequence(("other values than before", &[]), two_layers(draft), calls, Read::Output);
    let of = |sign: f32| Parts { k: k(), q: Some(draft.unit_queries() * sign), ..Parts::default() };
    let calls = [1.0, -1.0, 1.0].map(|sign| draft.call(of(sign))).into_iter().collect();
    let keys = Read::Keys { offset: draft.offset(), keys: 4 };
    asking.sequence(("other queries than before", &[]), two_layers(draft), calls, keys);
}

/// One instance after another in one process: other channel rows, keys, heavy sizes.
pub(super) fn ask_instances(asking: &mut Asking) {
    let wanted = Draft { label_channels: 1, group_factor: 4, ..asking.draft(4) };
    let Some(draft) = asking.fit(wanted) else { return };
    let (r, d) = (draft.label_channels, draft.head_dim());
    let blocks = (d / r).min(4);
    if !asking.need(blocks > 1, "group_factor above 1") {
        return;
    }
    for first in [0, 1, 0, 2, 3] {
        let row: Vec<usize> = (0..d).map(|channel| (first % blocks * r + channel) % d).collect();
        let instance = draft.instance_with(vec![row; draft.row_count()]);
        let q = ndarray::Array4::ones((draft.batch, draft.heads(), draft.queries, d));
        let k = draft.keys_of(|_, _, key, channel| f32::from(u8::from(channel / r == key)));
        let calls = draft.call(Parts { q: Some(q), k: Some(k), ..Parts::default() }).map(|call| vec![call]);
        let read = Read::Keys { offset: draft.offset(), keys: blocks };
        asking.sequence(("other rows than the instance before", &[]), instance, calls, read);
    }
    for best in [1, 3, 2] {
        let Some(draft) = asking.fit(asking.draft(4)) else { return };
        let score = |_: usize, _: usize, key: usize| if key == best { 2.0 } else { 0.5 };
        asking.scored(("other keys than the instance before", &[]), &draft, &score, None);
    }
    for heavy in [1, 3, 2] {
        let Some(draft) = asking.fit(Draft { heavy, ..asking.draft(4) }) else { return };
        let score = |_: usize, _: usize, key: usize| key as f32;
        asking.scored(("another H than the instance before", &[("H", heavy)]), &draft, &score, None);
    }
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    Told::changed(measured, SOURCES, || "those of the call's own keys".into())
}

pub(super) fn tell_others(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "the call's own".into())
}

pub(super) fn tell_instances(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "nothing carries over".into())
}
