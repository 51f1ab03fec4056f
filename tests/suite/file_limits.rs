//! What a file may hold, each limit from both sides: shapes of expectations and labels, memory by what is in the file, and what a
//! GGUF header says of the bytes that follow.

use std::collections::HashMap;

use doublecheck::cases::file::peek;
use doublecheck::cases::{Case, CaseFile, Error, Memory, Reader, gguf_header};
use rstest::rstest;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Name, type and shape of a tensor of zeros.
type Zeros<'a> = (&'a str, Dtype, &'a [usize]);

fn container(metadata: &[(&str, Value)], tensors: &[Zeros]) -> Vec<u8> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    let numbers = |shape: &[usize]| shape.iter().product::<usize>();
    let zeros = vec![0; 8 * tensors.iter().map(|(_, _, shape)| numbers(shape)).max().unwrap_or(0)];
    let views = tensors.iter().map(|(name, dtype, shape)| {
        let data = &zeros[..numbers(shape) * dtype.bitsize() / 8];
        (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn settings(group_factor: usize) -> Value {
    json!({"heavy_size": 1, "group_factor": group_factor, "label_bits": 4, "causal": false, "dtype": "f32"})
}

fn parsed(bytes: &[u8]) -> Result<Case, String> {
    match Reader::default().parse(bytes, "case") {
        Ok(CaseFile::Attention(case)) => Ok(*case),
        other => Err(other.unwrap_err().to_string()),
    }
}

/// Two heads over one, three queries, four keys, d = 2, dv = 5.
const LAYER: [Zeros; 4] = [
    ("q", Dtype::F32, &[1, 2, 3, 2]),
    ("k", Dtype::F32, &[1, 1, 4, 2]),
    ("v", Dtype::F32, &[1, 1, 4, 5]),
    ("channels", Dtype::I64, &[1, 1]),
];

const SELECTED: Zeros = ("selected", Dtype::I32, &[1, 2, 3, 2]);
const MASK: Zeros = ("mask", Dtype::U8, &[1, 2, 3, 4]);
const OUTPUT: Zeros = ("output", Dtype::F32, &[1, 2, 3, 5]);

fn with_expectation(expectation: &[Zeros]) -> Vec<u8> {
    let metadata = [("case", settings(2)), ("source", "worked out by hand".into())];
    container(&metadata, &[&LAYER, expectation].concat())
}

/// An expectation that is lost on the way would let any answer pass.
#[rstest]
#[case::nothing(&[])]
#[case::keys(&[SELECTED])]
#[case::a_mask(&[MASK])]
#[case::both(&[SELECTED, MASK])]
#[case::keys_and_output(&[SELECTED, OUTPUT])]
#[case::a_mask_and_output(&[MASK, OUTPUT])]
#[case::all_three(&[SELECTED, MASK, OUTPUT])]
fn an_expectation_is_read_whole(#[case] tensors: &[Zeros]) {
    let case = parsed(&with_expectation(tensors)).unwrap();
    let held = |name: &str| tensors.iter().any(|(held, ..)| *held == name);
    let Some(expectation) = case.expectation else { return assert!(tensors.is_empty()) };
    assert_eq!(expectation.source, "worked out by hand");
    assert_eq!(expectation.selected.is_some(), held("selected"));
    assert_eq!(expectation.mask.is_some(), held("mask"));
    assert_eq!(expectation.output.is_some(), held("output"));
}

#[rstest]
#[case::fewer_queries(
    &[("selected", Dtype::I32, &[1, 2, 2, 2][..])],
    "selected: found shape [1, 2, 2, 2], expected [1, 2, 3, ·]"
)]
#[case::kv_heads(
    &[("selected", Dtype::I32, &[1, 1, 3, 2][..])],
    "selected: found shape [1, 1, 3, 2], expected [1, 2, 3, ·]"
)]
#[case::more_keys(
    &[("mask", Dtype::U8, &[1, 2, 3, 5][..])],
    "mask: found shape [1, 2, 3, 5], expected [1, 2, 3, 4]"
)]
#[case::a_mask_of_all_heads(
    &[("mask", Dtype::U8, &[1, 1, 3, 4][..])],
    "mask: found shape [1, 1, 3, 4], expected [1, 2, 3, 4]"
)]
#[case::output_of_d(
    &[SELECTED, ("output", Dtype::F32, &[1, 2, 3, 2][..])],
    "output: found shape [1, 2, 3, 2], expected (1, 2, 3, 5)"
)]
#[case::output_alone(&[OUTPUT], "expectation: found output alone, expected selected or mask beside output")]
fn an_expectation_that_does_not_fit_its_case_is_refused(#[case] tensors: &[Zeros], #[case] expected: &str) {
    let error = parsed(&with_expectation(tensors)).unwrap_err();
    assert!(error.contains(expected), "{error}");
}

