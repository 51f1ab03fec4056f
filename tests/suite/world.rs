//! What the world may do to a run: hostile text, places that cannot be written, streams that are closed, paths that are no UTF-8,
//! interrupts at any moment, another run in the same folder. What was found is told all the same, and nothing older is lost
//! before there is something newer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use doublecheck::cases::{Expectation, file};
use doublecheck::subjects::{Reference, Subject};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::running::{run, stderr, stdout};
use crate::support::{is_long, small_case};

fn suite() -> Command {
    Command::new(env!("CARGO_BIN_EXE_doublecheck"))
}

/// Title of a terminal, colours, bell, carriage return, delete, a control of 8 bits, a change of direction; and a line that looks
/// like the report's own.
const HOSTILE: &str = "\u{1b}]0;title\u{7}\u{1b}[31m\r\u{7f}\u{9b}2J\u{202e}red\nFINDING 9: forged";

fn acts(c: char) -> bool {
    (c.is_control() && c != '\n') || c == '\u{202e}'
}

fn assert_no_controls(what: &str, text: &str) {
    assert!(!text.contains(acts), "{what}: {:?}", text.chars().filter(|c| acts(*c)).collect::<String>());
}

/// Where the ends of lines mean something, too.
fn assert_harmless(what: &str, text: &str) {
    assert_no_controls(what, text);
    assert!(!text.lines().any(|line| line.starts_with("FINDING 9")), "{what}: {text}");
}

/// A frame of the protocol.
fn frame(message: &Value) -> Vec<u8> {
    let metadata = HashMap::from([("doublecheck".to_owned(), message.to_string())]);
    let none: [(&str, safetensors::tensor::TensorView); 0] = [];
    let bytes = safetensors::serialize(none, Some(metadata)).unwrap();
    [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat()
}

#[test]
fn text_of_a_subject_reaches_no_terminal_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let frames = [
        frame(&json!({"type": "hello", "protocol": 1, "name": HOSTILE})),
        frame(&json!({"type": "failed", "id": 1, "message": HOSTILE})),
        frame(&json!({"type": "refused", "id": 2, "message": HOSTILE})),
    ];
    fs::write(path("frames"), frames.concat()).unwrap();
    fs::write(path("words"), HOSTILE).unwrap();
    let (words, frames) = (path("words"), path("frames"));
    let command = format!("cat {} >&2; cat {}; sleep 0.1; exit 3", words.display(), frames.display());
    let (json, html, out) = (path("report.json"), path("report.html"), path("out"));
    let output = suite()
        .args([
            "check",
            "--cases",
            "3",
            "--no-goldens",
            "--no-shrink",
            "--stop-after",
            "2",
            "--command",
            &command,
        ])
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(printed.contains(r"\u{1b}]0;title\u{7}"), "{printed}");
    assert!(printed.contains("its standard error ended with"), "{printed}");
    assert_harmless("standard output", &printed);
    assert_harmless("standard error", &stderr(&output));
    let text = fs::read_to_string(&json).unwrap();
    assert_harmless("JSON", &text);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["subject"].as_str().unwrap().contains("red"));
    assert_no_controls("HTML", &fs::read_to_string(&html).unwrap());
    let mut texts = 0;
    for entry in fs::read_dir(&out).unwrap() {
        let written = entry.unwrap().path();
        if written.extension() == Some(OsStr::new("txt")) {
            assert_harmless("a counterexample", &fs::read_to_string(&written).unwrap());
            texts += 1;
        } else {
            let inspected = run(&["inspect", written.to_str().unwrap()]);
            assert_harmless("inspect", &stdout(&inspected));
        }
    }
    assert!(texts > 0);
    // A command that does not even say hello.
    let output = run(&["check", "--command", &format!("cat {} >&2; exit 3", path("words").display())]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(r"\u{1b}]0;title"), "{}", stderr(&output));
    assert_harmless("standard error", &stderr(&output));
}

