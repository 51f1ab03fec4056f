//! A named fault: a sentence, the row of SPEC §3 or the section of SPEC §2 it goes against, the switches of a [`Behaviour`]
//! that it sets, and what an implementation must be asked so that it shows.

use super::Behaviour;
use crate::algorithm::rules::Epsilon;
use crate::algorithm::{
    Forced, HeadMode, QuantisedLabels, Ranks, Rules, ScoreFactor, ScoreRule, Selection, Storage,
};
use crate::cases::Capabilities;

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
    /// What shows it.
    pub asked: Asked,
    /// Public reports of it, or of the like: repositories with the number of an issue or pull request. Empty where the row
    /// of SPEC §3 has the source, or where there is none.
    pub seen: &'static str,
    /// Sets its switches.
    pub apply: fn(&mut Behaviour),
}

/// The rules and head modes under which a fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Those of the published algorithm.
    Published,
    /// Labels of keys alone or of queries alone are quantised.
    Quantised,
    /// Factors other than 1 / √r.
    Factor,
    /// `cosine`.
    Cosine,
    /// `relu`.
    Relu,
    /// `relu` where heads share a selection.
    ReluOfHeads,
    /// Channel weights.
    ChannelWeights,
    /// The heads that share a selection split into ranks.
    Ranks,
    /// Forced keys.
    Forced,
    /// These head modes.
    Heads(&'static [HeadMode]),
}

impl Asked {
    /// The rules that are asked for.
    pub fn rules(self) -> Vec<Rules> {
        let plain = Rules::default();
        let forced = |first, last| Rules { forced: Forced { first, last }, ..plain };
        match self {
            Self::Published | Self::Heads(_) => vec![plain],
            Self::Quantised => {
                let of = |quantised| Rules { quantised, ..plain };
                vec![of(QuantisedLabels::Keys), of(QuantisedLabels::Queries)]
            }
            Self::Factor => {
                let of = |factor| Rules { factor, ..plain };
                vec![of(ScoreFactor::HeadDim), of(ScoreFactor::Number(2.5))]
            }
            Self::Cosine => {
                let cosine = Rules { score: ScoreRule::Cosine, ..plain };
                let wide = Epsilon::new(0.5).map(|epsilon| Rules { epsilon, ..cosine });
                [Some(cosine), wide.ok()].into_iter().flatten().collect()
            }
            Self::Relu | Self::ReluOfHeads => vec![Rules { score: ScoreRule::Relu, ..plain }],
            Self::ChannelWeights => vec![Rules { channel_weights: true, ..plain }],
            Self::Ranks => {
                let of = |parts| Ranks::new(2, parts).map(|ranks| Rules { ranks, ..plain });
                [of(Storage::F32), of(Storage::Bf16)].into_iter().flatten().collect()
            }
            Self::Forced => vec![forced(0, 1), forced(2, 0), forced(2, 3)],
        }
    }

    /// The head modes that are asked for.
    pub fn heads(self) -> &'static [HeadMode] {
        match self {
            Self::Heads(modes) => modes,
            Self::ReluOfHeads => &[HeadMode::SummedScores, HeadMode::Max, HeadMode::GroupSum],
            Self::Ranks => &[HeadMode::Max, HeadMode::SummedScores, HeadMode::GroupMax],
            _ => &HeadMode::ALL,
        }
    }

    /// Whether something differs from the SPEC under these settings, as far as they say.
    pub fn concerns(self, selection: &Selection) -> bool {
        let rules = &selection.rules;
        match self {
            Self::Published => true,
            Self::Quantised => rules.quantised != QuantisedLabels::Both,
            Self::Factor => rules.factor != ScoreFactor::LabelChannels,
            Self::Cosine => rules.score == ScoreRule::Cosine,
            Self::Relu => rules.score == ScoreRule::Relu,
            Self::ReluOfHeads => rules.score == ScoreRule::Relu && selection.heads != HeadMode::PerHead,
            Self::ChannelWeights => rules.channel_weights,
            Self::Ranks => rules.ranks.count() > 1 && selection.heads != HeadMode::PerHead,
            Self::Forced => rules.forced != Forced::default(),
            Self::Heads(modes) => modes.contains(&selection.heads),
        }
    }
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
        super::CATALOGUE.iter().filter(|fault| same(fault.name) || same(fault.row)).collect()
    }

    /// What implementations with some faults may be asked, so that all of them show.
    pub fn capabilities(faults: &[&Self]) -> Capabilities {
        let mut asked: Vec<Asked> = faults.iter().map(|fault| fault.asked).collect();
        if asked.iter().any(|asked| *asked != Asked::Published) {
            asked.retain(|asked| *asked != Asked::Published);
        }
        let (mut rules, mut heads) = (Vec::new(), Vec::new());
        for asked in asked {
            let new: Vec<Rules> = asked.rules().into_iter().filter(|asked| !rules.contains(asked)).collect();
            rules.extend(new);
            heads.extend(
                asked.heads().iter().copied().filter(|mode| !heads.contains(mode)).collect::<Vec<_>>(),
            );
        }
        match rules.is_empty() {
            true => Capabilities::default(),
            false => Capabilities { rules, heads, ..Capabilities::default() },
        }
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

pub(super) const fn fault(
    name: &'static str,
    row: &'static str,
    sentence: &'static str,
    apply: fn(&mut Behaviour),
) -> Fault {
    Fault { name, row, sentence, conforms: false, asked: Asked::Published, seen: "", apply }
}

pub(super) const fn conforming(
    name: &'static str,
    row: &'static str,
    sentence: &'static str,
    apply: fn(&mut Behaviour),
) -> Fault {
    Fault { name, row, sentence, conforms: true, asked: Asked::Published, seen: "", apply }
}

impl Fault {
    /// The same, shown by other questions.
    pub(super) const fn asked(self, asked: Asked) -> Self {
        Self { asked, ..self }
    }

    /// The same, with public reports.
    pub(super) const fn seen(self, seen: &'static str) -> Self {
        Self { seen, ..self }
    }
}