fn recipe(heads: usize, kv_heads: usize, keys: usize, head_dim: usize, rows: &str) -> Value {
    json!({"generator": "splitmix-1", "seed": 1, "batch": 1, "heads": heads, "kv_heads": kv_heads,
        "queries": 1, "keys": keys, "head_dim": head_dim, "rows": rows})
}

#[test]
fn a_recipe_makes_q_k_and_v_and_the_file_may_add_a_mask() {
    let metadata = [("case", settings(1)), ("recipe", recipe(1, 1, 4, 2, "per-head"))];
    let plain = parsed(&container(&metadata, &[])).unwrap().call.inputs;
    let mask: Zeros = ("attention_mask", Dtype::F32, &[1, 1, 1, 4]);
    let masked = parsed(&container(&metadata, &[mask])).unwrap().call.inputs;
    assert_eq!(plain.parts().attention_mask, None);
    assert_eq!(masked.parts().attention_mask, Some(ndarray::Array4::zeros((1, 1, 1, 4))));
    assert_eq!((&masked.parts().q, &masked.parts().k), (&plain.parts().q, &plain.parts().k));
}

/// Metadata says nothing of a file that cannot be read: reading it says what is wrong.
#[rstest]
#[case(4, 2, true)]
#[case(2, 2, true)]
#[case(3, 2, false)]
#[case(1, 2, false)]
#[case(2, 0, false)]
#[case(0, 0, false)]
fn heads_that_cannot_be_grouped_have_no_outline(
    #[case] heads: usize,
    #[case] kv_heads: usize,
    #[case] fits: bool,
) {
    let (q, k) = ([1, heads, 1, 2], [1, kv_heads, 4, 2]);
    let tensors: [Zeros; 4] = [
        ("q", Dtype::F32, &q),
        ("k", Dtype::F32, &k),
        ("v", Dtype::F32, &k),
        ("channels", Dtype::I64, &[1, 1]),
    ];
    let bytes = container(&[("case", settings(2))], &tensors);
    assert_eq!(peek(&bytes).unwrap().is_some(), fits);
    assert_eq!(parsed(&bytes).is_ok(), fits);
}

