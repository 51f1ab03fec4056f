//! Every figure on a page is that of a record, or is named here as a constant.
//!
//! [`claims`] writes down what pages must say, out of the records. One test looks for each claim on its page; the other takes all claims out of a
//! page and lets no figure stand that is left.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{prose, read, record};

/// The pages whose figures come from records, and the figures on them that do not: versions, sizes of inputs, examples.
const PAGES: [(&str, &[&str]); 14] = [
    ("README.md", &["2408.07092", "1.89", "95"]),
    ("CHANGELOG.md", &["0.1.0"]),
    ("CONTRIBUTING.md", &["2.11.0"]),
    ("SECURITY.md", &[]),
    ("docs/checked.md", &[]),
    ("docs/evaluation.md", &["95"]),
    (
        "docs/findings.md",
        &[
            "1a048c9",
            "0.2000005",
            "0.2",
            "135M",
            "2.11.0",
            "0.4.6.post5",
            "0.5.2",
            "0.5.5",
            "0.7.4",
            "0.33.0",
            "2,048",
            "3.6.0",
            "257",
            "643",
            "1,048,576",
            "843ebcc",
        ],
    ),
    ("docs/implementers.md", &[]),
    ("docs/libtorch.md", &["2.11.0", "128"]),
    ("docs/performance.md", &[]),
    ("docs/python.md", &[]),
    ("docs/report.md", &[]),
    ("docs/trust.md", &[]),
    ("docs/verdicts.md", &["1.3e-6", "1.6e-2", "0.999", "0.99", "0.9995", "512", "100", "4,096", "256"]),
];

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits, or a whole number with commas from 1,000 on.
fn significant(number: f64) -> String {
    if number >= 1000.0 {
        return grouped(number.round() as u64);
    }
    let decimals = (2 - number.log10().floor() as i32).max(0) as usize;
    format!("{number:.decimals$}")
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value}"))
}

/// What pages must say, by page.
type Claims = BTreeMap<&'static str, Vec<String>>;

fn claim(claims: &mut Claims, page: &'static str, sentence: String) {
    claims.entry(page).or_default().push(sentence);
}

/// The rows of the table of an evaluation's text, by masker and H.
fn evaluation(name: &str) -> Vec<Vec<String>> {
    let text = read(&format!("golden/records/{name}"));
    let columns = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let rows = text.lines().skip_while(|line| !line.starts_with("masker ")).skip(1);
    let rows: Vec<_> = rows.take_while(|line| !line.is_empty()).map(columns).collect();
    assert!(rows.len() > 5, "{rows:?}");
    rows
}

