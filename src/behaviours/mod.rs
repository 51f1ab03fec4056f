//! What an implementation may do instead of the SPEC. A [`Behaviour`] has one switch for each point in which
//! implementations differ or might differ; its default is the SPEC. It serves twice: as a deliberately wrong
//! subject that the suite must catch, and as an explanation that must reproduce a subject's answers. [`catalogue`] names
//! the faults, [`prediction`] says what a behaviour makes of a call, [`answer`](mod@answer) computes it. Of its parts [`heads`]
//! says which scores become one, [`scoring`] what a score is, [`forced`] which keys need none, [`labels`] what is scored; [`changes`]
//! are those of one step that are too many for a switch each. [`paging`] is of sessions alone.

pub mod answer;
pub mod attending;
pub mod catalogue;
pub mod changes;
pub mod fault;
pub mod forced;
pub mod heads;
pub mod labels;
pub mod paging;
pub mod prediction;
pub mod scoring;

use self::changes::{LabelChange, OutputChange, RowChange};
pub use catalogue::CATALOGUE;
pub use fault::{Asked, Fault};
pub use forced::{ForcedKeys, ForcedRule};
pub use heads::{Heads, RankSplit, Sharing, Together};
pub use labels::HeadLabels;
pub use paging::{CACHE_FAULTS, CACHE_RELATIONS, CacheFault, CacheFaultKind, Paged};
pub use prediction::{Outcome, Prediction, Ranked, predict};
pub use scoring::{ChannelWeights, Cosine, Factor, HeadWeights, Relu, Scoring};

/// What happens where n − m ≤ H.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ShortContext {
    /// As configured.
    #[default]
    Configured,
    /// A full mask, whatever is configured (D3).
    Dense,
    /// A full mask where there are at most so many times H keys, whatever is configured.
    DenseUpTo(usize),
}

/// Which rows of the channel file a call uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Channels {
    /// Those of its layer and of the configured kind.
    #[default]
    OwnLayer,
    /// Those of the first layer that the instance scored (D4).
    FirstLayer,
    /// Those of the next layer of the file.
    NextLayer,
    /// Those of another kind.
    OtherKind,
}

/// Which channel row a head uses, where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChannelRows {
    /// Its own, or that of its KV head, as the rows are given.
    #[default]
    Own,
    /// Row i modulo the number of rows.
    Modulo,
    /// The row with the number of its KV head, i / g, whatever the rows are given for.
    OfKvHead,
    /// Row 0.
    First,
    /// Row i, or the last one.
    OwnNumber,
}

impl ChannelRows {
    /// The row of a head, of so many, with heads in groups of a size; `None` where it is its own.
    pub fn of(self, head: usize, rows: usize, group_size: usize) -> Option<usize> {
        match self {
            Self::Own => None,
            Self::Modulo => Some(head % rows),
            Self::OfKvHead => Some((head / group_size).min(rows - 1)),
            Self::First => Some(0),
            Self::OwnNumber => Some(head.min(rows - 1)),
        }
    }
}

/// In which order a row's channels are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// As the row gives them, by falling importance.
    #[default]
    Falling,
    /// From the row's end.
    Rising,
    /// Mapped from half-split to interleaved RoPE (D13).
    Interleaved,
}

/// How many keys a row selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Count {
    /// H.
    #[default]
    H,
    /// H + 1.
    OneMore,
    /// H − 1.
    OneFewer,
    /// A fraction that rounds to 0 selects nothing (D7).
    Unclamped,
    /// A fraction is rounded up.
    RoundedUp,
    /// H, but no more than this.
    AtMost(usize),
}

