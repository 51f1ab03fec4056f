//! SPEC §2.9 on scores that are known up to an error: which keys are among the H largest for certain, and which are
//! open and must be scored exactly. Keys are offered one by one; a rising threshold turns most of them away, so that
//! neither all scores nor their order is ever kept.

/// A key whose score lies in [low, high].
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    low: f32,
    high: f32,
    key: usize,
}

/// The candidates for the H largest scores.
#[derive(Debug)]
pub struct Top {
    heavy_size: usize,
    candidates: Vec<Candidate>,
    threshold: f32,
    limit: usize,
}

/// What is known once every key was offered.
#[derive(Debug, Default, PartialEq)]
pub struct Sorted {
    /// Selected whatever the exact scores are.
    pub certain: Vec<usize>,
    /// Ranked by their exact scores for what remains of H.
    pub open: Vec<usize>,
}

impl Top {
    /// No candidates yet, for `heavy_size` keys, at least 1.
    pub fn new(heavy_size: usize) -> Self {
        Self {
            heavy_size,
            candidates: Vec::new(),
            threshold: f32::NEG_INFINITY,
            limit: 2 * heavy_size.max(128),
        }
    }

    /// H keys score at least this; a key that cannot is not worth offering.
    #[inline(always)]
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Offers a key whose score lies in [low, high], both finite.
    pub fn offer(&mut self, low: f32, high: f32, key: usize) {
        self.candidates.push(Candidate { low, high, key });
        if self.candidates.len() >= self.limit {
            self.raise_threshold();
            // Where many scores are too close to tell apart, they are all kept.
            self.limit = 2 * self.candidates.len().max(self.heavy_size).max(128);
        }
    }

    /// The candidates of both, which were offered different keys.
    pub fn merge(mut self, other: Self) -> Self {
        for Candidate { low, high, key } in other.candidates {
            if high >= self.threshold {
                self.offer(low, high, key);
            }
        }
        self
    }

    /// A key below the H-th largest low is out: H others score higher.
    fn raise_threshold(&mut self) {
        if self.candidates.len() > self.heavy_size {
            let falling = |a: &Candidate, b: &Candidate| b.low.total_cmp(&a.low);
            let (_, nth, _) = self.candidates.select_nth_unstable_by(self.heavy_size - 1, falling);
            let threshold = nth.low;
            self.candidates.retain(|candidate| candidate.high >= threshold);
            self.threshold = threshold;
        }
    }

    /// A key above the (H+1)-th largest high is in: fewer than H others could score as high.
    pub fn finish(mut self) -> Sorted {
        self.raise_threshold();
        let mut sorted = Sorted::default();
        if self.candidates.len() <= self.heavy_size {
            sorted.certain = self.candidates.iter().map(|candidate| candidate.key).collect();
            return sorted;
        }
        let falling = |a: &Candidate, b: &Candidate| b.high.total_cmp(&a.high);
        let in_above = self.candidates.select_nth_unstable_by(self.heavy_size, falling).1.high;
        for candidate in &self.candidates {
            let certain = candidate.low > in_above;
            if certain { &mut sorted.certain } else { &mut sorted.open }.push(candidate.key);
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(heavy_size: usize, scores: &[(f32, f32)]) -> (Vec<usize>, Vec<usize>) {
        let mut top = Top::new(heavy_size);
        for (key, &(low, high)) in scores.iter().enumerate() {
            if high >= top.threshold() {
                top.offer(low, high, key);
            }
        }
        let Sorted { mut certain, mut open } = top.finish();
        certain.sort_unstable();
        open.sort_unstable();
        (certain, open)
    }

    #[test]
    fn only_overlapping_scores_around_the_threshold_are_open() {
        let scores = [(5.0, 5.5), (1.0, 1.5), (3.0, 3.5), (3.25, 3.75), (9.0, 9.0)];
        assert_eq!(sorted(3, &scores), (vec![0, 4], vec![2, 3]));
        assert_eq!(sorted(4, &scores), (vec![0, 2, 3, 4], vec![]));
        assert_eq!(sorted(5, &scores), (vec![0, 1, 2, 3, 4], vec![]));
        assert_eq!(sorted(2, &[(1.0, 1.0); 3]), (vec![], vec![0, 1, 2]));
    }

    #[test]
    fn a_rising_threshold_forgets_nothing() {
        for step in [1usize, 7, 1009, 4999] {
            let scores: Vec<(f32, f32)> = (0..5000usize)
                .map(|key| u16::try_from(key * step % 5000).map(f32::from).unwrap())
                .map(|score| (score, score))
                .collect();
            let (certain, open) = sorted(300, &scores);
            let expected: Vec<usize> = (0..5000).filter(|&key| scores[key].0 >= 4700.0).collect();
            assert_eq!((certain, open), (expected, vec![]), "step {step}");
        }
    }
}