fn evaluation_claims(claims: &mut Claims) {
    // masker, selected by, H, G, B, keys read, of held, bytes, of dense, perplexity, × dense, differs, keys kept, mass kept
    let rows = evaluation("eval.txt");
    for row in &rows {
        let cells = [0, 2, 6, 8, 9, 10, 11, 13].map(|index| row[index].as_str());
        claim(claims, "docs/evaluation.md", format!("| {} |", cells.join(" | ")));
    }
    let labelled = rows.iter().filter(|row| row[3] != "–");
    assert!(labelled.clone().count() > 9);
    assert!(labelled.into_iter().all(|row| (row[3].as_str(), row[4].as_str()) == ("4", "4")), "G and B");
    let record = record("eval.json");
    let row = |masker: &str, size: Option<u64>| {
        let found = list(&record["rows"])
            .iter()
            .find(|row| row["masker"] == masker && row["heavy_size"].as_u64() == size);
        found.unwrap_or_else(|| panic!("{masker} {size:?}"))
    };
    let fault = "first-layers-channels (D4)";
    let quality = |masker, size| number(&row(masker, size)["quality"]["value"]);
    let ratio = |masker: &str, size, part: &str| number(&row(masker, Some(size))["against_dense"][part]);
    let (dense, right) = (quality("dense", None), quality("per-head", Some(64)));
    let wrong = grouped(quality(fault, Some(64)).round() as u64);
    claim(
        claims,
        "README.md",
        format!("from a perplexity of {dense:.2} to {wrong}; the right channels give {right:.2}."),
    );
    claim(claims, "CHANGELOG.md", format!("a perplexity of {wrong} instead of {dense:.2}"));
    let times = format!("multiplies perplexity by {:.0}", ratio(fault, 64, "value"));
    claim(claims, "docs/evaluation.md", format!("{times}, more than random keys do"));
    claim(claims, "docs/findings.md", times);
    assert!(ratio(fault, 64, "value") > ratio("random keys", 64, "value"));
    let lost = |masker| (100.0 * (ratio(masker, 64, "value") - 1.0)).round();
    let held = (number(&row("per-head", Some(64))["keys_held"]) / 100.0).round() as u64 * 100;
    claim(
        claims,
        "docs/evaluation.md",
        format!(
            "Reading 64 of some {} keys costs Double Sparsity {} % of perplexity, as much as exact top-k loses, and at 256 keys no difference",
            grouped(held),
            lost("per-head")
        ),
    );
    assert_eq!(lost("per-head"), lost("oracle"));
    assert!(ratio("per-head", 256, "low") < 1.0 && ratio("per-head", 256, "high") > 1.0);
    let task = record["task"].as_str().unwrap();
    assert!(task.starts_with("perplexity of 512 tokens after 3072 of context, 3 passages"), "{task}");
    assert!(record["model"].as_str().unwrap().contains("135M"));
    // Most figures of the SPEC are sizes and bits, so that it is not among the pages above.
    let of_64 = |masker| format!("{:.2}", quality(masker, Some(64)));
    let (exact, summed) = (of_64("oracle"), of_64("summed-scores"));
    let measured = format!(
        "dense {dense:.2}. With H = 64, G = 4, B = 4: exact top-k {exact}, Double Sparsity {right:.2}, summed-scores {summed}, the fault D4 {wrong}."
    );
    assert!(on_one_line(&read("docs/SPEC.md")).contains(&measured), "docs/SPEC.md: {measured}");
    claim(claims, "README.md", "With G = 4 and B = 4 on 3,072 tokens of context".into());
    let device = record["device"].as_str().unwrap();
    assert_eq!(device, "cpu, 16 threads");
    claim(
        claims,
        "docs/evaluation.md",
        format!(
            "made on 16 cores in {:.0} s excluding prefill: perplexity of 512 tokens after 3,072 of *The Rust Programming Language*, three passages",
            number(&record["seconds"])
        ),
    );
    // masker, H, G, B, keys read, of held, bytes, of dense, accuracy
    let passkeys = evaluation("eval-passkey.txt");
    let found = |masker: &str, size: &str| {
        let row = passkeys.iter().find(|row| row[0] == masker && row[1] == size).unwrap();
        row[8].split(' ').next().unwrap().to_owned()
    };
    assert_eq!(found("random keys", "32"), "0.0");
    let short = |share: String| share.trim_end_matches(".0").to_owned();
    claim(
        claims,
        "docs/evaluation.md",
        format!(
            "Of 40 pass keys in 60 filler sentences, dense attention finds {} %, Double Sparsity {} % with 32 of {} keys, summed-scores {} %, random keys none",
            short(found("dense", "–")),
            short(found("per-head", "32")),
            passkeys[0][4],
            short(found("summed-scores", "32"))
        ),
    );
    let task = read("golden/records/eval-passkey.txt");
    assert!(task.contains("task: 40 pass keys, each in 60 filler sentences"));
    let model: Value = serde_json::from_str(&read("golden/model/smollm2-135m-q4_1.json")).unwrap();
    let prompts = list(&model["prompts"]);
    assert_eq!(prompts.len(), 3);
    assert!(prompts.iter().all(|prompt| list(&prompt["greedy"]).len() == 64));
    claim(
        claims,
        "docs/evaluation.md",
        "greedy continuations of three prompts are equal for 64 tokens".into(),
    );
}

/// The lines of the table below a line of an evaluation's text, in cells.
fn table_below(text: &str, heading: &str) -> Vec<Vec<String>> {
    let rest = text.split_once(&format!("{heading}\n\n")).unwrap_or_else(|| panic!("{heading}")).1;
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    rest.lines().skip(1).take_while(|line| !line.is_empty()).map(cells).collect()
}