/// How labels are quantised where B < 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Quantiser {
    /// SPEC §2.5.
    #[default]
    Spec,
    /// Not at all.
    Off,
    /// Halves are rounded away from zero.
    HalfAway,
    /// One range for all positions of a head.
    PerHead,
    /// One range for the whole tensor.
    PerTensor,
    /// The range of all d channels of a position.
    BeforeChoosing,
    /// Symmetric int8: scale max|x| / 127, code truncated toward zero (D14).
    Symmetric,
    /// Codes of 8 bits or more are kept in a signed byte and wrap.
    Wrapping,
    /// Codes are scored in place of labels.
    Codes,
    /// Codes are not divided by the scale.
    WithoutScale,
    /// The low end of the range is not added.
    WithoutLow,
    /// Codes are rounded down.
    RoundedDown,
    /// Symmetric: step max|x| / (2^(B − 1) − 1), codes rounded to the nearest.
    SymmetricNearest,
    /// 0 takes part in the range, whatever the channels are.
    RangeWithZero,
    /// Codes are divided by the scale of the position before.
    ScaleOfPrevious,
    /// Codes of channels 2j and 2j + 1 are swapped.
    PairsSwapped,
    /// Codes wrap at 256.
    Modulo256,
    /// Labels whose channels are all equal are 0.
    EqualIsZero,
}

/// Labels that a [`Quantiser`] other than the SPEC's makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Side {
    /// Those of queries and keys.
    #[default]
    Both,
    /// Those of queries alone.
    Queries,
    /// Those of keys alone.
    Keys,
}

/// Which labels are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Quantised {
    /// As configured.
    #[default]
    Configured,
    /// Those of queries and keys, whatever is configured.
    Both,
    /// Those of queries, whatever is configured.
    Queries,
    /// Those of keys, whatever is configured.
    Keys,
    /// Those of queries where those of keys are configured, and the reverse.
    Swapped,
}

/// Where labels of keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyLabels {
    /// From the call's own keys.
    #[default]
    Fresh,
    /// The newest key is scored before its label is written: its slot holds zeros.
    NewestMissing,
    /// A position keeps the label of the first call that had it, whichever layer asked.
    SharedByLayers,
    /// A position of a layer keeps the label of the first call that had it.
    WrittenOnce,
    /// A position of a layer keeps its label until a call has fewer keys than the one before.
    KeptOnRestart,
    /// Of the keys that are new in a call of several queries only the first gets a label; slots of the others hold zeros.
    FirstOfChunk,
    /// A batch of another size than in the call before finds that call's labels in the entries of both.
    BatchSlots,
}

/// Which KV head a query head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvHeads {
    /// Head i reads KV head i / g.
    #[default]
    Repeated,
    /// Head i reads KV head i mod hk.
    Tiled,
    /// Head i reads KV head i / hk, or the last one where there are fewer.
    DividedByCount,
    /// Every head reads KV head 0.
    First,
    /// Head i reads KV head min(i, hk − 1).
    OwnNumber,
}

/// Which part of the additive mask is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RankingMask {
    /// All of it.
    #[default]
    Own,
    /// None of it.
    Ignored,
    /// That of batch entry 0, for every entry.
    OfFirstEntry,
    /// That of head 0, for every head.
    OfFirstHead,
    /// That of query 0, for every query.
    OfFirstQuery,
    /// Where it is −∞; finite values are left out.
    OnlyExcludes,
}

/// What is done with keys that an earlier mask attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Earlier {
    /// They stay attended and are no candidates.
    #[default]
    Excluded,
    /// P is not read.
    Ignored,
    /// They stay attended, but may be selected again.
    Candidates,
    /// Where candidates are fewer than H, others are selected up to H and their weights reset to 1 (D12).
    FillsUp,
}

/// Which keys the causal mask lets a query rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Causality {
    /// Those up to its own position.
    #[default]
    Own,
    /// One more.
    SeesNext,
    /// One fewer.
    MissesOwn,
    /// All of them.
    Ignored,
    /// Those that the call's first query may rank.
    OfFirstQuery,
    /// Those up to position i for query i: aligned top-left.
    TopLeft,
}

/// What q·k is multiplied by in the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scaling {
    /// What the call says.
    #[default]
    Asked,
    /// 1 / √d.
    HeadDim,
    /// 1.
    One,
}

/// When inputs are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Checks {
    /// Always.
    #[default]
    First,
    /// Only where scores are computed, after the early outs of SPEC §2.2.
    AfterEarlyOuts,
}

