//! `doublecheck site`: the site in `golden/records/site` is that of the records, every link leads somewhere, and a report of others
//! can neither bring markup nor files of its choice into it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use doublecheck::cases::{Memory, bundled};
use doublecheck::reports::site::{self, INDEX};
use serde_json::{Value, json};

use crate::running::{run, stderr, stdout};
use crate::support::markup::{assert_holds, assert_page_is_balanced};

/// No page is larger than this.
const LARGEST_PAGE: usize = 2_000_000;

fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/records")
}

fn built(paths: &[PathBuf]) -> BTreeMap<String, Vec<u8>> {
    site::build(&site::load(paths, Memory::DEFAULT).unwrap().checks)
}

fn pages(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<&str, &str> {
    let pages = files.iter().filter(|(name, _)| name.ends_with(".html"));
    pages.map(|(name, bytes)| (name.as_str(), str::from_utf8(bytes).unwrap())).collect()
}

/// Values of an attribute, as they are written.
fn values<'a>(page: &'a str, attribute: &str) -> Vec<&'a str> {
    page.split(&format!(" {attribute}=\"")).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn the_site_in_the_repository_is_that_of_the_records() {
    let files = built(&[records()]);
    let folder = records().join("site");
    let mut found = BTreeMap::new();
    for (below, prefix) in [(folder.clone(), ""), (folder.join("counterexamples"), "counterexamples/")] {
        for entry in std::fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_str().unwrap();
                found.insert(format!("{prefix}{name}"), std::fs::read(&path).unwrap());
            }
        }
    }
    let again = "doublecheck site golden/records --out golden/records/site makes it again";
    assert_eq!(files.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{again}");
    for (name, bytes) in &files {
        assert!(found[name] == *bytes, "{name} differs: {again}");
    }
    assert!(pages(&files).len() > 5 && files.len() > 20, "{} files", files.len());
}

#[test]
fn every_link_leads_somewhere_and_nothing_is_loaded() {
    let files = built(&[records()]);
    let (mut links, mut downloads) = (0, BTreeSet::new());
    let pages = pages(&files);
    for (name, page) in &pages {
        assert_page_is_balanced(page);
        assert!(page.len() <= LARGEST_PAGE, "{name}: {} bytes", page.len());
        assert_holds(page, &["prefers-color-scheme: dark", "name=\"viewport\"", "<title>"]);
        for word in ["<script", "<link", "<img", "<iframe", "<object", " src=", "url(", "@import", " onclick"]
        {
            assert!(!page.contains(word), "{name}: {word}");
        }
        let ids = values(page, "id");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{name}: an id twice");
        for link in values(page, "href") {
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { name } else { file };
            assert!(files.contains_key(target), "{name}: {link}");
            if !anchor.is_empty() {
                assert!(values(pages[target], "id").contains(&anchor), "{name}: {link}");
            }
            downloads.extend(target.strip_prefix("counterexamples/"));
        }
    }
    assert!(links > 100, "{links} links");
    let examples: BTreeSet<_> =
        files.keys().filter_map(|name| name.strip_prefix("counterexamples/")).collect();
    assert!(examples == downloads && examples.len() > 10, "{downloads:?}");
}

#[test]
fn each_check_is_on_a_page_with_its_command_date_and_findings() {
    let loaded = site::load(&[records()], Memory::DEFAULT).unwrap();
    assert!(loaded.checks.len() > 25 && !loaded.skipped.is_empty());
    let files = site::build(&loaded.checks);
    let pages = pages(&files);
    let all: String = pages.values().copied().collect();
    let (mut commands, mut findings) = (0, 0);
    for check in &loaded.checks {
        let heading = format!("{}</h2>", check.name);
        assert_holds(&all, &[&heading]);
        if let Some(command) = &check.command {
            commands += 1;
            assert_holds(&all, &[&escaped(command)]);
        }
        for finding in &check.record.findings {
            findings += 1;
            assert_holds(&all, &[&escaped(&finding.sentence)]);
        }
    }
    assert!(commands > 10 && findings > 20, "{commands} commands, {findings} findings");
    // Every state, on the first page, once in the legend and in some cell; only older reports do not say what was asked.
    let count = |page: &str, state: &str| page.matches(&format!("class=\"{state}\"")).count();
    for state in ["conforms", "diverges", "not-offered", "not-asked"] {
        assert!(count(pages[INDEX], state) > 1, "{state}");
    }
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(records().join("check-author.json")).unwrap();
    let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
    older.as_object_mut().unwrap().remove("coverage");
    std::fs::write(folder.path().join("older.json"), older.to_string()).unwrap();
    let older = site::load(&[folder.path().to_owned()], Memory::DEFAULT).unwrap();
    let older = site::build(&older.checks);
    assert!(count(self::pages(&older)[INDEX], "not-recorded") > 1);
    assert_eq!(pages[INDEX].matches("data-part=\"sessions\"").count(), pages.len() - 1);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A report of a check, with one finding.
fn report(subject: &str, file: &str) -> Value {
    let mut report: Value =
        serde_json::from_str(&std::fs::read_to_string(records().join("check-sglang-tail-cpu.json")).unwrap())
            .unwrap();
    report["subject"] = subject.into();
    report["findings"][0]["file"] = file.into();
    report
}

fn write(path: &Path, report: &Value) {
    std::fs::write(path, report.to_string()).unwrap();
}

#[test]
fn versions_are_put_in_order_with_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    for (version, diverges) in [("0.10.0", false), ("0.9.1", true)] {
        let mut report = report(&format!("kernel {version}, cuda"), "");
        if !diverges {
            report["findings"] = json!([]);
            report["probes"] = Value::Null;
            report["conforming"] = 206.into();
            report["diverged"] = 0.into();
        }
        report["date"] = format!("2026-01-0{}T10:00:00Z", version.len()).into();
        report["command"] = format!("doublecheck check --command 'kernel {version} & co'").into();
        write(&folder.path().join(format!("{version}.json")), &report);
    }
    let files = built(&[folder.path().to_owned()]);
    let pages = pages(&files);
    assert_eq!(pages.keys().copied().collect::<Vec<_>>(), [INDEX, "kernel-0.10.0.html", "kernel-0.9.1.html"]);
    let (_, trend) = pages[INDEX].split_once("id=\"versions\"").unwrap();
    let (older, newer) = (trend.find("0.9.1").unwrap(), trend.find("0.10.0").unwrap());
    assert!(older < newer, "{trend}");
    assert_holds(trend, &["2026-01-05", "2026-01-06"]);
    assert_holds(
        pages["kernel-0.9.1.html"],
        &["kernel 0.9.1 &amp; co", "2026-01-05T10:00:00Z", "class=\"bad\""],
    );
    assert_holds(pages["kernel-0.10.0.html"], &["class=\"good\"", "href=\"kernel-0.9.1.html\""]);
}

