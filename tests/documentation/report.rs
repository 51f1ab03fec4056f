//! `docs/check.schema.json` describes what `check --json` writes, and `docs/report.md` what it means.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{doublecheck, read, record};

fn schema() -> Value {
    serde_json::from_str(&read("docs/check.schema.json")).unwrap()
}

/// Whether a value has a type of JSON Schema.
fn is(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("type {other}"),
    }
}

/// What of a value is against the schema, or not described by it. Knows the words that our schema uses and no others; the number of
/// values looked at is added to `seen`.
fn wrong(value: &Value, schema: &Value, at: &str, seen: &mut usize) -> Vec<String> {
    let known = [
        "$schema",
        "title",
        "description",
        "type",
        "minimum",
        "required",
        "properties",
        "additionalProperties",
        "items",
        "enum",
    ];
    for word in schema.as_object().unwrap().keys() {
        assert!(known.contains(&word.as_str()), "{at}: {word}");
    }
    *seen += 1;
    let mut found = Vec::new();
    match &schema["type"] {
        Value::String(name) if !is(value, name) => found.push(format!("{at}: {value} is no {name}")),
        Value::Array(names) if !names.iter().any(|name| is(value, name.as_str().unwrap())) => {
            found.push(format!("{at}: {value} is none of {names:?}"));
        }
        _ => {}
    }
    if let Some(least) = schema["minimum"].as_f64() {
        found.extend(value.as_f64().filter(|value| *value < least).map(|value| format!("{at}: {value}")));
    }
    if let Some(values) = schema["enum"].as_array().filter(|values| !values.contains(value)) {
        found.push(format!("{at}: {value} is none of {values:?}"));
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                found.push(format!("{at}: no {name}"));
            }
        }
        for (name, value) in object {
            let inner = [&schema["properties"][name], &schema["additionalProperties"]];
            match inner.iter().find(|inner| inner.is_object()) {
                Some(inner) => found.extend(wrong(value, inner, &format!("{at}.{name}"), seen)),
                None => found.push(format!("{at}.{name}: not described")),
            }
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(wrong(value, &schema["items"], &format!("{at}[{index}]"), seen));
    }
    found
}

/// Says that it takes scores, and goes.
const A_TOP_K_THAT_LEAVES: &str = r#"python3 -c '
import json, struct, sys
hello = {"type": "hello", "protocol": 2, "takes": "scores", "gives": ["mask"]}
header = json.dumps({"__metadata__": {"doublecheck": json.dumps(hello)}}).encode()
sys.stdout.buffer.write(struct.pack("<QQ", 8 + len(header), len(header)) + header)
'"#;

#[test]
fn the_schema_describes_reports() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("report.json"), folder.path().join("out"));
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let mut reports = vec![record("check-author.json"), record("check-hub.json")];
    for arguments in [
        &["--fault", "D4", "--cases", "60", "--no-goldens", "--out", out][..],
        &["--fault", "D4", "--cases", "60", "--no-goldens", "--known", "D4"],
        &["--command", "exit 3", "--cases", "5", "--no-goldens"],
        &["--cases", "5", "--goldens", "golden/small", "--profile", "author"],
        &["--command", A_TOP_K_THAT_LEAVES, "--cases", "5", "--goldens", "golden/small"],
    ] {
        doublecheck(&[&["check", "--json", file], arguments].concat());
        reports.push(serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap());
    }
    let mut seen = 0;
    for report in &reports {
        let found = wrong(report, &schema(), "", &mut seen);
        assert!(found.is_empty(), "{found:#?}");
    }
    assert!(seen > 500, "{seen} values");
    assert_eq!(reports.last().unwrap()["stages"]["takes"], "scores");
    // The comparison itself can fail.
    let mut report = reports[0].clone();
    report["calls"] = Value::from("many");
    report["findings"][0]["kind"] = Value::from("odd");
    report["findings"][0].as_object_mut().unwrap().remove("tries");
    report["findings"][0]["size"]["width"] = Value::from(3);
    report["seed"] = Value::from(-1);
    assert_eq!(wrong(&report, &schema(), "", &mut seen).len(), 5);
}

#[test]
fn every_kind_of_finding_is_explained() {
    let schema = schema();
    let kinds = &schema["properties"]["findings"]["items"]["properties"]["kind"]["enum"];
    let kinds: BTreeSet<&str> = kinds.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let page = read("docs/report.md");
    let table = page.lines().skip_while(|line| *line != "| kind | meaning |").skip(2);
    let explained: BTreeSet<&str> = table
        .take_while(|line| line.starts_with('|'))
        .map(|row| row.split('|').nth(1).unwrap().trim())
        .collect();
    assert_eq!(explained, kinds);
    assert!(kinds.len() > 10);
}
