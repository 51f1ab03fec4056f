//! What each fuzzing target does with its bytes, and the bytes that it starts from. The targets of this folder and a short test on the
//! stable toolchain (`tests/suite/fuzzed.rs`) call the same functions. Nothing may panic, hang, or take memory beyond a small multiple
//! of the input; and what was read and is written again reads as the same.

use std::path::Path;
use std::sync::OnceLock;

use doublecheck::algorithm::channels::ChannelFile;
use doublecheck::algorithm::{HeavySize, Selection, Storage};
use doublecheck::cases::domain::{Sizes, domains_from_json};
use doublecheck::cases::session_plan::session;
use doublecheck::cases::stage_plan::stage_call;
use doublecheck::cases::strategies::{AdditiveMask, ChannelRows, Plan, Previous, Values};
use doublecheck::cases::{
    Capabilities, Case, CaseFile, Memory, Quantity, Reader, Session, StageCall, Stages, Takes, file,
    gguf_header, session_file, stage_file,
};
use doublecheck::reports::merge::merge;
use doublecheck::reports::record::Record;
use doublecheck::reports::site::{Check, build};
use doublecheck::subjects::process::frames;
use serde_json::{Map, Value, json};

/// What a target does with bytes.
pub type Harness = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Harness); 8] = [
    ("case_file", case_file),
    ("case_header", case_header),
    ("channel_file", channel_file),
    ("answers", answers),
    ("answer_header", answer_header),
    ("gguf", gguf),
    ("report", report),
    ("domain", domain),
];

/// What one file may take.
fn memory() -> Memory {
    Memory::from_gib(1.0 / 64.0).expect("a number above 0")
}

/// Any file of SPEC §6. One that reads is written as the same bytes that it is written as when it is read again, and makes questions
/// whose frames are messages.
pub fn case_file(bytes: &[u8]) {
    let Ok(read) = Reader::within(memory()).parse(bytes, "fuzzed") else { return };
    let Some(written) = written(&read) else { return };
    let again = Reader::within(memory()).parse(&written, "fuzzed").expect("what is written can be read");
    assert_eq!(self::written(&again).as_deref(), Some(&written[..]), "what is written reads as the same");
    for frame in questions(&read) {
        frames::message(&frame[8..]).expect("a question is a message");
    }
}

fn written(read: &CaseFile) -> Option<Vec<u8>> {
    Some(match read {
        CaseFile::Attention(case) => file::to_bytes(case),
        CaseFile::Sequence(stored) => {
            file::sequence_after_to_bytes(&stored.sequence, &stored.before, &stored.source)
        }
        CaseFile::Stage(stored) => stage_file::to_bytes(&stored.call, &stored.source),
        CaseFile::Session(stored) => session_file::to_bytes(&stored.session, &stored.source),
        CaseFile::Quantisation(_) | CaseFile::Calibration(_) => return None,
    })
}

fn questions(read: &CaseFile) -> Vec<Vec<u8>> {
    match read {
        CaseFile::Attention(case) => frames::of_call(&case.instance, &case.call),
        CaseFile::Sequence(stored) => {
            let sequence = &stored.sequence;
            sequence.calls.iter().flat_map(|call| frames::of_call(&sequence.instance, call)).collect()
        }
        CaseFile::Stage(stored) => vec![frames::of_stage(&stored.call)],
        CaseFile::Session(stored) => frames::of_session(&stored.session),
        CaseFile::Quantisation(_) | CaseFile::Calibration(_) => Vec::new(),
    }
}

/// A container of safetensors with this header, and as many zeros as follow it.
fn with_header(header: &[u8], zeros: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; zeros]].concat()
}

/// The header of a container, which is JSON, and what follows it, told by the last two bytes.
fn split_header(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, zeros) = bytes.split_last_chunk::<2>()?;
    Some(with_header(header, usize::from(u16::from_le_bytes(*zeros)) % 8192))
}

