//! Files of a few hundred bytes that ask for more memory than there is, and damaged ones: each is refused with exit code 2 before
//! anything is allocated for it, and the message says what asks for how much. The command runs with little address space here, so
//! that an allocation in vain ends it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use doublecheck::cases::{Memory, Reader, bundled};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::running::{stderr, stdout};
use crate::support::proptest_config;

/// KiB of address space. Threads reserve some that they never use.
const ADDRESS_SPACE: usize = 3 << 20;

fn limited(arguments: &[&str]) -> Output {
    let limited = format!("ulimit -v {ADDRESS_SPACE}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_doublecheck")]).args(arguments);
    command.env("RUST_BACKTRACE", "0").output().unwrap()
}

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn container(metadata: &[(&str, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    let view = |(name, dtype, shape, bytes): &'_ Tensor| (*name, *dtype, shape.clone(), bytes.clone());
    let tensors: Vec<_> = tensors.iter().map(view).collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn settings() -> Value {
    json!({"heavy_size": 1, "group_factor": 1, "label_bits": 4, "causal": true, "dtype": "f32"})
}

fn floats(name: &'static str, shape: &[usize]) -> Tensor {
    (name, Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()])
}

fn no_numbers(name: &'static str, dtype: Dtype, rows: usize) -> Tensor {
    (name, dtype, vec![rows, 0], Vec::new())
}

fn layer(positions: usize) -> Vec<Tensor> {
    let shape = [1, 1, positions, 1];
    vec![floats("q", &shape), floats("k", &shape), floats("v", &shape)]
}

fn recipe(sizes: &[(&str, usize)]) -> Value {
    let mut recipe = json!({"generator": "splitmix-1", "seed": 1, "batch": 1, "heads": 1, "kv_heads": 1,
        "queries": 1, "keys": 1, "head_dim": 1});
    for (name, size) in sizes {
        recipe[*name] = (*size).into();
    }
    recipe
}

fn recipe_file(sizes: &[(&str, usize)]) -> Vec<u8> {
    container(&[("case", settings()), ("recipe", recipe(sizes))], &[])
}

const HUGE: usize = 1 << 30;

/// Name, content, what the message names.
fn bad_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let case = [("case", settings())];
    let one_channel = ("channels", Dtype::I64, vec![1, 1], vec![0; 8]);
    let with = |tensors: Vec<Tensor>, more: Vec<Tensor>| [tensors, more].concat();
    let channel_file = "{\"model.layers.0.self_attn.qk_proj\":[[0]]}";
    let instance = json!({"settings": {"heavy_size": 1, "group_factor": 1, "label_bits": 4}, "channel_selection": "qk_proj"});
    let mut sequence = instance.clone();
    sequence["calls"] = json!([{"layer": 0, "causal": false, "dtype": "f32"}]);
    let of_call: Vec<Tensor> = layer(1 << 14)
        .into_iter()
        .zip(["call_0.q", "call_0.k", "call_0.v"])
        .map(|((_, dtype, shape, bytes), name)| (name, dtype, shape, bytes))
        .collect();
    let session_in = |dtype: &str, capacity: usize, steps: Value| {
        let mut session = instance.clone();
        session["open"] = json!({"layers": [0], "capacity": capacity, "page_size": 1, "heads": 1, "kv_heads": 1,
            "head_dim": 1, "value_dim": 1, "dtype": dtype});
        session["steps"] = steps;
        [("session", session), ("channel_file", channel_file.into())]
    };
    let session = |capacity: usize, steps: Value| session_in("f32", capacity, steps);
    let too_large = ("step_0.v", Dtype::F32, vec![1, 1, 1], 65520f32.to_le_bytes().to_vec());
    let of_step = |name: &'static str, rows: usize| floats(name, &[rows, 1, 1]);
    let rows = 1 << 15;
    let steps = json!([{"append": {"layer": 0, "requests": [[0, rows]]}}, {"attend": {"layer": 0, "requests": [[0, rows]]}}]);
    let forks: Vec<Value> =
        (1..4000).map(|to| json!({"fork": {"from": 0, "to": to, "length": rows}})).collect();
    let many_forks =
        Value::from([vec![json!({"append": {"layer": 0, "requests": [[0, rows]]}})], forks].concat());
    let appended = vec![of_step("step_0.k", rows), of_step("step_0.v", rows)];
    let selected = ("selected", Dtype::I32, vec![1, 1, 1 << 14, 1], vec![0; 4 << 14]);
    vec![
        (
            "rows of channels without one",
            container(&case, &with(layer(1), vec![no_numbers("channels", Dtype::I64, 1 << 40)])),
            "channels: found I64 [1099511627776, 0], expected no empty dimension",
        ),
        (
            "rows of weights without one",
            container(
                &case,
                &with(
                    layer(1),
                    vec![one_channel.clone(), no_numbers("channel_weights", Dtype::F32, 1 << 40)],
                ),
            ),
            "channel_weights: found F32 [1099511627776, 0], expected no empty dimension",
        ),
        (
            "calibrated rows without one",
            container(
                &[("calibration", json!({"kind": "q_proj"}))],
                &[floats("block_0.q", &[1, 1, 1, 1]), no_numbers("channels", Dtype::I64, 1 << 40)],
            ),
            "channels: found I64 [1099511627776, 0]",
        ),
        (
            "rows to quantise without one",
            container(
                &[("quantisation", json!({"dtype": "f32"}))],
                &[
                    no_numbers("bits_04.rows", Dtype::F32, 1 << 40),
                    no_numbers("bits_04.labels", Dtype::F32, 1 << 40),
                ],
            ),
            "bits_04.rows: found F32 [1099511627776, 0]",
        ),
        (
            "a recipe of many entries",
            recipe_file(&[("batch", HUGE)]),
            "recipe: found [b, h, hk, m, n, d, dv] [1073741824, 1, 1, 1, 1, 1, 1], which takes about",
        ),
        (
            "a recipe of many heads",
            recipe_file(&[("heads", HUGE)]),
            "recipe: found [b, h, hk, m, n, d, dv] [1, 1073741824, 1, 1, 1, 1, 1]",
        ),
        (
            "a recipe of many keys",
            recipe_file(&[("keys", HUGE)]),
            "recipe: found [b, h, hk, m, n, d, dv] [1, 1, 1, 1, 1073741824, 1, 1]",
        ),
        (
            "a recipe of many channels",
            recipe_file(&[("head_dim", HUGE)]),
            "recipe: found [b, h, hk, m, n, d, dv] [1, 1, 1, 1, 1, 1073741824, 1073741824]",
        ),
        (
            "a recipe of sizes that overflow",
            recipe_file(&[("keys", usize::MAX), ("heads", usize::MAX)]),
            "at most 2^30 numbers in one tensor",
        ),
        (
            "a recipe of a large mask",
            recipe_file(&[("queries", 1 << 15), ("keys", 1 << 15)]),
            "expected at most 4.0 GiB (--memory allows more)",
        ),
        (
            "tensors that need a large mask",
            container(&case, &with(layer(1 << 14), vec![one_channel.clone()])),
            "case: found [b, h, hk, m, n, d, dv] [1, 1, 1, 16384, 16384, 1, 1]",
        ),
        (
            "a call that needs a large mask",
            container(&[("sequence", sequence), ("channel_file", channel_file.into())], &of_call),
            "call_0: found [b, h, hk, m, n, d, dv] [1, 1, 1, 16384, 16384, 1, 1]",
        ),
        (
            "scores of which there are too many",
            container(
                &[("scores_case", json!({"heavy_size": 1, "dtype": "f32"}))],
                &[("scores", Dtype::F32, vec![1, 1, 1 << 40, 0], Vec::new())],
            ),
            "scores_case: found [b, h, m, n] [1, 1, 1099511627776, 0], which takes about",
        ),
        (
            "a selection that needs a large mask",
            container(&[("selection_case", json!({"dtype": "f32"}))], &with(layer(1 << 14), vec![selected])),
            "selection_case: found [b, h, hk, m, n, d, dv] [1, 1, 1, 16384, 16384, 1, 1]",
        ),
        (
            "a session with much room",
            container(&session(1 << 40, json!([])), &[]),
            "session.open: found capacity 1099511627776 in 1 layers",
        ),
        (
            "a session that attends much",
            container(&session(1 << 20, steps), &with(appended.clone(), vec![of_step("step_1.q", rows)])),
            "session.steps[1]: found requests of up to 32768 keys",
        ),
        (
            "a session with a number that its type does not hold",
            container(
                &session_in("f16", 1, json!([{"append": {"layer": 0, "requests": [[0, 1]]}}])),
                &[of_step("step_0.k", 1), too_large],
            ),
            "step_0.v: found NaN or an infinity, expected finite numbers in f16",
        ),
        ("a session of many forks", container(&session(1 << 27, many_forks), &appended), "session."),
        (
            "a block without tokens",
            container(
                &[("calibration", json!({"kind": "q_proj"}))],
                &[floats("block_0.q", &[1, 2, 0, 4]), ("channels", Dtype::I64, vec![1, 1], vec![0; 8])],
            ),
            "block_0: found shape does not fit: block: found (1, 2, 0, 4)",
        ),
        (
            "no block",
            container(
                &[("calibration", json!({"kind": "q_proj"}))],
                &[("channels", Dtype::I64, vec![1, 1], vec![0; 8])],
            ),
            "block_0: found no block",
        ),
    ]
}

#[test]
fn what_would_take_too_much_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.safetensors");
    let path = file.to_str().unwrap();
    for (name, bytes, expected) in bad_files() {
        std::fs::write(&file, bytes).unwrap();
        let output = limited(&["verify", path, "--random-cases", "0"]);
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(expected) && said.contains("expected"), "{name}: {said}");
    }
    // Every command that reads case files.
    std::fs::write(&file, recipe_file(&[("heads", HUGE)])).unwrap();
    for arguments in [
        &["inspect", path][..],
        &["run", path, "-o", "/dev/null"],
        &["replay", path],
        &["check", "--cases", "1", "--goldens", path],
    ] {
        let output = limited(arguments);
        let said = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("recipe: found [b, h, hk, m, n, d, dv]"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["long.safetensors", "long.json"] {
        let file = folder.path().join(name);
        std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
        let output = limited(&["inspect", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("file: found 1099511627776 bytes, which takes about 1024.0 GiB"),
            "{}",
            stderr(&output)
        );
    }
    // What is no regular file does not say how long it is.
    let output = limited(&["inspect", "/dev/zero", "--memory", "0.01"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("/dev/zero: too much memory: file"), "{}", stderr(&output));
    // JSON takes a multiple of its text.
    let file = folder.path().join("dense.json");
    let digits = vec!["1"; 1 << 20].join(",");
    std::fs::write(&file, format!("{{\"model.layers.0.self_attn.v_proj\":[{digits}]}}")).unwrap();
    let output = limited(&["inspect", file.to_str().unwrap(), "--memory", "0.05"]);
    assert!(stderr(&output).contains("bytes of JSON, which takes about"), "{}", stderr(&output));
}

#[test]
fn the_limit_is_what_the_option_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    std::fs::write(&file, recipe_file(&[("keys", 1 << 16), ("head_dim", 8)])).unwrap();
    let verify = |memory: &str| {
        limited(&["verify", file.to_str().unwrap(), "--random-cases", "0", "--memory", memory])
    };
    assert_eq!(verify("0.001").status.code(), Some(2));
    assert_eq!(verify("0.5").status.code(), Some(0), "{}", stdout(&verify("0.5")));
    for wrong in ["0", "-1", "nan", "inf", "much"] {
        let output = verify(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(stderr(&output).contains("expected GiB above 0") || wrong == "-1", "{}", stderr(&output));
    }
}

/// The most memory that a command had, in bytes, as long as it could be seen.
fn peak(arguments: &[&str]) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doublecheck"));
    let mut child = command.args(arguments).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib =
            line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<f64>().ok());
        peak = peak.max(1024.0 * kib.unwrap_or(0.0));
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0), "{arguments:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the message says that a file takes, in bytes.
fn estimate(path: &str) -> f64 {
    let output = limited(&["verify", path, "--random-cases", "0", "--memory", "0.0001"]);
    let said = stdout(&output);
    let (_, after) = said.split_once("which takes about ").unwrap_or_else(|| panic!("{said}"));
    let (gib, _) = after.split_once(" GiB").unwrap();
    gib.parse::<f64>().unwrap() * f64::from(1u32 << 30)
}

#[test]
fn what_is_allowed_takes_no_more_than_was_estimated() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    let path = file.to_str().unwrap();
    let verify = ["verify", path, "--random-cases", "0"];
    std::fs::write(&file, recipe_file(&[])).unwrap();
    let base = peak(&verify);
    let mut near = 0;
    for sizes in [
        &[("keys", 1 << 19), ("head_dim", 8)][..],
        &[("keys", 1 << 20)],
        &[("queries", 1 << 10), ("keys", 1 << 11)],
        &[("heads", 1 << 18)],
        &[("batch", 1 << 17)],
        &[("head_dim", 1 << 20)],
    ] {
        std::fs::write(&file, recipe_file(sizes)).unwrap();
        let (estimate, peak) = (estimate(path), peak(&verify) - base);
        println!("{sizes:?}: {:.0} MiB of {:.0}", peak / 1048576.0, estimate / 1048576.0);
        assert!(peak <= estimate, "{sizes:?}: took {peak} bytes, estimated {estimate}");
        // An estimate far above refuses files that would fit. What a short process took is not always seen.
        near += usize::from(peak >= estimate / 16.0);
    }
    assert!(near >= 3, "{near} of 6 took a sixteenth of what was estimated");
}

