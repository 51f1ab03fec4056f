//! Question answering in the format of LongBench (Bai et al., arXiv 2308.14508): a JSON-lines file, one record a line.
//! Prompts, limits of generated tokens, the F1 of an answer and the cut of a prompt that is too long are those of its
//! published evaluation (github.com/THUDM/LongBench: `config/dataset2prompt.json`, `config/dataset2maxlen.json`,
//! `metrics.py`, `pred.py`). Its English sets of questions are known, and their `_e` variants (LongBench-E), which differ
//! in their records only.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Error, Item, Result};
use crate::algorithm::Detail;

/// One line of a file. Its other fields (`all_classes`, `language`, `_id`) play no part in answering questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The question.
    pub input: String,
    /// The text that answers it.
    pub context: String,
    /// Answers that count as right, at least one.
    pub answers: Vec<String>,
    /// Words of the record, as the file states them; None where it does not.
    pub length: Option<usize>,
    /// Which data set it belongs to: `hotpotqa`, `qasper_e`.
    pub dataset: String,
}

/// The prompt of a data set: `before_context`, the context, `before_input`, the input, `end`.
struct Template {
    names: &'static [&'static str],
    before_context: &'static str,
    before_input: &'static str,
    end: &'static str,
    most_tokens: usize,
}

/// LongBench's wording, to the letter: "asconcisely" and the space before qasper's second "Answer" are its own.
const TEMPLATES: [Template; 4] = [
    Template {
        names: &["narrativeqa"],
        before_context: "You are given a story, which can be either a novel or a movie script, and a question. \
            Answer the question asconcisely as you can, using a single phrase if possible. Do not provide \
            any explanation.\n\nStory: ",
        before_input: "\n\nNow, answer the question based on the story asconcisely as you can, using a single \
            phrase if possible. Do not provide any explanation.\n\nQuestion: ",
        end: "\n\nAnswer:",
        most_tokens: 128,
    },
    Template {
        names: &["qasper"],
        before_context: "You are given a scientific article and a question. Answer the question as concisely \
            as you can, using a single phrase or sentence if possible. If the question cannot be answered \
            based on the information in the article, write \"unanswerable\". If the question is a yes/no \
            question, answer \"yes\", \"no\", or \"unanswerable\". Do not provide any \
            explanation.\n\nArticle: ",
        before_input: "\n\n Answer the question based on the above article as concisely as you can, using a \
            single phrase or sentence if possible. If the question cannot be answered based on the \
            information in the article, write \"unanswerable\". If the question is a yes/no question, \
            answer \"yes\", \"no\", or \"unanswerable\". Do not provide any explanation.\n\nQuestion: ",
        end: "\n\nAnswer:",
        most_tokens: 128,
    },
    Template {
        names: &["multifieldqa_en"],
        before_context: "Read the following text and answer briefly.\n\n",
        before_input: "\n\nNow, answer the following question based on the above text, only give me the \
            answer and do not output any other words.\n\nQuestion: ",
        end: "\nAnswer:",
        most_tokens: 64,
    },
    Template {
        names: &["hotpotqa", "2wikimqa", "musique"],
        before_context: "Answer the question based on the given passages. Only give me the answer and do not \
            output any other words.\n\nThe following are given passages.\n",
        before_input: "\n\nAnswer the question based on the given passages. Only give me the answer and do \
            not output any other words.\n\nQuestion: ",
        end: "\nAnswer:",
        most_tokens: 32,
    },
];

/// Reads a file; blank lines are skipped. Fields other than those of [`Record`] are ignored.
///
/// Errors: [`Error::Access`] where the file cannot be read; [`Error::In`], with file and line, around [`Error::Format`] for
/// a line that is not an object with these fields, for an empty list of answers and for a file without records, and around
/// [`Error::Dataset`] for a data set whose prompt is not known.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Access { path: path.to_owned(), source })?;
    let mut records = Vec::new();
    let mut last = 1;
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        last = index + 1;
        if !line.trim_ascii().is_empty() {
            records.push(Record::parse(line).map_err(|error| error.at(path, last))?);
        }
    }
    if records.is_empty() {
        return Err(wrong("records", "the end of the file", "at least one record").at(path, last));
    }
    Ok(records)
}