/// What a sweep leaves to choose, and what faults of decode steps cost.
fn sweep_claims(claims: &mut Claims) {
    let page = "docs/evaluation.md";
    let text = read("golden/records/eval-sweep.txt");
    let headings = [
        "The cheapest setting within a loss of dense attention's quality:",
        "The same where all of the 95 % interval must be within it:",
        "The Pareto front: settings that lose less than every setting that reads as few bytes.",
    ];
    let mut rows = 0;
    for heading in headings {
        for cells in table_below(&text, heading) {
            rows += 1;
            claim(claims, page, format!("| {} |", cells.join(" | ")));
        }
    }
    assert!(rows > 8, "{rows} rows");
    let cheapest = table_below(&text, headings[0]);
    for cells in &cheapest {
        claim(claims, "README.md", format!("| {} | {} | {} | {} |", cells[0], cells[1], cells[2], cells[3]));
    }
    let sweep = record("eval-sweep.json");
    let texts = list(&sweep["texts"]).len();
    let settings = list(&sweep["rows"]).iter().filter(|row| row["group_factor"].is_u64()).count();
    assert_eq!(texts, 3);
    claim(claims, page, format!("{settings} settings on three texts"));
    let task = sweep["task"].as_str().unwrap();
    assert!(
        task.starts_with(
            "perplexity of 128 tokens after 1024 of context, 1 passages of the-rust-book.html; "
        ),
        "{task}"
    );
    claim(claims, page, "perplexity of 128 tokens after 1,024 of each".into());
    claim(claims, "README.md", "a 135M model on 1,024 tokens of context, three texts".into());

    let steps = record("eval-steps.json");
    let row = |masker: &str| {
        let found = list(&steps["rows"]).iter().find(|row| row["masker"] == masker);
        found.unwrap_or_else(|| panic!("{masker}"))
    };
    let told = evaluation("eval-steps.txt");
    for masker in ["per-head", "newest-key-held-out", "next-row-overwritten", "first-layers-channels (D4)"] {
        assert_eq!(row(masker)["heavy_size"], 64);
        let cells = told.iter().find(|cells| cells[0] == masker).unwrap();
        // masker, selected by, H, G, B, keys read, of held, bytes, of dense, perplexity, × dense, differs, keys kept, mass kept
        let cells = [0, 9, 10, 11, 13].map(|index| cells[index].as_str());
        claim(claims, page, format!("| {} |", cells.join(" | ")));
    }
    let task = steps["task"].as_str().unwrap();
    assert!(
        task.starts_with("perplexity of 256 tokens after 1024 of context, 3 passages of the-rust-book.html"),
        "{task}"
    );
    claim(claims, page, "three passages of the first text, 256 tokens after 1,024".into());
    let times = |masker: &str| {
        let value = number(&row(masker)["against_dense"]["value"]);
        if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
    };
    let (right, overwritten) = (times("per-head"), times("next-row-overwritten"));
    claim(
        claims,
        "README.md",
        format!("it multiplies perplexity by {overwritten}, the right selection by {right}."),
    );
    let mass = |masker: &str| {
        let cells = list(&row(masker)["recall"]["mass"]).iter().flat_map(list).map(number);
        let (sum, count) = cells.fold((0.0, 0), |(sum, count), cell| (sum + cell, count + 1));
        format!("{:.1} %", 100.0 * sum / f64::from(count))
    };
    assert_eq!(told.iter().find(|cells| cells[0] == "per-head").unwrap()[13], mass("per-head"));
    claim(claims, "docs/findings.md", format!("in a model multiplies perplexity by {overwritten}"));
}

/// The rows of SPEC §3 that findings name.
fn rows(report: &Value) -> std::collections::BTreeSet<&str> {
    let findings = list(&report["findings"]).iter();
    findings.flat_map(|finding| list(&finding["rows"])).filter_map(Value::as_str).collect()
}

