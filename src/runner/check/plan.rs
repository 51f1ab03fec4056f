//! In which order a check asks: a count of sequences, small ones first, or as many as fit into a time, in stages of growing
//! size. Which sequence has which number follows from the seed alone, so the time decides only how many there are.

use std::time::Duration;

use super::Options;
use super::by_size::SIZES;
use super::draws::{Draws, LargeDraws};
use super::goldens::Goldens;
use super::pace::Pace;
use super::run::Run;
use super::sessions::{SEQUENCES_PER_SESSION, SessionDraws};
use crate::cases::Sequence;
use crate::cases::large_plan::Large;

/// One large sequence for so many small ones, where their number is given.
const SMALL_PER_LARGE: usize = 16;

/// Large sequences that would take too long, after which their stage ends: others of it may be smaller.
const MOST_SKIPPED: usize = 3;

/// The share of the time that small sequences get, and sessions where they are offered, where each stage of large ones gets 1.
const SMALL_SHARE: f64 = 2.0;

impl Run<'_> {
    /// Asks what the options say.
    pub(super) fn ask_all(&mut self, options: &Options) {
        let mut draws = Draws::new(&self.capabilities, options);
        let mut goldens = Goldens::new(self, options);
        let mut sessions = SessionDraws::new(options);
        self.report.sessions = self.has_sessions().then(Default::default);
        match options.seconds {
            None => self.ask_so_many(options, &mut draws, &mut sessions, &mut goldens),
            Some(seconds) => self.ask_for(seconds, options, &mut draws, &mut sessions, &mut goldens),
        }
        goldens.count_waiting(self);
        if self.report.sequences == 0 && goldens.asked() == 0 && goldens.len() == 0 && options.cases == 0 {
            let found = "cases: found 0, and no golden that applies, expected something to ask";
            self.report.bad_inputs.push(found.into());
        }
    }

    /// Random sequences are small and quick to understand: they go first, in either plan.
    fn ask_so_many(
        &mut self,
        options: &Options,
        draws: &mut Draws,
        sessions: &mut SessionDraws,
        goldens: &mut Goldens,
    ) {
        let shard = options.shard;
        let (cases, large) = (shard.share(options.cases), shard.share(options.cases / SMALL_PER_LARGE));
        let of_sessions = shard.share(options.cases / SEQUENCES_PER_SESSION);
        let of_sessions = if self.has_sessions() { of_sessions } else { 0 };
        let total = cases + large + of_sessions + goldens.len();
        let done = |run: &Run| run.asked as f64 / total.max(1) as f64;
        while self.report.sequences < cases && !self.is_over() {
            let Some(sequence) = draws.small() else { break };
            self.report.sequences += 1;
            self.sequence(&sequence, done(self));
        }
        if self.report.sequences < cases && !self.is_over() {
            self.few_found(&cases.to_string());
        }
        self.ask_sessions(of_sessions, sessions, total);
        let of_size = Large::new(options.seed, 0, options.largest_keys);
        let mut sizes = LargeDraws::new((of_size.least, of_size.most), draws.large_shapes());
        for _ in 0..large {
            if self.is_over() {
                break;
            }
            let Some(sequence) = draws.try_large(&mut sizes) else { continue };
            self.report.large += 1;
            self.sequence(&sequence, done(self));
        }
        while !self.is_over()
            && let Some(golden) = goldens.next(self)
        {
            self.report.goldens += 1;
            self.sequence(&golden, done(self));
        }
    }

    fn few_found(&mut self, expected: &str) {
        let found = self.report.sequences;
        self.report.bad_inputs.push(format!(
            "random sequences: found {found} that both the subject and the profile offer, expected {expected}"
        ));
    }

    /// Every size that the subject takes has a share of the time before a larger one has. What is left in the end is shared
    /// again.
    fn ask_for(
        &mut self,
        seconds: Duration,
        options: &Options,
        draws: &mut Draws,
        sessions: &mut SessionDraws,
        goldens: &mut Goldens,
    ) {
        let mut pace = Pace::new(seconds);
        goldens.sort();
        let mut stages = self.stages(options, draws.large_shapes());
        let of_sessions = if self.has_sessions() { SMALL_SHARE } else { 0.0 };
        let shares = SMALL_SHARE + of_sessions + stages.len() as f64;
        loop {
            let before = self.asked;
            pace.begin(self.asking(), SMALL_SHARE / shares);
            self.ask_small(options, draws, &mut pace);
            if self.report.sequences == 0 && options.cases > 0 && !self.is_over() {
                self.few_found("at least 1");
            }
            if self.has_sessions() {
                pace.begin(self.asking(), of_sessions / (shares - SMALL_SHARE));
                let most = options.shard.share(options.cases.div_ceil(SEQUENCES_PER_SESSION));
                self.ask_sessions_for(most, sessions, &mut pace);
            }
            let mut left = stages.len();
            for stage in &mut stages {
                pace.begin(self.asking(), 1.0 / left as f64);
                left -= 1;
                let most = if left == 0 { usize::MAX } else { stage.most };
                self.ask_goldens(goldens, most, &mut pace);
                self.ask_large(options, stage, draws, &mut pace);
            }
            if stages.is_empty() {
                pace.begin(self.asking(), 1.0);
                self.ask_goldens(goldens, usize::MAX, &mut pace);
            }
            if self.is_over() || self.asked == before || pace.left(self.asking()) == 0.0 {
                break;
            }
        }
    }

    /// The sizes of large sequences, as far as the subject takes them.
    fn stages(&self, options: &Options, shapes: Option<usize>) -> Vec<LargeDraws> {
        let mut stages = Vec::new();
        for pair in SIZES.windows(2) {
            let (least, most) = (pair[0] + 1, pair[1].min(options.largest_keys));
            let large = Large { least, most, ..Large::new(options.seed, 0, most) };
            if large.has_room(&self.capabilities) {
                stages.push(LargeDraws::new((least, most), None));
            }
        }
        // Fewer shapes than stages: the largest of the sizes, and some below.
        let count = stages.len();
        for (index, stage) in stages.iter_mut().enumerate() {
            stage.shapes = shapes.map(|shapes| (index + 1) * shapes / count - index * shapes / count);
        }
        stages.retain(|stage| stage.shapes != Some(0));
        stages
    }

    fn ask_small(&mut self, options: &Options, draws: &mut Draws, pace: &mut Pace) {
        let most = options.shard.share(options.cases);
        while self.report.sequences < most && !self.is_over() && pace.may_ask_usual(self.asking()) {
            let Some(sequence) = draws.small() else { break };
            self.report.sequences += 1;
            self.paced(&sequence, pace);
        }
    }

    fn ask_large(&mut self, options: &Options, stage: &mut LargeDraws, draws: &mut Draws, pace: &mut Pace) {
        let most = options.shard.share(options.cases.div_ceil(SMALL_PER_LARGE));
        let mut skipped = 0;
        // Making a sequence takes time, too.
        while stage.asked < most && !self.is_over() && pace.may_ask(self.asking(), stage.least) {
            let Some(sequence) = draws.large(stage) else { break };
            if !pace.may_ask(self.asking(), operations(&sequence)) {
                skipped += 1;
                if skipped > MOST_SKIPPED {
                    break;
                }
                continue;
            }
            stage.asked += 1;
            self.report.large += 1;
            self.paced(&sequence, pace);
        }
    }

    /// The smallest goldens that were not asked yet, in the first half of a stage.
    fn ask_goldens(&mut self, goldens: &mut Goldens, most: usize, pace: &mut Pace) {
        while let Some((keys, operations)) = goldens.first()
            && keys <= most
            && !self.is_over()
            && pace.may_ask_in_half(self.asking(), operations)
        {
            let Some(golden) = goldens.next(self) else { break };
            self.report.goldens += 1;
            self.paced(&golden, pace);
        }
    }

    /// Asks a sequence and measures it.
    fn paced(&mut self, sequence: &Sequence, pace: &mut Pace) {
        let (before, compiled) = (self.asking(), self.compiling.1);
        self.sequence(sequence, pace.done(before));
        let seconds = self.asking() - before;
        pace.count(operations(sequence), seconds, self.compiling.1 == compiled);
    }
}

fn operations(sequence: &Sequence) -> usize {
    sequence.calls.iter().map(|call| call.inputs.dims().operations()).sum()
}
