//! The same seed gives the same bytes of text, JSON and HTML, without times, for any number of threads and however busy the
//! machine is: without `--seconds` nothing is bounded by the clock then.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Answer, Call, Instance, NoAnswer};
use doublecheck::subjects::{Faulty, Subject};
use doublecheck::{Limits, Options, check};

/// Text, JSON, HTML, and every file below `out`.
fn bytes(arguments: &[&str], threads: &str) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_doublecheck"))
        .args(arguments)
        .args(["--no-times", "--json", "report.json", "--html", "report.html"])
        .current_dir(folder.path())
        .env("RAYON_NUM_THREADS", threads)
        .output()
        .unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = vec![("text".to_owned(), output.stdout)];
    for entry in [folder.path().to_owned(), folder.path().join("out")] {
        let Ok(entries) = fs::read_dir(entry) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            let name = path.strip_prefix(folder.path()).unwrap_or(Path::new("")).display().to_string();
            found.push((name, fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn assert_same(arguments: &[&str]) -> usize {
    let first = bytes(arguments, "1");
    for threads in ["2", "5"] {
        let again = bytes(arguments, threads);
        for ((name, first), (other, again)) in first.iter().zip(&again) {
            assert_eq!(name, other, "{arguments:?}");
            let first_difference = first.iter().zip(again).position(|(a, b)| a != b);
            let around = |bytes: &[u8]| {
                let at = first_difference.unwrap_or(0);
                String::from_utf8_lossy(&bytes[at.saturating_sub(200)..(at + 200).min(bytes.len())])
                    .into_owned()
            };
            assert!(
                first == again,
                "{arguments:?}, {threads} threads, {name}:\n{}\n--\n{}",
                around(first),
                around(again)
            );
        }
        assert_eq!(first.len(), again.len());
    }
    first.len()
}

#[test]
fn a_verification_gives_the_same_bytes() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/small");
    assert_eq!(assert_same(&["verify", golden, "--random-cases", "60", "--seed", "5"]), 3);
    assert_eq!(assert_same(&["verify", golden, "--random-cases", "60", "--fault", "D6"]), 3);
}

#[test]
fn a_check_gives_the_same_bytes() {
    let written = assert_same(&["check", "--cases", "80", "--no-goldens", "--fault", "D4", "--out", "out"]);
    assert!(written >= 5, "{written}");
    assert_same(&["check", "--cases", "60", "--no-goldens", "--fault", "D3,D6", "--seed", "9"]);
    assert_same(&["check", "--cases", "40", "--no-goldens", "--seed", "3"]);
    assert_same(&["check", "--sessions", "20", "--fault", "stale-after-truncate"]);
}

/// An implementation with a fault that takes time for each call.
struct Slow(Faulty, Duration);

impl Subject for Slow {
    fn name(&self) -> String {
        "slow".into()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.0.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        std::thread::sleep(self.1);
        self.0.call(call)
    }
}

/// Where the clock ends no search, an implementation that takes far longer than searches may take is told of in the same words, by the same
/// counterexamples.
#[test]
fn a_slow_implementation_gives_the_same_report() {
    let report = |time: Duration, by_clock: bool| {
        let shrinking = Limits { time: Duration::from_millis(100), tries: 2000, ..Limits::default() };
        let naming = Duration::from_millis(1);
        let options = Options { cases: 40, shrinking, naming, by_clock, ..Options::default() };
        let fault = Fault::find_all("fills-up")[0];
        let mut report = check(&mut Slow(Faulty::new(&[fault]), time), &options);
        report.leave_out_times();
        serde_json::to_string_pretty(&report).unwrap()
    };
    let expected = report(Duration::ZERO, false);
    assert!(expected.contains("\"fills-up\""), "{expected}");
    assert_eq!(report(Duration::from_millis(1), false), expected);
    // The same by the clock is cut off.
    assert_ne!(report(Duration::from_millis(1), true), expected);
}