/// As [`case_file`], of the header alone: most changes of a whole file only break its length.
pub fn case_header(bytes: &[u8]) {
    if let Some(bytes) = split_header(bytes) {
        case_file(&bytes);
    }
}

/// A channel file. One that reads is written as the same text that it is written as when it is read again.
pub fn channel_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(read) = ChannelFile::from_json(text) else { return };
    let written = read.to_json();
    let again = ChannelFile::from_json(&written).expect("what is written can be read");
    assert_eq!(again.to_json(), written, "what is written reads as the same");
}

struct Asked {
    case: Case,
    scores: StageCall,
    selection: StageCall,
    session: Session,
}

/// Questions to which bytes may be the answer.
fn asked() -> &'static Asked {
    static ASKED: OnceLock<Asked> = OnceLock::new();
    ASKED.get_or_init(|| {
        let stage = |takes| stage(takes, 1).expect("there are such questions");
        let session = (1..100).filter_map(of_session).min_by_key(|session| session.steps.len());
        Asked {
            case: case(1),
            scores: stage(Takes::Scores),
            selection: stage(Takes::Selection),
            session: session.expect("there are sessions"),
        }
    })
}

/// An answer of a command to any question. What it says of itself may be anything.
pub fn answers(bytes: &[u8]) {
    let asked = asked();
    // Errors are what most bytes make.
    let _ = frames::read_hello(bytes);
    let _ = frames::read_configured(bytes);
    let _ = frames::read_answer(bytes, &asked.case.instance, &asked.case.call);
    for stage in [&asked.scores, &asked.selection] {
        let _ = frames::read_stage(bytes, stage);
    }
    frames::read_session(bytes, &asked.session);
}

/// As [`answers`], of the header alone.
pub fn answer_header(bytes: &[u8]) {
    if let Some(bytes) = split_header(bytes) {
        answers(&bytes);
    }
}

/// The header of a model's file.
pub fn gguf(bytes: &[u8]) {
    let _ = gguf_header::check(bytes);
}

/// The JSON of a report: what is asked of a record, and pages of it. Two of them are put together where they may be.
pub fn report(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(Value::Object(report)) = serde_json::from_str::<Value>(text) {
        let mut other: Map<String, Value> = report.clone();
        let seed = other.get("seed").and_then(Value::as_u64).map(|seed| seed ^ 1);
        other.insert("seed".into(), json!(seed));
        if let Ok(merged) = merge(vec![("one".into(), report), ("other".into(), other)]) {
            merged.exit_code();
            merged.render();
        }
    }
    let Some(Ok(record)) = Record::read(text) else { return };
    let _ = (record.exit_code(), record.outcome(), record.conforming());
    for finding in &record.findings {
        let _ = (finding.causes(), finding.condition(), finding.shrinking());
    }
    let findings = record.findings.len();
    let check = Check {
        name: "fuzzed".into(),
        command: None,
        counterexamples: (0..findings).map(|_| None).collect(),
        record,
    };
    build(&[check]);
}

/// A domain, or a list of alternatives. One that reads is written as what it is written as when it is read again, and sizes that it
/// chooses lie inside.
pub fn domain(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    let Ok(domains) = domains_from_json(&json) else { return };
    for domain in domains {
        let written = Value::from(&domain);
        let again = domains_from_json(&written).expect("what is written can be read");
        assert_eq!(again, std::slice::from_ref(&domain), "what is written reads as the same");
        for seed in 0..2 {
            let sizes = Sizes {
                batch: 2,
                kv_heads: 2,
                group: 2,
                queries: 3,
                keys: 40,
                label_channels: 4,
                group_factor: 4,
                value_dim: 8,
                label_bits: 4,
            };
            let fitted = domain.fit(sizes, seed);
            let quantities = [(Quantity::Batch, fitted.batch), (Quantity::Keys, fitted.keys)];
            assert!(domain.holds(&quantities, domain.fit_dtype(Storage::F16, seed)), "{fitted:?}");
        }
    }
}