fn finding_claims(claims: &mut Claims) {
    let (author, hub) = (record("check-author.json"), record("check-hub.json"));
    let conforming = |report: &Value| {
        let asked = ["sequences", "large", "goldens"].map(|name| whole(&report[name])).iter().sum::<u64>();
        let probed = report.get("probed").map_or(0, whole);
        format!("conforms on {} of {}", grouped(whole(&report["conforming"])), grouped(asked + probed))
    };
    claim(claims, "README.md", format!("**The author's own code** {}.", conforming(&author)));
    claim(
        claims,
        "docs/findings.md",
        format!("evaluation attention** {} random sequences", conforming(&author)),
    );
    // "The other two are one bug", "the counterexample made of the two".
    assert_eq!((whole(&author["diverged"]), list(&author["findings"]).len()), (2, 1));
    assert!(rows(&author).into_iter().eq(["D18"]));
    claim(claims, "README.md", format!("**A widely used port** {} random sequences.", conforming(&hub)));
    claim(claims, "docs/findings.md", format!("**The port** {} (", conforming(&hub)));
    let findings = list(&hub["findings"]);
    let most = |size: &str| findings.iter().map(|finding| whole(&finding["size"][size])).max().unwrap();
    let shrunk = format!(
        "Its {} findings shrink to at most {} heads and {} keys",
        findings.len(),
        most("heads"),
        most("keys")
    );
    claim(claims, "README.md", shrunk.clone());
    claim(claims, "docs/findings.md", shrunk);
    // "named by the suite itself", "reproduce every answer that was kept".
    assert!(findings.iter().all(|finding| !list(&finding["diagnosis"]).is_empty()));
    assert!(author["explained"] == true);
    assert!(hub["explained"] == true);
    let not_kept =
        format!("every one of its answers but {} that were too large to keep", whole(&hub["not_kept"]));
    claim(claims, "docs/findings.md", not_kept);
    let old = ["D3", "D4", "D6", "D7", "D8", "D9", "D12", "D17"];
    let new = ["D18", "D19", "D20", "D21", "D22", "D23"];
    assert_eq!(rows(&hub), old.into_iter().chain(new).collect());
    let (last, first) = old.split_last().unwrap();
    claim(claims, "docs/findings.md", format!("Already known were {} and {last}.", first.join(", ")));
    for row in new {
        claim(claims, "docs/findings.md", format!("* **{row}** "));
    }
    for record in ["check-hub-known.txt", "check-hub-goldens.txt"] {
        let text = read(&format!("golden/records/{record}"));
        assert!(text.contains("diverge as declared") && !text.contains("FINDING"), "{record}");
    }
    let goldens = read("golden/records/check-author-goldens.txt");
    assert!(goldens.contains("; 1 diverge, 1 finding,") && goldens.contains("D18"), "{goldens}");
    let shares = "91–99 % of their leading d/4 channels, in";
    let spec = read("docs/SPEC.md");
    assert!(spec.contains("91–99 % of their leading d/4 channels") && spec.contains("32–41 % in q_proj"));
    claim(claims, "docs/findings.md", format!("{shares} `q_proj` 32–41 %"));

    let faults = record("faults.json");
    let (variants, planted): (Vec<_>, Vec<_>) =
        list(&faults).iter().partition(|fault| fault["must_conform"] == true);
    for fault in &planted {
        let named = list(&fault["diagnosis"]);
        assert!(fault["caught_by"].is_string() && named.iter().all(|name| *name == fault["name"]), "{fault}");
        assert!(whole(&fault["after"]) <= 1000);
    }
    let keys = planted.iter().map(|fault| whole(&fault["size"]["keys"])).max().unwrap();
    claim(
        claims,
        "docs/findings.md",
        format!(
            "all {} planted bugs were caught within 1,000 random sequences, none was misnamed, and counterexamples had at most {keys} keys",
            planted.len()
        ),
    );
    assert!(variants.iter().all(|variant| variant["caught_by"].is_null()));
    assert_eq!(variants.len(), 3);
    claim(claims, "docs/findings.md", "Three variants conform and are accepted".into());
    let large = record("large.json");
    let above: BTreeSet<u64> = list(&large).iter().map(|fault| whole(&fault["above"])).collect();
    let above: Vec<String> = above.into_iter().map(grouped).collect();
    claim(
        claims,
        "docs/findings.md",
        format!("Planted only in calls of more than {} keys, every one was caught", above.join(" or ")),
    );
    let larger = record("large-20000.json");
    let (conforming, planted): (Vec<&Value>, Vec<&Value>) =
        list(&larger).iter().partition(|fault| fault["must_conform"] == true);
    assert!(conforming.iter().all(|variant| variant["caught_by"].is_null()));
    let above = whole(&larger[0]["above"]);
    let smallest =
        |fault: &&&Value| fault["size"]["keys"].as_u64().is_some_and(|n| n.abs_diff(above + 1) <= 1);
    let shrunk = planted.iter().filter(smallest).count();
    assert_eq!(shrunk, planted.len());
    claim(claims, "docs/findings.md", format!("Above {} keys all {shrunk} were", grouped(above)));
    independent_claims(claims);
    let grid = read("golden/SHA256SUMS").lines().filter(|line| line.contains(" grid/")).count();
    claim(
        claims,
        "docs/checked.md",
        format!(
            "mask and output of {grid} cases of the port's own grid, 32 heads over 8 KV heads, up to 32,769 keys"
        ),
    );
}