/// One way to do Double Sparsity. The default is the SPEC's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Behaviour {
    /// SPEC §2.7.
    pub heads: Heads,
    /// SPEC §2.2.
    pub short_context: ShortContext,
    /// An earlier mask that is full is no early out (SPEC §2.2).
    pub misses_full_previous: bool,
    /// Layers configured to stay dense are sparse (SPEC §2.2, D5).
    pub ignores_dense_layers: bool,
    /// A full mask has weight 1 everywhere, also where an earlier masker gave another.
    pub full_mask_resets_weights: bool,
    /// SPEC §2.4.
    pub channels: Channels,
    /// SPEC §2.4.
    pub channel_rows: ChannelRows,
    /// Breaks on rows that are not one per query head (D6).
    pub only_rows_per_head: bool,
    /// SPEC §4.
    pub order: Order,
    /// SPEC §2.1.
    pub count: Count,
    /// floor(d / G) channels where G does not divide d (D8).
    pub floors_label_channels: bool,
    /// Rows shorter than r give labels of fewer channels (SPEC §2.4).
    pub accepts_short_rows: bool,
    /// Answers where labels leave the storage type (D9).
    pub accepts_label_range: bool,
    /// End of SPEC §2.
    pub checks: Checks,
    /// SPEC §2.5.
    pub quantiser: Quantiser,
    /// Whose labels the quantiser makes.
    pub quantiser_of: Side,
    /// SPEC §2.5.
    pub quantised: Quantised,
    /// SPEC §2.4.
    pub label_cache: KeyLabels,
    /// A call gets the answer of the first call of its layer and sizes.
    pub answers_by_shape: bool,
    /// SPEC §2.6.
    pub factor: Factor,
    /// SPEC §2.12.
    pub cosine: Cosine,
    /// SPEC §2.12.
    pub relu: Relu,
    /// SPEC §2.12.
    pub head_weights: HeadWeights,
    /// Which channel weights q̂ is multiplied by.
    pub channel_weights: ChannelWeights,
    /// What becomes of ranks.
    pub ranks: RankSplit,
    /// SPEC §2.12.
    pub forced: ForcedKeys,
    /// SPEC §2.3.
    pub kv_heads: KvHeads,
    /// The KV head whose keys a head ranks, where it is another than `kv_heads` says.
    pub ranked_heads: KvHeads,
    /// The KV head whose values a head reads, where it is another than `kv_heads` says.
    pub value_heads: KvHeads,
    /// SPEC §2.6.
    pub ranking_mask: RankingMask,
    /// SPEC §2.11.
    pub attention_mask: RankingMask,
    /// SPEC §2.6.
    pub causality: Causality,
    /// Which keys the causal mask lets a query attend to.
    pub attended_causality: Causality,
    /// SPEC §2.11.
    pub scaling: Scaling,
    /// SPEC §2.8, §2.10.
    pub earlier: Earlier,
    /// The smallest scores are selected (SPEC §2.9).
    pub smallest: bool,
    /// Ties go to the highest key (SPEC §2.9).
    pub highest_of_ties: bool,
    /// Scores are accumulated in f16 (SPEC §2.6).
    pub half_sums: bool,
    /// The softmax runs over all keys, and what is not attended is dropped after it (SPEC §2.11).
    pub softmax_over_all: bool,
    /// exp(w) is multiplied by the weight, not divided (SPEC §2.11).
    pub multiplies_weights: bool,
    /// exp(w) is not divided by the weight (SPEC §2.11).
    pub ignores_weights: bool,
    /// 10⁻⁶ is added to weights before exp(w) is divided by them (SPEC §2.11).
    pub shifts_weights: bool,
    /// Where there are fewer keys than H, the missing ones are attended to as zeros (D11).
    pub attends_unwritten: bool,
    /// Rows that attend to nothing are NaN (SPEC §2.11).
    pub nan_in_empty_rows: bool,
    /// In f16, rows that leave a key out are NaN (D17).
    pub nan_in_f16: bool,
    /// Labels that come from elsewhere (SPEC §2.3 to §2.5).
    pub labels: Option<LabelChange>,
    /// Rows that select otherwise (SPEC §2.8, §2.9).
    pub rows: Option<RowChange>,
    /// Attention that is another one (SPEC §2.11).
    pub attention: Option<OutputChange>,
}
