//! The HTML reports: every part is there, tags are balanced, nothing is loaded, text is escaped.

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Answer, Call, Instance, NoAnswer, RoundingModel};
use doublecheck::reports::html;
use doublecheck::runner::shrink::Limits;
use doublecheck::runner::verify;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::{Options, Report, Subject, check};
use rstest::rstest;

use crate::support::markup::{assert_holds, assert_page_is_balanced, assert_self_contained};

fn checked(subject: &mut dyn Subject, cases: usize) -> (Report, String) {
    let report = check(subject, &Options { cases, ..Options::default() });
    let page = html::check(&report, "--fault D4");
    assert_page_is_balanced(&page);
    assert_self_contained(&page);
    (report, page)
}

fn faulty(names: &[&str]) -> Faulty {
    let faults: Vec<_> = names.iter().map(|name| Fault::find_all(name)[0]).collect();
    Faulty::new(&faults)
}

/// Of every finding, and of no page without one.
const OF_A_FINDING: [&str; 7] = [
    "id=\"finding-1\"",
    "class=\"diagnosis\"",
    "class=\"explanations\"",
    "class=\"numbers channels\"",
    "class=\"grid\"",
    "class=\"legend\"",
    "class=\"expected\"",
];

/// What a page says, without its style sheet.
fn body(page: &str) -> &str {
    page.split_once("</style>").expect("a style sheet").1
}

/// `parts` are what this fault shows and a page without a finding does not.
#[rstest]
#[case::channels("first-layers-channels", 200, &["class=\"plot\"", "threshold in-above", "score-table", "cell wrong", "k̂", "class=\"point"])]
#[case::tiled("kv-heads-tiled", 60, &["class=\"plot\"", "cell wrong", "class=\"numbers output\""])]
#[case::dense("dense-when-short", 60, &["cell wrong"])]
#[case::nan("nan-in-f16", 100, &["NaN", "class=\"numbers output\"", "<td class=\"wrong\">"])]
#[case::breaks("rows-per-head-only", 60, &["class=\"no-answer\"", "The call must be answered."])]
#[case::floored("floored-label-channels", 200, &["class=\"expected-refusal\"", "does not divide"])]
fn every_part_of_a_finding_is_there(#[case] fault: &str, #[case] cases: usize, #[case] parts: &[&str]) {
    let (report, page) = checked(&mut faulty(&[fault]), cases);
    let (_, without) = checked(&mut Reference::default(), 5);
    let (page, without) = (body(&page), body(&without));
    for part in OF_A_FINDING.iter().chain(parts) {
        assert_holds(page, &[part]);
        assert!(!without.contains(part), "{part} is there without a finding");
    }
    assert!(!report.findings.is_empty());
    assert_eq!(page.matches("<section class=\"finding\"").count(), report.findings.len());
    let contents = if report.findings.len() > 1 { report.findings.len() } else { 0 };
    assert_eq!(page.matches("href=\"#finding-").count(), contents);
    for finding in &report.findings {
        let escaped = |text: &str| {
            text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
        };
        assert_holds(page, &[&escaped(&finding.sentence)]);
        for line in &finding.explanations {
            assert_holds(page, &[&format!("call {}: {}", finding.call, escaped(line))]);
        }
        for call in &finding.observation.sequence.calls {
            let shape = call.inputs.parts().q.shape();
            assert_holds(page, &[&format!("<code>q</code> <span class=\"shape\">{shape:?}")]);
        }
    }
}

#[test]
fn a_page_suits_dark_screens_and_paper() {
    let (_, page) = checked(&mut Reference::default(), 5);
    assert_holds(&page, &["<html lang=\"en\">", "<title>", "prefers-color-scheme: dark", "@media print"]);
}

#[test]
fn each_call_of_a_sequence_is_shown_and_the_failing_one_is_open() {
    let (_, page) = checked(&mut faulty(&["first-layers-channels"]), 200);
    assert_holds(&page, &["<details class=\"call\">", "<details class=\"call failing\" open>"]);
    assert_holds(&page, &["Call 0: layer", "Call 1: layer"]);
}

#[test]
fn the_file_of_a_counterexample_is_in_the_command_to_ask_it_again() {
    let (mut report, _) = checked(&mut faulty(&["kv-heads-tiled"]), 60);
    report.findings[0].file = Some("my cases/finding-1.safetensors".into());
    let page = html::check(&report, "--command \"my < adapter\"");
    assert_page_is_balanced(&page);
    let command = "doublecheck replay 'my cases/finding-1.safetensors' --command &quot;my &lt; adapter&quot;";
    assert_holds(&page, &[command]);
}

#[test]
fn a_conforming_report_has_no_finding() {
    let (report, page) = checked(&mut Reference::default(), 40);
    assert!(report.conforms());
    assert_holds(body(&page), &["id=\"summary\"", "40 random sequences (seed 0)", "conforms"]);
    assert!(!body(&page).contains("finding-1"));
}

#[test]
fn what_is_not_shrunk_stays_readable() {
    let shrinking = Limits { tries: 0, ..Limits::default() };
    for fault in ["kv-heads-tiled", "previous-ignored", "quantised-per-head", "heads-alone"] {
        let options = Options { cases: 100, shrinking, ..Options::default() };
        let report = check(&mut faulty(&[fault]), &options);
        let page = html::check(&report, "");
        assert_page_is_balanced(&page);
        assert_holds(&page, &["stopped at the shrinking limit", "class=\"call failing\""]);
        assert!(page.len() < 1 << 20, "{} bytes", page.len());
    }
}

/// Breaks, and has markup in whatever it says.
struct Hostile;

const MARKUP: &str = "<script>alert(\"1\")</script>&amp;";

impl Subject for Hostile {
    fn name(&self) -> String {
        MARKUP.into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn configure(&mut self, _instance: &Instance) -> Result<(), NoAnswer> {
        Ok(())
    }

    fn call(&mut self, _call: &Call) -> Result<Answer, NoAnswer> {
        Err(NoAnswer::Failed(MARKUP.into()))
    }
}

#[test]
fn what_a_subject_says_is_escaped() {
    let (report, page) = checked(&mut Hostile, 5);
    assert!(!report.findings.is_empty());
    assert!(!page.contains("<script"));
    assert_holds(&page, &["&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;"]);
}

#[test]
fn a_verification_has_its_tables_and_findings() {
    let files = doublecheck::cases::bundled::cases().expect("bundled cases");
    let files: Vec<_> = files.into_iter().filter(|file| file.group() == "small").collect();
    let options = verify::VerifyOptions::new(10, 0);
    let mut report = verify::verify(&files, &mut faulty(&["smallest-scores"]), options, &mut |_| {});
    report.notes.push(MARKUP.into());
    report.bad_inputs.push(MARKUP.into());
    let page = html::verify(&report);
    assert_page_is_balanced(&page);
    assert_self_contained(&page);
    assert!(!report.findings.is_empty());
    let parts = ["summary", "groups", "invariants", "findings", "notes", "bad-inputs"];
    assert_holds(&page, &parts.map(|part| format!("id=\"{part}\"")).each_ref().map(String::as_str));
    assert!(!page.contains("<script"));
}
