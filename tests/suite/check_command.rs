//! `check`, `replay` and `faults` as a person runs them: exit codes, what is printed and written, and what bad input gets.

use std::path::Path;
use std::process::Command;

use crate::running::{run, stderr, stdout};

#[test]
fn a_fault_is_found_explained_written_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let (out, json) = (folder.path().join("out"), folder.path().join("report.json"));
    let output = run(&[
        "check",
        "--fault",
        "D4",
        "--cases",
        "100",
        "--no-goldens",
        "--no-times",
        "--out",
        out.to_str().unwrap(),
        "--json",
        json.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    insta::assert_snapshot!(stdout(&output).replace(out.to_str().unwrap(), "OUT"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["findings"][0]["diagnosis"][0], "first-layers-channels");
    assert_eq!(report["findings"][0]["rows"][0], "D4");

    let file = out.join("finding-1.safetensors");
    let text = std::fs::read_to_string(out.join("finding-1.txt")).unwrap();
    assert!(text.contains("D4") && text.contains("call 1: layer"), "{text}");
    let file = file.to_str().unwrap();
    let again = run(&["replay", file, "--fault", "D4"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stdout(&again).contains("DIVERGES"), "{}", stdout(&again));
    let right = run(&["replay", file]);
    assert_eq!(right.status.code(), Some(0));
    assert!(!stdout(&right).contains("DIVERGES"));
    // The counterexample is a case file like any other.
    assert_eq!(run(&["verify", file, "--random-cases", "0"]).status.code(), Some(0));
    assert_eq!(run(&["verify", file, "--random-cases", "0", "--fault", "D4"]).status.code(), Some(1));
    assert!(stdout(&run(&["inspect", file])).contains("doublecheck"), "the source says who diverged");
}

#[test]
fn what_is_declared_is_no_finding() {
    let arguments = ["check", "--fault", "D4,D3", "--cases", "100", "--no-goldens", "--known"];
    assert_eq!(run(&[&arguments[..], &["D3,D4"]].concat()).status.code(), Some(0));
    let output = run(&[&arguments[..], &["D3"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("first-layers-channels, D4"), "{}", stdout(&output));
}

#[test]
fn the_reference_conforms_also_on_goldens() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/small");
    let output = run(&["check", "--cases", "100", "--goldens", golden.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("100 random sequences (seed 0), 6 large ones and 44 of 44 goldens"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn what_is_not_asked_is_said() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hub");
    let golden = golden.to_str().unwrap();
    let output = run(&["check", "--profile", "author", "--cases", "20", "--goldens", golden]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    assert!(text.contains("not offered, skipped: ") && text.contains("fractions (5 goldens)"), "{text}");
}

#[test]
fn the_matrix_of_faults_ends_with_a_sentence() {
    let output = run(&["faults", "--only", "D3,ties-to-highest", "--cases", "60"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("1 faults: 1 caught, 1 of them named; 1 of 1 conforming variants accepted")
    );
    // Two cases are too few to catch D4.
    assert_eq!(run(&["faults", "--only", "D4", "--cases", "2"]).status.code(), Some(1));
}

/// Says hello and offers no head mode that the profile author has.
const PER_HEAD_ONLY_SUMMED: &str = r#"python3 -c '
import json, struct, sys
hello = {"type": "hello", "protocol": 1, "heads": ["summed-scores"]}
header = json.dumps({"__metadata__": {"doublecheck": json.dumps(hello)}}).encode()
sys.stdout.buffer.write(struct.pack("<QQ", 8 + len(header), len(header)) + header)
sys.stdout.flush()
sys.stdin.buffer.read()
'"#;

#[test]
fn bad_input_exits_with_2_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let not_a_case = folder.path().join("not.safetensors");
    std::fs::write(&not_a_case, b"no").unwrap();
    let not_a_case = not_a_case.to_str().unwrap();
    for (arguments, expected) in [
        (&["check", "--known", "D99"][..], "found \"D99\", expected D1 to D23"),
        (&["check", "--profile", "mine"], "found \"mine\", expected everything, author, hub"),
        (&["check", "--fault", "no-such-fault"], "--fault: found \"no-such-fault\""),
        (
            &["check", "--command", PER_HEAD_ONLY_SUMMED, "--profile", "author", "--seconds", "1"],
            "found 0 that both the subject and",
        ),
        (
            &["check", "--json", "no/such/folder/report.json", "--cases", "1"],
            "cannot write no/such/folder/report.json",
        ),
        (&["check", "--html", folder.path().to_str().unwrap(), "--cases", "1"], "cannot write "),
        (&["check", "--out", not_a_case, "--cases", "1"], "cannot write to "),
        (&["check", "--seconds=-1"], "found \"-1\", expected seconds above 0"),
        (&["check", "--no-shrink", "--shrink-seconds", "3"], "cannot be used with"),
        (&["replay", not_a_case, "--shrink"], "--out <FILE>"),
        (&["check", "--command", "exit 3"], "did not say hello"),
        (&["check", "--command", "cat", "--timeout", "0"], "found \"0\", expected seconds above 0"),
        (&["check", "--command", "cat", "--subject", "reference"], "cannot be used with"),
        (&["check", "--goldens", "no/such/folder"], "cannot access no/such/folder"),
        (&["check", "--cases", "5", "--goldens", not_a_case], "not a case file"),
        (&["replay", not_a_case], "not a case file"),
        (&["replay", "nothing.safetensors"], "cannot access nothing.safetensors"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        let said = stderr(&output) + &stdout(&output);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn a_finding_can_be_shrunk_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, smaller) = (path("out"), path("smaller.safetensors"));
    let arguments = ["check", "--fault", "D4", "--cases", "60", "--no-goldens", "--no-shrink", "--out", &out];
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("  not shrunk: "), "{}", stdout(&output));
    // Standard error is no terminal here.
    assert!(
        stderr(&output).contains("FINDING 1: wrong keys, in random sequence of seed "),
        "{}",
        stderr(&output)
    );
    let file = path("out/finding-1.safetensors");
    let names = |folder: &str| {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), ["finding-1.safetensors", "finding-1.txt"]);
    let before = std::fs::metadata(&file).unwrap().len();
    let again = run(&["replay", &file, "--fault", "D4", "--shrink", "--out", &smaller]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(stdout(&again).contains("to 2 calls, 1 head, 2 keys, d = 2"), "{}", stdout(&again));
    assert!(std::fs::metadata(&smaller).unwrap().len() < before);
    assert!(std::fs::read_to_string(path("smaller.txt")).unwrap().contains("first-layers-channels, D4"));
    assert_eq!(run(&["replay", &smaller, "--fault", "D4"]).status.code(), Some(1));
    // Who is right has nothing to shrink.
    let right = run(&["replay", &file, "--shrink", "--out", &smaller]);
    assert_eq!(right.status.code(), Some(0));
    assert!(stdout(&right).starts_with("conforms"), "{}", stdout(&right));
}

#[test]
fn an_interrupted_check_writes_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut suite = Command::new(env!("CARGO_BIN_EXE_doublecheck"))
        .args(["check", "--fault", "D4", "--seconds", "600", "--no-goldens", "--html"])
        .arg(path("report.html"))
        .arg("--json")
        .arg(path("report.json"))
        .arg("--out")
        .arg(path("out"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let written = path("out/finding-1.safetensors");
    let found = (0..1200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        written.exists()
    });
    assert!(found, "nothing was found");
    let pid = rustix::process::Pid::from_child(&suite);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(suite.wait().unwrap().code(), Some(1));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("report.json")).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["findings"][0]["diagnosis"][0], "first-layers-channels");
    assert!(std::fs::read_to_string(path("report.html")).unwrap().contains("Interrupted"));
}

/// A terminal's Ctrl-C reaches the suite only: it must end the command, too.
#[test]
fn a_suite_that_is_interrupted_leaves_nothing_running() {
    // Found again by its length.
    let seconds = 100_000 + std::process::id();
    let mut suite = Command::new(env!("CARGO_BIN_EXE_doublecheck"))
        .args(["check", "--command", &format!("exec sleep {seconds}"), "--no-goldens"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let running = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
            .any(|line| line == format!("sleep\0{seconds}\0").as_bytes())
    };
    let wait = |wanted: bool| {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(25));
            running() == wanted
        })
    };
    assert!(wait(true), "the command did not start");
    let pid = rustix::process::Pid::from_child(&suite);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(suite.wait().unwrap().code(), Some(130));
    assert!(wait(false), "the command still runs");
}
