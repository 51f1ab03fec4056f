//! Bytes of files, answers and reports with a few changes, through what `ci/fuzz` runs guided by coverage: nothing may panic, and what
//! was read and is written again reads as the same. Changes are those that random bytes seldom make: other numbers in JSON,
//! parts of another seed, parts left out or said twice.

#[path = "../../fuzz/harness.rs"]
#[allow(dead_code, reason = "seeds are written by fuzzing alone")]
mod harness;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

use crate::support::{of_long, proptest_config};

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/fuzzed.txt");

/// What stands in place of a number or another part of JSON.
const VALUES: [&[u8]; 18] = [
    b"0",
    b"1",
    b"-1",
    b"2",
    b"0.5",
    b"1e400",
    b"-0.0",
    b"4294967296",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"[[]]",
    b"\"\\u0000\"",
];

#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    LeftOut(Index, usize),
    Again(Index, usize),
    Number(Index, usize),
    Splice(Index, Index, Index, usize),
    End(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    prop_oneof![
        2 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => (index(), 1usize..40).prop_map(|(at, length)| Change::LeftOut(at, length)),
        1 => (index(), 1usize..40).prop_map(|(at, length)| Change::Again(at, length)),
        4 => (index(), 0..VALUES.len()).prop_map(|(at, value)| Change::Number(at, value)),
        1 => (index(), index(), index(), 1usize..200).prop_map(|(at, seed, from, length)| Change::Splice(at, seed, from, length)),
        1 => index().prop_map(Change::End),
    ]
}

/// Where numbers stand in JSON.
fn numbers(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let is_part = |byte: &u8| byte.is_ascii_digit() || b"-.+eE".contains(byte);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at].is_ascii_digit()
            || (bytes[at] == b'-' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit))
        {
            let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
            found.push(at..at + length);
            at += length;
        } else {
            at += 1;
        }
    }
    found
}

fn changed(mut bytes: Vec<u8>, changes: &[Change], seeds: &[Vec<u8>]) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let part = |at: &Index, length: usize, of: &[u8]| {
            let at = at.index(of.len());
            at..(at + length).min(of.len())
        };
        match change {
            Change::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::LeftOut(at, length) => {
                let part = part(at, *length, &bytes);
                bytes.drain(part);
            }
            Change::Again(at, length) => {
                let part = part(at, *length, &bytes);
                let again = bytes[part.clone()].to_vec();
                bytes.splice(part.end..part.end, again);
            }
            Change::Number(at, value) => {
                let numbers = numbers(&bytes);
                if !numbers.is_empty() {
                    bytes.splice(at.get(&numbers).clone(), VALUES[*value].iter().copied());
                }
            }
            Change::Splice(at, seed, from, length) => {
                let other = seed.get(seeds);
                let inserted = other[part(from, *length, other)].to_vec();
                let at = at.index(bytes.len());
                bytes.splice(at..at, inserted);
            }
            Change::End(at) => {
                let at = at.index(bytes.len());
                bytes.truncate(at);
            }
        }
    }
    bytes
}

fn fuzz(target: &str, cases: u32) {
    let harness = harness::TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
    let seeds = harness::seeds(target);
    assert!(!seeds.is_empty(), "{target} starts from nothing");
    seeds.iter().for_each(|seed| harness(seed));
    let (asked, differing) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(proptest_config(of_long(cases), REGRESSIONS));
    let outcome = runner.run(&(any::<Index>(), prop::collection::vec(change(), 1..5)), |(seed, changes)| {
        let seed = seed.get(&seeds);
        let bytes = changed(seed.clone(), &changes, &seeds);
        asked.set(asked.get() + 1);
        differing.set(differing.get() + u32::from(bytes != *seed));
        harness(&bytes);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{target}: {error}"));
    assert!(differing.get() > asked.get() / 2, "{target}: {} of {} differ", differing.get(), asked.get());
}

#[test]
fn changed_case_files_are_read_or_refused() {
    fuzz("case_file", 20_000);
    fuzz("case_header", 60_000);
}

#[test]
fn changed_channel_files_are_read_or_refused() {
    fuzz("channel_file", 5_000);
}

#[test]
fn changed_answers_are_read_or_refused() {
    fuzz("answers", 10_000);
    fuzz("answer_header", 30_000);
}

#[test]
fn changed_headers_of_models_are_read_or_refused() {
    fuzz("gguf", 100_000);
}

#[test]
fn changed_reports_are_read_or_refused() {
    fuzz("report", 5_000);
}

#[test]
fn changed_domains_are_read_or_refused() {
    fuzz("domain", 30_000);
}

/// Starting points are right as they are: only then do changes reach far.
#[test]
fn what_fuzzing_starts_from_is_right() {
    use doublecheck::cases::{Reader, gguf_header};
    use doublecheck::reports::record::Record;
    let containers = harness::seeds("case_file");
    for container in &containers {
        Reader::default().parse(container, "a seed").unwrap();
    }
    assert!(containers.len() > 20, "{}", containers.len());
    for model in harness::seeds("gguf") {
        gguf_header::check(&model).unwrap();
    }
    let reports = harness::seeds("report");
    let records =
        reports.iter().filter(|report| Record::read(std::str::from_utf8(report).unwrap()).is_some());
    assert!(records.count() > 3);
    for domain in harness::seeds("domain") {
        doublecheck::cases::domain::domains_from_json(&serde_json::from_slice(&domain).unwrap()).unwrap();
    }
}
