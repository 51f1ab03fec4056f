//! Subjects that declare a domain: they are asked nothing outside it, counterexamples stay inside, reports say what was asked,
//! and whether a golden applies is decided from its metadata.

use std::collections::BTreeSet;
use std::path::Path;

use doublecheck::algorithm::HeavySize;
use doublecheck::behaviours::Fault;
use doublecheck::cases::bundled::{self, Found};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::file::peek;
use doublecheck::cases::{
    Answer, Call, Capabilities, CaseFile, Domain, Feature, Instance, NoAnswer, Reader, RoundingModel,
};
use doublecheck::subjects::Faulty;
use doublecheck::{Options, Report, Subject, check};
use serde_json::json;

/// A kernel that is compiled for d = 64 and 128 with 16 or 32 label channels, one query, and H a multiple of 16.
struct Fixed {
    inner: Faulty,
    group_factor: usize,
    outside: usize,
}

impl Fixed {
    fn new(faults: &[&str]) -> Self {
        let faults: Vec<_> = faults.iter().flat_map(|name| Fault::find_all(name)).collect();
        Self { inner: Faulty::new(&faults), group_factor: 0, outside: 0 }
    }
}

impl Subject for Fixed {
    fn name(&self) -> String {
        "fixed".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.inner.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        let domain = json!({
            "head_dim": [64, 128], "label_channels": [16, 32], "queries": [1], "heavy_size": {"multiple_of": 16},
        });
        Capabilities {
            domains: domains_from_json(&domain).unwrap(),
            lacks: [Feature::Refusals].into(),
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        let fits = match instance.selection.heavy_size {
            HeavySize::Count(count) => count.get().is_multiple_of(16),
            HeavySize::Fraction(_) => false,
        };
        self.outside += usize::from(!fits);
        self.group_factor = instance.selection.group_factor.get();
        self.inner.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let dims = call.inputs.dims();
        let channels = dims.head_dim / self.group_factor;
        let fits = [64, 128].contains(&dims.head_dim) && [16, 32].contains(&channels) && dims.queries == 1;
        if !fits {
            self.outside += 1;
            return Err(NoAnswer::Failed(format!("no kernel for {dims:?}")));
        }
        self.inner.call(call)
    }
}

fn checked(faults: &[&str], cases: usize, goldens: Vec<Found>) -> (Report, usize) {
    let mut subject = Fixed::new(faults);
    let report = check(&mut subject, &Options { cases, goldens, ..Options::default() });
    (report, subject.outside)
}

#[test]
fn a_kernel_with_fixed_shapes_conforms_inside_its_domain() {
    let (report, outside) = checked(&[], 300, Vec::new());
    assert!(report.conforms(), "{report}");
    assert_eq!((report.sequences, report.large, report.conforming, outside), (300, 18, 318, 0));
    let values = |name: &str| report.coverage.sizes[name].values.clone();
    assert_eq!(values("head_dim"), [64, 128]);
    assert_eq!(values("label_channels"), [16, 32]);
    assert_eq!(values("queries"), [1]);
    let text = report.to_string();
    for line in [
        "\ndomain: {\"queries\":[1],",
        "head_dim 64 and 128",
        "queries 1",
        "never fractions, many_queries, refusals\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_counterexample_stays_inside_the_domain() {
    for fault in ["first-layers-channels", "smallest-scores"] {
        let (report, outside) = checked(&[fault], 120, Vec::new());
        assert_eq!(outside, 0, "{fault}");
        let finding = report.findings.first().unwrap_or_else(|| panic!("{fault}: nothing found"));
        assert_eq!(finding.diagnosis, [fault]);
        assert!(finding.inside_domain && [64, 128].contains(&finding.size.head_dim), "{report}");
        assert_eq!((finding.size.heads, finding.size.queries), (1, 1));
        assert!(report.to_string().contains(", inside the subject's domain"), "{report}");
    }
}

fn golden(folder: &str) -> Vec<Found> {
    bundled::find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(folder)).unwrap()
}

/// What metadata and shapes say of a file is what the whole file says, up to what only its numbers show.
#[test]
fn metadata_tells_what_the_whole_file_tells() {
    let (mut peeked, mut ruled_out) = (0, BTreeSet::new());
    let mut files: Vec<Found> = ["small", "hub", "real"].into_iter().flat_map(golden).collect();
    files.extend(golden("grid").into_iter().filter(|found| found.name.contains("n8193-g8-b16-h128.")));
    for found in files {
        let Some(outline) = peek(&found.read().unwrap()).unwrap() else { continue };
        let Ok(CaseFile::Attention(case)) = Reader::default().read_found(&found) else {
            panic!("{}", found.name)
        };
        peeked += 1;
        let sequence = case.sequence();
        let domains = |json| domains_from_json(&json).unwrap();
        let features = Feature::ALL.into_iter().filter(|feature| *feature != Feature::Refusals);
        let mut narrow: Vec<Capabilities> = features
            .map(|feature| Capabilities { lacks: [feature].into(), ..Capabilities::default() })
            .collect();
        narrow.extend([
            Capabilities { largest_keys: Some(40), ..Capabilities::default() },
            Capabilities { dtypes: Vec::new(), ..Capabilities::default() },
            Capabilities { heads: Vec::new(), ..Capabilities::default() },
            Capabilities { domains: domains(json!({"head_dim": [16]})), ..Capabilities::default() },
            Capabilities { domains: domains(json!({"dtype": ["f16"]})), ..Capabilities::default() },
            Capabilities {
                domains: domains(json!([{"keys": {"to": 64}}, {"heads": [1]}])),
                ..Capabilities::default()
            },
        ]);
        for capabilities in narrow {
            let missing = capabilities.missing_of(&outline);
            assert_eq!(missing, capabilities.missing(&sequence), "{}: {capabilities:?}", found.name);
            ruled_out.extend(missing);
        }
    }
    assert!(peeked > 50 && ruled_out.len() > 15, "{peeked} files, {ruled_out:?}");
}

/// A recipe that takes too much memory is no bad input where its metadata says that it does not apply.
#[test]
fn a_golden_outside_the_domain_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.safetensors");
    let case = json!({"heavy_size": 16, "group_factor": 4, "label_bits": 4, "heads": "per-head", "dense_fallback": false,
                      "causal": true, "dtype": "f32", "scaling": null});
    let recipe = json!({"generator": "splitmix-1", "seed": 1, "batch": 1, "heads": 1, "kv_heads": 1, "queries": 1,
                        "keys": 1u64 << 24, "head_dim": 32});
    let metadata =
        [("case", case), ("recipe", recipe)].map(|(name, json)| (name.to_owned(), json.to_string()));
    let none: Vec<(String, safetensors::tensor::TensorView)> = Vec::new();
    let bytes = safetensors::serialize(none, Some(metadata.into())).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let huge = bundled::find(&path).unwrap();
    let (report, _) = checked(&[], 1, huge.clone());
    assert!(report.conforms(), "{report}");
    assert_eq!(report.left_out["outside the domain"], 1);
    assert_eq!((report.goldens, report.coverage.goldens), (0, 1));
    // Where it applies it is made, and cannot be.
    let report = check(&mut Faulty::new(&[]), &Options { cases: 1, goldens: huge, ..Options::default() });
    assert!(report.bad_inputs[0].contains("--memory"), "{report}");
}

