//! The wires, in the order in which they are measured.

use super::question::Asking;
use super::tell::{Measured, Told};
use super::{
    attention, calls, candidates, channels, codes, count, heads, masks, ranking, rows, rules, scale,
    selection,
};
use crate::cases::Takes;

/// One thing that answers depend on.
pub(super) struct Wire {
    pub name: &'static str,
    /// Of which subjects it is measured.
    pub takes: &'static [Takes],
    /// Makes the questions.
    pub ask: fn(&mut Asking),
    /// What was read, in words.
    pub tell: fn(&[Measured]) -> Told,
    /// A wire that its questions rely on: where that deviates, nothing that is read here is called a rule.
    pub rests_on: Option<&'static str>,
    /// Whether what conforming answers show is told, too.
    pub tells_ties: bool,
}

const INPUTS: &[Takes] = &[Takes::Inputs];
const RANKED: &[Takes] = &[Takes::Inputs, Takes::Scores];
const SCORES: &[Takes] = &[Takes::Scores];
const SELECTION: &[Takes] = &[Takes::Selection];

const fn wire(
    name: &'static str,
    takes: &'static [Takes],
    ask: fn(&mut Asking),
    tell: fn(&[Measured]) -> Told,
) -> Wire {
    Wire { name, takes, ask, tell, rests_on: None, tells_ties: false }
}

pub(super) const WIRES: &[Wire] = &[
    wire("candidates", RANKED, candidates::ask, candidates::tell),
    wire("count", RANKED, count::ask, count::tell),
    wire("count of a share", INPUTS, count::ask_shares, count::tell_shares),
    wire("dense when short", INPUTS, count::ask_short, count::tell_short),
    wire("KV head of the ranking", INPUTS, heads::ask_kv_heads, heads::tell_kv_heads),
    wire("KV head of keys attended to", INPUTS, heads::ask_attended_keys, heads::tell_kv_heads),
    wire("KV head of values", INPUTS, heads::ask_values, heads::tell_kv_heads),
    wire("channel row", INPUTS, heads::ask_channel_rows, heads::tell_channel_rows),
    wire("channels", INPUTS, channels::ask_entering, channels::tell_entering),
    wire("channels of layers", INPUTS, channels::ask_layers, channels::tell_calls),
    wire("kind of rows", INPUTS, channels::ask_kinds, channels::tell_own),
    Wire { rests_on: Some("channels"), ..wire("codes of keys", INPUTS, codes::ask_keys, codes::tell) },
    Wire { rests_on: Some("channels"), ..wire("codes of queries", INPUTS, codes::ask_queries, codes::tell) },
    wire("labels of equal channels", INPUTS, codes::ask_equal, codes::tell_equal),
    wire("scale", INPUTS, scale::ask, scale::tell),
    wire("ranking", RANKED, ranking::ask, ranking::tell),
    Wire { tells_ties: true, ..wire("ties", RANKED, ranking::ask_ties, ranking::tell_ties) },
    wire("head modes", INPUTS, heads::ask_modes, heads::tell_modes),
    wire("rules", INPUTS, rules::ask, rules::tell),
    wire("entries", RANKED, rows::ask_entries, rows::tell_entries),
    wire("queries", INPUTS, rows::ask_queries, rows::tell_queries),
    wire("causality", INPUTS, rows::ask_causality, rows::tell_causality),
    wire("lengths", INPUTS, rows::ask_lengths, rows::tell_lengths),
    wire("mask A", INPUTS, masks::ask_additive, masks::tell),
    wire("earlier mask P", INPUTS, masks::ask_earlier, masks::tell_earlier),
    wire("labels over calls", INPUTS, calls::ask, calls::tell),
    wire("other inputs over calls", INPUTS, calls::ask_others, calls::tell_others),
    wire("instances", INPUTS, calls::ask_instances, calls::tell_instances),
    wire("attention scale", INPUTS, attention::ask_scale, attention::tell_scale),
    wire("values", INPUTS, attention::ask_values, attention::tell_values),
    wire("few keys", INPUTS, attention::ask_few, attention::tell_random),
    wire("output", INPUTS, attention::ask_random, attention::tell_random),
    wire("everything at once", INPUTS, attention::ask_mixed, attention::tell_random),
    wire("repetition", INPUTS, rules::ask_again, rules::tell_again),
    wire("refusals", INPUTS, rules::ask_refusals, rules::tell_refusals),
    wire("rows", SCORES, rows::ask_causality, rows::tell_queries),
    wire("KV head of keys attended to", SELECTION, selection::ask_keys_of_heads, heads::tell_kv_heads),
    wire("KV head of values", SELECTION, selection::ask_values_of_heads, heads::tell_kv_heads),
    wire("attention scale", SELECTION, selection::ask_scale, attention::tell_scale),
    wire("values", SELECTION, selection::ask_values, attention::tell_values),
    wire("output", SELECTION, selection::ask_random, attention::tell_random),
];