fn case(seed: u64) -> Case {
    let selection = Selection::new(HeavySize::count(2).expect("a count"), 2, 4).expect("a selection");
    let plan = Plan {
        seed,
        batch: 1,
        kv_heads: 1,
        group: 2,
        queries: 1,
        keys: 3,
        label_channels: 1,
        value_dim: 2,
        selection,
        storage: Storage::ALL[seed as usize % 3],
        causal: seed.is_multiple_of(2),
        additive: AdditiveMask::Absent,
        masks_per_head: true,
        previous: Previous::Absent,
        earlier_maskers: Vec::new(),
        rows: ChannelRows::PerHead,
        q: Values::Normal,
        k: Values::Normal,
        scaling: None,
    };
    plan.case().expect("a valid plan")
}

fn stage(takes: Takes, seed: u64) -> Option<StageCall> {
    let stages = Stages::new(takes, None).ok()?;
    let capabilities = Capabilities { stages, ragged: seed.is_multiple_of(2), ..Capabilities::default() };
    let small = |call: &StageCall| call.dims().batch * call.dims().heads * call.dims().keys < 200;
    (seed..seed + 200).filter_map(|seed| stage_call(&capabilities, seed)).find(small)
}

fn of_session(seed: u64) -> Option<Session> {
    let capabilities = Capabilities { sessions: true, ..Capabilities::default() };
    session(&capabilities, seed)
}

/// The files below a folder of the project, no larger than some bytes.
fn files(folder: &str, ending: &str, most: usize) -> Vec<Vec<u8>> {
    // The project's own folder, for its tests, or that of fuzzing.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if root.join("golden").is_dir() { root.to_owned() } else { root.join("..") };
    let folder = root.join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    let read = |path: &std::path::PathBuf| std::fs::read(path).expect("a file that can be read");
    paths.iter().map(read).filter(|bytes| bytes.len() <= most).collect()
}

/// A container's header, and its length of what follows.
fn header_of(container: &[u8]) -> Vec<u8> {
    let (length, rest) = container.split_first_chunk::<8>().expect("a container");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    [header, &(data.len() as u16).to_le_bytes()].concat()
}

fn containers() -> Vec<Vec<u8>> {
    let mut all = files("golden/counterexamples", ".safetensors", 2000);
    all.extend((0..6).map(|seed| file::to_bytes(&case(seed))));
    for takes in [Takes::Scores, Takes::Selection] {
        all.extend(
            (0..4).filter_map(|seed| stage(takes, seed)).map(|call| stage_file::to_bytes(&call, "a seed")),
        );
    }
    let mut sessions: Vec<_> =
        (0..60).filter_map(of_session).map(|session| session_file::to_bytes(&session, "a seed")).collect();
    sessions.sort_by_key(Vec::len);
    all.extend(sessions.into_iter().take(6));
    all.extend(files("golden/small", ".safetensors", 16_000).into_iter().take(3));
    all
}

fn message(fields: &Value, tensors: &Value, zeros: usize) -> Vec<u8> {
    let mut header = json!({"__metadata__": {"doublecheck": fields.to_string()}});
    for (name, tensor) in tensors.as_object().into_iter().flatten() {
        header[name] = tensor.clone();
    }
    with_header(header.to_string().as_bytes(), zeros)
}

