//! What is tried: the faults of the catalogue, switches of a behaviour, other questions, and the relations of this folder, the
//! simplest first. Numbers are powers of two and what the answers themselves show.

use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::{Array4, s};

use super::answers::{Item, Place};
use super::{Acts, How, Member, of_lengths};
use crate::algorithm::attention::attention as exact;
use crate::algorithm::{HeadMode, LabelBits, Mask, ScoreFactor, ScoreRule, Selection, Storage};
use crate::behaviours::changes::{
    Axis, Bins, Counted, Forced, Forgotten, Kept, LabelChange, Lost, Map, OutputChange, Pads, Renewed,
    RowChange, Source, Split, Written,
};
use crate::behaviours::{
    Behaviour, CATALOGUE, Causality, ChannelRows, Channels, Count, Earlier, Factor, Heads, KvHeads, Order,
    Quantised, Quantiser, RankSplit, RankingMask, Scaling, Side,
};
use crate::cases::Sequence;

/// Of which heads it is tried that they are left out: those below this number.
const MOST_LEFT_OUT: usize = 8;

/// Everything that is tried for these answers.
pub(super) fn all(items: &[Item<'_>]) -> Vec<Member> {
    let mut members = Vec::new();
    faults(&mut members, items);
    heads(&mut members);
    masks(&mut members);
    places(&mut members);
    counts(&mut members, items);
    labels(&mut members);
    questions(&mut members, items);
    calls(&mut members, items);
    lost(&mut members, items);
    if items.iter().any(|item| item.place.is_some()) {
        of_lengths::all(&mut members);
    }
    ranking(&mut members, items);
    attention(&mut members, items);
    without_repetitions(members)
}

/// Of changes that are the same only the first stays, which is a fault of the catalogue where there is one.
fn without_repetitions(members: Vec<Member>) -> Vec<Member> {
    let mut known: Vec<(Acts, Behaviour)> = Vec::new();
    let mut is_new = |member: &Member| {
        let mut behaviour = Behaviour::default();
        for how in &member.how {
            match how {
                How::Switch(switch) => switch(&mut behaviour),
                How::Labels(change) if behaviour.labels.is_none() => behaviour.labels = Some(*change),
                How::Row(change) if behaviour.rows.is_none() => behaviour.rows = Some(*change),
                How::Output(change) if behaviour.attention.is_none() => behaviour.attention = Some(*change),
                // No behaviour has these.
                _ => return true,
            }
        }
        let own = (member.acts, behaviour);
        let is_new = !known.contains(&own);
        known.push(own);
        is_new
    };
    members.into_iter().filter(|member| is_new(member)).collect()
}

pub(super) fn push(members: &mut Vec<Member>, acts: Acts, words: impl Into<String>, how: How) {
    members.push(Member { words: words.into(), acts, how: vec![how] });
}

fn switch(
    members: &mut Vec<Member>,
    acts: Acts,
    words: impl Into<String>,
    set: impl Fn(&mut Behaviour) + Send + Sync + 'static,
) {
    push(members, acts, words, How::Switch(Arc::new(set)));
}

fn row(members: &mut Vec<Member>, change: RowChange) {
    push(members, Acts::Selection, change.words(), How::Row(change));
}

fn label(members: &mut Vec<Member>, acts: Acts, change: LabelChange) {
    push(members, acts, change.words(), How::Labels(change));
}

fn output(members: &mut Vec<Member>, change: OutputChange) {
    push(members, Acts::Attention, change.words(), How::Output(change));
}

fn faults(members: &mut Vec<Member>, items: &[Item<'_>]) {
    let concerned = |fault: &&crate::behaviours::Fault| {
        let selection = |item: &Item<'_>| item.observation.sequence.instance.selection;
        items.iter().any(|item| fault.asked.concerns(&selection(item)))
    };
    // Coarse sums reproduce many small errors; the catalogue alone tells of them.
    let exact = |fault: &&crate::behaviours::Fault| !fault.conforms && !fault.behaviour().half_sums;
    for fault in CATALOGUE.iter().filter(exact).filter(concerned) {
        let words = format!("{} ({}, {})", fault.sentence.trim_end_matches('.'), fault.name, fault.row);
        let acts = acts_of(&fault.behaviour());
        switch(members, acts, words, fault.apply);
    }
}

/// Where the switches of a behaviour act.
pub(super) fn acts_of(behaviour: &Behaviour) -> Acts {
    let spec = Behaviour::default();
    let attention = Behaviour {
        value_heads: behaviour.value_heads,
        attention_mask: behaviour.attention_mask,
        attended_causality: behaviour.attended_causality,
        scaling: behaviour.scaling,
        attention: behaviour.attention,
        softmax_over_all: behaviour.softmax_over_all,
        multiplies_weights: behaviour.multiplies_weights,
        ignores_weights: behaviour.ignores_weights,
        shifts_weights: behaviour.shifts_weights,
        attends_unwritten: behaviour.attends_unwritten,
        nan_in_empty_rows: behaviour.nan_in_empty_rows,
        nan_in_f16: behaviour.nan_in_f16,
        ..spec
    };
    match attention == *behaviour {
        true => Acts::Attention,
        false if attention == spec && behaviour.kv_heads == spec.kv_heads => Acts::Selection,
        false => Acts::Both,
    }
}

fn heads(members: &mut Vec<Member>) {
    let of = [
        (KvHeads::Tiled, "KV head i mod hk"),
        (KvHeads::DividedByCount, "KV head ⌊i / hk⌋, or the last one"),
        (KvHeads::First, "KV head 0"),
        (KvHeads::OwnNumber, "KV head i, or the last one"),
    ];
    for (kv_heads, name) in of {
        switch(members, Acts::Both, format!("head i reads {name}; expected ⌊i / g⌋"), move |b| {
            b.kv_heads = kv_heads;
        });
        let ranked = format!("head i ranks the keys of {name}; expected ⌊i / g⌋");
        switch(members, Acts::Selection, ranked, move |b| b.ranked_heads = kv_heads);
        let values = format!("head i reads the values of {name}; expected ⌊i / g⌋");
        switch(members, Acts::Attention, values, move |b| b.value_heads = kv_heads);
    }
    let sharing = [
        (Heads::Alone, "every head ranks alone, whatever is asked"),
        (Heads::Summed, "scores are summed over all heads, whatever is asked"),
        (Heads::Mean, "the mean over heads replaces the sum"),
        (Heads::LargestForSum, "the largest score of the heads replaces their sum"),
        (Heads::SumForLargest, "the sum over heads replaces the largest score"),
        (Heads::GroupForAll, "only the heads of one KV head share a selection, where all heads should"),
        (Heads::AllForGroup, "all heads share a selection, where those of one KV head should"),
        (Heads::Strided, "heads i, i + hk and so on are taken for a group"),
        (Heads::First, "heads that share a selection use the scores of the first of them"),
    ];
    for (heads, words) in sharing {
        switch(members, Acts::Selection, words, move |b| b.heads = heads);
    }
    for parts in [2, 4, 8] {
        let words =
            format!("the heads are summed in {parts} parts, each of which keeps a selection of its own");
        switch(members, Acts::Selection, words.clone(), move |b| b.heads = Heads::InParts(parts));
        // The same with the keys of P left out in all parts.
        if let Some(Member { acts, mut how, .. }) = members.last().cloned() {
            how.push(How::Row(RowChange::EarlierOfAllParts));
            members.push(Member { words, acts, how });
        }
    }
    for parts in [2, 4, 8] {
        for (exchanged, how) in [(Storage::F32, "as they are"), (Storage::Bf16, "rounded to bf16")] {
            let words = format!(
                "heads are taken together in {parts} parts, whose scores are summed {how}, though no ranks are asked for"
            );
            switch(members, Acts::Selection, words, move |b| {
                b.ranks = RankSplit::Undeclared(parts, exchanged)
            });
        }
    }
    for head in 0..MOST_LEFT_OUT {
        let words = format!("head {head} has no part in the scores that heads share");
        switch(members, Acts::Selection, words, move |b| b.heads = Heads::Without(head));
    }
    label(members, Acts::Selection, LabelChange::FirstHeadsOnly);
    // The same, where head i reads KV head i and channel row i as well.
    members.push(Member {
        words: "only heads below hk are scored, head i by KV head i, the others rank zeros".into(),
        acts: Acts::Selection,
        how: vec![
            How::Labels(LabelChange::FirstHeadsOnly),
            How::Switch(Arc::new(|behaviour| {
                behaviour.ranked_heads = KvHeads::OwnNumber;
                behaviour.channel_rows = ChannelRows::OwnNumber;
            })),
        ],
    });
    let rows = [
        (ChannelRows::Modulo, "head i uses channel row i mod the number of rows"),
        (ChannelRows::OfKvHead, "head i uses the channel row with its KV head's number, ⌊i / g⌋"),
        (ChannelRows::First, "every head uses channel row 0"),
        (ChannelRows::OwnNumber, "head i uses channel row i, or the last one"),
    ];
    for (channel_rows, words) in rows {
        switch(members, Acts::Selection, words, move |b| b.channel_rows = channel_rows);
    }
}

fn masks(members: &mut Vec<Member>) {
    let of_mask = [
        (RankingMask::Ignored, "does not use the additive mask"),
        (RankingMask::OnlyExcludes, "leaves out the finite values of the additive mask"),
        (RankingMask::OfFirstEntry, "uses the additive mask of entry 0 for all entries"),
        (RankingMask::OfFirstHead, "uses the additive mask of head 0 for all heads"),
        (RankingMask::OfFirstQuery, "uses the additive mask of query 0 for all queries"),
    ];
    for (mask, words) in of_mask {
        switch(members, Acts::Selection, format!("the ranking {words}"), move |b| b.ranking_mask = mask);
        switch(members, Acts::Attention, format!("the attention {words}"), move |b| b.attention_mask = mask);
        let both = format!("everything {}", words.replacen("does not use", "works without", 1));
        switch(members, Acts::Both, both, move |b| {
            b.ranking_mask = mask;
            b.attention_mask = mask;
        });
    }
    let causal = [
        (Causality::SeesNext, "sees keys up to one after its own position"),
        (Causality::MissesOwn, "does not see its own position, only those before"),
        (Causality::Ignored, "sees all keys, as causality is missing"),
        (Causality::OfFirstQuery, "sees keys up to n − m, the position of the first query"),
        (Causality::TopLeft, "sees keys up to position i, aligned top-left; expected n − m + i"),
    ];
    for (causality, words) in causal {
        let in_ranking = format!("in the selection query i {words}");
        switch(members, Acts::Selection, in_ranking, move |b| b.causality = causality);
        let in_attention = format!("in the attention query i {words}");
        switch(members, Acts::Attention, in_attention, move |b| b.attended_causality = causality);
        switch(members, Acts::Both, format!("query i {words}"), move |b| {
            b.causality = causality;
            b.attended_causality = causality;
        });
    }
    let earlier = [
        (Earlier::Ignored, "the earlier mask is not read"),
        (Earlier::Candidates, "keys of the earlier mask stay candidates and take places in H"),
        (Earlier::FillsUp, "with fewer candidates than H, excluded keys are selected up to H"),
    ];
    for (earlier, words) in earlier {
        switch(members, Acts::Selection, words, move |b| b.earlier = earlier);
    }
    row(members, RowChange::EarlierOfAnyHead);
    let ones = |sequence: &mut Sequence, index: usize, _: Option<&Place>| {
        let call = &mut sequence.calls[index];
        let Some(previous) = &call.previous else { return false };
        let ones = previous.weights().mapv(|weight| if weight == 0.0 { 0.0 } else { 1.0 });
        call.previous = Mask::from_weights(ones, &call.inputs.dims()).ok();
        true
    };
    let words = "weights of the earlier mask become 1";
    push(members, Acts::Selection, words, How::Question(Arc::new(ones)));
}

fn places(members: &mut Vec<Member>) {
    for axis in [Axis::Query, Axis::Head, Axis::Entry] {
        for &map in axis.maps() {
            row(members, RowChange::RowOf(axis, map));
            output(members, OutputChange::Of(axis, map));
            label(members, Acts::Both, LabelChange::Queries(axis, map));
            label(members, Acts::Selection, LabelChange::Queries(axis, map));
            row(members, RowChange::ScoresOf(axis, map));
            row(members, RowChange::EarlierOf(axis, map));
        }
    }
    for map in [Map::First, Map::Last, Map::Previous, Map::Next, Map::Reversed] {
        label(members, Acts::Selection, LabelChange::KeysOfEntry(map));
    }
    label(members, Acts::Both, LabelChange::QueriesOneApart);
    label(members, Acts::Selection, LabelChange::QueriesOneApart);
    output(members, OutputChange::Folded);
    row(members, RowChange::RunnersUp);
}

fn counts(members: &mut Vec<Member>, items: &[Item<'_>]) {
    let of = [
        (Count::OneMore, "one key more than H is selected"),
        (Count::OneFewer, "H − 1 keys are selected"),
        (Count::Unclamped, "a share that rounds down to 0 selects nothing"),
        (Count::RoundedUp, "H as a share of the keys is rounded up"),
    ];
    for (count, words) in of {
        switch(members, Acts::Selection, words, move |b| b.count = count);
    }
    use Counted::{
        AboveThreshold, All, AllTies, ExactFitEmpty, FilledUp, Identity, IdentityAtOneMore, LessEarlier,
        OneMoreFits, PadsSelectLast,
    };
    for counted in [
        LessEarlier,
        All,
        PadsSelectLast,
        ExactFitEmpty,
        OneMoreFits,
        AboveThreshold,
        AllTies,
        Identity,
        IdentityAtOneMore,
        FilledUp,
    ] {
        row(members, RowChange::Count(counted));
    }
    for most in selected_at_most(items) {
        let words = format!("at most {most} keys are selected, whatever H is");
        switch(members, Acts::Selection, words, move |b| b.count = Count::AtMost(most));
    }
}

/// How many keys rows of wrong selections hold where they hold fewer than H.
fn selected_at_most(items: &[Item<'_>]) -> BTreeSet<usize> {
    let mut found: BTreeSet<usize> = BTreeSet::new();
    for item in items.iter().filter(|item| !item.selection) {
        let Ok(answer) = &item.observation.answers[item.index] else { continue };
        let instance = &item.observation.sequence.instance;
        let Ok(before) = instance.before(item.call()) else { continue };
        let dims = item.dims();
        let wanted = instance.selection.heavy_size.resolve(dims.keys);
        let counts = dims.rows().map(|row @ (b, head, i)| {
            answer.mask.row(row).filter(|(key, _)| !before.attends(b, head, i, *key)).count()
        });
        found.extend(counts.filter(|&count| count > 0 && count < wanted));
    }
    // The largest are the likely ones.
    found.into_iter().rev().take(4).collect()
}

fn labels(members: &mut Vec<Member>) {
    let quantisers = [
        (Quantiser::Off, "are not quantised"),
        (Quantiser::WithoutScale, "are code + low, not divided by the scale"),
        (Quantiser::WithoutLow, "are code / scale, without the low end of the range (the zero point)"),
        (Quantiser::RoundedDown, "have codes that are rounded down, not to the nearest"),
        (Quantiser::HalfAway, "have codes whose halves are rounded away from zero"),
        (
            Quantiser::SymmetricNearest,
            "are quantised symmetrically: step max|x| / (2^(B − 1) − 1), no zero point",
        ),
        (Quantiser::Symmetric, "are quantised symmetrically: step max|x| / 127, truncated"),
        (Quantiser::RangeWithZero, "are quantised over a range that includes 0"),
        (Quantiser::ScaleOfPrevious, "are decoded with the scale of the position before"),
        (Quantiser::PairsSwapped, "have the codes of channels 2j and 2j + 1 swapped (nibbles)"),
        (Quantiser::Modulo256, "have codes that are taken modulo 256"),
        (Quantiser::Wrapping, "have codes that wrap in a signed byte"),
        (Quantiser::EqualIsZero, "are 0 where all channels are equal, as always with r = 1"),
        (Quantiser::PerHead, "are quantised over one range for all positions of a head"),
        (Quantiser::PerTensor, "are quantised over one range for the whole tensor"),
        (Quantiser::BeforeChoosing, "are quantised over the range of all d channels"),
        (Quantiser::Codes, "are the codes themselves"),
    ];
    let sides =
        [(Side::Both, "labels"), (Side::Keys, "labels of keys"), (Side::Queries, "labels of queries")];
    for (side, of) in sides {
        for (quantiser, words) in quantisers {
            switch(members, Acts::Selection, format!("{of} {words}"), move |b| {
                b.quantiser = quantiser;
                b.quantiser_of = side;
            });
        }
    }
    let quantised = [
        (Quantised::Keys, "only labels of keys are quantised"),
        (Quantised::Queries, "only labels of queries are quantised"),
    ];
    for (quantised, words) in quantised {
        switch(members, Acts::Selection, words, move |b| b.quantised = quantised);
    }
    let order = "channels are taken from the end of a row, the least important ones";
    switch(members, Acts::Selection, order, |b| b.order = Order::Rising);
    let next = "channels are those of the next layer";
    switch(members, Acts::Selection, next, |b| b.channels = Channels::NextLayer);
    label(members, Acts::Selection, LabelChange::OddChannelLost);
    label(members, Acts::Selection, LabelChange::LastChannelLost);
    for bits in [2u64, 4, 8] {
        let words = format!("labels have {bits} bits, whatever B is below 16");
        let set = move |selection: &mut Selection| {
            if let (true, Ok(bits)) = (selection.label_bits.quantises(), LabelBits::new(bits)) {
                selection.label_bits = bits;
            }
        };
        setting(members, words, set);
    }
}

fn setting(
    members: &mut Vec<Member>,
    words: impl Into<String>,
    set: impl Fn(&mut Selection) + Send + Sync + 'static,
) {
    let change = move |sequence: &mut Sequence, _: usize, _: Option<&Place>| {
        set(&mut sequence.instance.selection);
        true
    };
    push(members, Acts::Selection, words, How::Question(Arc::new(change)));
}

fn questions(members: &mut Vec<Member>, items: &[Item<'_>]) {
    let factors = [
        (Factor::One, "scores are not divided: the factor is 1"),
        (Factor::HeadDim, "scores are divided by √d; expected √r"),
    ];
    for (factor, words) in factors {
        switch(members, Acts::Selection, words, move |b| b.factor = factor);
    }
    let by_r = "scores are divided by r; expected √r";
    let divided = move |sequence: &mut Sequence, index: usize, _: Option<&Place>| {
        let dims = sequence.calls[index].inputs.dims();
        let selection = &mut sequence.instance.selection;
        let Ok(r) = selection.group_factor.label_channels(dims.head_dim) else { return false };
        ScoreFactor::number(1.0 / r as f64).is_ok_and(|factor| {
            selection.rules.factor = factor;
            true
        })
    };
    push(members, Acts::Selection, by_r, How::Question(Arc::new(divided)));
    setting(members, "negative scores of a head count as 0, as if a ReLU were applied", |selection| {
        selection.rules.score = ScoreRule::Relu;
    });
    setting(members, "scores are divided by the norms of the labels, as a cosine", |selection| {
        selection.rules.score = ScoreRule::Cosine;
    });
    setting(members, "the mask is full where n − m ≤ H, whatever is configured", |selection| {
        selection.dense_fallback = true;
    });
    setting(members, "the mask is never full for short contexts, whatever is configured", |selection| {
        selection.dense_fallback = false;
    });
    let modes: BTreeSet<&str> =
        items.iter().map(|item| item.observation.sequence.instance.selection.heads.name()).collect();
    for from in HeadMode::EVERY.into_iter().filter(|mode| modes.contains(mode.name())) {
        for to in HeadMode::EVERY.into_iter().filter(|to| *to != from) {
            let words = format!("{} is computed as {}", from.name(), to.name());
            let set = move |selection: &mut Selection| {
                if selection.heads == from {
                    selection.heads = to;
                }
            };
            setting(members, words, set);
            // The same with A as it is, not summed with the scores of heads.
            if let Some(Member { words, acts, mut how }) = members.last().cloned() {
                how.push(How::Row(RowChange::AdditiveOnce { own_earlier: from == HeadMode::PerHead }));
                let words = format!("{words}, with the additive mask added once");
                members.push(Member { words, acts, how });
            }
        }
    }
}

/// Where the labels of all positions of all calls come from.
fn sources(kept: Kept, items: &[Item<'_>]) -> Vec<Vec<Source>> {
    items.iter().map(|item| kept.sources(&item.observation.sequence, item.index)).collect()
}

/// The same where every call has labels of its own.
fn fresh_sources(items: &[Item<'_>]) -> Vec<Vec<Source>> {
    items.iter().map(|item| vec![Source::Call(item.index); item.dims().keys]).collect()
}

fn calls(members: &mut Vec<Member>, items: &[Item<'_>]) {
    let first = "the channels of the first layer that an instance is asked for serve all layers";
    switch(members, Acts::Selection, first, |b| b.channels = Channels::FirstLayer);
    let shapes = "a later call of the same layer and sizes gets the first one's answer";
    switch(members, Acts::Both, shapes, |b| b.answers_by_shape = true);
    use Forgotten::{Never, OtherBatch, SameBatch, SameLayer, Shorter};
    use Renewed::{BelowCallBefore, BeyondCallBefore, FirstBeyondCallBefore, LastQueries, Unseen};
    // Rules that these calls do not tell apart are one.
    let mut known = vec![fresh_sources(items)];
    for renewed in [Unseen, BeyondCallBefore, FirstBeyondCallBefore, LastQueries, BelowCallBefore] {
        for forgotten in [Never, Shorter, SameBatch, OtherBatch, SameLayer] {
            for by_layer in [true, false] {
                for (dense_too, truncated) in [(true, false), (true, true), (false, false), (false, true)] {
                    let kept = Kept { by_layer, renewed, forgotten, truncated, dense_too };
                    let sources = sources(kept, items);
                    if !known.contains(&sources) {
                        label(members, Acts::Selection, LabelChange::Kept(kept));
                        known.push(sources);
                    }
                }
            }
        }
    }
}

/// Powers of two up to the largest number of keys that was asked.
fn powers(items: &[Item<'_>], from: usize) -> Vec<usize> {
    let most = items.iter().map(|item| item.dims().keys).max().unwrap_or(1);
    std::iter::successors(Some(from), |power| power.checked_mul(2))
        .take_while(|power| *power <= most)
        .collect()
}

/// Keys that are no candidates, and the same ones that are, but are not shown.
fn lose(members: &mut Vec<Member>, lost: Lost) {
    row(members, RowChange::Lost(lost));
    row(members, RowChange::LeftOut(lost));
}

/// Whether keys below the tail of a tile are some of the keys and not all in most of the selections that fail. Where all are ranked
/// last any selection fits, which would prove nothing.
fn tail_decides(items: &[Item<'_>], tile: usize) -> bool {
    let failing = items.iter().filter(|item| !item.selection).map(|item| item.dims().keys);
    let (some, all): (Vec<usize>, Vec<usize>) =
        failing.partition(|keys| (1..*keys).contains(&((tile - keys % tile) % tile)));
    some.len() > all.len()
}

fn lost(members: &mut Vec<Member>, items: &[Item<'_>]) {
    use Lost::{
        Below, BeyondCallBefore, BeyondFirstOfLayer, BeyondFirstOfShape, First, FirstPartial, FirstTile,
        From, FromQueries, Newest, Own, PartialTile, PartialTileAlways, TailOfAnyRowBefore, TailOfRowBefore,
    };
    let simple = [Newest, Own, First, FromQueries, BeyondFirstOfShape, BeyondFirstOfLayer, BeyondCallBefore];
    simple.into_iter().for_each(|lost| lose(members, lost));
    let mut positions: BTreeSet<usize> = powers(items, 2).into_iter().collect();
    positions.extend(beyond_selected(items));
    positions.into_iter().for_each(|position| lose(members, From(position)));
    for tile in powers(items, 2) {
        for lost in [
            PartialTile,
            PartialTileAlways,
            TailOfRowBefore,
            TailOfAnyRowBefore,
            FirstPartial,
            FirstTile,
            Below,
        ] {
            lose(members, lost(tile));
        }
        if tail_decides(items, tile) {
            row(members, RowChange::RankedLast(TailOfRowBefore(tile)));
            row(members, RowChange::RankedLast(TailOfAnyRowBefore(tile)));
        }
        for at in [tile - 1, 0] {
            label(members, Acts::Selection, LabelChange::ZeroKeys { every: tile, at });
        }
    }
    for forced in [Forced::First(1), Forced::Last(1), Forced::Newest, Forced::First(4), Forced::Last(4)] {
        row(members, RowChange::Forced(forced));
        row(members, RowChange::Added(forced));
    }
    for modulus in powers(items, 64) {
        row(members, RowChange::Modulo(modulus));
    }
}

/// One position beyond the last that wrong selections ever hold.
fn beyond_selected(items: &[Item<'_>]) -> Option<usize> {
    let last = items.iter().filter(|item| !item.selection).filter_map(|item| {
        let answer = item.observation.answers[item.index].as_ref().ok()?;
        item.dims().rows().flat_map(|row| answer.mask.row(row).map(|(key, _)| key).last()).max()
    });
    last.max().map(|last| last + 1)
}

fn ranking(members: &mut Vec<Member>, items: &[Item<'_>]) {
    row(members, RowChange::EqualCollapse);
    row(members, RowChange::Phantoms(None));
    row(members, RowChange::StaleThreshold);
    for tile in powers(items, 4) {
        row(members, RowChange::Phantoms(Some(tile)));
        if tile <= 128 {
            row(members, RowChange::Pages(tile));
        }
    }
    row(members, RowChange::NegativeIsZero);
    row(members, RowChange::ByBits { signed: true });
    row(members, RowChange::ByBits { signed: false });
    for bits in [24, 20, 19, 16, 15, 14, 13, 12, 11, 10, 9, 8] {
        row(members, RowChange::Coarse(bits));
    }
    for storage in [Storage::F16, Storage::Bf16] {
        row(members, RowChange::Rounded(storage));
    }
    let bins = [8, 9, 10, 11, 12, 16].map(Bins::F32).into_iter().chain([8, 10, 11, 12].map(Bins::F16));
    for bins in bins {
        for room in powers(items, 1) {
            for exact_too in [false, true] {
                row(members, RowChange::CrowdedBin { bins, room, exact_too });
            }
        }
    }
    for tile in powers(items, 8) {
        if let Some(most) = in_a_tile(items, tile) {
            row(members, RowChange::OfEachTile { tile, most });
        }
    }
    let missing = items.iter().flat_map(|item| &item.missing).copied();
    let highest = missing.filter(|score| *score < 0.0).fold(f64::NEG_INFINITY, f64::max);
    if highest.is_finite() {
        row(members, RowChange::ExcludedBelow(highest));
    }
    switch(members, Acts::Selection, "the smallest scores are selected", |b| b.smallest = true);
}

/// The most keys of a tile that rows of wrong selections hold, and as many of one in the answers of more keys than a tile.
fn in_a_tile(items: &[Item<'_>], tile: usize) -> Option<usize> {
    let most = items.iter().filter(|item| !item.selection && item.dims().keys > tile).filter_map(|item| {
        let answer = item.observation.answers[item.index].as_ref().ok()?;
        let of_row = |row| {
            let mut counts = std::collections::BTreeMap::new();
            answer.mask.row(row).for_each(|(key, _)| *counts.entry(key / tile).or_insert(0) += 1);
            counts.into_values().max()
        };
        item.dims().rows().filter_map(of_row).max()
    });
    most.max().filter(|most| *most < tile)
}

/// How many numbers of an output row are about right in all of some answers that fail, where some are.
fn right_numbers(items: &[Item<'_>]) -> Option<usize> {
    let wrong = items.iter().filter(|item| !item.attention).take(FEW_ANSWERS).filter_map(|item| {
        let answer = item.observation.answers[item.index].as_ref().ok()?;
        let (output, expected) = (answer.output.as_ref()?, exact(&item.call().inputs, &answer.mask).ok()?);
        let is_wrong = |(found, expected): (&f32, &f32)| {
            // A guess, which the bounds of the verdicts prove or not.
            let off = (found - expected).abs();
            off.is_nan() || off > 1e-2 * (1.0 + expected.abs())
        };
        let first = (0..item.dims().value_dim).find(|&number| {
            let of = |tensor: &Array4<f32>| tensor.slice(s![.., .., .., number]).to_owned();
            of(output).iter().zip(&of(&expected)).any(is_wrong)
        });
        first.filter(|_| output.dim() == expected.dim())
    });
    wrong.min().filter(|count| *count > 0)
}

/// So many are looked at.
const FEW_ANSWERS: usize = 40;

fn attention(members: &mut Vec<Member>, items: &[Item<'_>]) {
    let d = "the attention is scaled by 1 / √d, whatever is asked";
    switch(members, Acts::Attention, d, |b| b.scaling = Scaling::HeadDim);
    switch(members, Acts::Attention, "the attention is not scaled", |b| b.scaling = Scaling::One);
    let ignored = "weights of the mask are ignored in the attention";
    switch(members, Acts::Attention, ignored, |b| b.ignores_weights = true);
    let all = "the softmax runs over all keys, and those not attended to are dropped without renormalising";
    switch(members, Acts::Attention, all, |b| b.softmax_over_all = true);
    let nan = "rows that attend to nothing give NaN";
    switch(members, Acts::Attention, nan, |b| b.nan_in_empty_rows = true);
    for pads in [Pads::Kept, Pads::Gathered, Pads::Raw, Pads::Once] {
        output(members, OutputChange::PadsReadLast(pads));
    }
    output(members, OutputChange::ValuesByKeyStrideOfTokens);
    output(members, OutputChange::SoftmaxOverAll);
    for split in [Split::Keys, Split::Attended] {
        output(members, OutputChange::HalvesAveraged(split));
    }
    output(members, OutputChange::LseBaseTwo);
    output(members, OutputChange::NanBeyondF16);
    output(members, OutputChange::ValuesByKeyStride);
    for written in [Written::HalfRoundedUp, Written::Half, Written::HeadDim] {
        output(members, OutputChange::Unwritten(written));
    }
    if let Some(count) = right_numbers(items) {
        output(members, OutputChange::Unwritten(Written::Numbers(count)));
    }
    for tile in powers(items, 2) {
        output(members, OutputChange::FirstAttendedOnly(tile));
        output(members, OutputChange::ZerosUpTo(tile));
        output(members, OutputChange::LastTileOnly(tile));
        output(members, OutputChange::FirstTileOnly(tile));
        for additive in [true, false] {
            output(members, OutputChange::NanWithoutFirstTile { tile, additive });
        }
    }
    for cap in [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0] {
        output(members, OutputChange::Capped(cap));
    }
}