/// What was told of independent faults, and how it was judged.
/// The rows of "What people run": a record, and how many of the sequences or sessions that were asked conform.
fn field_claims(claims: &mut Claims) {
    let folder = super::path("golden/records");
    let names =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .filter(|name| name.starts_with("check-") && (name.ends_with("-cuda") || name.ends_with("-cpu")))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let report = record(&format!("{name}.json"));
        let sessions = &report["sessions"];
        let alone = whole(&report["sequences"]) + whole(&report["large"]) == 0;
        let (conforming, asked, of) = match alone && sessions.is_object() {
            true => (whole(&sessions["conforming"]), whole(&sessions["asked"]), "sessions"),
            false => {
                let conforming = whole(&report["conforming"]);
                (conforming, conforming + whole(&report["diverged"]) + whole(&report["known"]), "sequences")
            }
        };
        let text = if folder.join(format!("{name}.txt")).exists() { "txt" } else { "json" };
        let row = format!(
            "](../golden/records/{name}.{text}) | {} of {} {of} |",
            grouped(conforming),
            grouped(asked)
        );
        claim(claims, "docs/findings.md", row);
    }
    let sorted = record("check-flashinfer-sorted-cuda.json");
    let finding = &sorted["findings"][0];
    let edge = list(&finding["edges"]).iter().find(|edge| edge["quantity"] == "H").unwrap();
    let (conforms, fails) = (whole(&edge["conforms"]), whole(&edge["fails"]));
    claim(claims, "docs/findings.md", format!("H = {conforms} conforms, H = {fails} fails"));
    let keys = grouped(whole(&finding["size"]["keys"]));
    claim(
        claims,
        "docs/findings.md",
        format!("[{keys} keys](counterexamples/flashinfer-sorted-above-2048.safetensors)"),
    );
}

fn independent_claims(claims: &mut Claims) {
    let judged = read("golden/records/independent-judged.txt");
    let judged: BTreeMap<(&str, &str), &str> = judged
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let cells: Vec<&str> = line.splitn(3, '\t').collect();
            ((cells[0], cells[2]), cells[1])
        })
        .collect();
    let told = read("golden/records/independent.txt");
    let rows: Vec<Vec<&str>> = told
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0] != "fault" && !cells[0].starts_with('-'))
        .collect();
    let count =
        |judgement| rows.iter().filter(|row| judged.get(&(row[0], row[4])) == Some(&judgement)).count();
    let (right, incomplete, unknown) = (count("right"), count("incomplete"), count("unknown"));
    assert_eq!(right + incomplete + unknown, rows.len());
    let findings: f64 = rows.iter().map(|row| row[2].parse::<f64>().unwrap()).sum();
    assert!(rows.iter().all(|row| row[1] != "not caught"));
    claim(claims, "docs/findings.md", format!("Of the {} in [the record]", rows.len()));
    claim(claims, "docs/findings.md", format!("{right} right, {incomplete} right but"));
    claim(
        claims,
        "docs/findings.md",
        format!(
            "incomplete, {unknown} unknown, none wrong, with {:.2} findings each",
            findings / rows.len() as f64
        ),
    );
}

fn cuda_claims(claims: &mut Claims) {
    let page = "docs/libtorch.md";
    let record_of_cuda = record("cuda.json");
    let (goldens, random) = (&record_of_cuda["goldens"]["total"], &record_of_cuda["random_cases"]);
    let device = record_of_cuda["device"].as_str().unwrap();
    let gpu = device.split(['(', ',']).nth(1).unwrap();
    claim(claims, page, format!("on {gpu} with torch {}", record_of_cuda["torch"].as_str().unwrap()));
    claim(
        claims,
        page,
        format!(
            "{} golden cases, {} diverged; masks, labels or orders equal the stored ones in {}.",
            goldens["cases"], goldens["diverged"], goldens["bit_exact"]
        ),
    );
    assert!(random["finding"].is_null());
    claim(
        claims,
        page,
        format!(
            "{} random cases, none diverged; the worst output error is {:.0} % of its bound; {} label rows are bit-equal.",
            grouped(whole(&random["cases"])),
            100.0 * number(&random["sharpness"]["worst_output_error"]),
            grouped(whole(&random["label_rows"]))
        ),
    );
    let repeats = &record_of_cuda["repeats"];
    assert_eq!(whole(&repeats["cases_whose_masks_differ"]), 0);
    assert_eq!(whole(&repeats["tied_rows_of_131072_keys"]["masks_that_differ"]), 0);
    claim(
        claims,
        page,
        format!(
            "on {} random cases with many ties and on tied rows of 131,072 keys",
            repeats["random_cases"]
        ),
    );
    claim(
        claims,
        page,
        format!(
            "masks equal the reference's in {} of the {} cases that are answered",
            grouped(whole(&random["masks_equal"])),
            grouped(whole(&random["cases"]) - whole(&random["refused"]))
        ),
    );
    for speed in list(&record_of_cuda["speed"]) {
        let count = |name: &str| grouped(whole(&speed[name]));
        let ms = |name: &str| format!("{:.3}", number(&speed[name]));
        let cells = [
            count("keys"),
            count("heavy_size"),
            count("group_factor"),
            count("label_bits"),
            ms("masker_ms"),
            ms("attention_ms"),
            ms("dense_ms"),
            ms("key_bytes_at_3_TB_s_ms"),
        ];
        claim(claims, page, format!("| {} |", cells.join(" | ")));
    }
    decode_claims(claims, page);
}