fn answered() -> Vec<Vec<u8>> {
    let none = json!({});
    let dims = asked().case.call.inputs.dims();
    let (heads, queries, keys, values) = (dims.heads, dims.queries, dims.keys, dims.value_dim);
    let floats = |shape: &[usize], from: usize| {
        let bytes = 4 * shape.iter().product::<usize>();
        (json!({"dtype": "F32", "shape": shape, "data_offsets": [from, from + bytes]}), from + bytes)
    };
    let (mask, end) = floats(&[1, heads, queries, keys], 0);
    let (output, end) = floats(&[1, heads, queries, values], end);
    let (lse, end) = floats(&[1, heads, queries], end);
    let selected =
        json!({"dtype": "I32", "shape": [1, heads, queries, 2], "data_offsets": [0, 8 * heads * queries]});
    vec![
        message(&json!({"type": "hello", "protocol": 1, "name": "a 1.0, cpu"}), &none, 0),
        message(
            &json!({"type": "hello", "protocol": 2, "model": {"labels": "rounded", "scores_kept": "f32", "exp_ulps": 4},
                "dtypes": ["f32"], "heads": ["per-head"], "domain": {"keys": {"from": 1, "to": 64}}, "promises": ["repeatable"],
                "takes": "inputs", "gives": ["labels", "scores"], "offers": ["lengths", "sessions"], "shapes": 4,
                "rules": [{"score": "cosine"}]}),
            &none,
            0,
        ),
        message(&json!({"type": "configured", "id": 1}), &none, 0),
        message(&json!({"type": "refused", "id": 1, "kind": "shape", "message": "no"}), &none, 0),
        message(&json!({"type": "failed", "id": 1, "message": "no"}), &none, 0),
        message(&json!({"type": "opened", "id": 1}), &none, 0),
        message(&json!({"type": "done", "id": 1}), &none, 0),
        message(
            &json!({"type": "answer", "id": 1}),
            &json!({"mask": mask, "output": output, "lse": lse}),
            end,
        ),
        message(&json!({"type": "answer", "id": 1}), &json!({"selected": selected}), 8 * heads * queries),
    ]
}

/// A header of a model with a text, a list and a tensor.
fn model() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: u32| number.to_le_bytes().to_vec();
    let long = |number: u64| number.to_le_bytes().to_vec();
    let list = [text("list"), number(9), number(4), long(2), number(7), number(8)].concat();
    let name = [text("general.name"), number(8), text("a model")].concat();
    let tensor = [text("weight"), number(1), long(4), number(0), long(0)].concat();
    let mut file = [b"GGUF".to_vec(), number(3), long(1), long(2), name, list, tensor].concat();
    file.resize(file.len().next_multiple_of(32) + 16, 0);
    file
}

/// What a target starts from.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "case_file" => containers(),
        "case_header" => containers().iter().map(|container| header_of(container)).collect(),
        "channel_file" => {
            let mut all = vec![
                br#"{"model.layers.0.self_attn.qk_proj": [[1, 0]], "model.layers.3.self_attn.k_proj": [[0]],
                "model.layers.0.self_attn.qk_proj.weights": [[0.5, -1]], "model.layers.0.mlp.down_proj": [[2]]}"#
                    .to_vec(),
            ];
            all.extend(files("golden/channels", ".json", 1 << 17));
            all
        }
        "answers" => answered(),
        "answer_header" => answered().iter().map(|answer| header_of(answer)).collect(),
        "gguf" => vec![model()],
        "report" => files("golden/records", ".json", 1 << 16),
        "domain" => [
            json!({"batch": [1], "heads": {"from": 1, "to": 8}, "keys": {"from": 1, "multiple_of": 16}, "dtype": ["f16"]}),
            json!([{"kv_heads": [1], "value_dim": "d", "page_size": [16]}, {"head_dim": [64, 128], "group_factor": [4]}]),
            json!({"label_channels": [4], "heavy_size": {"to": 64}, "label_bits": [4, 16], "queries": [1], "group": [2]}),
        ]
        .map(|json| json.to_string().into_bytes())
        .to_vec(),
        other => panic!("found target {other:?}, expected one of {:?}", TARGETS.map(|target| target.0)),
    }
}

/// Writes what a target starts from into the folder that `DOUBLECHECK_SEEDS` names, where it is set. `ci/fuzz` sets it.
pub fn write_seeds(target: &str) {
    let Some(folder) = std::env::var_os("DOUBLECHECK_SEEDS") else { return };
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).expect("a folder that can be made");
    for (index, seed) in seeds(target).into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{index}")), seed).expect("a file that can be written");
    }
}