impl Record {
    fn parse(line: &[u8]) -> Result<Self> {
        let value =
            serde_json::from_slice(line).map_err(|error| wrong("line", problem(&error), "a JSON object"))?;
        let Value::Object(mut fields) = value else {
            return Err(wrong("line", type_of(Some(&value)), "a JSON object"));
        };
        let record = Self {
            input: text(&mut fields, "input")?,
            context: text(&mut fields, "context")?,
            answers: texts(&mut fields, "answers")?,
            length: length(&fields)?,
            dataset: text(&mut fields, "dataset")?,
        };
        record.template("dataset")?;
        Ok(record)
    }

    /// The prompt in its two parts, named `hotpotqa 17` for number 17. The context ends with the record's context.
    ///
    /// Errors: [`Error::Dataset`] for a data set whose prompt is not known, [`Error::Format`] where there is no answer.
    /// Neither happens to a record that was read from a file.
    pub fn item(&self, number: usize) -> Result<Item> {
        let template = self.template(&format!("dataset of record {number}"))?;
        if self.answers.is_empty() {
            let field = format!("answers of record {number}");
            return Err(wrong(&field, "an empty list", "at least one"));
        }
        Ok(Item {
            name: format!("{} {number}", self.dataset),
            context: format!("{}{}", template.before_context, self.context),
            question: format!("{}{}{}", template.before_input, self.input, template.end),
            answers: self.answers.clone(),
            most_tokens: template.most_tokens,
        })
    }

    fn template(&self, field: &str) -> Result<&'static Template> {
        let name = self.dataset.strip_suffix("_e").unwrap_or(&self.dataset);
        TEMPLATES.iter().find(|template| template.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = TEMPLATES.iter().flat_map(|template| template.names).copied().collect();
            let expected = format!("one of {}, or one of these with _e", known.join(", "));
            Error::Dataset(Detail::new(field, format!("{:?}", self.dataset), expected))
        })
    }
}

/// The F1 of a prediction in percent, against the answer that it fits best: words in common, each as often as both have it,
/// by the words there are. Case, ASCII punctuation, the articles a, an and the, and white space do not count.
///
/// 0 without answers, and where prediction or answer have no words left, even if both have none.
pub fn f1(prediction: &str, answers: &[String]) -> f64 {
    let prediction = words(prediction);
    answers.iter().map(|answer| overlap(&prediction, &words(answer))).fold(0.0, f64::max)
}

/// 200 · common / (words of both) is the harmonic mean of precision and recall in percent.
fn overlap(prediction: &[String], answer: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in answer {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in prediction {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 { 0.0 } else { 200.0 * f64::from(common) / (prediction.len() + answer.len()) as f64 }
}

/// What is compared. Punctuation goes first and leaves no gap: "the-end" becomes one word, which is no article.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase().replace(|c: char| c.is_ascii_punctuation(), "");
    without_articles(&lower).split_whitespace().map(str::to_owned).collect()
}

/// A space in place of each article that stands alone between characters that are neither letters nor digits.
fn without_articles(text: &str) -> String {
    let mut kept = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        kept.push_str(if matches!(word.as_str(), "a" | "an" | "the") { " " } else { &word });
        kept.push(c);
        word.clear();
    }
    kept
}

/// Tokens of a whole prompt cut to at most `limit`: the first `limit / 2` and as many of the last, so that an odd limit
/// gives one less. A prompt within the limit stays as it is.
///
/// LongBench makes text of the two halves and tokenises it again, which can merge tokens where they meet; it means no limit
/// below 2, where this leaves nothing.
pub fn truncate_middle(tokens: &[u32], limit: usize) -> Vec<u32> {
    if tokens.len() <= limit {
        return tokens.to_vec();
    }
    let half = limit / 2;
    [&tokens[..half], &tokens[tokens.len() - half..]].concat()
}

fn wrong(field: &str, found: impl std::fmt::Display, expected: &str) -> Error {
    Error::Format(Detail::new(field, found, expected))
}

/// What the JSON reader says, without the line, which is always 1 here.
fn problem(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    format!("{} at column {}", text.strip_suffix(&place).unwrap_or(&text), error.column())
}

fn type_of(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(_)) => "a string".to_owned(),
        Some(Value::Array(_)) => "a list".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
        Some(value) => value.to_string(),
    }
}

fn text(fields: &mut Map<String, Value>, field: &str) -> Result<String> {
    match fields.remove(field) {
        Some(Value::String(text)) => Ok(text),
        other => Err(wrong(field, type_of(other.as_ref()), "a string")),
    }
}

