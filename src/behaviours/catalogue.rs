//! The named faults: each a sentence, the row of SPEC §3 or the section of SPEC §2 it goes against, and the switches of a
//! [`Behaviour`] that it sets. Two of them conform to the SPEC and must not be caught.

use super::{
    Behaviour, Causality, Channels, Checks, Count, Earlier, Heads, KeyLabels, Order, Quantised, Quantiser,
    ShortContext,
};

/// A named way to differ from the SPEC.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What commands and records call it.
    pub name: &'static str,
    /// The row of SPEC §3, or the section that it goes against.
    pub row: &'static str,
    /// One sentence that says what such an implementation does.
    pub sentence: &'static str,
    /// Whether it conforms all the same.
    pub conforms: bool,
    /// Turns its switches.
    pub apply: fn(&mut Behaviour),
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Fault {
    /// The SPEC with this fault.
    pub fn behaviour(&self) -> Behaviour {
        Behaviour::with([self])
    }

    /// All faults of a name or row.
    pub fn find_all(name: &str) -> Vec<&'static Self> {
        let same = |text: &str| text.eq_ignore_ascii_case(name);
        CATALOGUE.iter().filter(|fault| same(fault.name) || same(fault.row)).collect()
    }
}

impl Behaviour {
    /// The SPEC with some faults, applied in order.
    pub fn with<'a>(faults: impl IntoIterator<Item = &'a Fault>) -> Self {
        let mut behaviour = Self::default();
        faults.into_iter().for_each(|fault| (fault.apply)(&mut behaviour));
        behaviour
    }
}

const fn fault(
    name: &'static str,
    row: &'static str,
    sentence: &'static str,
    apply: fn(&mut Behaviour),
) -> Fault {
    Fault { name, row, sentence, conforms: false, apply }
}

const fn conforming(
    name: &'static str,
    row: &'static str,
    sentence: &'static str,
    apply: fn(&mut Behaviour),
) -> Fault {
    Fault { name, row, sentence, conforms: true, apply }
}