#[test]
fn a_report_of_others_brings_neither_markup_nor_files_of_its_choice() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("reports");
    std::fs::create_dir_all(inside.join("out")).unwrap();
    std::fs::write(folder.path().join("secret.safetensors"), "secret").unwrap();
    std::fs::write(inside.join("out/finding-1.safetensors"), "one").unwrap();
    std::fs::write(inside.join("out/notes.txt"), "secret").unwrap();
    std::os::unix::fs::symlink(folder.path().join("secret.safetensors"), inside.join("out/link.safetensors"))
        .unwrap();
    let absolute = folder.path().join("secret.safetensors");
    let names = [
        "out/finding-1.safetensors",
        "../secret.safetensors",
        absolute.to_str().unwrap(),
        "out/link.safetensors",
        "out/notes.txt",
    ];
    for (index, name) in names.iter().enumerate() {
        let mut report = report("<script>alert(1)</script> 1.0, cpu", name);
        report["findings"][0]["sentence"] = "<img src=x>\u{202e}".into();
        report["findings"][0]["known"] = json!({"reason": "r", "link": "javascript:alert(1)"});
        report["command"] = "<b>".into();
        write(&inside.join(format!("<{index}>.json")), &report);
    }
    let loaded = site::load(&[inside], Memory::DEFAULT).unwrap();
    assert_eq!(loaded.missing, names.len() - 1);
    let files = site::build(&loaded.checks);
    let examples: Vec<_> = files.iter().filter(|(name, _)| name.starts_with("counterexamples/")).collect();
    assert_eq!(examples, [(&"counterexamples/finding-1.safetensors".to_owned(), &b"one".to_vec())]);
    for page in pages(&files).values() {
        assert_page_is_balanced(page);
        assert!(
            !page.contains("<script")
                && !page.contains("<img")
                && !page.contains("<b>")
                && !page.contains('\u{202e}')
        );
        assert!(!page.contains("href=\"javascript"));
    }
}

#[test]
fn the_command_writes_a_site_in_place_of_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("reports")).unwrap();
    write(Path::new(&path("reports/one.json")), &report("kernel 1.0", "finding-1.safetensors"));
    std::fs::write(path("reports/finding-1.safetensors"), "one").unwrap();
    std::fs::write(path("reports/other.json"), "{\"aims\": []}").unwrap();
    let (reports, out) = (path("reports"), path("site"));
    let output = run(&["site", &reports, "--out", &out]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_holds(&stdout(&output), &["site/index.html: 2 pages of 1 check, 1 counterexample, 0 not there\n"]);
    assert_holds(&stderr(&output), &["other.json: no report of a check, skipped"]);
    // What is copied there is no case of its own.
    let cases = bundled::find(folder.path()).unwrap();
    assert_eq!(
        cases.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(),
        ["reports/finding-1.safetensors"]
    );
    // A second version takes the place of the first; the page of the first goes.
    write(Path::new(&path("reports/one.json")), &report("kernel 2.0", "finding-2.safetensors"));
    std::fs::write(path("site/mine.html"), "<p>mine</p>").unwrap();
    assert_eq!(run(&["site", &path("reports/one.json"), "--out", &out]).status.code(), Some(0));
    let names: BTreeSet<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names,
        ["counterexamples", "index.html", "kernel-2.0.html", "mine.html"].map(String::from).into()
    );
    assert_eq!(std::fs::read_dir(path("site/counterexamples")).unwrap().count(), 0);

    let mut wrong = report("kernel 1.0", "");
    wrong["findings"][0]["tries"] = "many".into();
    write(Path::new(&path("wrong.json")), &wrong);
    for (arguments, expected) in [
        (
            [&reports, &reports].map(String::as_str),
            "reports with other files, expected a new folder or an earlier site",
        ),
        (
            [&path("reports/other.json"), &path("new")].map(String::as_str),
            "other.json: found no report of a check, expected one",
        ),
        (
            [&path("site"), &path("new")].map(String::as_str),
            "site: found no report of a check, expected some",
        ),
        (
            [&path("wrong.json"), &path("new")].map(String::as_str),
            "wrong.json: findings[0].tries: found invalid type: string \"many\"",
        ),
        ([&path("nothing"), &path("new")].map(String::as_str), "cannot access"),
    ] {
        let output = run(&["site", arguments[0], "--out", arguments[1]]);
        assert_eq!(output.status.code(), Some(2), "{expected}");
        assert_holds(&stderr(&output), &[expected]);
    }
    assert!(!Path::new(&path("new")).exists());
}