fn small_goldens() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
        let groups = ["small", "counterexamples", "quantisation", "calibration", "grid", "hub"];
        let mut files: Vec<PathBuf> = groups
            .iter()
            .flat_map(|group| bundled::find(&golden.join(group)).unwrap())
            .map(|found| found.path())
            .filter(|path| std::fs::metadata(path).unwrap().len() < 20_000)
            .collect();
        files.sort();
        files.iter().map(|path| std::fs::read(path).unwrap()).collect()
    })
}

/// What stands in place of a number or a text of a header.
const EXTREMES: [&str; 12] = [
    "0",
    "1",
    "-1",
    "2147483648",
    "1073741824",
    "1099511627776",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "null",
    "\\\"\\\"",
    "[]",
];

/// The file with a word of its header replaced. Lengths of the header follow.
fn with_word(bytes: &[u8], word: usize, replacement: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let mut words = Vec::new();
    let mut start = None;
    for (index, c) in header.char_indices() {
        match (c.is_ascii_digit(), start) {
            (true, None) => start = Some(index),
            (false, Some(from)) => {
                words.push(from..index);
                start = None;
            }
            _ => {}
        }
    }
    let mut changed = header.to_owned();
    if !words.is_empty() {
        changed.replace_range(words[word % words.len()].clone(), replacement);
    }
    [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &bytes[8 + length..]].concat()
}

