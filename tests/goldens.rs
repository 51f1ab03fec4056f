//! Every bundled case, from the files: stored expectations and the reference conform; and one line for each case of what
//! the reference computes, so that any change of behaviour shows as a diff to review (`cargo insta review`).

mod support;

use std::fmt::Write;

use doublecheck::cases::bundled::{self, sha256};
use doublecheck::cases::{Answer, Case, CaseFile, NoAnswer, Reader, Sequence};
use doublecheck::runner::verify::{VerifyOptions, verify};
use doublecheck::subjects::ask;
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::{Certificate, judge};
use rstest::rstest;

const NO_RANDOM_CASES: VerifyOptions = VerifyOptions { random_cases: 0, seed: 0 };

#[test]
fn every_bundled_case_conforms() {
    let files = bundled::cases().unwrap();
    let report = verify(&files, &mut Reference::default(), NO_RANDOM_CASES, &mut |_| {});
    assert_eq!(report.exit_code(), 0, "{}", doublecheck::reports::verify::render(&report, false));
}

/// The grid of the port's own 81 correctness cases, one test each.
#[rstest]
fn grid(
    #[values(8193, 16385, 32769)] keys: usize,
    #[values(8, 16, 32)] group_factor: usize,
    #[values(4, 8, 16)] label_bits: usize,
    #[values(128, 512, 1024)] heavy_size: usize,
) {
    let name = format!("n{keys}-g{group_factor}-b{label_bits}-h{heavy_size}.safetensors");
    let bytes = bundled::read(&format!("grid/{name}")).unwrap();
    let CaseFile::Attention(case) = Reader::default().parse(&bytes, &name).unwrap() else {
        panic!("{name} is no case of an attention layer");
    };
    let dims = case.inputs.dims();
    assert_eq!((dims.heads, dims.kv_heads, dims.queries, dims.keys, dims.head_dim), (32, 8, 1, keys, 128));
    let model = case.settings.model.unwrap_or_default();
    let certificate = Certificate::derive(&case, model);
    let expectation = case.expectation.as_ref().unwrap();
    let stored = expectation.answer(&certificate.as_ref().unwrap().before).unwrap().unwrap();
    for answer in [Ok(stored), Reference::default().answer(&case)] {
        let verdict = judge(&case, &answer, model, &certificate);
        assert!(verdict.conforms(), "{:?}", verdict.explanations());
    }
}

/// Attended keys, a hash of the mask, and the first outputs to 6 digits.
fn line(case: &Case) -> String {
    let answer = match Reference::default().answer(case) {
        Ok(answer) => answer,
        Err(error) => return format!("{}: refused: {error}\n", case.name),
    };
    let weights: Vec<u8> = answer.mask.weights().iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let attended = answer.mask.weights().iter().filter(|&&weight| weight != 0.0).count();
    let output = answer.output.unwrap();
    let first: Vec<_> = output.iter().take(3).map(|x| format!("{x:.6}")).collect();
    format!("{}: {attended} keys, mask {}, output {}\n", case.name, &sha256(&weights)[..12], first.join(" "))
}

fn sequence_lines(sequence: &Sequence) -> String {
    let answers = ask(&mut Reference::default(), sequence).answers.into_iter().enumerate();
    let line = |(call, answer): (usize, Result<Answer, NoAnswer>)| match answer {
        Ok(answer) => {
            let keys: Vec<u8> =
                answer.mask.weights().iter().flat_map(|weight| weight.to_le_bytes()).collect();
            format!("{} call {call}: mask {}\n", sequence.name, &sha256(&keys)[..12])
        }
        Err(error) => format!("{} call {call}: {error}\n", sequence.name),
    };
    answers.map(line).collect()
}

#[test]
fn what_the_reference_computes() {
    let mut reader = Reader::default();
    let mut groups = std::collections::BTreeMap::<String, String>::new();
    for found in bundled::cases().unwrap() {
        let text = groups.entry(found.group().to_owned()).or_default();
        match reader.read_found(&found).unwrap() {
            CaseFile::Attention(case) => *text += &line(&case),
            CaseFile::Sequence(stored) => *text += &sequence_lines(&stored.sequence),
            CaseFile::Calibration(case) => {
                let order = Reference::default().calibrate(&case).unwrap().unwrap();
                let first = &order.rows()[0];
                let _ = writeln!(text, "{}: row 0 begins {:?}", case.name, &first[..first.len().min(8)]);
            }
            CaseFile::Quantisation(cases) => {
                for case in cases {
                    let labels = case.rows.outer_iter().flat_map(|row| {
                        match Reference::default().labels(&row.to_vec(), case.bits, case.storage).unwrap() {
                            Ok(labels) => labels.iter().flat_map(|x| x.to_le_bytes()).collect(),
                            Err(_) => b"refused".to_vec(),
                        }
                    });
                    let hash = sha256(&labels.collect::<Vec<u8>>());
                    let _ = writeln!(text, "{}: labels {}", case.name, &hash[..12]);
                }
            }
        }
    }
    for (group, text) in groups {
        insta::assert_snapshot!(format!("reference_{group}"), text);
    }
}

/// Channel files of real models load; they are not part of this project and are looked for beside it.
#[test]
fn published_channel_files_load() {
    let Some(folder) = support::shared("channels") else { return };
    let file = |name: &str| {
        doublecheck::algorithm::ChannelFile::read(&folder.join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    use doublecheck::algorithm::ChannelKind::{KProj, QProj, QkProj};
    let expected = [
        ("Llama-3.1-8B-Instruct.json", vec![QProj, KProj, QkProj], 32, 32, 8, 128),
        ("Llama-3.2-11B-Vision-Instruct.json", vec![QProj, KProj, QkProj], 32, 32, 8, 128),
        ("Mistral-7B-v0.1.json", vec![QProj, QkProj], 32, 32, 0, 128),
        ("llama-7b.json", vec![QProj, KProj, QkProj], 32, 32, 32, 128),
        ("SmolLM2-135M.json", vec![QkProj], 30, 9, 0, 64),
    ];
    for (name, kinds, layers, heads, kv_heads, head_dim) in expected {
        let file = file(name);
        assert_eq!(file.kinds().collect::<Vec<_>>(), kinds, "{name}");
        for kind in kinds {
            assert_eq!(file.layers(kind).count(), layers, "{name}");
            let rows = if kind == KProj { kv_heads } else { heads };
            for (layer, order) in file.layers(kind) {
                assert_eq!((order.rows().len(), order.width()), (rows, head_dim), "{name} layer {layer}");
                // SPEC D2: in no layer are all rows alike.
                assert!(!order.is_shared(order.width()), "{name} layer {layer}");
            }
        }
    }
    // SPEC §4: this model has 40 layers, 8 of which attend to images and have no channels.
    let vision = file("Llama-3.2-11B-Vision-Instruct.json");
    assert_eq!(vision.layers(QkProj).last().unwrap().0, 39);
    assert!(vision.order(QkProj, 3).is_err());
}