fn decode_claims(claims: &mut Claims, page: &'static str) {
    let decode = record("decode-cuda.json");
    let of = |row: &Value, heads: &str| -> Value {
        let steps = list(&row["steps"]).iter();
        steps.clone().find(|step| step["heads"] == heads && step["scores_in"] == "storage").unwrap().clone()
    };
    let rows = list(&decode["rows"]);
    for row in rows {
        let (count, step) = (|name: &str| grouped(whole(&row[name])), of(row, "per-head"));
        let ms = |value: &Value| format!("{:.3}", number(value));
        let same = |timed: &&Value| {
            ["keys", "label_channels", "heavy_size"].iter().all(|name| timed[*name] == row[*name])
                && row["kv_heads"] == row["heads"]
        };
        let author: Vec<String> = ["before", "after"]
            .iter()
            .flat_map(|when| list(&decode["author_fast_path"][*when]).iter().filter(same))
            .map(|timed| ms(&timed["step_ms"]))
            .collect();
        let parts = ["score_ms", "top_k_ms", "sparse_ms"].map(|part| ms(&step["parts"][part]));
        let cells = [
            format!("{}/{}, {}", row["heads"], row["kv_heads"], row["dtype"].as_str().unwrap()),
            count("label_bits"),
            count("keys"),
            count("label_channels"),
            count("heavy_size"),
            ms(&row["dense_ms"]),
            if author.is_empty() { "–".into() } else { author.join(", ") },
            parts.join(" + "),
            ms(&step["step_ms"]),
            ms(&step["bytes_at_3_TB_s_ms"]),
            format!("{:.0} %", 100.0 * number(&step["share_of_3_TB_s"])),
        ];
        claim(claims, page, format!("| {} |", cells.join(" | ")));
    }
    let longest = rows.iter().filter(|row| of(row, "per-head")["longest_part"] == "top_k").count();
    assert_eq!((longest, rows.len()), (5, 6));
    claim(claims, page, "Top-k over the scores is the longest part in five of the six rows.".into());
    let fifth = &rows[4];
    assert!(number(&of(fifth, "per-head")["step_ms"]) > number(&fifth["dense_ms"]));
    let summed = number(&of(fifth, "summed-scores")["step_ms"]);
    claim(claims, page, format!("`summed-scores`, one selection for all heads, takes {summed:.3} there."));
}

fn bench_claims(claims: &mut Claims) {
    let page = "docs/performance.md";
    let bench = record("bench.json");
    for aim in list(&bench["aims"]) {
        let sign = if aim["at_most"] == true { "≤" } else { "≥" };
        let met = if aim["met"] == true { "met" } else { "missed" };
        let (name, unit) = (aim["aim"].as_str().unwrap(), aim["unit"].as_str().unwrap());
        let wanted = grouped(number(&aim["wanted"]) as u64);
        let found = significant(number(&aim["found"]));
        claim(claims, page, format!("| {name} | {sign} {wanted} {unit} | {found} | {met} |"));
    }
    let bounds = list(&bench["bounds"]);
    for bound in bounds {
        let (least, found) = (number(&bound["bound_ms"]), number(&bound["found_ms"]));
        claim(
            claims,
            page,
            format!(
                "| {} | {} | {} | {} | {:.0} % |",
                bound["work"].as_str().unwrap(),
                grouped(whole(&bound["keys"])),
                significant(least),
                significant(found),
                100.0 * least / found
            ),
        );
    }
    let bandwidth =
        list(&bench["figures"]).iter().find(|figure| figure["figure"] == "memory bandwidth").unwrap();
    claim(claims, page, format!("in the same run, {:.1} GB/s:", number(&bandwidth["value"]) / 1e9));
    let fewer: Vec<f64> = bounds.iter().filter_map(|bound| bound["dense_bytes"].as_f64()).collect();
    let least = fewer.iter().copied().fold(f64::INFINITY, f64::min);
    let most = fewer.iter().copied().fold(0.0, f64::max);
    claim(claims, page, format!("a decode step moves only {least:.1} to {most:.1} times fewer bytes"));
    assert!(
        read("golden/records/bench.txt")
            .contains("32 heads over 8 KV heads, d = dv = 128, f32, G = 8, H = 1024;")
    );
    claim(claims, page, "32 heads over 8 KV heads, d = 128, f32, G = 8, H = 1024.".into());
}

