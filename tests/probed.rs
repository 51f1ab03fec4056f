//! Probes alone, of implementations that share no code with this crate: those that are faulty deviate in some wire, all but one at most, and
//! none of those that are right does. They need Python with numpy, those of `../shared/faulty` also that folder beside the project; where
//! these are not, the test is counted as ignored, never as passed, and a line says why.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use doublecheck::Subject;
use doublecheck::diagnosis::probes::{MOST_TIME, Probed, probe};
use doublecheck::subjects::Process;
use libtest_mimic::{Arguments, Failed, Trial};
use rayon::prelude::*;

/// Of the faulty ones of `../shared/faulty`, those that are right within what they declare or are asked.
const RIGHT: [&str; 1] = ["random_ties"];

fn main() {
    let numpy = Command::new("python3").args(["-c", "import numpy"]).output();
    let numpy = numpy.is_ok_and(|output| output.status.success());
    let trial = |name: &'static str, run: fn() -> Result<(), Failed>, missing: Option<&str>| {
        if let Some(missing) = missing {
            eprintln!("ignored: {name}: no {missing}");
        }
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    let without = (!numpy).then_some("numpy for python3");
    let shared = support::shared("faulty").is_none().then_some("../shared/faulty beside the project");
    let trials = vec![
        trial("independent_faults_are_probed", independent_faults_are_probed, without),
        trial("faults_of_bug_reports_are_probed", faults_of_bug_reports_are_probed, without.or(shared)),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Probes the implementation that a script answers as.
fn probed(script: &Path, name: &str) -> Probed {
    let python = project("python");
    let command = format!("DOUBLECHECK_PYTHON='{}' python3 '{}' {name}", python.display(), script.display());
    let mut subject = Process::start(&command, Duration::from_secs(60)).unwrap();
    let capabilities = subject.capabilities();
    probe(&mut subject, &capabilities, &Vec::new(), MOST_TIME)
}

/// Probes all of them; the names of those that deviate and of those that do not. Prints how long they took.
fn sorted(script: &Path, names: &[String]) -> (Vec<String>, Vec<String>) {
    let probed: Vec<(bool, f64)> = names
        .par_iter()
        .map(|name| {
            let probed = probed(script, name);
            (probed.conforms(), probed.subject_seconds)
        })
        .collect();
    let longest = probed.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let deviating = probed.iter().filter(|(conforms, _)| !conforms).count();
    let all = names.len();
    eprintln!("{deviating} of {all} implementations deviate, at most {longest:.1} s of their own time");
    let all = |conforms: bool| {
        let some = names.iter().zip(&probed).filter(move |(_, probed)| probed.0 == conforms);
        some.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    (all(false), all(true))
}

fn independent_faults_are_probed() -> Result<(), Failed> {
    let key = std::fs::read_to_string(project("tests/faults_independent/key.toml"))?;
    let (of_faults, of_right) = key.split_once("\n[right]\n").ok_or("key.toml holds no [right]")?;
    let faulty = of_faults.lines().filter_map(|line| line.strip_prefix("[fault.")?.strip_suffix(']'));
    let right = of_right.lines().filter_map(|line| Some(line.split_once(" = {")?.0));
    let (faulty, right): (Vec<String>, Vec<String>) =
        (faulty.map(str::to_owned).collect(), right.map(str::to_owned).collect());
    assert!(faulty.len() > 90 && right.len() > 20, "{} and {}", faulty.len(), right.len());
    let script = project("tests/faults_independent/run.py");
    let (flagged, _) = sorted(&script, &right);
    assert!(flagged.is_empty(), "right, and flagged: {flagged:?}");
    // Every third of them, unless tests run in full.
    let faulty: Vec<_> = faulty.into_iter().step_by(if support::is_long() { 1 } else { 3 }).collect();
    let (caught, missed) = sorted(&script, &faulty);
    // Some fail from time to time only.
    assert!(missed.len() <= 1 && caught.len() + missed.len() == faulty.len(), "missed: {missed:?}");
    Ok(())
}

fn faults_of_bug_reports_are_probed() -> Result<(), Failed> {
    let folder = support::shared("faulty").ok_or("no folder of faulty implementations")?;
    let script = folder.join("faulty.py");
    let text = std::fs::read_to_string(&script)?;
    let names = text.lines().filter_map(|line| line.strip_prefix("class ")?.split(['(', ':']).next());
    let names: Vec<String> =
        names.filter(|name| !name.starts_with('_') && *name != "Summed").map(str::to_owned).collect();
    let (caught, conforming) = sorted(&script, &names);
    let missed: Vec<_> = conforming.iter().filter(|name| !RIGHT.contains(&name.as_str())).collect();
    let flagged: Vec<_> = caught.iter().filter(|name| RIGHT.contains(&name.as_str())).collect();
    assert!(flagged.is_empty(), "right, and flagged: {flagged:?}");
    assert!(missed.len() <= 1 && names.len() > 20, "missed: {missed:?}");
    Ok(())
}