#[test]
fn text_of_a_file_reaches_no_terminal_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = folder.path().join("a\u{1b}[31m\nFINDING 9: b.safetensors");
    let mut case = small_case();
    let mut answer = Reference::default().answer(&case).unwrap();
    let (key, _) = answer.mask.row((0, 1, 1)).next().unwrap();
    answer.mask.remove((0, 1, 1), key);
    let mut expectation = Expectation::from_answer(&answer, HOSTILE.into());
    expectation.known_divergence = None;
    case.expectation = Some(expectation);
    case.unknown.insert(HOSTILE.into(), json!(1));
    file::write(&hostile, &case).unwrap();
    let inspected = run(&["inspect", hostile.to_str().unwrap()]);
    assert!(stdout(&inspected).contains(r"\u{1b}]0;title"), "{}", stdout(&inspected));
    assert_harmless("inspect", &stdout(&inspected));
    let html = folder.path().join("report.html");
    let json = folder.path().join("report.json");
    let output = suite()
        .args(["verify", "--random-cases", "0", "--html"])
        .arg(&html)
        .arg("--json")
        .arg(&json)
        .arg(&hostile)
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains(r"a\u{1b}[31m\nFINDING 9: b.safetensors"), "{}", stdout(&output));
    assert_harmless("verify", &stdout(&output));
    assert_no_controls("HTML", &fs::read_to_string(&html).unwrap());
    let text = fs::read_to_string(&json).unwrap();
    assert_harmless("JSON", &text);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(
        report["findings"][0]["case"].as_str().unwrap().contains("\u{1b}[31m\n"),
        "JSON keeps what it was"
    );
    let output = run(&["replay", folder.path().join("no\u{1b}[31m").to_str().unwrap()]);
    assert_harmless("standard error", &stderr(&output));
}

const FAULT: [&str; 6] = ["check", "--fault", "D4", "--cases", "60", "--no-goldens"];

fn with(arguments: &[&str], more: &[&OsStr]) -> Output {
    suite().args(arguments).args(more).output().unwrap()
}