proptest! {
    #![proptest_config(proptest_config(3000, "proptest-regressions/bad_files.txt"))]

    /// Any number of a header may be any other: what comes of it is a case or an error that says what was found and expected.
    #[test]
    fn a_changed_header_is_read_or_refused(
        file in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<usize>(), prop::sample::select(&EXTREMES[..])), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let files = small_goldens();
        prop_assert!(files.len() > 20, "{} small goldens", files.len());
        let mut bytes = files[file.index(files.len())].clone();
        for (word, replacement) in changes {
            bytes = with_word(&bytes, word, replacement);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let memory = Memory::from_gib(0.125).unwrap();
        if let Err(error) = Reader::within(memory).parse(&bytes, "changed") {
            let said = error.to_string();
            prop_assert!(said.contains("found") && said.contains("expected") || said.contains("not readable"), "{said}");
        }
        // Metadata alone.
        let _ = doublecheck::cases::file::peek(&bytes);
    }
}

#[test]
fn the_default_limit_lets_every_bundled_case_through() {
    let mut reader = Reader::default();
    let mut read = 0;
    for found in bundled::cases().unwrap() {
        // The grid shares its inputs; its largest are read by other tests.
        if found.group() != "grid" {
            reader.read_found(&found).unwrap();
            read += 1;
        }
    }
    assert!(read > 50, "{read}");
}

