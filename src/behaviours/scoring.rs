//! SPEC §2.6 and §2.12: the score of one head and key from its labels, before A, and what an implementation may do instead.

use crate::algorithm::{ChannelOrder, Dims, Inputs, Row, Rules, ScoreFactor, ScoreRule, Selection};

use super::Behaviour;

/// What a score is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Factor {
    /// As configured.
    #[default]
    Configured,
    /// 1, whatever is configured.
    One,
    /// 1 / √r, whatever is configured.
    LabelChannels,
    /// 1 / √d, whatever is configured.
    HeadDim,
}

/// What stands below q̂ · k̂ in the rule `cosine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cosine {
    /// ‖q̂‖ · ‖k̂‖ + ε
    #[default]
    Spec,
    /// Nothing.
    Ignored,
    /// ‖q̂‖ · ‖k̂‖; where that is 0, so is the score.
    WithoutEpsilon,
    /// ‖k̂‖ + ε
    WithoutQueryNorm,
    /// ‖q̂‖ + ε
    WithoutKeyNorm,
}

/// What is done with a dot product and the head weight in the rule `relu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Relu {
    /// w · max(q̂ · k̂, 0)
    #[default]
    Spec,
    /// w · q̂ · k̂
    LeftOut,
    /// max(w · q̂ · k̂, 0)
    AfterWeight,
}

/// Which head weight a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HeadWeights {
    /// Its own.
    #[default]
    Own,
    /// 1.
    Ignored,
    /// That of head 0.
    OfFirstHead,
    /// That of the call's first query.
    OfFirstQuery,
    /// The mean of the heads that share a selection, as if it were applied to the sum of their scores.
    AfterSum,
}

/// Which channel weights q̂ is multiplied by (SPEC §2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChannelWeights {
    /// Those of the head's own row, where weights are configured.
    #[default]
    Own,
    /// None.
    Ignored,
    /// Those of row 0 for every head.
    OfFirstRow,
}

impl ChannelWeights {
    /// The weights of a head, at least r of them.
    pub(super) fn of(
        self,
        selection: &Selection,
        channels: &ChannelOrder,
        head: usize,
        dims: &Dims,
    ) -> Option<Vec<f32>> {
        let head = match self {
            Self::Own => head,
            Self::OfFirstRow => 0,
            Self::Ignored => return None,
        };
        let weights = channels.weights_of(head, dims).filter(|_| selection.rules.channel_weights);
        weights.map(<[f32]>::to_vec)
    }
}

/// How q̂ · k̂ becomes a score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// The rule.
    pub rule: ScoreRule,
    /// ε of `cosine`; 0 where it is left out.
    pub epsilon: f64,
    /// What a score is multiplied by.
    pub factor: f64,
    /// Of the rule `cosine`.
    pub cosine: Cosine,
    /// Of the rule `relu`.
    pub relu: Relu,
    /// Of the rule `relu`.
    pub head_weights: HeadWeights,
}

impl Scoring {
    /// As the SPEC says, for r label channels of d.
    pub fn spec(rules: &Rules, label_channels: usize, head_dim: usize) -> Self {
        Self::of(Behaviour::default(), rules, label_channels, head_dim)
    }

    /// As a behaviour does it.
    pub fn of(behaviour: Behaviour, rules: &Rules, label_channels: usize, head_dim: usize) -> Self {
        let factor = match behaviour.factor {
            Factor::Configured => rules.factor,
            Factor::One => ScoreFactor::ONE,
            Factor::LabelChannels => ScoreFactor::LabelChannels,
            Factor::HeadDim => ScoreFactor::HeadDim,
        };
        let rule = match (rules.score, behaviour.cosine) {
            (ScoreRule::Cosine, Cosine::Ignored) => ScoreRule::Dot,
            (rule, _) => rule,
        };
        let epsilon = if behaviour.cosine == Cosine::WithoutEpsilon { 0.0 } else { rules.epsilon.get() };
        Self {
            rule,
            epsilon,
            factor: factor.get(label_channels, head_dim),
            cosine: behaviour.cosine,
            relu: behaviour.relu,
            head_weights: behaviour.head_weights,
        }
    }

    /// The head weight of a row. `heads` share its selection.
    pub fn head_weight(&self, inputs: &Inputs, (b, head, i): Row, heads: &[usize]) -> f32 {
        match self.head_weights {
            HeadWeights::Own => inputs.head_weight((b, head, i)),
            HeadWeights::Ignored => 1.0,
            HeadWeights::OfFirstHead => inputs.head_weight((b, 0, i)),
            HeadWeights::OfFirstQuery => inputs.head_weight((b, head, 0)),
            HeadWeights::AfterSum => {
                let sum: f32 = heads.iter().map(|&head| inputs.head_weight((b, head, i))).sum();
                sum / heads.len() as f32
            }
        }
    }

    /// The score of two labels, in f64.
    pub fn score(
        &self,
        dot: f64,
        q: impl Iterator<Item = f64>,
        k: impl Iterator<Item = f64>,
        weight: f32,
    ) -> f64 {
        let weight = f64::from(weight);
        let score = match self.rule {
            ScoreRule::Dot => dot,
            ScoreRule::Cosine => {
                let (q, k) = match self.cosine {
                    Cosine::WithoutQueryNorm => (1.0, norm(k)),
                    Cosine::WithoutKeyNorm => (norm(q), 1.0),
                    _ => (norm(q), norm(k)),
                };
                let below = q * k + self.epsilon;
                if below == 0.0 { 0.0 } else { dot / below }
            }
            ScoreRule::Relu => match self.relu {
                Relu::Spec => weight * dot.max(0.0),
                Relu::LeftOut => weight * dot,
                Relu::AfterWeight => (weight * dot).max(0.0),
            },
        };
        score * self.factor
    }
}

fn norm(label: impl Iterator<Item = f64>) -> f64 {
    label.map(|x| x * x).sum::<f64>().sqrt()
}
