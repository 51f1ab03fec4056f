//! Divergences that are declared as known, by name and in a file: what occurs is excused with its reason, what does not occur is
//! said and fails a strict check, and anything else still is a finding.

use serde_json::Value;
use tempfile::TempDir;

use crate::running::{run, stderr, stdout};

/// A folder with a file of what is known.
fn known(entries: &[&str]) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("known.toml");
    let entries: Vec<String> = entries.iter().map(|entry| format!("[[known]]\n{entry}\n")).collect();
    std::fs::write(&path, entries.join("\n")).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

/// Checks the reference with faults planted in it; exit code, text and JSON.
fn check(faults: &str, options: &[&str]) -> (Option<i32>, String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let fixed =
        ["check", "--fault", faults, "--cases", "60", "--no-goldens", "--json", json.to_str().unwrap()];
    let output = run(&[&fixed[..], options].concat());
    let report = std::fs::read(json).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    (output.status.code(), stdout(&output), serde_json::from_slice(&report).unwrap())
}

const D3: &str = "fault = \"D3\"\nreason = \"kept for an old model\"";
const D4: &str =
    "fault = \"first-layers-channels\"\nreason = \"fixed soon\"\nlink = \"https://example.org/4\"";

#[test]
fn what_is_known_is_excused_with_its_reason_and_what_is_gone_fails_a_strict_check() {
    let (_folder, file) = known(&[D3, D4]);
    let (code, text, report) = check("D4", &["--known", &file]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("known: first-layers-channels: fixed soon (https://example.org/4)\n"), "{text}");
    assert!(text.contains("known, but did not occur: D3: kept for an old model\n"), "{text}");
    let occurs: Vec<_> =
        report["declarations"].as_array().unwrap().iter().map(|one| &one["occurs"]).collect();
    assert_eq!(occurs, [false, true]);
    assert!(report["known"].as_u64().unwrap() > 0 && report["diverged"] == 0);
    let (code, text, _) = check("D4", &["--known", &file, "--strict-known"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("known, but did not occur, which fails the check: D3"), "{text}");
    // Both occur, each in answers that the other does not explain.
    let (code, text, _) = check("D3,D4", &["--known", &file, "--strict-known"]);
    assert_eq!(code, Some(0), "{text}");
    // Names on the command line are held to the same.
    assert_eq!(check("D4", &["--known", "D4", "--strict-known"]).0, Some(0));
    assert_eq!(check("D4", &["--known", "D3,D4", "--strict-known"]).0, Some(1));
    // What is not declared is still a finding.
    let (code, _, report) = check("D3,D4", &["--known", "D3"]);
    assert_eq!(
        (code, &report["findings"][0]["diagnosis"][0]),
        (Some(1), &Value::from("first-layers-channels"))
    );
}

#[test]
fn a_finding_is_known_by_its_sentence() {
    let (_, _, report) = check("D4", &[]);
    let sentence = report["findings"][0]["sentence"].as_str().unwrap();
    let entry = format!("finding = \"{sentence}\"\nreason = \"seen upstream\"");
    let (_folder, file) = known(&[&entry]);
    let pages = tempfile::tempdir().unwrap();
    let page = pages.path().join("report.html");
    let options = ["--known", &file, "--strict-known", "--html", page.to_str().unwrap()];
    let (code, text, report) = check("D4", &options);
    assert_eq!(code, Some(0), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(
        page.contains("<strong>Known. </strong>seen upstream") && page.contains("<header class=\"good\">")
    );
    assert!(text.contains("FINDING 1") && text.contains("  known: seen upstream\n"), "{text}");
    assert_eq!(report["findings"][0]["known"]["reason"], "seen upstream");
    assert!(report["known"].as_u64().unwrap() > 0 && report["diverged"] == 0);
    // Another finding beside it is open, and this one alone does not excuse it.
    let (code, text, report) = check("D3,D4", &["--known", &file]);
    assert_eq!(code, Some(1), "{text}");
    let open = report["findings"].as_array().unwrap().iter().filter(|finding| finding["known"].is_null());
    assert!(open.count() > 0 && report["diverged"].as_u64().unwrap() > 0);
    // It is gone.
    let (code, text, _) = check("D3", &["--known", &format!("{file},D3"), "--strict-known"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("which fails the check: “The channels of the first layer"), "{text}");
}

#[test]
fn a_bad_file_of_what_is_known_says_what_to_do() {
    for (entry, expected) in [
        (
            "fault = \"D99\"\nreason = \"r\"",
            "known.toml: known[0].fault: found \"D99\", expected a name or a row",
        ),
        ("fault = \"D4\"", "known.toml: known[0].reason: found none, expected why it is accepted"),
        ("fault = ", "known.toml: line 2: found "),
        (
            "finding = \"Unknown: nothing in the catalogue reproduces every answer.\"\nreason = \"r\"",
            "names no cause",
        ),
    ] {
        let (_folder, file) = known(&[entry]);
        let output = run(&["check", "--cases", "1", "--known", &file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let (_folder, file) = known(&[D4, D4]);
    for (arguments, expected) in [
        (&["--known", &file][..], "found \"first-layers-channels\" twice"),
        (&["--known", "nothing.toml"], "cannot access nothing.toml"),
        (&["--strict-known"], "--known <NAMES>"),
    ] {
        let output = run(&[&["check", "--cases", "1"], arguments].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}
