//! A small Double Sparsity in f32: each head alone, labels not quantised. `tests/check.rs` checks it with the
//! suite.

/// The keys [n, d] and the query [d] of one head, and how to select among them.
pub struct Row<'a> {
    /// [d]
    pub query: &'a [f32],
    /// n keys of [d]
    pub keys: &'a [Vec<f32>],
    /// What is added to each key's score, −∞ for what may not be selected.
    pub additive: &'a [f32],
    /// The label channels, r of them.
    pub channels: &'a [usize],
    /// H
    pub heavy_size: usize,
}

/// The selected keys, best first; ties go to the lowest index.
pub fn select(row: &Row) -> Vec<usize> {
    let root = (row.channels.len() as f32).sqrt();
    let score = |key: usize| {
        let dot: f32 = row.channels.iter().map(|&c| row.query[c] * row.keys[key][c]).sum();
        dot / root + row.additive[key]
    };
    let mut scored: Vec<(f32, usize)> = (0..row.keys.len()).map(|key| (score(key), key)).collect();
    scored.retain(|(score, _)| *score > f32::NEG_INFINITY);
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().take(row.heavy_size).map(|(_, key)| key).collect()
}