#[test]
fn what_cannot_be_written_is_told_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    for place in [
        file.join("below"),
        folder.path().join("none/report"),
        folder.path().to_owned(),
        folder.path().join("new/"),
    ] {
        for (command, option) in [
            ("verify", "--json"),
            ("verify", "--html"),
            ("check", "--json"),
            ("check", "--html"),
            ("faults", "--json"),
        ] {
            let start = Instant::now();
            let output = with(&[command, option], &[place.as_os_str()]);
            assert_eq!(output.status.code(), Some(2), "{command} {option} {}", place.display());
            assert!(stderr(&output).contains("cannot write "), "{}", stderr(&output));
            assert!(
                stdout(&output).is_empty() && start.elapsed() < Duration::from_secs(20),
                "{}",
                stdout(&output)
            );
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_finished_report_is_told_wherever_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Both can be opened, and neither takes anything.
    let full = Path::new("/dev/full");
    let arguments = [&FAULT[..], &["--json", "/dev/full", "--html"]].concat();
    let output = with(&arguments, &[path("page.html").as_os_str()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stdout(&output).contains("FINDING 1") && stdout(&output).contains("diverge"),
        "{}",
        stdout(&output)
    );
    assert!(stderr(&output).contains("cannot write /dev/full"), "{}", stderr(&output));
    assert!(fs::read_to_string(path("page.html")).unwrap().contains("finding-1"));
    // Standard output that takes nothing.
    let arguments = [&FAULT[..], &["--json"]].concat();
    let open = || fs::OpenOptions::new().write(true).open(full).unwrap();
    let json = path("report.json");
    let output = suite().args(&arguments).arg(&json).stdout(open()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot print the report"), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 1);
    // A reader of standard output that went away.
    let mut child = suite().args(FAULT).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // Standard error that takes nothing: the exit code is that of what happened.
    let output = suite().args(["verify", "/nonexist"]).stderr(open()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = suite().args(FAULT).stderr(open()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("FINDING 1"));
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn older_findings_stay_until_newer_ones_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    for name in
        ["finding-1.txt", "finding-7.safetensors", "finding-7.txt", "finding-3-unshrunk.txt", "mine.txt"]
    {
        fs::write(out.join(name), "old").unwrap();
    }
    let before = names(&out);
    // A run that cannot begin deletes nothing.
    let output = with(&["check", "--command", "exit 3", "--out"], &[out.as_os_str()]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(names(&out), before);
    // Nor does one that is ended at once.
    let mut child = suite()
        .args(["check", "--seconds", "60", "--no-goldens", "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(&out), before);
    // One that ends replaces them.
    let output = with(&[&FAULT[..], &["--no-shrink", "--out"]].concat(), &[out.as_os_str()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(names(&out), ["finding-1.safetensors", "finding-1.txt", "mine.txt"]);
    assert_ne!(fs::read_to_string(out.join("finding-1.txt")).unwrap(), "old");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut first = suite()
        .args(["check", "--seconds", "60", "--no-goldens", "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    // The first makes the folder, and then takes it for itself.
    while !out.exists() {
        assert!(start.elapsed() < Duration::from_secs(60) && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500));
    let refused = loop {
        let output = with(&["check", "--cases", "1", "--no-goldens", "--out"], &[out.as_os_str()]);
        if output.status.code() == Some(2) || start.elapsed() > Duration::from_secs(30) {
            break output;
        }
    };
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(stderr(&refused).contains("in use by another run"), "{}", stderr(&refused));
    // The first is gone, however it ended.
    let output = with(&["check", "--cases", "1", "--no-goldens", "--out"], &[out.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn paths_need_not_be_utf_8() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&inner).unwrap();
    let case = inner.join(OsStr::from_bytes(b"case-\xff.safetensors"));
    file::write(&case, &small_case()).unwrap();
    for place in [&case, &inner, &folder.path().to_owned()] {
        let output = with(&["verify", "--random-cases", "0"], &[place.as_os_str()]);
        assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("1 of 1 cases conform"), "{}", stdout(&output));
        let output = with(&["check", "--cases", "1", "--goldens"], &[place.as_os_str()]);
        assert!(stdout(&output).contains("1 of 1 goldens"), "{}{}", stdout(&output), stderr(&output));
    }
    for (command, option) in [("inspect", None), ("replay", None), ("run", Some("-o"))] {
        let mut arguments = suite();
        arguments.arg(command).arg(&case);
        arguments.args(option).args(option.map(|_| inner.join(OsStr::from_bytes(b"out-\xfe"))));
        let output = arguments.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
    }
    let json = inner.join(OsStr::from_bytes(b"report-\xfd.json"));
    let output = with(&["verify", "--random-cases", "0", "--json"], &[json.as_os_str(), case.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(report["groups"][0]["cases"], 1);
}

#[test]
fn times_are_numbers_above_0_and_belong_to_a_command() {
    for (arguments, expected) in [
        (&["check", "--fault", "D4", "--timeout", "nan"][..], "expected seconds above 0"),
        (&["check", "--command", "x", "--timeout", "nan"], "expected seconds above 0"),
        (&["check", "--command", "x", "--timeout", "0"], "expected seconds above 0"),
        (&["check", "--command", "x", "--timeout", "1e300"], "expected seconds above 0"),
        (&["check", "--fault", "D4", "--timeout", "5"], "without --command"),
        (&["verify", "--timeout", "5"], "without --command"),
        (&["check", "--seconds", "inf"], "expected seconds above 0"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}

/// The moments at which a run is interrupted, in milliseconds: a third of them, unless tests run in full.
fn moments() -> Vec<u64> {
    let step = if is_long() { 1 } else { 3 };
    [0, 5, 30, 120, 400, 1200].into_iter().step_by(step).collect()
}

/// Interrupts a run after it began to answer for signals.
fn interrupted(arguments: &[&str], json: &PathBuf, milliseconds: u64) -> Output {
    let child = suite()
        .args(arguments)
        .arg("--json")
        .arg(json)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let start = Instant::now();
    // From then on signals are caught: their bits are set in what the system says of the process.
    let catches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .map(|bits| u64::from_str_radix(bits.trim(), 16));
        caught.is_some_and(|caught| caught.unwrap() & 0b10 != 0)
    };
    while !catches() {
        assert!(start.elapsed() < Duration::from_secs(60), "signals are not caught");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20 + milliseconds));
    let _ = kill_process(pid, Signal::INT);
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupt_at_any_moment_gives_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let mut cut_short = 0;
    for milliseconds in moments() {
        for arguments in [
            &["verify", "--random-cases", "20000"][..],
            &["check", "--seconds", "100", "--no-goldens"],
            &["check", "--seconds", "100", "--no-goldens", "--fault", "D4"],
            &["faults", "--cases", "2000"],
        ] {
            let json = folder.path().join("report.json");
            let _ = fs::remove_file(&json);
            let output = interrupted(arguments, &json, milliseconds);
            let said = stdout(&output) + &stderr(&output);
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{arguments:?} after {milliseconds} ms: {said}"
            );
            assert!(said.contains("interrupted"), "{arguments:?} after {milliseconds} ms: {said}");
            let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
            assert!(report.is_array() || report["interrupted"] == true, "{arguments:?}: {report}");
            cut_short += 1;
        }
    }
    assert_eq!(cut_short, 4 * moments().len());
}

/// The most memory of a check of so many sequences, in MiB.
fn peak(sequences: &str) -> f64 {
    let mut child = suite()
        .args(["check", "--cases", sequences, "--no-goldens", "--largest-keys", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0));
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Answers that conform are kept for the diagnosis, within bounds: three times as many sequences take no more memory.
#[test]
fn memory_does_not_grow_with_what_is_asked() {
    // Libraries that it is linked with take some themselves.
    let (one, some, more) = (peak("1"), peak("2000"), peak("6000"));
    println!("{one:.0} MiB, {some:.0} MiB, then {more:.0} MiB");
    assert!(more < some + 20.0, "2,000 sequences took {some:.0} MiB, 6,000 took {more:.0} MiB");
    assert!(more < one + 140.0, "{more:.0} MiB, {one:.0} MiB for one");
}
