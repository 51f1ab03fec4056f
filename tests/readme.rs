//! What the README says of the code must be true: its Python example, its table of named points, its figures of the records.

use doublecheck::behaviours::CATALOGUE;
use doublecheck::evaluation::results::Evaluation;

fn read(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_python_example_is_part_of_the_file_it_names() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("```python\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    assert!(read("examples/python/masker.py").contains(example.trim_end()), "{example}");
}

#[test]
fn every_named_row_of_the_spec_is_in_the_table() {
    let readme = read("README.md");
    for fault in CATALOGUE.iter().filter(|fault| fault.row.starts_with('D')) {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {} |", fault.row)));
        assert!(row.is_some_and(|row| row.contains(&format!("`{}`", fault.name))), "{fault:?}");
    }
    let faults = CATALOGUE.iter().filter(|fault| !fault.conforms).count();
    assert!(readme.contains(&format!("{faults} deliberate faults")), "{faults}");
}

#[test]
fn figures_of_the_records_are_those_of_the_records() {
    let readme = read("README.md");
    for (who, sentence) in [
        ("author", "conforms on CONFORMING of ASKED random sequences"),
        ("hub", "conforms on CONFORMING of ASKED."),
    ] {
        let record: serde_json::Value =
            serde_json::from_str(&read(&format!("golden/records/check-{who}.json"))).unwrap();
        let number = |name: &str| {
            let digits = record[name].as_u64().unwrap().to_string();
            let (thousands, rest) = digits.split_at(digits.len() - 3);
            format!("{thousands},{rest}")
        };
        let sentence =
            sentence.replace("CONFORMING", &number("conforming")).replace("ASKED", &number("sequences"));
        assert!(readme.contains(&sentence), "{sentence}");
        assert_eq!(record["explained"], true);
    }
    let hub: serde_json::Value = serde_json::from_str(&read("golden/records/check-hub.json")).unwrap();
    let rows: Vec<&str> = hub["findings"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|finding| finding["rows"].as_array().unwrap())
        .filter_map(|row| row.as_str())
        .collect();
    for row in ["D3", "D4", "D6", "D7", "D8", "D9", "D12", "D17", "D18", "D19", "D20", "D21", "D22", "D23"] {
        assert!(rows.contains(&row), "{row}: {rows:?}");
    }
}

#[test]
fn figures_of_the_evaluation_are_those_of_its_record() {
    let record: Evaluation = serde_json::from_str(&read("golden/records/eval.json")).unwrap();
    let row = |name: &str, size: Option<usize>| {
        record.rows.iter().find(|row| row.masker == name && row.heavy_size == size).expect(name)
    };
    let ratio = |name, size| row(name, Some(size)).against_dense.unwrap();
    let readme = read("README.md").replace('\n', " ");
    let quality = |name, size| row(name, size).quality.value;
    let fault = "first-layers-channels (D4)";
    for sentence in [
        format!(
            "dense {:.2}, per-head {:.2}, summed-scores {:.2}, D4 1,{:.0} at H = 64",
            quality("dense", None),
            quality("per-head", Some(64)),
            quality("summed-scores", Some(64)),
            quality(fault, Some(64)) - 1000.0
        ),
        format!(
            "costs Double Sparsity {:.0} % of perplexity, as much as exact top-k",
            100.0 * (ratio("per-head", 64).value - 1.0)
        ),
        format!("multiplies perplexity by {:.0},", ratio(fault, 64).value),
        format!("on 16 cores in {:.0} s", record.seconds),
    ] {
        assert!(readme.contains(&sentence), "{sentence}");
    }
    let passkeys: Evaluation = serde_json::from_str(&read("golden/records/eval-passkey.json")).unwrap();
    let found = |name: &str| {
        let row = passkeys
            .rows
            .iter()
            .find(|row| row.masker == name && row.heavy_size.is_none_or(|size| size == 32));
        row.expect(name).quality.value
    };
    let sentence = format!(
        "dense attention finds {} %, Double Sparsity {} % with 32 of {:.0} keys, summed-scores {} %, random keys none",
        found("dense"),
        found("per-head"),
        passkeys.rows[0].keys_held,
        found("summed-scores")
    );
    assert!(readme.contains(&sentence), "{sentence}");
    assert_eq!(found("random keys"), 0.0);
    // What the sentences claim.
    assert_eq!((100.0 * ratio("oracle", 64).value).round(), (100.0 * ratio("per-head", 64).value).round());
    assert!(ratio("per-head", 256).low < 1.0 && ratio("per-head", 256).high > 1.0);
    assert!(ratio(fault, 64).value > ratio("random keys", 64).value);
}
