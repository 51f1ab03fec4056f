//! A kernel that never forms labels: it multiplies codes and puts scales and zero points in afterwards. Its codes are those of
//! SPEC §2.5, so it declares `exact`, and must conform.

use doublecheck::algorithm::attention::attention;
use doublecheck::algorithm::{HeadMode, HeavySize, Storage};
use doublecheck::cases::{
    Accumulation, Answer, Call, Capabilities, Feature, Instance, LabelRounding, NoAnswer, Precision,
    RoundingModel,
};
use doublecheck::{Options, Subject, check};

/// Codes of one row, the reciprocal of its scale and its zero point.
struct Codes {
    codes: Vec<f32>,
    step: f32,
    zero: f32,
}

fn codes(row: Vec<f32>, bits: u8) -> Codes {
    let (low, high) =
        row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    let top = f32::from(u16::MAX >> (16 - bits));
    let range = if high == low { 1.0 } else { high - low };
    let scale = 1.0 / range * top;
    let code = |x: f32| ((x - low) * scale).round_ties_even().clamp(0.0, top);
    Codes { codes: row.into_iter().map(code).collect(), step: 1.0 / scale, zero: low }
}

/// Σ (c/s + z)(c'/s' + z'), with the sums over codes taken out.
fn factored(q: &Codes, k: &Codes) -> f32 {
    let products: f32 = q.codes.iter().zip(&k.codes).map(|(a, b)| a * b).sum();
    let (of_q, of_k): (f32, f32) = (q.codes.iter().sum(), k.codes.iter().sum());
    let channels = q.codes.len() as f32;
    products * (q.step * k.step)
        + of_q * q.step * k.zero
        + of_k * k.step * q.zero
        + channels * q.zero * k.zero
}

#[derive(Default)]
struct Factored {
    instance: Option<Instance>,
}

impl Subject for Factored {
    fn name(&self) -> String {
        "factored".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::new(LabelRounding::Exact, Precision::F32, Accumulation::F32)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dtypes: vec![Storage::F32],
            heads: vec![HeadMode::PerHead],
            lacks: [
                Feature::Previous,
                Feature::EarlierMaskers,
                Feature::DenseFallback,
                Feature::DenseLayers,
                Feature::Fractions,
                Feature::NotQuantised,
                Feature::Refusals,
            ]
            .into(),
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.as_ref().unwrap();
        let (inputs, dims, parts) = (&call.inputs, call.inputs.dims(), call.inputs.parts());
        let selection = &instance.selection;
        let channels = selection.group_factor.label_channels(dims.head_dim)?;
        let order = instance.channels(call.layer)?.rows();
        let HeavySize::Count(heavy) = selection.heavy_size else { unreachable!() };
        let mut mask = instance.start(call);
        for row @ (b, head, i) in dims.rows() {
            let chosen = &order[head / (dims.heads / order.len())][..channels];
            let bits = selection.label_bits.get();
            let q = codes(chosen.iter().map(|&c| parts.q[[b, head, i, c]]).collect(), bits);
            let additive = inputs.additive(b, head, i);
            let score = |key: usize| {
                let k = chosen.iter().map(|&c| parts.k[[b, dims.kv_head(head), key, c]]).collect();
                factored(&q, &codes(k, bits)) / (channels as f32).sqrt() + additive.at(key)
            };
            let scores: Vec<f32> = (0..dims.keys).map(score).collect();
            let mut keys: Vec<usize> =
                (0..dims.keys).filter(|&key| scores[key] > f32::NEG_INFINITY).collect();
            keys.sort_by(|&x, &y| scores[y].total_cmp(&scores[x]));
            mask.add(row, keys.into_iter().take(heavy.get()));
        }
        let output = attention(inputs, &mask)?;
        Ok(Answer::new(mask, Some(output)))
    }
}

#[test]
fn factored_dequantisation_conforms_as_exact() {
    let report =
        check(&mut Factored::default(), &Options { cases: 4000, largest_keys: 0, ..Options::default() });
    assert!(report.conforms(), "{report}");
    assert!(report.coverage.parts["quantised"] == 4000 && report.answered > 4000, "{report}");
}
