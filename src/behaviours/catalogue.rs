//! The named faults, each with the row of SPEC §3 or the section of SPEC §2 it goes against, and the switches of a
//! [`Behaviour`](super::Behaviour) that it sets. Three of them conform to the SPEC and must not be caught. Tiles, pages and limits
//! are small, so that calls of a few keys show them; [`changes`](super::changes) has them in all sizes.

use super::changes::{Axis, Bins, Counted, LabelChange, Lost, Map, OutputChange, Pads, RowChange};
use super::fault::{Asked, Fault, conforming, fault};
use super::{
    Causality, ChannelRows, ChannelWeights, Channels, Checks, Cosine, Count, Earlier, Factor, ForcedKeys,
    HeadWeights, Heads, KeyLabels, KvHeads, Order, Quantised, Quantiser, RankSplit, RankingMask, Relu,
    Scaling, ShortContext, Side,
};
use crate::algorithm::HeadMode;

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
    fault("dense-up-to-twice-h", "§2.2", "The mask is full where there are at most 2 · H keys, whatever is configured.", |b| {
        b.short_context = ShortContext::DenseUpTo(2);
    })
    .seen("sgl-project/sglang#1459"),
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
            b.factor = Factor::One;
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
            b.kv_heads = KvHeads::Tiled;
        },
    ),
    fault(
        "kv-heads-divided",
        "§2.3",
        "Head i reads KV head i / hk instead of i / g, or the last one where there is none.",
        |b| b.kv_heads = KvHeads::DividedByCount,
    ),
    fault("first-heads-only", "§2.3", "Only heads below hk are scored, the others rank zeros.", |b| {
        b.labels = Some(LabelChange::FirstHeadsOnly);
    })
    .seen("LMCache/LMCache#3092"),
    fault("short-rows-accepted", "D21", "Channel rows shorter than d / G give shorter labels.", |b| {
        b.accepts_short_rows = true;
    }),
    fault("channel-rows-tiled", "§2.4", "Head i uses channel row i modulo the number of rows.", |b| {
        b.channel_rows = ChannelRows::Modulo;
    }),
    fault("channel-rows-of-kv-heads", "§2.4", "Head i uses the channel row with its KV head's number, ⌊i / g⌋, though there is one for each head.", |b| {
        b.channel_rows = ChannelRows::OfKvHead;
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
        "labels-written-once",
        "§2.4",
        "The label of a position of a layer is never written again, whatever key comes there later.",
        |b| b.label_cache = KeyLabels::WrittenOnce,
    ),
    fault(
        "labels-kept-on-restart",
        "§2.4",
        "Labels of a layer are kept until a call is shorter: a new text as long as the old one finds its labels.",
        |b| b.label_cache = KeyLabels::KeptOnRestart,
    ),
    fault(
        "first-key-of-a-chunk",
        "§2.4",
        "Of the new keys of a later call with several queries only the first gets a label.",
        |b| b.label_cache = KeyLabels::FirstOfChunk,
    ),
    fault(
        "batch-slots",
        "§2.4",
        "Labels belong to a place in the batch: a batch of another size finds those of the call before.",
        |b| b.label_cache = KeyLabels::BatchSlots,
    ),
    fault(
        "answers-by-shape",
        "§2.4",
        "A call gets the answer of the first call of its layer and sizes.",
        |b| b.answers_by_shape = true,
    ),
    fault(
        "stale-cache-slot",
        "§2.4",
        "The newest key is scored before its label is written: its cache slot holds zeros.",
        |b| b.label_cache = KeyLabels::NewestMissing,
    ),
    fault("later-keys-never-selected", "§2.4", "Keys beyond the length of the layer's first call are never selected.", |b| {
        b.rows = Some(RowChange::Lost(Lost::BeyondFirstOfLayer));
    }),
    fault("every-second-label-missing", "§2.4", "Labels of keys at positions 2 · j + 1 are zeros.", |b| {
        b.labels = Some(LabelChange::ZeroKeys { every: 2, at: 1 });
    })
    .seen("microsoft/onnxruntime-genai#2354"),
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
        "both-quantised",
        "§2.12",
        "Labels of queries and keys are quantised where those of one of them should be.",
        |b| b.quantised = Quantised::Both,
    )
    .asked(Asked::Quantised),
    fault(
        "other-side-quantised",
        "§2.12",
        "Labels of queries are quantised where those of keys should be, and the reverse.",
        |b| b.quantised = Quantised::Swapped,
    )
    .asked(Asked::Quantised),
    fault("codes-without-scale", "§2.5", "Labels are code + low, not divided by the scale.", |b| {
        b.quantiser = Quantiser::WithoutScale;
    })
    .seen("vllm-project/vllm#55559, lablup/mlxcel#717"),
    fault("codes-without-zero-point", "§2.5", "Labels are code / scale, without the low end of the range (the zero point).", |b| {
        b.quantiser = Quantiser::WithoutLow;
    })
    .seen("ModelCloud/GPTQModel#2350"),
    fault("scale-of-previous-key", "§2.5", "Labels of keys are decoded with the scale of the position before.", |b| {
        b.quantiser = Quantiser::ScaleOfPrevious;
        b.quantiser_of = Side::Keys;
    })
    .seen("hw-native-sys/pypto-lib#170"),
    fault("nibbles-swapped", "§2.5", "Labels of keys have the codes of channels 2j and 2j + 1 swapped (nibbles).", |b| {
        b.quantiser = Quantiser::PairsSwapped;
        b.quantiser_of = Side::Keys;
    })
    .seen("golang-design/accel#22"),
    fault("codes-scored", "§2.5", "Codes are scored in place of the labels that they stand for.", |b| {
        b.quantiser = Quantiser::Codes;
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
        "Scores are not divided by √r, or multiplied by another factor that is set, before the additive mask is added.",
        |b| {
            b.factor = Factor::One;
        },
    ),
    fault("head-dim-factor", "§2.6", "Scores are divided by √d instead of √r.", |b| {
        b.factor = Factor::HeadDim;
    }),
    fault("label-channel-factor", "§2.12", "Scores are divided by √r whatever the factor is.", |b| {
        b.factor = Factor::LabelChannels;
    })
    .asked(Asked::Factor),
    fault("cosine-ignored", "§2.12", "Dot products are not divided by norms.", |b| {
        b.cosine = Cosine::Ignored;
    })
    .asked(Asked::Cosine),
    fault("cosine-without-epsilon", "§2.12", "ε is left out below the cosine.", |b| {
        b.cosine = Cosine::WithoutEpsilon;
    })
    .asked(Asked::Cosine),
    fault("cosine-without-query-norm", "§2.12", "The cosine is not divided by the query's norm.", |b| {
        b.cosine = Cosine::WithoutQueryNorm;
    })
    .asked(Asked::Cosine),
    fault("cosine-without-key-norm", "§2.12", "The cosine is not divided by the key's norm.", |b| {
        b.cosine = Cosine::WithoutKeyNorm;
    })
    .asked(Asked::Cosine),
    fault("relu-left-out", "§2.12", "Negative dot products are not set to 0.", |b| b.relu = Relu::LeftOut)
        .asked(Asked::Relu),
    fault("relu-after-weight", "§2.12", "The head weight comes before relu, so that negative ones give 0.", |b| {
        b.relu = Relu::AfterWeight;
    })
    .asked(Asked::Relu),
    fault("head-weights-ignored", "§2.12", "Head weights are ignored.", |b| {
        b.head_weights = HeadWeights::Ignored;
    })
    .asked(Asked::Relu),
    fault("head-weights-of-first-head", "§2.12", "The head weight of head 0 is used for all heads.", |b| {
        b.head_weights = HeadWeights::OfFirstHead;
    })
    .asked(Asked::Relu),
    fault("head-weights-of-first-query", "§2.12", "The head weight of query 0 is used for all queries.", |b| {
        b.head_weights = HeadWeights::OfFirstQuery;
    })
    .asked(Asked::Relu),
    fault(
        "head-weights-after-sum",
        "§2.12",
        "Scores of heads are combined first and multiplied by the mean of their weights afterwards.",
        |b| b.head_weights = HeadWeights::AfterSum,
    )
    .asked(Asked::ReluOfHeads),
    fault("channel-weights-ignored", "§2.12", "Labels of queries are not multiplied by channel weights.", |b| {
        b.channel_weights = ChannelWeights::Ignored;
    })
    .asked(Asked::ChannelWeights),
    fault(
        "channel-weights-of-first-row",
        "§2.12",
        "The channel weights of row 0 are used for all heads.",
        |b| b.channel_weights = ChannelWeights::OfFirstRow,
    )
    .asked(Asked::ChannelWeights),
    fault("attention-mask-ignored", "§2.6", "Keys are ranked without the additive mask.", |b| {
        b.ranking_mask = RankingMask::Ignored;
    }),
    fault(
        "attention-mask-of-first-entry",
        "§2.6",
        "Keys of every batch entry are ranked with the additive mask of entry 0.",
        |b| b.ranking_mask = RankingMask::OfFirstEntry,
    ),
    fault("causality-ignored", "§2.6", "Keys after the query's position are ranked, too.", |b| {
        b.causality = Causality::Ignored;
    }),
    fault(
        "window-of-first-query",
        "§2.6",
        "All queries of a call rank the keys that its first query may rank.",
        |b| b.causality = Causality::OfFirstQuery,
    ),
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
    fault("causal-from-top-left", "§2.6", "Query i sees keys up to position i, aligned top-left; expected n − m + i.", |b| {
        b.causality = Causality::TopLeft;
        b.attended_causality = Causality::TopLeft;
    })
    .seen("pytorch/pytorch#108108, ml-explore/mlx#2835"),
    fault("coarse-scores", "§2.6", "Scores are compared by their highest 12 bits, what agrees in these counts as a tie.", |b| {
        b.rows = Some(RowChange::Coarse(12));
    })
    .seen("sgl-project/sglang#37941"),
    fault("half-accumulation", "§2.6", "Scores are accumulated in f16.", |b| b.half_sums = true),
    conforming("head-mean", "§2.7", "Scores are averaged over heads instead of summed.", |b| {
        b.heads = Heads::Mean;
    }),
    fault(
        "heads-largest",
        "§2.7",
        "The largest score of the heads is taken where their sum or mean should be.",
        |b| b.heads = Heads::LargestForSum,
    )
    .asked(Asked::Heads(&[HeadMode::SummedScores, HeadMode::Mean, HeadMode::GroupSum])),
    fault(
        "heads-summed-for-largest",
        "§2.12",
        "Scores of heads are summed where the largest should be taken.",
        |b| b.heads = Heads::SumForLargest,
    )
    .asked(Asked::Heads(&[HeadMode::Max, HeadMode::GroupMax])),
    fault(
        "groups-ignored",
        "§2.12",
        "All heads share a selection where those of one KV head should.",
        |b| b.heads = Heads::AllForGroup,
    )
    .asked(Asked::Heads(&HeadMode::GROUPS)),
    fault(
        "groups-alone",
        "§2.7",
        "The heads of one KV head share a selection where all heads should.",
        |b| b.heads = Heads::GroupForAll,
    )
    .asked(Asked::Heads(&[HeadMode::SummedScores, HeadMode::Mean, HeadMode::Max])),
    fault(
        "groups-strided",
        "§2.12",
        "Groups are made of every hk-th head instead of g heads in a row.",
        |b| b.heads = Heads::Strided,
    )
    .asked(Asked::Heads(&HeadMode::GROUPS)),
    fault(
        "sum-of-maxima",
        "§2.12",
        "The largest scores of groups are summed where the largest of all heads, or of one group, should be taken.",
        |b| b.heads = Heads::SumOfMaxima,
    )
    .asked(Asked::Heads(&[HeadMode::Max, HeadMode::GroupMax])),
    fault(
        "first-head-only",
        "§2.7",
        "The scores of the first head stand for all that share a selection.",
        |b| b.heads = Heads::First,
    )
    .asked(Asked::Heads(&[HeadMode::SummedScores, HeadMode::Max, HeadMode::GroupSum])),
    fault("selection-per-rank", "§2.7", "The heads are summed in 2 parts, each of which keeps a selection of its own.", |b| {
        b.heads = Heads::InParts(2);
    })
    .asked(Asked::Heads(&[HeadMode::SummedScores, HeadMode::Mean, HeadMode::Max]))
    .seen("sgl-project/sglang#24654, ROCm/aiter#4415"),
    fault(
        "ranks-ignored",
        "§2.12",
        "The heads that share a selection are taken together at once, not rank by rank.",
        |b| b.ranks = RankSplit::Ignored,
    )
    .asked(Asked::Ranks),
    conforming("ranks-not-rounded", "§2.12", "The parts of ranks are summed without being rounded.", |b| {
        b.ranks = RankSplit::NotRounded;
    })
    .asked(Asked::Ranks),
    fault("previous-ignored", "§2.8", "The earlier mask is ignored.", |b| b.earlier = Earlier::Ignored),
    fault(
        "previous-selected-again",
        "§2.8",
        "Keys that an earlier mask attends to are candidates again, and use up the heavy size.",
        |b| b.earlier = Earlier::Candidates,
    ),
    fault("one-key-more", "§2.9", "Rows select H + 1 keys.", |b| b.count = Count::OneMore),
    fault("one-key-fewer", "§2.9", "Rows select H − 1 keys.", |b| b.count = Count::OneFewer),
    fault("exact-fit-empty", "§2.9", "A row with exactly H candidates selects nothing.", |b| {
        b.rows = Some(RowChange::Count(Counted::ExactFitEmpty));
    }),
    fault("identity-at-one-more", "§2.9", "With H + 1 candidates, positions 0 to H − 1 are selected, candidates or not.", |b| {
        b.rows = Some(RowChange::Count(Counted::IdentityAtOneMore));
    })
    .seen("sgl-project/sglang#31123"),
    fault("newest-key-held-out", "§2.9", "The newest key, at position n − 1, is never selected.", |b| {
        b.rows = Some(RowChange::Lost(Lost::Newest));
    }),
    fault("tile-tail-overwrites", "§2.9", "The first −n mod 4 keys of every query but the first are never selected.", |b| {
        b.rows = Some(RowChange::Lost(Lost::TailOfRowBefore(4)));
    }),
    fault("scores-of-first-query", "§2.9", "Query t ranks its candidates by the scores of query 0.", |b| {
        b.rows = Some(RowChange::ScoresOf(Axis::Query, Map::First));
    })
    .seen("vllm-project/vllm#55314"),
    fault("crowded-bin-cut", "§2.9", "Of the keys whose scores share the highest 11 bits with the H-th only the first 4 compete.", |b| {
        b.rows = Some(RowChange::CrowdedBin { bins: Bins::F32(11), room: 4, exact_too: false });
    })
    .seen("vllm-project/vllm#51782, sgl-project/sglang#36807"),
    fault("equal-scores-dropped", "§2.9", "Keys with equal scores count as one: only the lowest position is selected.", |b| {
        b.rows = Some(RowChange::EqualCollapse);
    }),
    fault("smallest-scores", "§2.9", "The smallest scores are selected instead of the largest.", |b| {
        b.smallest = true;
    }),
    conforming("ties-to-highest", "§2.9", "Ties go to the highest key index.", |b| b.highest_of_ties = true),
    fault("forced-keys-ignored", "§2.12", "No key is selected whatever it scores.", |b| {
        b.forced = ForcedKeys::Ignored;
    })
    .asked(Asked::Forced),
    fault("forced-keys-on-top", "§2.12", "Forced keys are selected on top of H, not within.", |b| {
        b.forced = ForcedKeys::OnTop;
    })
    .asked(Asked::Forced),
    fault("forced-ends-swapped", "§2.12", "As many first keys are forced as last ones should be.", |b| {
        b.forced = ForcedKeys::Swapped;
    })
    .asked(Asked::Forced),
    fault(
        "forced-last-of-call",
        "§2.12",
        "The last keys of the call are forced, not the last up to the query's position.",
        |b| b.forced = ForcedKeys::LastOfCall,
    )
    .asked(Asked::Forced),
    fault("forced-without-own", "§2.12", "The last forced keys end before the query's own.", |b| {
        b.forced = ForcedKeys::WithoutOwn;
    })
    .asked(Asked::Forced),
    fault(
        "forced-though-excluded",
        "§2.12",
        "Forced keys are selected although the additive mask excludes them.",
        |b| b.forced = ForcedKeys::ThoughExcluded,
    )
    .asked(Asked::Forced),
    fault("forced-unchecked", "§2.12", "It answers where more keys are forced than H.", |b| {
        b.forced = ForcedKeys::Unchecked;
    })
    .asked(Asked::Forced),
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
    fault("scaling-ignored", "§2.11", "The attention is scaled by 1 / √d, whatever is asked.", |b| {
        b.scaling = Scaling::HeadDim;
    })
    .seen("zzhhjjj/gemma-triton-flash-attn#6, bo-ke/llm-internal-medicine#47"),
    fault("logits-capped", "§2.11", "Logits are capped at 5, by 5 · tanh(w / 5).", |b| {
        b.attention = Some(OutputChange::Capped(5.0));
    })
    .seen("sgl-project/sglang#33915"),
    fault("values-by-key-stride", "§2.11", "Values are read with rows of d numbers, where they have dv.", |b| {
        b.attention = Some(OutputChange::ValuesByKeyStride);
    })
    .seen("sgl-project/sgl-kernel-xpu#210"),
    fault("pads-read-last-key", "§2.11", "Each place of H that no key fills attends to the last key in the output.", |b| {
        b.attention = Some(OutputChange::PadsReadLast(Pads::Kept));
    })
    .seen("flashinfer-ai/flashinfer#5042"),
    fault("first-tile-nan", "§2.11", "The output is NaN where none of the first 4 keys is attended to.", |b| {
        b.attention = Some(OutputChange::NanWithoutFirstTile { tile: 4, additive: false });
    })
    .seen("vllm-project/vllm#4405, ROCm/aiter#2505"),
    fault(
        "products-overflow-f16",
        "§2.11",
        "In f16 the output is NaN where the product of a query with a key it attends to leaves the range of the type.",
        |b| {
            b.attention = Some(OutputChange::NanBeyondF16);
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
