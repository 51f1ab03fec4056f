//! What known kinds of implementation offer, so that one can be checked without declaring it: `--profile`.

use std::collections::BTreeSet;

use super::capabilities::{Capabilities, Feature};
use crate::algorithm::HeadMode;

/// Names of the profiles.
pub const NAMES: [&str; 3] = ["everything", "author", "hub"];

/// The profile of this name; `None` where there is none.
pub fn find(name: &str) -> Option<Capabilities> {
    let profile = |first_layer: usize, lacks: &[Feature]| Capabilities {
        heads: vec![HeadMode::PerHead],
        first_layer,
        lacks: lacks.iter().copied().collect::<BTreeSet<_>>(),
        ..Capabilities::default()
    };
    match name {
        "everything" => Some(Capabilities::default()),
        // The author's evaluation attention: layers 0 and 1 are dense, dv = d, one row per query head, H a count, one mask for all
        // heads. It checks few of its inputs, and a row that attends to nothing is NaN there.
        "author" => Some(profile(
            2,
            &[
                Feature::MasksPerHead,
                Feature::Previous,
                Feature::Weights,
                Feature::EarlierMaskers,
                Feature::Fractions,
                Feature::DenseFallback,
                Feature::DenseLayers,
                Feature::Scaling,
                Feature::ValueDim,
                Feature::ChannelsPerKvHead,
                Feature::ChannelsShared,
                Feature::EmptyRows,
                Feature::Refusals,
            ],
        )),
        // sparse-attention-hub's masker: per head, one channel row per head, no list of dense layers; its sink and local
        // maskers are left out.
        "hub" => Some(profile(0, &[Feature::DenseLayers, Feature::ChannelsShared, Feature::EarlierMaskers])),
        _ => None,
    }
}
