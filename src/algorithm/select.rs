//! SPEC §2.8 and §2.9: which keys are candidates, and the H candidates with the largest scores; ties go to the
//! lowest key index.

/// The selected key indices, ascending. `scores` has one entry per key, `excluded` says which keys an earlier
/// mask attends to already. Keys scored −∞ are no candidates. If there are fewer candidates than `heavy_size`, all are selected.
pub fn select(scores: &[f64], excluded: impl Fn(usize) -> bool, heavy_size: usize) -> Vec<usize> {
    if heavy_size == 0 {
        return Vec::new();
    }
    let candidate = |&key: &usize| scores[key] > f64::NEG_INFINITY && !excluded(key);
    let mut candidates: Vec<usize> = (0..scores.len()).filter(candidate).collect();
    if heavy_size < candidates.len() {
        let mut ranked: Vec<f64> = candidates.iter().map(|&key| scores[key]).collect();
        let (larger, &mut lowest, _) = ranked.select_nth_unstable_by(heavy_size - 1, |a, b| b.total_cmp(a));
        // 0 and −0 are equal here, unlike in the order above.
        let mut ties = heavy_size - larger.iter().filter(|&&score| score > lowest).count();
        candidates.retain(|&key| {
            let tie = scores[key] == lowest && ties > 0;
            ties -= usize::from(tie);
            tie || scores[key] > lowest
        });
    }
    candidates
}

/// As [`select`], where candidates that are `forced` are selected first, whatever they score. At most `heavy_size` keys may
/// be forced.
pub fn select_with(
    scores: &[f64],
    excluded: impl Fn(usize) -> bool,
    forced: impl Fn(usize) -> bool,
    heavy_size: usize,
) -> Vec<usize> {
    let first = |&key: &usize| forced(key) && scores[key] > f64::NEG_INFINITY && !excluded(key);
    let mut selected: Vec<usize> = (0..scores.len()).filter(first).collect();
    let rest = heavy_size.saturating_sub(selected.len());
    selected.extend(select(scores, |key| excluded(key) || forced(key), rest));
    selected.sort_unstable();
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(select(&[1.0, 2.0, 1.0, 2.0, 1.0], |_| false, 3), [0, 1, 3]);
        assert_eq!(select(&[0.0, -0.0, 0.0], |_| false, 2), [0, 1]);
    }

    #[test]
    fn excluded_and_masked_keys_are_no_candidates() {
        let scores = [5.0, 4.0, f64::NEG_INFINITY, 3.0];
        assert_eq!(select(&scores, |key| key == 0, 2), [1, 3]);
        assert_eq!(select(&scores, |key| key == 0, 9), [1, 3]);
        assert_eq!(select(&scores, |_| true, 1), [0usize; 0]);
    }

    #[test]
    fn forced_keys_count_and_must_be_candidates() {
        let scores = [5.0, 4.0, f64::NEG_INFINITY, 3.0, 1.0];
        assert_eq!(select_with(&scores, |_| false, |key| key > 3, 2), [0, 4]);
        assert_eq!(select_with(&scores, |_| false, |key| key > 3, 1), [4]);
        assert_eq!(select_with(&scores, |key| key == 4, |key| key > 1, 2), [0, 3]);
    }
}