#[rstest]
#[case::alike(&[2, 3], None)]
#[case::more_channels(&[2, 4], Some("bits_04.labels: found (2, 4), expected shape (2, 3) as its rows"))]
#[case::fewer_rows(&[1, 3], Some("bits_04.labels: found (1, 3), expected shape (2, 3) as its rows"))]
fn labels_have_the_shape_of_their_rows(#[case] labels: &[usize], #[case] expected: Option<&str>) {
    let tensors = [("bits_04.rows", Dtype::F32, &[2, 3][..]), ("bits_04.labels", Dtype::F32, labels)];
    let read =
        Reader::default().parse(&container(&[("quantisation", json!({"dtype": "f32"}))], &tensors), "");
    match (read, expected) {
        (Ok(CaseFile::Quantisation(cases)), None) => assert_eq!(cases.len(), 1),
        (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
        (read, _) => panic!("{read:?}"),
    }
}

fn limit(bytes: usize) -> Memory {
    Memory::from_gib(bytes as f64 / f64::from(1 << 30)).unwrap()
}

fn is_too_much(file: &[u8], bytes: usize) -> bool {
    match Reader::within(limit(bytes)).parse(file, "file") {
        Ok(_) => false,
        Err(Error::Memory(_)) => true,
        Err(other) => panic!("{other}"),
    }
}

/// A file of 2^16 numbers of f32 in its widest tensor, by kind.
fn large_file(kind: &str) -> Vec<u8> {
    const D: usize = 1 << 12;
    let instance = json!({"settings": {"heavy_size": 1, "group_factor": D, "label_bits": 4},
        "channel_selection": "qk_proj"});
    let channel_file =
        ("channel_file", json!({"model.layers.0.self_attn.qk_proj": [[0]]}).to_string().into());
    let (one, many) = (&[1, 1, 1, D][..], &[1, 1, 16, D][..]);
    let layer = [("q", Dtype::F32, one), ("k", Dtype::F32, many), ("v", Dtype::F32, many)];
    match kind {
        "case" => {
            let channels: Zeros = ("channels", Dtype::I64, &[1, 1]);
            container(&[("case", settings(D))], &[&layer[..], &[channels]].concat())
        }
        "sequence" => {
            let mut sequence = instance;
            sequence["calls"] = json!([{"layer": 0, "causal": false, "dtype": "f32"}]);
            let names = ["call_0.q", "call_0.k", "call_0.v"];
            let of_call: Vec<Zeros> =
                layer.iter().zip(names).map(|(&(_, dtype, shape), name)| (name, dtype, shape)).collect();
            container(&[("sequence", sequence), channel_file], &of_call)
        }
        "scores_case" => container(
            &[("scores_case", json!({"heavy_size": 1, "dtype": "f32"}))],
            &[("scores", Dtype::F32, &[1, 1, 1, 1 << 16])],
        ),
        "selection_case" => {
            let selected: Zeros = ("selected", Dtype::I32, &[1, 1, 1, 1]);
            container(&[("selection_case", json!({"dtype": "f32"}))], &[&layer[..], &[selected]].concat())
        }
        "session" => {
            let mut session = instance;
            session["open"] = json!({"layers": [0], "capacity": 16, "page_size": 1, "heads": 1, "kv_heads": 1,
                "head_dim": D, "value_dim": D, "dtype": "f32"});
            session["steps"] = json!([{"append": {"layer": 0, "requests": [[0, 16]]}}]);
            let rows = &[16, 1, D][..];
            let appended = [("step_0.k", Dtype::F32, rows), ("step_0.v", Dtype::F32, rows)];
            container(&[("session", session), channel_file], &appended)
        }
        other => panic!("{other}"),
    }
}

/// Numbers are held as they are read and as they are used, which is twice the file at least. An estimate far above what is taken
/// would refuse files that fit.
#[rstest]
fn memory_for_numbers_follows_their_file(
    #[values("case", "sequence", "scores_case", "selection_case", "session")] kind: &str,
) {
    let file = large_file(kind);
    assert!(is_too_much(&file, 2 * file.len()), "{kind} is read in twice its {} bytes", file.len());
    assert!(!is_too_much(&file, 16 * file.len()), "{kind} needs more than 16 times its {} bytes", file.len());
}

/// The least limit that lets a recipe through, up to 1 KiB.
fn needed(mode: &str, recipe: Value, group_factor: usize) -> usize {
    let mut settings = settings(group_factor);
    settings["heads"] = mode.into();
    let file = container(&[("case", settings), ("recipe", recipe)], &[]);
    let (mut refused, mut read) = (1, 1 << 16);
    assert!(is_too_much(&file, refused << 10) && !is_too_much(&file, read << 10));
    while read - refused > 1 {
        let between = refused.midpoint(read);
        *if is_too_much(&file, between << 10) { &mut refused } else { &mut read } = between;
    }
    read << 10
}

/// Where heads select alone, each of 16 threads holds the labels of one KV head's query heads; otherwise all heads' are held.
#[rstest]
#[case::one_head(1, 1, 0)]
#[case::one_kv_head(32, 1, 0)]
#[case::as_many_as_threads(16, 16, 0)]
#[case::more_than_threads(64, 64, 48)]
#[case::groups(64, 32, 32)]
fn memory_for_labels_is_that_of_the_heads_at_work(
    #[case] heads: usize,
    #[case] kv_heads: usize,
    #[case] fewer: usize,
) {
    const KEYS: usize = 63;
    const D: usize = 16;
    let recipe = recipe(heads, kv_heads, KEYS, D, "shared");
    let alone = needed("per-head", recipe.clone(), 1);
    let together = needed("summed-scores", recipe.clone(), 1);
    // Beside what labels take with r = 1, labels of d channels take 4 bytes of each position at least.
    let of_head = (KEYS + 1) * (D - 1) * 4;
    assert!(alone >= needed("per-head", recipe, D) + (heads - fewer) * of_head, "{alone}");
    match fewer {
        0 => assert_eq!(alone, together),
        _ => assert!(alone + fewer * of_head <= together, "{alone} and {together}"),
    }
}

#[test]
fn memory_for_channels_is_that_of_their_rows() {
    let of = |rows: &str| needed("per-head", recipe(64, 1, 1, 1024, rows), 1024);
    // An index takes 8 bytes.
    assert!(of("per-head") >= of("shared") + 63 * 1024 * 8, "{} and {}", of("per-head"), of("shared"));
}

/// A file's length is compared before it is read. A tenth of a GiB is 107,374,182.4 bytes.
#[rstest]
#[case::bytes(4097, 4096, "found 4097 bytes, which takes about 0.000 GiB, expected at most 0.000 GiB")]
#[case::mebibytes(
    5 << 20,
    1 << 20,
    "takes about 0.005 GiB, expected at most 0.001 GiB (--memory allows more)"
)]
#[case::below_a_tenth(107_374_182, 107_374_181, "takes about 0.100 GiB, expected at most 0.100 GiB")]
#[case::above_a_tenth(107_374_183, 107_374_182, "takes about 0.1 GiB, expected at most 0.100 GiB")]
#[case::gibibytes(3 << 30, 1 << 30, "takes about 3.0 GiB, expected at most 1.0 GiB")]
fn a_file_of_more_than_the_limit_is_refused_with_both(
    #[case] length: u64,
    #[case] most: usize,
    #[case] expected: &str,
) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    let error = Reader::within(limit(most)).read(file.path(), "").unwrap_err().to_string();
    assert!(error.contains("too much memory: file: ") && error.contains(expected), "{error}");
    file.as_file().set_len(4096).unwrap();
    let error = Reader::within(limit(most)).read(file.path(), "").unwrap_err().to_string();
    assert!(error.contains("not a case file"), "{error}");
}

