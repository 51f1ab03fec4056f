//! Tasks from the file to the score: `tests/data/longbench-sample.jsonl`, five records in LongBench's format about places
//! that do not exist, written for this test, and the retrieval tasks that are made on the spot.

use std::path::Path;

use doublecheck::evaluation::bootstrap;
use doublecheck::evaluation::results::{Measure, Unit};
use doublecheck::evaluation::tasks::longbench::{Record, f1, read};
use doublecheck::evaluation::tasks::retrieval::{key_value, passkey, right};
use doublecheck::evaluation::tasks::{Error, Item};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/longbench-sample.jsonl");

fn records() -> Vec<Record> {
    read(Path::new(SAMPLE)).unwrap()
}

fn items() -> Vec<Item> {
    records().iter().enumerate().map(|(number, record)| record.item(number).unwrap()).collect()
}

fn quality(scores: &[f64]) -> f64 {
    let units: Vec<Unit> = scores.iter().map(|&sum| Unit { sum, count: 1.0 }).collect();
    bootstrap::quality(Measure::F1, &units).value
}

#[test]
fn every_record_becomes_an_item() {
    let named: Vec<(String, usize)> = items().into_iter().map(|item| (item.name, item.most_tokens)).collect();
    let expected = [
        ("multifieldqa_en 0", 64),
        ("multifieldqa_en 1", 64),
        ("multifieldqa_en 2", 64),
        ("hotpotqa 3", 32),
        ("hotpotqa 4", 32),
    ];
    assert_eq!(named, expected.map(|(name, tokens)| (name.to_owned(), tokens)));
    for (record, item) in records().iter().zip(items()) {
        assert!(item.context.ends_with(&record.context), "{}", item.name);
        assert!(item.question.contains(&format!("\n\nQuestion: {}\nAnswer:", record.input)), "{}", item.name);
        assert!(item.question.ends_with("\nAnswer:"), "{}", item.name);
        assert_eq!(item.answers, record.answers);
    }
}

#[test]
fn the_lengths_are_the_words_of_context_and_question() {
    for record in records() {
        let words = record.context.split_whitespace().count() + record.input.split_whitespace().count();
        assert_eq!(record.length, Some(words), "{}", record.input);
    }
}

#[test]
fn every_answer_is_in_its_context() {
    for record in records() {
        let context = record.context.to_lowercase();
        assert!(record.answers.iter().any(|answer| context.contains(answer)), "{:?}", record.answers);
        assert!(record.answers.iter().all(|answer| !record.input.contains(answer)), "{:?}", record.answers);
    }
}

/// By hand: "Nine days." is right; "burn" with "dried moss" has 2 of 3 and 2 words in common; "coal" none; "red heron" is
/// one of the answers; "bell it was" has 1 of 3 and 1.
#[test]
fn predictions_are_scored_against_the_answers() {
    let predictions = [" Nine days.", " burn dried moss", " coal", " The red heron", " A bell it was"];
    let scores: Vec<f64> =
        items().iter().zip(predictions).map(|(item, prediction)| f1(prediction, &item.answers)).collect();
    for (found, expected) in scores.iter().zip([100.0, 80.0, 0.0, 100.0, 50.0]) {
        assert!((found - expected).abs() < 1e-9, "{scores:?}");
    }
    assert!((quality(&scores) - 66.0).abs() < 1e-9, "{scores:?}");
}

#[test]
fn a_record_cut_short_is_refused_with_its_place() {
    let mut text = std::fs::read_to_string(SAMPLE).unwrap();
    text.truncate(text.trim_end().len() - 9);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.jsonl");
    std::fs::write(&path, text).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, Error::In { line: 5, .. }), "{error}");
    assert!(error.to_string().contains("cut.jsonl, line 5: not a record: line: found EOF"), "{error}");
}

#[test]
fn whoever_copies_what_follows_the_question_in_the_context_is_right() {
    let tasks = (0..20).flat_map(|seed| {
        let depth = seed as f64 / 19.0;
        [passkey(seed, 50, depth).unwrap(), key_value(seed, 50).unwrap()]
    });
    for item in tasks {
        let asked = item.question.rsplit_once("? ").unwrap().1;
        let (_, copied) = item.context.split_once(asked).unwrap();
        assert!(right(copied, &item.answers), "{}: {copied}", item.name);
        assert!(!right(&item.context.replace(&item.answers[0], ""), &item.answers), "{}", item.name);
    }
}