/// A kernel of any domain.
struct Declared(Faulty, Vec<Domain>);

impl Subject for Declared {
    fn name(&self) -> String {
        "declared".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.0.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { domains: self.1.clone(), lacks: [Feature::Refusals].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.0.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.0.call(call)
    }
}

/// Sizes that no call can have, or none that can be asked: an error, or a domain that is asked within what is small.
#[test]
fn domains_of_extreme_sizes_are_refused_or_asked() {
    const MOST: u64 = u64::MAX;
    let (mut refused, mut asked) = (0, 0);
    for quantity in [
        "batch",
        "heads",
        "kv_heads",
        "group",
        "queries",
        "keys",
        "head_dim",
        "value_dim",
        "group_factor",
        "label_channels",
        "heavy_size",
        "label_bits",
    ] {
        for constraint in [
            json!({"from": 1, "to": MOST}),
            json!({"from": 1u64 << 30, "to": 1u64 << 31}),
            json!({"multiple_of": 1u64 << 63}),
            json!({"from": (1u64 << 63) + 1, "multiple_of": 1u64 << 63}),
            json!([1u64 << 40]),
            json!([MOST]),
            json!([2, 1u64 << 40, MOST]),
        ] {
            let domain = json!({quantity: constraint});
            match domains_from_json(&domain) {
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.starts_with("domain") && error.contains("expected"), "{domain}: {error}");
                    refused += 1;
                }
                Ok(domains) => {
                    let mut subject = Declared(Faulty::new(&[]), domains);
                    let report = check(&mut subject, &Options { cases: 4, ..Options::default() });
                    assert!(report.conforms(), "{domain}: {report}");
                    asked += 1;
                }
            }
        }
    }
    let together = json!({"batch": [1u64 << 20], "heads": [1u64 << 20]});
    let error = domains_from_json(&together).unwrap_err().to_string();
    assert!(error.contains("no call smaller than b = 1048576, h = 1048576"), "{error}");
    assert!(refused >= 55 && asked >= 20, "{refused} refused, {asked} asked");
}