/// A count or a length: 4 bytes in version 1, 8 bytes since.
fn count(version: u32, count: usize) -> Vec<u8> {
    if version == 1 { (count as u32).to_le_bytes().to_vec() } else { (count as u64).to_le_bytes().to_vec() }
}

fn text(version: u32, text: &str) -> Vec<u8> {
    [count(version, text.len()), text.as_bytes().to_vec()].concat()
}

fn gguf(version: u32, tensors: usize, entries: usize, rest: &[u8]) -> Vec<u8> {
    let version_bytes = version.to_le_bytes();
    [b"GGUF", &version_bytes[..], &count(version, tensors), &count(version, entries), rest].concat()
}

fn refusal(bytes: &[u8]) -> String {
    gguf_header::check(bytes).unwrap_err().to_string()
}

/// An entry without a name, of one byte: 13 bytes, or 9 in version 1. A tensor without a name, of no dimension and of a type
/// of unknown size: 24 bytes, or 20; so many that the data begin at a multiple of 32, where the file ends.
#[rstest]
#[case(1, 9, 20, 4)]
#[case(2, 13, 24, 7)]
#[case(3, 13, 24, 7)]
fn counts_are_those_of_the_smallest_entries_and_tensors_that_fit(
    #[case] version: u32,
    #[case] of_entry: usize,
    #[case] of_tensor: usize,
    #[case] tensors: usize,
) {
    let entry = [text(version, ""), 0u32.to_le_bytes().to_vec(), vec![1]].concat();
    assert_eq!(entry.len(), of_entry);
    let entries = entry.repeat(20);
    gguf_header::check(&gguf(version, 0, 20, &entries)).unwrap();
    let left = format!("at most 20, as {} bytes are left", entries.len());
    assert_eq!(
        refusal(&gguf(version, 0, 21, &entries)),
        format!("metadata_kv_count: found 21, expected {left}")
    );
    let tensor =
        [text(version, ""), 0u32.to_le_bytes().to_vec(), 99u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    assert_eq!(tensor.len(), of_tensor);
    let listed = tensor.repeat(tensors);
    gguf_header::check(&gguf(version, tensors, 0, &listed)).unwrap();
    let left = format!("at most {tensors}, as {} bytes are left", listed.len());
    assert_eq!(
        refusal(&gguf(version, tensors + 1, 0, &listed)),
        format!("tensor_count: found {}, expected {left}", tensors + 1)
    );
}

/// Five values of a type: numbers of 8 to 64 bits, truth values, empty texts, empty lists (a type and a length).
#[rstest]
fn lists_are_as_long_as_the_values_that_fit(
    #[values(1, 2, 3)] version: u32,
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)] kind: u32,
) {
    let value = match kind {
        0 | 1 | 7 => vec![0],
        2 | 3 => vec![0; 2],
        4..=6 => vec![0; 4],
        8 => text(version, ""),
        9 => [0u32.to_le_bytes().to_vec(), count(version, 0)].concat(),
        _ => vec![0; 8],
    };
    let list = |length: usize| {
        let of_list = [9u32.to_le_bytes(), kind.to_le_bytes()].concat();
        let entry = [text(version, "list"), of_list, count(version, length), value.repeat(5)].concat();
        gguf(version, 0, 1, &entry)
    };
    gguf_header::check(&list(5)).unwrap();
    let left = format!("at most 5, as {} bytes are left", 5 * value.len());
    assert_eq!(refusal(&list(6)), format!("list: found 6, expected {left}"));
}