/// The tables of the record stand on the page as they are.
fn oracle_claims(claims: &mut Claims) {
    let record = read("golden/records/oracles.txt");
    let rows: Vec<&str> = record.lines().filter(|line| line.starts_with(['|', 'J'])).collect();
    assert!(rows.len() > 20, "{rows:?}");
    rows.into_iter().for_each(|row| claim(claims, "docs/verdicts.md", row.to_owned()));
}

/// Pages with the table of a record, row by row.
fn table_claims(claims: &mut Claims) {
    for (page, name) in [
        ("docs/python.md", "beside-allclose.txt"),
        ("docs/performance.md", "in-process.txt"),
        ("docs/performance.md", "on-device.txt"),
    ] {
        let text = read(&format!("golden/records/{name}"));
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 4, "{name}");
        rows.into_iter().for_each(|row| claim(claims, page, row.into()));
    }
}

/// What the page on speed says of its two tables in words.
fn crossing_claims(claims: &mut Claims) {
    let page = "docs/performance.md";
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let record = read("golden/records/in-process.txt");
    // Of the package before: on this machine, then on one with 16 cores.
    let before: Vec<&str> = record.lines().filter(|line| line.starts_with("small, f32")).collect();
    let number = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name).expect(name);
        rest.trim().split(',').next().unwrap_or_default().to_owned()
    };
    let small = record.lines().find(|line| line.starts_with("| small")).map(cells).expect("a row");
    let beside = "beside the kernel ";
    let [here, there] = before[..] else { panic!("{before:?}") };
    claim(
        claims,
        page,
        format!(
            "On a machine with 16 cores, where a pipe wakes the other process sooner, the package before this one took {} µs beside the kernel, \
             and the pipe took {} times as long as in process. The present one, which takes {} µs here where that one took {}, was not \
             measured there.",
            number(there, beside),
            number(there, "pipe / in process "),
            small[9],
            number(here, beside)
        ),
    );
    let record = read("golden/records/on-device.txt");
    // Keys, and shares of the kernel and of the rest in per cent.
    let rows = record.lines().map(cells).filter_map(|row| {
        let parse = |index: usize| row.get(index)?.parse::<f64>().ok();
        let share = |index| Some((100.0 * parse(index)? / parse(5)?).round() as u32);
        Some((parse(2)?, share(6)?, share(8)?))
    });
    let (small, large): (Vec<_>, Vec<_>) = rows.partition(|&(keys, ..)| keys <= 256.0);
    assert!(small.len() == 3 && large.len() == 10, "{small:?} {large:?}");
    let range = |shares: Vec<u32>| {
        let ends = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        format!("{} to {} %", ends.0, ends.1)
    };
    let kernels = range(small.iter().map(|row| row.1).collect());
    let rest = range(large.iter().map(|row| row.2).collect());
    claim(
        claims,
        page,
        format!(
            "Up to 256 keys the kernel takes {kernels} of the time, launches and compiling included. From 4,096 keys on the rest takes {rest}:"
        ),
    );
}

/// How many mutants were tested and caught.
fn mutant_claims(claims: &mut Claims) {
    let record = read("golden/records/mutants.txt");
    let row = record.lines().find(|line| line.starts_with("together ")).expect("a sum");
    let numbers: Vec<&str> = row.split_whitespace().collect();
    let thousands = |number: &str| format!("{},{}", &number[..number.len() - 3], &number[number.len() - 3..]);
    let sentence = format!("of {} mutants {} are caught", thousands(numbers[3]), thousands(numbers[4]));
    claim(claims, "docs/trust.md", sentence);
}

/// What pages must say, out of the records.
fn claims() -> Claims {
    let mut claims = Claims::new();
    table_claims(&mut claims);
    crossing_claims(&mut claims);
    mutant_claims(&mut claims);
    evaluation_claims(&mut claims);
    sweep_claims(&mut claims);
    finding_claims(&mut claims);
    field_claims(&mut claims);
    cuda_claims(&mut claims);
    bench_claims(&mut claims);
    oracle_claims(&mut claims);
    claims
}

