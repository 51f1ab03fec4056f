//! The bundled cases, from the files: stored expectations and the reference conform; and one line for each case of what the
//! reference computes, so that any change of behaviour shows as a diff to review (`cargo insta review`).

use std::fmt::Write;

use doublecheck::cases::bundled::{self, sha256};
use doublecheck::cases::{Answer, Case, CaseFile, NoAnswer, Reader, RoundingModel, Sequence};
use doublecheck::runner::verify::{VerifyOptions, verify};
use doublecheck::subjects::ask;
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::judge::{judge, judge_both};

const NO_RANDOM_CASES: VerifyOptions = VerifyOptions::new(0, 0);

/// All but the 81 cases of the grid: those `doublecheck verify` judges in `ci/test`, here they are pinned by
/// [`what_the_reference_computes`], and in `tests/suite/engine.rs` the stored masks are found once more.
#[test]
fn every_bundled_case_conforms() {
    let mut files = bundled::cases().unwrap();
    files.retain(|file| file.group() != "grid");
    let report = verify(&files, &mut Reference::default(), NO_RANDOM_CASES, &mut |_| {});
    assert_eq!(report.exit_code(), 0, "{}", doublecheck::reports::verify::render(&report, false));
}

/// Two answers with the same mask and outputs of their own, right and wrong, under two models: judged at once each gets the verdict
/// that it gets alone.
#[test]
fn answers_that_are_judged_at_once_get_their_own_verdicts() {
    let mut reader = Reader::default();
    let (mut judged, mut wrong) = (0, 0);
    for found in bundled::cases().unwrap() {
        let is_asked = ["small", "real"].contains(&found.group().as_str())
            || found.path().ends_with("n8193-g8-b4-h128.safetensors");
        let Some(CaseFile::Attention(case)) = is_asked.then(|| reader.read_found(&found).unwrap()) else {
            continue;
        };
        let answer = Reference::default().answer(&case);
        let mut moved = answer.clone();
        if let Ok(Answer { output: Some(output), .. }) = &mut moved {
            output.mapv_inplace(|x| 1.01 * x + 0.01);
        }
        let models = [RoundingModel::REFERENCE, RoundingModel::default()];
        let certificates = models.map(|model| Certificate::derive(&case.instance, &case.call, model));
        let answers = [(&answer, models[0], &certificates[0]), (&moved, models[1], &certificates[1])];
        let both = judge_both(&case.instance, &case.call, answers);
        for (found, (answer, model, certificate)) in both.iter().zip(answers) {
            let alone = judge(&case.instance, &case.call, answer, model, certificate);
            assert_eq!(format!("{found:?}"), format!("{alone:?}"), "{}", case.name);
        }
        judged += 1;
        wrong += usize::from(both[0].conforms() && !both[1].conforms());
    }
    assert!(judged > 50 && wrong > 30, "{judged} cases, {wrong} with a wrong answer beside a right one");
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
            CaseFile::Stage(_) | CaseFile::Session(_) => {
                panic!("{}: no golden is a stage or a session", found.name)
            }
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