/// A tensor at an offset of 64 bytes behind the header.
fn with_tensor(kind: u32, dimensions: &[usize], data: usize) -> Vec<u8> {
    let of_dimensions = dimensions.iter().flat_map(|size| (*size as u64).to_le_bytes()).collect();
    let [rank, kind] = [dimensions.len() as u32, kind].map(|number| number.to_le_bytes().to_vec());
    let listed = [text(3, "t"), rank, of_dimensions, kind, 64u64.to_le_bytes().to_vec()].concat();
    let mut bytes = gguf(3, 1, 0, &listed);
    bytes.resize(bytes.len().next_multiple_of(32) + 64 + data, 0);
    bytes
}

/// Bytes of a block by what it holds: a scale (and for some a minimum) of 16 bits, of 32 bits in q8_k, and the bits of each
/// number. Blocks of 256 have smaller scales beside: 4 bits twice for 16 numbers in q2_k, 6 bits for 16 numbers in q3_k,
/// 6 bits twice for 32 numbers in q4_k and q5_k, 8 bits for 16 numbers in q6_k; q8_k has a sum of 16 bits for 16 numbers.
#[rstest]
#[case::f32(0, 1, 4)]
#[case::f16(1, 1, 2)]
#[case::bf16(30, 1, 2)]
#[case::q4_0(2, 32, 2 + 32 * 4 / 8)]
#[case::q4_1(3, 32, 2 + 2 + 32 * 4 / 8)]
#[case::q5_0(6, 32, 2 + 32 * 5 / 8)]
#[case::q5_1(7, 32, 2 + 2 + 32 * 5 / 8)]
#[case::q8_0(8, 32, 2 + 32)]
#[case::q8_1(9, 32, 2 + 2 + 32)]
#[case::q2_k(10, 256, 2 + 2 + 16 + 256 * 2 / 8)]
#[case::q3_k(11, 256, 2 + 16 * 6 / 8 + 256 * 3 / 8)]
#[case::q4_k(12, 256, 2 + 2 + 2 * 8 * 6 / 8 + 256 * 4 / 8)]
#[case::q5_k(13, 256, 2 + 2 + 2 * 8 * 6 / 8 + 256 * 5 / 8)]
#[case::q6_k(14, 256, 2 + 16 + 256 * 6 / 8)]
#[case::q8_k(15, 256, 4 + 256 + 16 * 2)]
fn a_tensor_ends_within_its_file(#[case] kind: u32, #[case] block: usize, #[case] bytes: usize) {
    for dimensions in [&[block][..], &[2 * block, 3], &[block, 1, 2, 2]] {
        let data = dimensions.iter().product::<usize>() / block * bytes;
        gguf_header::check(&with_tensor(kind, dimensions, data)).unwrap();
        let error = refusal(&with_tensor(kind, dimensions, data - 1));
        assert!(error.starts_with("t: found a tensor that ends after it"), "{dimensions:?}: {error}");
    }
    let error = refusal(&with_tensor(kind, &[block, 1, 1, 1, 1], bytes));
    assert!(error.starts_with("t: found 5 dimensions, expected at most 4"), "{error}");
}
