//! The HTML reports: every part is there, tags are balanced, nothing is loaded, text is escaped.

mod support;

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Answer, Call, Instance, NoAnswer, RoundingModel};
use doublecheck::reports::html;
use doublecheck::runner::shrink::Limits;
use doublecheck::runner::verify;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::{Options, Report, Subject, check};
use rstest::rstest;

use support::markup::{assert_holds, assert_page_is_balanced, assert_self_contained};

fn checked(subject: &mut dyn Subject, cases: usize) -> (Report, String) {
    let report = check(subject, &Options { cases, ..Options::default() });
    let page = html::check(&report, "--fault D4");
    assert_page_is_balanced(&page);
    assert_self_contained(&page);
    (report, page)
}

fn faulty(names: &[&str]) -> Faulty {
    let faults: Vec<_> = names.iter().map(|name| Fault::find(name).expect("a fault of this name")).collect();
    Faulty::new(&faults)
}

const EVERYWHERE: [&str; 10] = [
    "<html lang=\"en\">",
    "<title>",
    "prefers-color-scheme: dark",
    "@media print",
    "id=\"summary\"",
    "id=\"finding-1\"",
    "class=\"diagnosis\"",
    "class=\"explanations\"",
    "class=\"numbers channels\"",
    "doublecheck replay FILE --fault D4",
];

const MASK: [&str; 4] =
    ["class=\"grid\"", "class=\"legend\"", "class=\"expected\"", "<code>q</code> <span class=\"shape\">["];

#[rstest]
#[case::channels(
    "first-layers-channels",
    200,
    &["class=\"plot\"", "threshold in-above", "score-table", "cell wrong", "k̂", "D4", "class=\"point"]
)]
#[case::tiled("kv-heads-tiled", 60, &["class=\"plot\"", "cell wrong", "§2.3", "class=\"numbers output\""])]
#[case::dense("dense-when-short", 60, &["cell wrong", "D3"])]
#[case::nan("nan-in-f16", 100, &["NaN", "D17", "class=\"numbers output\"", "<td class=\"wrong\">"])]
#[case::breaks("rows-per-head-only", 60, &["class=\"no-answer\"", "The call must be answered.", "D6"])]
#[case::floored("floored-label-channels", 200, &["class=\"expected-refusal\"", "does not divide", "D8"])]
fn every_part_of_a_finding_is_there(#[case] fault: &str, #[case] cases: usize, #[case] parts: &[&str]) {
    let (report, page) = checked(&mut faulty(&[fault]), cases);
    assert!(!report.findings.is_empty());
    assert_holds(&page, &EVERYWHERE);
    assert_holds(&page, &MASK);
    assert_holds(&page, parts);
    assert!(!page.contains("href=\"#finding-2\"") || report.findings.len() > 1);
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
    assert_holds(&page, &["id=\"summary\"", "conforms"]);
    for part in ["finding-1", "class=\"finding\"", "class=\"grid\"", "class=\"plot\""] {
        assert!(!page.contains(part), "{part} in a conforming report");
    }
}

#[test]
fn what_is_not_shrunk_stays_readable() {
    let shrinking = Limits { tries: 0, ..Limits::default() };
    for fault in ["kv-heads-tiled", "previous-ignored", "quantised-per-head", "heads-alone"] {
        let options = Options { cases: 100, shrinking, ..Options::default() };
        let report = check(&mut faulty(&[fault]), &options);
        let page = html::check(&report, "");
        assert_page_is_balanced(&page);
        assert_holds(&page, &["not to the end", "class=\"call failing\""]);
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
    let files: Vec<_> = files.into_iter().filter(|file| file.group() == "grid").take(12).collect();
    let options = verify::VerifyOptions { random_cases: 10, seed: 0 };
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