/// All of them, those of SPEC §3 first.
pub const CATALOGUE: &[Fault] = &[
    fault("heads-summed", "D1", "Scores are summed over heads although each head should rank alone.", |b| {
        b.heads = Heads::Summed
    }),
    fault("heads-alone", "D1", "Each head ranks alone although heads should share one selection.", |b| {
        b.heads = Heads::Alone;
    }),
    fault(
        "dense-when-short",
        "D3",
        "The mask is full when n − m ≤ H although no dense fallback is set.",
        |b| {
            b.short_context = ShortContext::Dense;
        },
    ),
    fault(
        "first-layers-channels",
        "D4",
        "The channels of the first layer that the instance sees are used for every later layer.",
        |b| b.channels = Channels::FirstLayer,
    ),
    fault("full-previous-not-seen", "D19", "An earlier mask that is full is scored all the same.", |b| {
        b.misses_full_previous = true;
    }),
    fault("dense-layers-ignored", "D5", "Layers that should stay dense are sparse.", |b| {
        b.ignores_dense_layers = true;
    }),
    fault("rows-per-head-only", "D6", "It breaks on channel rows that are not one per query head.", |b| {
        b.only_rows_per_head = true;
    }),
    fault("empty-fraction", "D7", "A fraction that rounds to 0 keys selects nothing.", |b| {
        b.count = Count::Unclamped;
    }),
    fault(
        "floored-label-channels",
        "D8",
        "Where G does not divide d it takes floor(d / G) channels instead of refusing.",
        |b| b.floors_label_channels = true,
    ),
    fault(
        "label-range-accepted",
        "D9",
        "It answers where labels leave the storage type instead of refusing.",
        |b| {
            b.accepts_label_range = true;
        },
    ),
    fault(
        "fast-path",
        "D11",
        "Scores are per head, unquantised and unscaled, and with fewer than H keys unwritten cache slots are attended to.",
        |b| {
            b.heads = Heads::Alone;
            b.quantiser = Quantiser::Off;
            b.unscaled = true;
            b.attends_unwritten = true;
        },
    ),
    fault(
        "fills-up",
        "D12",
        "Where fewer than H candidates are left it selects keys that are none, and resets their weights to 1.",
        |b| b.earlier = Earlier::FillsUp,
    ),
    fault(
        "interleaved-channels",
        "D13",
        "Channel indices are mapped to the interleaved RoPE layout although q and k are not in it.",
        |b| b.order = Order::Interleaved,
    ),
    fault(
        "symmetric-int8",
        "D14",
        "Labels are symmetric int8, max|x| / 127 a step, truncated toward zero.",
        |b| b.quantiser = Quantiser::Symmetric,
    ),
    fault("nan-in-f16", "D17", "In f16 every row that leaves a key out is NaN.", |b| b.nan_in_f16 = true),
    fault(
        "kv-heads-tiled",
        "§2.3",
        "KV heads are tiled instead of repeated: head i reads KV head i mod hk.",
        |b| {
            b.tiles_kv_heads = true;
        },
    ),
    fault("short-rows-accepted", "D21", "Channel rows shorter than d / G give shorter labels.", |b| {
        b.accepts_short_rows = true;
    }),
    fault("next-layers-channels", "§2.4", "The channels of the next layer are used.", |b| {
        b.channels = Channels::NextLayer;
    }),
    fault(
        "other-kinds-channels",
        "§2.4",
        "The channels of another kind than the configured one are used.",
        |b| {
            b.channels = Channels::OtherKind;
        },
    ),
    fault(
        "least-important-channels",
        "§2.4",
        "Channels are taken by rising importance, from the row's end.",
        |b| {
            b.order = Order::Rising;
        },
    ),
    fault(
        "label-cache-shared",
        "§2.4",
        "One label cache serves all layers: a position keeps its first label.",
        |b| {
            b.label_cache = KeyLabels::SharedByLayers;
        },
    ),
    fault(
        "stale-cache-slot",
        "§2.4",
        "The newest key is scored before its label is written: its cache slot holds zeros.",
        |b| b.label_cache = KeyLabels::NewestMissing,
    ),
    fault("not-quantised", "§2.5", "Labels are not quantised.", |b| b.quantiser = Quantiser::Off),
    fault(
        "half-away-from-zero",
        "§2.5",
        "Codes at half steps are rounded away from zero, not to even.",
        |b| {
            b.quantiser = Quantiser::HalfAway;
        },
    ),
    fault("quantised-per-head", "§2.5", "All positions of a head share one quantisation range.", |b| {
        b.quantiser = Quantiser::PerHead;
    }),
    fault("quantised-per-tensor", "§2.5", "The whole tensor shares one quantisation range.", |b| {
        b.quantiser = Quantiser::PerTensor;
    }),
    fault(
        "quantised-before-choosing",
        "§2.5",
        "Positions are quantised over all d channels before the label channels are taken.",
        |b| b.quantiser = Quantiser::BeforeChoosing,
    ),
    fault(
        "only-queries-quantised",
        "§2.5",
        "Labels of queries are quantised, those of keys are not.",
        |b| {
            b.quantised = Quantised::Queries;
        },
    ),
    fault("only-keys-quantised", "§2.5", "Labels of keys are quantised, those of queries are not.", |b| {
        b.quantised = Quantised::Keys;
    }),
    fault(
        "int8-overflow",
        "§2.5",
        "Codes of 8 bits or more are kept in a signed byte and wrap around.",
        |b| {
            b.quantiser = Quantiser::Wrapping;
        },
    ),
    fault(
        "unscaled-scores",
        "§2.6",
        "Scores are not divided by √r before the additive mask is added.",
        |b| {
            b.unscaled = true;
        },
    ),
    fault("attention-mask-ignored", "§2.6", "Keys are ranked without the additive mask.", |b| {
        b.ignores_attention_mask = true;
    }),
    fault(
        "sees-next-key",
        "§2.6",
        "Causality is off by one: a query ranks the key after its own position.",
        |b| {
            b.causality = Causality::SeesNext;
        },
    ),
    fault(
        "misses-own-key",
        "§2.6",
        "Causality is off by one: a query does not rank the key at its own position.",
        |b| {
            b.causality = Causality::MissesOwn;
        },
    ),
    fault("half-accumulation", "§2.6", "Scores are accumulated in f16.", |b| b.half_sums = true),
    conforming("head-mean", "§2.7", "Scores are averaged over heads instead of summed.", |b| {
        b.heads = Heads::Mean;
    }),
    fault("previous-ignored", "§2.8", "The earlier mask is ignored.", |b| b.earlier = Earlier::Ignored),
    fault(
        "previous-selected-again",
        "§2.8",
        "Keys that an earlier mask attends to are candidates again, and use up the heavy size.",
        |b| b.earlier = Earlier::Candidates,
    ),
    fault("one-key-more", "§2.9", "Rows select H + 1 keys.", |b| b.count = Count::OneMore),
    fault("one-key-fewer", "§2.9", "Rows select H − 1 keys.", |b| b.count = Count::OneFewer),
    fault("smallest-scores", "§2.9", "The smallest scores are selected instead of the largest.", |b| {
        b.smallest = true;
    }),
    conforming("ties-to-highest", "§2.9", "Ties go to the highest key index.", |b| b.highest_of_ties = true),
    fault(
        "full-mask-resets-weights",
        "D20",
        "A full mask has weight 1 everywhere, although an earlier masker gave other weights.",
        |b| b.full_mask_resets_weights = true,
    ),
    fault(
        "softmax-over-all",
        "§2.11",
        "The softmax runs over all keys, and what is not attended is dropped after it.",
        |b| b.softmax_over_all = true,
    ),
    fault("weights-not-inverted", "§2.11", "Weights of the mask are multiplied, not divided by.", |b| {
        b.multiplies_weights = true;
    }),
    fault(
        "weights-shifted",
        "D23",
        "10⁻⁶ is added to weights of the mask before dividing by them.",
        |b| {
            b.shifts_weights = true;
        },
    ),
    fault("nan-in-empty-rows", "D18", "Rows that attend to nothing are NaN instead of zeros.", |b| {
        b.nan_in_empty_rows = true;
    }),
    fault(
        "checks-after-early-outs",
        "D22",
        "Inputs that must be refused are answered where an early out gives a full mask.",
        |b| b.checks = Checks::AfterEarlyOuts,
    ),
];