fn texts(fields: &mut Map<String, Value>, field: &str) -> Result<Vec<String>> {
    let list = match fields.remove(field) {
        Some(Value::Array(list)) => list,
        other => return Err(wrong(field, type_of(other.as_ref()), "a list of strings")),
    };
    if list.is_empty() {
        return Err(wrong(field, "an empty list", "at least one string"));
    }
    let text = |(index, value): (usize, Value)| match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(&format!("{field}[{index}]"), type_of(Some(&other)), "a string")),
    };
    list.into_iter().enumerate().map(text).collect()
}

fn length(fields: &Map<String, Value>) -> Result<Option<usize>> {
    match fields.get("length") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| wrong("length", type_of(Some(value)), "a number of words"))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cases::bundled::sha256;

    fn record(dataset: &str) -> Record {
        Record {
            input: "{input}".to_owned(),
            context: "{context}".to_owned(),
            answers: vec!["yes".to_owned()],
            length: None,
            dataset: dataset.to_owned(),
        }
    }

    fn read_text(text: impl AsRef<[u8]>) -> Result<Vec<Record>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    /// SHA-256 of the templates as LongBench publishes them, with their placeholders: `config/dataset2prompt.json` of commit
    /// 2e00731f8d0bff23dc4325161044d0ed8af94c1e; limits from `config/dataset2maxlen.json`.
    #[rstest]
    #[case("narrativeqa", 128, "aada7ed24b06abace5b0045ac3bcfe06fc831a6cf434f0ecfd99fb7b3d299e1c")]
    #[case("qasper", 128, "0fbdd123fe7f83d6d6a9c583ca28cb29d68e523bf8fec01a0cf2dcd11037775d")]
    #[case("multifieldqa_en", 64, "20b4666a2de8a1f701bdb6c4e015fa9f8758d64b361d841f7766df6c9ceba770")]
    #[case("hotpotqa", 32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb")]
    #[case("2wikimqa", 32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb")]
    #[case("musique", 32, "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb")]
    fn prompts_are_those_published(#[case] dataset: &str, #[case] most_tokens: usize, #[case] sum: &str) {
        for name in [dataset.to_owned(), format!("{dataset}_e")] {
            let item = record(&name).item(3).unwrap();
            assert_eq!(sha256(format!("{}{}", item.context, item.question).as_bytes()), sum);
            assert_eq!((item.name, item.most_tokens), (format!("{name} 3"), most_tokens));
            assert!(item.context.ends_with("{context}"), "{}", item.context);
        }
    }

    #[test]
    fn braces_in_a_record_are_text() {
        let mut record = record("hotpotqa");
        (record.context, record.input) = ("of {input}".to_owned(), "of {context}".to_owned());
        let item = record.item(0).unwrap();
        assert!(item.context.ends_with("passages.\nof {input}"), "{}", item.context);
        assert!(item.question.ends_with("Question: of {context}\nAnswer:"), "{}", item.question);
    }

    /// Expected values computed with LongBench's own `qa_f1_score` (`metrics.py` of the same commit), run in Python.
    #[rstest]
    #[case("The Lighthouse of Orm.", &["lighthouse of orm"], 100.0)]
    #[case("It was built in 1874, on the northern cape", &["1874", "in 1874"], 40.0)]
    #[case("red red blue", &["red blue blue green"], 57.14285714285715)]
    #[case("a well-known theatre", &["well known theater", "the wellknown theatre"], 100.0)]
    #[case("yes no", &["no", "maybe"], 66.66666666666666)]
    #[case("THE–END of a\tline\n", &["–end of line"], 100.0)]
    #[case("cap–the–hat", &["–hat"], 66.66666666666666)]
    #[case("“The harbour” – an old one", &["harbour"], 0.0)]
    #[case("The", &["a"], 0.0)]
    #[case("", &["x"], 0.0)]
    fn f1_is_longbenchs(#[case] prediction: &str, #[case] answers: &[&str], #[case] expected: f64) {
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();
        let found = f1(prediction, &answers);
        assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
    }

    #[test]
    fn nothing_is_right_without_answers() {
        assert_eq!(f1("anything", &[]), 0.0);
    }

    #[rstest]
    #[case(7, &[1, 2, 3, 4, 5, 6, 7])]
    #[case(8, &[1, 2, 3, 4, 5, 6, 7])]
    #[case(6, &[1, 2, 3, 5, 6, 7])]
    #[case(5, &[1, 2, 6, 7])]
    #[case(2, &[1, 7])]
    #[case(1, &[])]
    #[case(0, &[])]
    fn the_middle_is_cut(#[case] limit: usize, #[case] expected: &[u32]) {
        assert_eq!(truncate_middle(&[1, 2, 3, 4, 5, 6, 7], limit), expected);
    }

    const GOOD: &str = r#"{"input":"q","context":"c","answers":["x"],"dataset":"qasper"}"#;

    #[test]
    fn other_fields_and_blank_lines_are_tolerated() {
        let full = r#"{"input":"q","context":"c","answers":["x","y"],"length":12,"dataset":"musique","language":"en","all_classes":null,"_id":"7f"}"#;
        let records = read_text(format!("{GOOD}\r\n\n{full}\n \n")).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].length, records[1].length), (None, Some(12)));
        assert_eq!(records[1].answers, ["x", "y"]);
    }

    /// The text of the error without the folder, which differs from run to run.
    fn refusal(text: impl AsRef<[u8]>) -> String {
        let error = read_text(text).unwrap_err().to_string();
        error.rsplit_once("tasks.jsonl, ").unwrap().1.to_owned()
    }

    #[rstest]
    #[case::not_json(
        "{",
        "line 2: not a record: line: found EOF while parsing an object at column 1, expected a JSON object"
    )]
    #[case::not_an_object("[1]", "line 2: not a record: line: found a list, expected a JSON object")]
    #[case::two_objects(
        "{} {}",
        "line 2: not a record: line: found trailing characters at column 4, expected a JSON object"
    )]
    #[case::no_input(r#"{"context":"c"}"#, "line 2: not a record: input: found nothing, expected a string")]
    #[case::context_is_a_number(
        r#"{"input":"q","context":5}"#,
        "line 2: not a record: context: found 5, expected a string"
    )]
    #[case::answers_are_a_string(
        r#"{"input":"q","context":"c","answers":"x"}"#,
        "line 2: not a record: answers: found a string, expected a list of strings"
    )]
    #[case::no_answers(
        r#"{"input":"q","context":"c","answers":[]}"#,
        "line 2: not a record: answers: found an empty list, expected at least one string"
    )]
    #[case::one_answer_is_null(
        r#"{"input":"q","context":"c","answers":["x",null]}"#,
        "line 2: not a record: answers[1]: found null, expected a string"
    )]
    #[case::negative_length(
        r#"{"input":"q","context":"c","answers":["x"],"length":-1}"#,
        "line 2: not a record: length: found -1, expected a number of words"
    )]
    #[case::no_dataset(
        r#"{"input":"q","context":"c","answers":["x"]}"#,
        "line 2: not a record: dataset: found nothing, expected a string"
    )]
    #[case::unknown_dataset(
        r#"{"input":"q","context":"c","answers":["x"],"dataset":"qmsum"}"#,
        "line 2: data set not known: dataset: found \"qmsum\", expected one of narrativeqa, qasper, multifieldqa_en, hotpotqa, 2wikimqa, musique, or one of these with _e"
    )]
    fn a_bad_line_is_refused(#[case] line: &str, #[case] expected: &str) {
        assert_eq!(refusal(format!("{GOOD}\n{line}\n")), expected);
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let error = refusal(b"\n{\"input\": \"\xff\"}");
        assert!(error.starts_with("line 2: not a record: line: found invalid unicode"), "{error}");
    }

    #[test]
    fn a_file_without_records_is_refused() {
        let expected = "not a record: records: found the end of the file, expected at least one record";
        assert_eq!(refusal(""), format!("line 1: {expected}"));
        assert_eq!(refusal("\n\n"), format!("line 3: {expected}"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("no/such/tasks.jsonl")).unwrap_err();
        assert!(matches!(error, Error::Access { .. }));
        assert!(error.to_string().contains("no/such/tasks.jsonl"), "{error}");
    }

    #[test]
    fn a_record_made_by_hand_is_checked_too() {
        let error = record("qasper_e_e").item(5).unwrap_err().to_string();
        assert!(
            error.starts_with("data set not known: dataset of record 5: found \"qasper_e_e\""),
            "{error}"
        );
        let mut record = record("qasper");
        record.answers.clear();
        let expected = "not a record: answers of record 5: found an empty list, expected at least one";
        assert_eq!(record.item(5).unwrap_err().to_string(), expected);
    }
}
