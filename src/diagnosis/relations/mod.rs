//! Relations: what was answered is right for something else. A relation changes what is asked, or one step of the
//! selection or of the attention, and the answers must be right for that: the SPEC's own bounds judge them (SPEC §5), so that
//! nothing new decides what is right. Selection and attention are judged apart, the attention by the mask that was answered.
//!
//! A relation is told only where it is proved: it reproduces every answer that fails, and every answer that conforms.
//! Its numbers (tiles, limits, lengths) are those of the subject's own answers.

mod answers;
mod fits;
mod members;
mod of_lengths;
mod restriction;
mod search;
mod stages;

use std::sync::Arc;

use self::answers::Place;
use self::restriction::Restriction;
pub use self::search::{MOST_TIME, MOST_TIME_IF_NAMED, Told, explain, is_supported};
pub use self::stages::{SeenStage, explain_stages, features as features_of_stage};
use crate::behaviours::Behaviour;
use crate::behaviours::changes::{LabelChange, OutputChange, RowChange};
use crate::cases::Sequence;

/// What a relation is made of: a change, in one step or more, and the words for it.
#[derive(Clone)]
struct Member {
    words: String,
    acts: Acts,
    how: Vec<How>,
}

/// Where a change acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acts {
    Selection,
    Attention,
    Both,
}

type Switch = Arc<dyn Fn(&mut Behaviour) + Send + Sync>;

/// Changes call `index` of a sequence or what is configured, where an entry's place in its batch may decide how; false where there is
/// nothing to change.
type Question = Arc<dyn Fn(&mut Sequence, usize, Option<&Place>) -> bool + Send + Sync>;

/// A change.
#[derive(Clone)]
enum How {
    /// A switch of a behaviour.
    Switch(Switch),
    /// The answer is right for another question.
    Question(Question),
    /// Labels come from elsewhere.
    Labels(LabelChange),
    /// Rows select otherwise.
    Row(RowChange),
    /// The attention is another one.
    Output(OutputChange),
}

/// Changes that act together, everywhere or only in some calls.
#[derive(Clone)]
struct Relation {
    /// What is declared.
    base: Behaviour,
    members: Vec<Member>,
    only: Option<Restriction>,
}

impl Relation {
    fn new(base: Behaviour, members: Vec<Member>) -> Self {
        Self { base, members, only: None }
    }

    /// The behaviour of the switches.
    fn behaviour(&self) -> Behaviour {
        let mut behaviour = self.base;
        for how in self.hows() {
            if let How::Switch(switch) = how {
                switch(&mut behaviour);
            }
        }
        behaviour
    }

    fn hows(&self) -> impl Iterator<Item = &How> {
        self.members.iter().flat_map(|member| &member.how)
    }

    fn acts_on(&self, acts: Acts) -> bool {
        self.members.iter().any(|member| member.acts == acts || member.acts == Acts::Both)
    }

    /// In words: a sentence.
    fn words(&self) -> String {
        let changes: Vec<&str> = self.members.iter().map(|member| member.words.as_str()).collect();
        let changes = changes.join("; and ");
        match &self.only {
            None => changes,
            Some(only) => format!("{changes}, {}", only.words()),
        }
    }
}
