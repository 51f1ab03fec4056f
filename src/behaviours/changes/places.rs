//! Places that may be taken for others: entries, heads, queries.

use crate::algorithm::{Dims, Row};

/// What a place is a place among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Batch entries.
    Entry,
    /// Query heads.
    Head,
    /// Queries.
    Query,
}

/// Which place stands in for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// The first.
    First,
    /// The last.
    Last,
    /// The one before; the first for itself.
    Previous,
    /// The one after; the last for itself.
    Next,
    /// As many from the end.
    Reversed,
    /// Of a head: the first of its group.
    FirstOfGroup,
    /// Of a head: the number of its KV head.
    NumberOfKvHead,
    /// Of a head: its number modulo hk.
    ModuloKvHeads,
}

impl Map {
    /// The place that stands in for one of `count`.
    pub fn of(self, at: usize, count: usize, dims: &Dims) -> usize {
        match self {
            Self::First => 0,
            Self::Last => count - 1,
            Self::Previous => at.saturating_sub(1),
            Self::Next => (at + 1).min(count - 1),
            Self::Reversed => count - 1 - at,
            Self::FirstOfGroup => at / dims.group_size() * dims.group_size(),
            Self::NumberOfKvHead => dims.kv_head(at),
            Self::ModuloKvHeads => at % dims.kv_heads,
        }
    }

    /// The place, in words.
    pub fn words(self, axis: Axis) -> String {
        let (name, letter) = match axis {
            Axis::Entry => ("entry", "e"),
            Axis::Head => ("head", "i"),
            Axis::Query => ("query", "t"),
        };
        match self {
            Self::First => format!("{name} 0"),
            Self::Last => format!("the last {name}"),
            Self::Previous => format!("{name} {letter} − 1"),
            Self::Next => format!("{name} {letter} + 1"),
            Self::Reversed => format!("the {name} counted from the end"),
            Self::FirstOfGroup => "head g · ⌊i / g⌋, the first of its KV head".into(),
            Self::NumberOfKvHead => "head ⌊i / g⌋".into(),
            Self::ModuloKvHeads => "head i mod hk".into(),
        }
    }
}

impl Axis {
    /// Every place, in words.
    pub fn each(self) -> &'static str {
        match self {
            Self::Entry => "entry e",
            Self::Head => "head i",
            Self::Query => "query t",
        }
    }

    /// The maps that mean something here.
    pub fn maps(self) -> &'static [Map] {
        use Map::{First, FirstOfGroup, Last, ModuloKvHeads, Next, NumberOfKvHead, Previous, Reversed};
        match self {
            Self::Head => {
                &[First, Last, Previous, Next, Reversed, FirstOfGroup, NumberOfKvHead, ModuloKvHeads]
            }
            _ => &[First, Last, Previous, Next, Reversed],
        }
    }

    /// How many places there are.
    pub fn count(self, dims: &Dims) -> usize {
        match self {
            Self::Entry => dims.batch,
            Self::Head => dims.heads,
            Self::Query => dims.queries,
        }
    }

    /// The row that stands in for one.
    pub fn moved(self, map: Map, (b, head, i): Row, dims: &Dims) -> Row {
        let of = |at| map.of(at, self.count(dims), dims);
        match self {
            Self::Entry => (of(b), head, i),
            Self::Head => (b, of(head), i),
            Self::Query => (b, head, of(i)),
        }
    }
}
