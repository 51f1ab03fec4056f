//! The adapter, and the check: it declares what this crate does not offer, and everything else is asked.

use doublecheck::prelude::*;
use my_masker::{Row, select};

#[derive(Default)]
struct Adapter {
    instance: Option<Instance>,
}

impl Subject for Adapter {
    fn name(&self) -> String {
        "my-masker".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        let (labels, kept, accumulation) = (LabelRounding::Exact, Precision::F32, Accumulation::F32);
        RoundingModel::new(labels, kept, accumulation)
    }

    fn capabilities(&self) -> Capabilities {
        let lacks = [
            Feature::Quantised,
            Feature::EarlierMaskers,
            Feature::DenseFallback,
            Feature::DenseLayers,
            Feature::Output,
        ];
        Capabilities {
            dtypes: vec![Storage::F32],
            heads: vec![HeadMode::PerHead],
            lacks: lacks.into(),
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.as_ref().expect("configured first");
        let (inputs, dims) = (&call.inputs, call.inputs.dims());
        // Each layer its own channels; what does not fit is refused with the field, the value found and the one expected.
        let channels = instance.channels(call.layer)?;
        let label_channels = instance.selection.group_factor.label_channels(dims.head_dim)?;
        channels.check(&dims, label_channels)?;
        let mut mask = instance.start(call);
        let before = mask.clone();
        for (b, head, i) in dims.rows() {
            let keys: Vec<Vec<f32>> = inputs.keys(b, head).outer_iter().map(|key| key.to_vec()).collect();
            let additive = |key| match before.attends(b, head, i, key) {
                true => f32::NEG_INFINITY,
                false => inputs.additive(b, head, i).at(key),
            };
            let row = Row {
                query: &inputs.queries(b, head).row(i).to_vec(),
                keys: &keys,
                additive: &(0..dims.keys).map(additive).collect::<Vec<_>>(),
                channels: &channels.row(head, &dims)[..label_channels],
                heavy_size: instance.selection.heavy_size.resolve(dims.keys),
            };
            mask.add((b, head, i), select(&row));
        }
        Ok(Answer::new(mask, None))
    }
}

#[test]
fn conforms() {
    let report = check(&mut Adapter::default(), &Options { cases: 500, ..Options::default() });
    assert!(report.conforms(), "{report}");
}