/// Text with single spaces, wherever its lines break.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn pages_say_what_the_records_say() {
    let (mut found, mut missing) = (0, Vec::new());
    for (page, sentences) in claims() {
        let text = on_one_line(&read(page));
        for sentence in sentences {
            found += 1;
            if !text.contains(&on_one_line(&sentence)) {
                missing.push(format!("{page}: {sentence}"));
            }
        }
    }
    assert!(missing.is_empty(), "the records say, but no page:\n{}", missing.join("\n"));
    assert!(found > 80, "{found} claims");
}

/// The figures in a text: numbers with a point or a comma, of three digits or more, or before a percent sign.
fn figures(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split([' ', '(', ')', '[', ']', '|', '/', '–', '*', '\n']).collect();
    let mut figures = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let word = word.trim_matches([',', '.', ';', ':']);
        if !word.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let digits = word.chars().filter(char::is_ascii_digit).count();
        let percent = words.get(index + 1).is_some_and(|next| next.starts_with('%'));
        if word.contains(['.', ',']) || digits > 2 || percent {
            figures.push(word.to_owned());
        }
    }
    figures
}

/// Text without inline code, the targets of links and HTML tags.
fn words(page: &str) -> String {
    let text: String = page.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let mut words = String::new();
    for (index, part) in text.split("](").enumerate() {
        words += match (index, part.split_once(')')) {
            (0, _) | (_, None) => part,
            (_, Some((_, rest))) => rest,
        };
        words.push(' ');
    }
    // An HTML tag holds sizes and no figures.
    let tags = words.split('<').enumerate();
    tags.map(
        |(index, part)| if index == 0 { part } else { part.split_once('>').map_or(part, |(_, rest)| rest) },
    )
    .collect()
}

#[test]
fn no_figure_is_without_a_record() {
    let claims = claims();
    let (mut constants_seen, mut stray) = (0, Vec::new());
    for (page, constants) in PAGES {
        let mut text = on_one_line(&prose(&read(page)));
        for sentence in claims.get(page).into_iter().flatten() {
            text = text.replace(&on_one_line(sentence), " ");
        }
        let left = figures(&words(&text));
        for constant in constants {
            constants_seen += 1;
            if !left.iter().any(|figure| figure == constant) {
                stray.push(format!("{page}: {constant} is on the list only"));
            }
        }
        stray.extend(
            left.into_iter()
                .filter(|figure| !constants.contains(&figure.as_str()))
                .map(|f| format!("{page}: {f}")),
        );
    }
    assert!(stray.is_empty(), "{stray:#?}");
    assert!(constants_seen > 0);
    assert!(claims.keys().all(|page| PAGES.iter().any(|(listed, _)| listed == page)));
    // What counts as a figure.
    assert_eq!(
        figures("a 12 % of 5,998, (1.25) [0.3] 112, 64 and §2.5"),
        ["12", "5,998", "1.25", "0.3", "112"]
    );
}

/// The README's picture says what the records of SGLang say, with their figures.
#[test]
fn the_picture_of_sglang_is_that_of_its_records() {
    let picture = read("docs/sglang.svg");
    let cpu = record("check-sglang-tail-cpu.json");
    let finding = &cpu["findings"][0];
    let asked = whole(&cpu["conforming"]) + whole(&cpu["diverged"]);
    let size = &finding["size"];
    let said = [
        finding["sentence"].as_str().unwrap().to_owned(),
        format!("seen in {} of {asked} sequences, first after {}.", finding["sequences"], finding["after"]),
        format!(
            "Shrunk to {} heads and {} keys in {} tries and {:.1} s; the whole check took {:.1} s.",
            size["heads"],
            size["keys"],
            finding["tries"],
            number(&finding["shrinking_seconds"]),
            number(&cpu["seconds"])
        ),
    ];
    let probed = ["check-sglang-tail-cpu.json", "check-sglang-0.5.5-race-cuda.json"].map(|name| {
        let probes = &record(name)["probes"];
        format!("{} probing questions, {:.1} s", probes["questions"], number(&probes["seconds"]))
    });
    for words in said.iter().chain(&probed) {
        assert!(picture.contains(words.as_str()), "docs/sglang.svg: {words}");
    }
    // On CPU 10 keys of a head and 20 of another were measured, on CUDA 20 keys of each of five heads; the legend has one more.
    assert_eq!(picture.matches("rx=\"2\" fill=\"#a8142a\"").count(), 10 + 20 + 5 * 20 + 1);
}
