//! What the README says of the code must be true: its Python example, its table of named points, its figures of the records.

use doublecheck::behaviours::CATALOGUE;

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
