//! The front page is short, and code and output on pages are what they claim to be.

use std::collections::BTreeSet;

use super::{blocks, doublecheck, read, record, text};

#[test]
fn the_readme_is_short_and_soon_at_a_command() {
    let readme = read("README.md");
    assert!(readme.len() < 8192, "{} bytes", readme.len());
    let first = readme.lines().position(|line| line.starts_with("cargo run")).unwrap();
    assert!(first < 40, "line {first}");
    let (_, commands, _) = &blocks(&readme)[0];
    for command in ["cargo run --release -- verify", "ci/test"] {
        assert!(commands.lines().any(|line| line.starts_with(command)), "{command}");
    }
}

/// Wherever a page shows output, the command named last before it prints these lines, in this order.
#[test]
fn output_on_pages_is_what_the_command_prints() {
    let mut compared = 0;
    for page in ["README.md", "docs/report.md"] {
        let page = read(page);
        // Commands stand in blocks, too: these are looked for in the whole text before the output.
        for (language, output, _) in blocks(&page) {
            if language != "text" {
                continue;
            }
            let (before, _) = page.split_once(&output).unwrap();
            let (_, command) = before.rsplit_once("check --").unwrap();
            let command = command.split(['`', '\n']).next().unwrap();
            let command = format!("--{command}");
            let arguments: Vec<&str> = std::iter::once("check").chain(command.split(' ')).collect();
            let found = text(doublecheck(&arguments).stdout);
            let mut lines = found.lines();
            for line in output.lines() {
                compared += 1;
                assert!(lines.any(|found| found == line), "{arguments:?} does not print {line:?}:\n{found}");
            }
        }
    }
    assert!(compared >= 8, "{compared} lines");
}

#[test]
fn python_examples_are_parts_of_the_files_they_are_from() {
    let page = read("docs/implementers.md");
    let examples: Vec<_> = blocks(&page).into_iter().filter(|(language, ..)| language == "python").collect();
    let files = ["examples/python/masker.py", "examples/python/topk.py", "examples/python/engine.py"];
    assert_eq!(examples.len(), files.len());
    for (file, (_, example, _)) in files.iter().zip(&examples) {
        assert!(example.lines().count() <= 40, "{file}");
        assert!(page.contains(file) && read(file).contains(example.trim_end()), "{file}");
    }
}

#[test]
fn json_on_pages_is_json() {
    let mut found = 0;
    for page in super::pages() {
        for (_, block, _) in blocks(&read(&page)).iter().filter(|(language, ..)| language == "json") {
            found += 1;
            assert!(serde_json::from_str::<serde_json::Value>(block).is_ok(), "{page}: {block}");
        }
    }
    assert!(found > 2, "{found} blocks");
}

/// The names of all planted bugs, as the message about an unknown one lists them.
fn names() -> BTreeSet<String> {
    let message = text(doublecheck(&["faults", "--only", "no-such-bug"]).stderr);
    let (_, list) = message.split_once("one of ").unwrap();
    list.trim().split(", ").map(str::to_owned).collect()
}

#[test]
fn every_bug_that_can_be_named_is_on_the_page_beside_its_row() {
    let page = read("docs/findings.md");
    let names = names();
    assert!(names.len() > 40, "{names:?}");
    for name in &names {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
    let mut rows = 0;
    for fault in record("faults.json").as_array().unwrap() {
        let (name, row) = (fault["name"].as_str().unwrap(), fault["row"].as_str().unwrap());
        let start = match row.starts_with('D') {
            true => format!("| {row} |"),
            false => format!("| SPEC {row} |"),
        };
        if fault["must_conform"] == false {
            rows += 1;
            let line = page.lines().find(|line| line.starts_with(&start));
            assert!(line.is_some_and(|line| line.contains(&format!("`{name}`"))), "{row}: {name}");
        }
    }
    assert!(rows > 40, "{rows}");
    for number in 1..=23 {
        assert!(page.contains(&format!("\n| D{number} |")), "D{number}");
    }
}