/// A GGUF file of version 3: an alignment, a list of texts, a text, and a tensor of 2 × 32 numbers.
fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry =
        |key: &str, kind: u32, value: Vec<u8>| [text(key), kind.to_le_bytes().to_vec(), value].concat();
    let list = |kind: u32, items: &[Vec<u8>]| {
        [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()[..], &items.concat()].concat()
    };
    let mut bytes = [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec()].concat();
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(entry("general.alignment", 4, 64u32.to_le_bytes().to_vec()));
    bytes.extend(entry("tokens", 9, list(8, &[text("a"), text("bc")])));
    bytes.extend(entry("name", 8, text("small")));
    bytes.extend(text("weights"));
    bytes.extend(2u32.to_le_bytes());
    bytes.extend([32u64, 2].iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(64) + 4 * 64, 0);
    bytes
}

/// The reader of GGUF files allocates by what their headers say: these are checked before.
#[test]
fn a_gguf_header_that_its_file_cannot_hold_is_refused() {
    use doublecheck::cases::gguf_header::check;
    let right = gguf();
    check(&right).unwrap();
    for length in 0..right.len() {
        assert!(check(&right[..length]).is_err(), "{length} bytes of {}", right.len());
    }
    let place = |what: &[u8]| right.windows(what.len()).position(|window| window == what).unwrap();
    let huge = u64::MAX.to_le_bytes();
    let after = |what: &str, more: usize| place(what.as_bytes()) + what.len() + more;
    for (what, at, value, expected) in [
        ("tensors", 8, &huge[..], "tensor_count: found 18446744073709551615, expected at most"),
        ("entries", 16, &huge, "metadata_kv_count: found 18446744073709551615, expected at most"),
        ("a key", 24, &huge, "key 0 of the metadata: found 18446744073709551615, expected at most"),
        (
            "no alignment",
            after("general.alignment", 4),
            &0u32.to_le_bytes(),
            "general.alignment: found 0, expected a power of two",
        ),
        (
            "another alignment",
            after("general.alignment", 0),
            &5u32.to_le_bytes(),
            "general.alignment: found a value of type 5",
        ),
        ("a list", after("tokens", 8), &huge, "tokens: found 18446744073709551615, expected at most"),
        (
            "a list of nothing known",
            after("tokens", 4),
            &77u32.to_le_bytes(),
            "tokens: found values of type 77",
        ),
        ("a text of a list", after("tokens", 16), &huge, "tokens: found 18446744073709551615"),
        (
            "a value of nothing known",
            after("tokens", 0),
            &77u32.to_le_bytes(),
            "tokens: found a value of type 77",
        ),
        (
            "dimensions",
            after("weights", 0),
            &u32::MAX.to_le_bytes(),
            "weights: found 4294967295 dimensions, expected at most 4",
        ),
        (
            "a size",
            after("weights", 4),
            &(1u64 << 60).to_le_bytes(),
            "weights: found a tensor that ends after it",
        ),
        ("sizes", after("weights", 4), &huge, "weights: found more numbers than 2^64"),
        (
            "an offset",
            after("weights", 24),
            &huge,
            "weights: found a tensor that ends after it, expected an end within the file",
        ),
        ("a version", 4, &4u32.to_le_bytes(), "version: found 4, expected 1 to 3"),
        ("other bytes", 0, b"GGML", "file: found a file that begins with"),
    ] {
        let mut changed = right.clone();
        changed[at..at + value.len()].copy_from_slice(value);
        let error = check(&changed).map_err(|error| error.to_string());
        assert!(error.as_ref().is_err_and(|error| error.contains(expected)), "{what}: {error:?}");
    }
    // Arrays of arrays, each of which costs 12 bytes.
    let nested = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(100_000);
    let mut deep = right[..after("tokens", 4)].to_vec();
    deep.extend(nested);
    assert!(check(&deep).unwrap_err().to_string().contains("tokens: found arrays within arrays"));
}
