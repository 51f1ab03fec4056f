//! Where the additive mask A and the earlier mask P act: they exclude or weigh the best key of one entry, head or query only.

use ndarray::Array4;

use super::changes::{ADDITIVE, EARLIER};
use super::draft::Draft;
use super::question::{Asking, Read};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::HeavySize;
use crate::algorithm::config::WindowConfig;
use crate::cases::{EarlierMasker, Feature};

/// Two entries, two heads, two queries, four keys with scores that fall from 4 to 1.
fn draft(asking: &mut Asking) -> Option<Draft> {
    let wanted = Draft { batch: 2, kv_heads: 2, queries: 2, ..asking.draft(4) };
    let draft = asking.fit(wanted)?;
    asking.need(draft.batch > 1, "batch");
    asking.need(draft.heads() > 1, "two heads");
    asking.need(draft.queries > 1, "many_queries");
    Some(draft)
}

fn falling(draft: &Draft) -> Array4<f32> {
    draft.scored_keys(|_, _, key| 4.0 - key as f32)
}

fn keys(draft: &Draft) -> Read {
    Read::Keys { offset: draft.offset(), keys: draft.keys }
}

/// By name, the rows on which a mask acts.
type Rows = (&'static str, fn(usize, usize, usize) -> bool);

const ROWS: [Rows; 7] = [
    ("entry 0", |entry, _, _| entry == 0),
    ("entry 1", |entry, _, _| entry == 1),
    ("head 0", |_, head, _| head == 0),
    ("head 1", |_, head, _| head == 1),
    ("query 0", |_, _, query| query == 0),
    ("query 1", |_, _, query| query == 1),
    ("all rows", |_, _, _| true),
];

pub(super) fn ask_additive(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::AttentionMask), "attention_mask") {
        return;
    }
    let Some(draft) = draft(asking) else { return };
    let lowest = -draft.storage.largest() as f32;
    // On which key, and what.
    let kinds = [
        ("−∞ on key 0", 0, f32::NEG_INFINITY),
        ("−2.2 on key 0", 0, -2.2),
        ("4 on key 3", 3, 4.0),
        ("−60000 on key 0", 0, -60_000.0),
        ("the most negative number on key 0", 0, lowest),
    ];
    for (what, on, value) in kinds {
        for (rows, acts) in ROWS {
            let (_, heads, _) = draft.additive_shape();
            let of_head = rows.starts_with("head");
            if of_head && heads == 1 {
                continue;
            }
            // As few dimensions as it takes.
            let dims = match rows {
                _ if rows.starts_with("entry") => (draft.batch, 1, 1),
                _ if of_head => (1, heads, 1),
                _ if rows.starts_with("query") => (1, 1, draft.queries),
                _ => (1, 1, 1),
            };
            let at =
                |entry, head, query, key| if acts(entry, head, query) && key == on { value } else { 0.0 };
            for heavy in [1, 4] {
                let Some(draft) = asking.fit(Draft { heavy, ..draft.clone() }) else { continue };
                let parts = Parts {
                    k: Some(falling(&draft)),
                    additive: Some(draft.additive(dims, at)),
                    ..Parts::default()
                };
                asking.call((&format!("{what}, {rows}"), &[("H", heavy)]), &draft, parts, keys(&draft));
            }
        }
    }
    // Different for every row.
    let Some(draft) = asking.fit(Draft { heavy: 2, ..draft }) else { return };
    for shape in [draft.additive_shape(), (1, 1, draft.queries), (draft.batch, 1, draft.queries)] {
        let value = |entry, head, query, key| match (entry * 3 + head * 5 + query * 7 + key * 4) % 6 {
            0 => f32::NEG_INFINITY,
            other => other as f32 * 0.8 - 2.0,
        };
        let parts = Parts {
            k: Some(falling(&draft)),
            additive: Some(draft.additive(shape, value)),
            ..Parts::default()
        };
        asking.call(("another in each row", &[("H", 2)]), &draft, parts, keys(&draft));
    }
}

pub(super) fn ask_earlier(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Previous), "previous") {
        return;
    }
    let Some(draft) = draft(asking) else { return };
    let weights = asking.capabilities.offers(Feature::Weights);
    asking.need(weights, "weights");
    for (rows, acts) in ROWS {
        for (what, weight, on) in [("P on key 0", 1.0, 0..1), ("P of 0.5 on keys 0 and 2", 0.5, 0..3)] {
            if weight != 1.0 && !weights {
                continue;
            }
            for heavy in [1, 2, 3] {
                let Some(draft) = asking.fit(Draft { heavy, ..draft.clone() }) else { continue };
                let held = |key: usize| on.contains(&key) && key != 1;
                let at = |entry, head, query, key| {
                    if acts(entry, head, query) && held(key) { weight } else { 0.0 }
                };
                let parts = Parts {
                    k: Some(falling(&draft)),
                    previous: Some(draft.previous(at)),
                    ..Parts::default()
                };
                asking.call((&format!("{what}, {rows}"), &[("H", heavy)]), &draft, parts, keys(&draft));
            }
        }
    }
    if weights {
        // A small weight counts as much more in the attention.
        let at = |_: usize, _: usize, _: usize, key: usize| [0.0, 1.0, 0.0, 1.0 / 4096.0][key];
        let parts =
            Parts { k: Some(falling(&draft)), previous: Some(draft.previous(at)), ..Parts::default() };
        asking.call(("P of 2^−12 on key 3", &[]), &draft, parts, keys(&draft));
    }
    for (what, weight) in [("P full", 1.0), ("P full of 0.25", 0.25)] {
        if weight == 1.0 || weights {
            let previous = Array4::from_elem(draft.dims().mask_shape(), weight);
            let parts = Parts { k: Some(falling(&draft)), previous: Some(previous), ..Parts::default() };
            asking.call((what, &[]), &draft, parts, keys(&draft));
        }
    }
    maskers(asking);
}

/// Sink and local maskers before.
fn maskers(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::EarlierMaskers), "earlier_maskers") {
        return;
    }
    let wanted = Draft { queries: 2, heavy: 2, causal: true, ..asking.draft(7) };
    let Some(draft) = asking.fit(wanted) else { return };
    let Ok(size) = HeavySize::count(2) else { return };
    let (sink, local) =
        (EarlierMasker::Sink(WindowConfig { size }), EarlierMasker::Local(WindowConfig { size }));
    for (about, maskers) in
        [("a sink", vec![sink]), ("a window", vec![local]), ("a sink and a window", vec![sink, local])]
    {
        let instance =
            draft.instance().map(|instance| crate::cases::Instance { earlier_maskers: maskers, ..instance });
        let k = draft.scored_keys(|_, _, key| ((key * 3 + 1) % 7) as f32 / 2.0);
        let calls = draft.call(Parts { k: Some(k), ..Parts::default() }).map(|call| vec![call]);
        asking.sequence((about, &[]), instance, calls, keys(&draft));
    }
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    Told::changed(measured, ADDITIVE, || "acts on the rows that it is given for".into())
}

pub(super) fn tell_earlier(measured: &[Measured]) -> Told {
    Told::changed(measured, EARLIER, || "its keys stay, are no candidates, and take no place in H".into())
}
