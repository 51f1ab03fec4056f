//! A sparse attention that is given the selection: which keys, values and KV heads it reads, its factor, and random tensors.

use ndarray::Array4;

use super::draft::Draft;
use super::question::{Asking, Read};
use super::tensors::Parts;
use crate::algorithm::{HeadMode, Mask};
use crate::cases::{Feature, SelectionCall, StageCall};

/// A question in which a row attends to what `attends` says of entry, head, query and key.
fn asked(
    asking: &mut Asking,
    about: (&str, &[(&'static str, usize)]),
    draft: &Draft,
    (parts, read): (Parts, Read),
    attends: &dyn Fn(usize, usize, usize, usize) -> bool,
) {
    let draft = Draft { causal: false, ..draft.clone() };
    let weights = Array4::from_shape_fn(draft.dims().mask_shape(), |(entry, head, query, key)| {
        f32::from(u8::from(attends(entry, head, query, key)))
    });
    let call = draft.call(parts).and_then(|call| {
        let mask = Mask::from_weights(weights, &draft.dims()).ok()?;
        Some(StageCall::Selection(SelectionCall { inputs: call.inputs, mask }))
    });
    asking.stage(about, call, read);
}

fn fitted(asking: &mut Asking, wanted: Draft) -> Option<Draft> {
    asking.fit(Draft { mode: HeadMode::PerHead, ..wanted })
}

/// Values of KV head x are all x + 1.
pub(super) fn ask_values_of_heads(asking: &mut Asking) {
    of_heads(asking, |draft| {
        let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
        let v = Array4::from_shape_fn(shape, |(_, kv_head, ..)| kv_head as f32 + 1.0);
        Parts { k: Some(draft.scored_keys(|_, _, key| key as f32 / 2.0)), v: Some(v), ..Parts::default() }
    });
}

/// Key x of KV head x takes all of the attention; the value of key j is j + 1.
pub(super) fn ask_keys_of_heads(asking: &mut Asking) {
    of_heads(asking, |draft| {
        let mut q = draft.unit_queries();
        q.mapv_inplace(|x| 60.0 * x * (draft.head_dim() as f32).sqrt());
        let k = draft.scored_keys(|_, kv_head, key| f32::from(u8::from(key == kv_head)));
        let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
        let v = Array4::from_shape_fn(shape, |(_, _, position, _)| position as f32 + 1.0);
        Parts { q: Some(q), k: Some(k), v: Some(v), ..Parts::default() }
    });
}

fn of_heads(asking: &mut Asking, parts: fn(&Draft) -> Parts) {
    asking.need(asking.capabilities.offers(Feature::GroupedHeads), "grouped_heads");
    for (kv_heads, group) in [(1, 2), (2, 2), (3, 1), (3, 2), (2, 3)] {
        let Some(draft) = fitted(asking, Draft { kv_heads, group, ..asking.draft(kv_heads.max(2)) }) else {
            continue;
        };
        if asking.need(draft.heads() > 1, "two heads") {
            let about = format!("{} heads over {}", draft.heads(), draft.kv_heads);
            asked(asking, (&about, &[]), &draft, (parts(&draft), Read::Whole), &|_, _, _, _| true);
        }
    }
}

/// All logits are equal: the output is the mean of the values attended to.
pub(super) fn ask_values(asking: &mut Asking) {
    for value_dim in [None, Some(1), Some(5)] {
        for n in [1, 2, 7, 16, 17, 33, 64, 65, 130, 300, 1025] {
            let Some(draft) = fitted(asking, Draft { value_dim, queries: 2, ..asking.draft(n) }) else {
                continue;
            };
            let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
            let v = Array4::from_shape_fn(shape, |(_, _, key, channel)| (key % 8 + channel * 8) as f32);
            for (about, from, to) in
                [("the last keys", n - n.div_ceil(4), n), ("the first keys", 0, n.div_ceil(4))]
            {
                let k = Some(draft.scored_keys(|_, _, _| 0.0));
                let parts = Parts { k, v: Some(v.clone()), ..Parts::default() };
                let numbers = [("n", n), ("dv", draft.value_dim())];
                asked(asking, (about, &numbers), &draft, (parts, Read::Output), &|_, _, query, key| {
                    key >= from && key + query < to + query.min(1) * usize::from(to == n)
                });
            }
        }
    }
}

/// Two keys with logits that differ by the factor.
pub(super) fn ask_scale(asking: &mut Asking) {
    for scaling in [None, Some(1.0), Some(0.3)] {
        for group_factor in [1, 3] {
            if scaling.is_some() && !asking.need(asking.capabilities.offers(Feature::Scaling), "scaling") {
                continue;
            }
            let Some(draft) = fitted(asking, Draft { scaling, group_factor, ..asking.draft(2) }) else {
                continue;
            };
            let first = draft.offset();
            let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
            let v = Array4::from_shape_fn(shape, |(_, _, key, _)| f32::from(u8::from(key == first)));
            let k = draft.scored_keys(|_, _, key| if key == 0 { 1.0 } else { 0.0 });
            let about = scaling.map_or("the default scaling".into(), |scaling| format!("scaling {scaling}"));
            let parts = Parts { k: Some(k), v: Some(v), ..Parts::default() };
            let keys = first..first + 2;
            asked(
                asking,
                (&about, &[("d", draft.head_dim())]),
                &draft,
                (parts, Read::Output),
                &|_, _, _, key| keys.contains(&key),
            );
        }
    }
}

/// Random tensors over selections that differ from row to row; some rows attend to nothing where that is offered.
pub(super) fn ask_random(asking: &mut Asking) {
    let empty = asking.capabilities.offers(Feature::EmptyRows);
    asking.need(empty, "empty_rows");
    for &storage in &asking.capabilities.dtypes.clone() {
        for (seed, n) in [5, 9, 16, 17, 40, 70, 129, 300].into_iter().enumerate() {
            for (batch, kv_heads, group, queries) in [(1, 1, 1, 1), (2, 2, 2, 2), (1, 2, 3, 1)] {
                let (label_channels, group_factor) = (4, 2);
                let wanted = Draft {
                    storage,
                    batch,
                    kv_heads,
                    group,
                    queries,
                    label_channels,
                    group_factor,
                    ..asking.draft(n)
                };
                let Some(draft) = fitted(asking, wanted) else { continue };
                let parts = draft.random_parts(seed as u64);
                let about = format!("random, {}", draft.storage);
                let numbers = [("b", draft.batch), ("h", draft.heads()), ("n", draft.all_keys())];
                asked(
                    asking,
                    (&about, &numbers),
                    &draft,
                    (parts, Read::Output),
                    &|entry, head, query, key| {
                        let row = entry * 5 + head * 3 + query;
                        let nothing = empty && row % 7 == 3;
                        !nothing && ((key * 7 + row).is_multiple_of(3) || key == row % n)
                    },
                );
            }
        }
    }
}
