//! Maskers as a configuration builds them, over more than one layer: one instance, and each layer its own channels (SPEC D4),
//! dense layers (D5), k_proj rows with grouped heads (D6), and the composition sink, local, oracle, Double Sparsity.

use std::path::Path;

use doublecheck::algorithm::maskers::double_sparsity;
use doublecheck::algorithm::{
    AttentionConfig, ChannelFile, ChannelKind, ChannelOrder, Error, InputParts, Inputs, Mask,
    SparseAttention, Storage,
};
use doublecheck::cases::recipe::Words;
use ndarray::Array4;

/// One query, 9 heads over 3 KV heads, 96 keys, d = 64: the sizes of the bundled channel file.
fn inputs() -> Inputs {
    let tensor = |t: u64, heads: usize, positions: usize| {
        let words = Words::new(5, t);
        let values = (0..(heads * positions * 64) as u64).map(|i| words.value(i)).collect();
        Array4::from_shape_vec((1, heads, positions, 64), values).unwrap()
    };
    Inputs::new(InputParts {
        q: tensor(0, 9, 1),
        k: tensor(1, 3, 96),
        v: tensor(2, 3, 96),
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    })
    .unwrap()
}

fn attention(json: &str, folder: &Path) -> (AttentionConfig, SparseAttention) {
    let config = AttentionConfig::from_json(json).unwrap();
    let attention = SparseAttention::create_from_config(&config, folder).unwrap();
    (config, attention)
}

fn golden_channels() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/channels"))
}

const JSON: &str = r#"{"maskers": [{"double_sparsity": {"heavy_size": 12, "group_factor": 8, "label_bits": 4,
    "sorted_channel_file": "SmolLM2-135M.json"}}], "dense_layers": [0, 1]}"#;

#[test]
fn one_instance_uses_the_channels_of_each_layer() {
    let inputs = inputs();
    let (config, attention) = attention(JSON, golden_channels());
    let file = ChannelFile::read(&golden_channels().join("SmolLM2-135M.json")).unwrap();
    let doublecheck::algorithm::MaskerConfig::DoubleSparsity(settings) = &config.maskers[0] else {
        panic!("the configuration holds one Double Sparsity masker");
    };
    let empty = Mask::empty(&inputs.dims());
    let with = |order: &ChannelOrder| double_sparsity(&inputs, order, &settings.selection, &empty).unwrap();
    let order = |layer| file.order(ChannelKind::QkProj, layer).unwrap();
    // Later layers first and again, so that state carried over in either direction would show.
    for layer in [5, 4, 29, 4, 5] {
        assert_eq!(attention.mask(&inputs, layer).unwrap(), with(order(layer)), "layer {layer}");
    }
    // The fault of D4 would be seen: these layers select different keys.
    assert_ne!(with(order(4)), with(order(5)));
    assert!(matches!(attention.mask(&inputs, 30), Err(Error::MissingLayer(_))));
}

#[test]
fn dense_layers_attend_to_everything() {
    let inputs = inputs();
    let (_, attention) = attention(JSON, golden_channels());
    for (layer, full) in [(0, true), (1, true), (2, false)] {
        assert_eq!(attention.mask(&inputs, layer).unwrap().is_full(), full, "layer {layer}");
    }
    let dense = doublecheck::algorithm::attention::dense_attention(&inputs);
    assert_eq!(attention.attend(&inputs, 0).unwrap(), dense);
    assert_ne!(attention.attend(&inputs, 2).unwrap(), dense);
}

#[test]
fn k_proj_rows_serve_the_query_heads_of_their_kv_head() {
    let folder = tempfile::tempdir().unwrap();
    let row = |seed: u64| {
        let mut row: Vec<usize> = (0..64).collect();
        row.sort_by_key(|&c| Words::new(seed, 0).word(c as u64));
        row
    };
    let rows: Vec<_> = (0..3).map(row).collect();
    let mut file = ChannelFile::default();
    file.insert(ChannelKind::KProj, 3, ChannelOrder::new(rows.clone()).unwrap());
    // The same rows written out for each query head: 0 0 0 1 1 1 2 2 2.
    let repeated = (0..9).map(|head| rows[head / 3].clone()).collect();
    file.insert(ChannelKind::QProj, 3, ChannelOrder::new(repeated).unwrap());
    std::fs::write(folder.path().join("c.json"), file.to_json()).unwrap();
    let json = |kind: &str| {
        format!(
            r#"{{"maskers": [{{"double_sparsity": {{"heavy_size": 0.1, "sorted_channel_file": "c.json",
                "channel_selection": "{kind}"}}}}]}}"#
        )
    };
    let mask = |kind| attention(&json(kind), folder.path()).1.mask(&inputs(), 3).unwrap();
    assert_eq!(mask("k_proj"), mask("q_proj"));
}

#[test]
fn each_masker_of_a_list_adds_to_the_one_before() {
    let inputs = inputs();
    let json = r#"{"maskers": [{"sink": {"size": 4}}, {"local": {"size": 8}}, {"oracle": {"heavy_size": 5}},
        {"double_sparsity": {"heavy_size": 0.1, "sorted_channel_file": "SmolLM2-135M.json"}}]}"#;
    let (_, attention) = attention(json, golden_channels());
    let mask = attention.mask(&inputs, 7).unwrap();
    for row in inputs.dims().rows() {
        let keys: Vec<usize> = mask.row(row).map(|(key, _)| key).collect();
        // 4 + 8 + 5 + floor(0.1 · 96) = 9, none of them twice.
        assert_eq!(keys.len(), 26, "{row:?}");
        assert!((0..4).chain(88..96).all(|key| keys.contains(&key)), "{row:?}: {keys:?}");
    }
}
