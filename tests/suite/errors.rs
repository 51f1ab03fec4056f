//! Every input that SPEC §2 forbids, one case each: it is an error, never a panic, and its text names the field, the value
//! found and the value expected.

use crate::support::small_case;
use doublecheck::algorithm::config::from_json;
use doublecheck::algorithm::{
    AttentionConfig, ChannelFile, ChannelKind, ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts,
    Inputs, LabelBits, Mask, Storage,
};
use doublecheck::cases::{Case, Reader, file};
use doublecheck::subjects::{Reference, Subject};
use ndarray::{Array4, s};
use rstest::{Context, rstest};

/// The name of a case's snapshot.
fn name(table: &str, context: &Context) -> String {
    format!("{table}_{}", context.description.unwrap_or_default())
}

type Change = fn(&mut InputParts);

fn inputs_error(change: Change) -> String {
    let mut parts = small_case().call.inputs.parts().clone();
    change(&mut parts);
    Inputs::new(parts).unwrap_err().to_string()
}

#[rstest]
#[case::nan_in_q(|parts: &mut InputParts| parts.q[[0, 1, 1, 3]] = f32::NAN)]
#[case::infinity_in_k(|parts: &mut InputParts| parts.k[[0, 0, 5, 0]] = f32::INFINITY)]
#[case::minus_infinity_in_v(|parts: &mut InputParts| parts.v[[0, 0, 0, 2]] = f32::NEG_INFINITY)]
#[case::overflow_in_f16(|parts: &mut InputParts| { parts.storage = Storage::F16; parts.k[[0, 0, 2, 1]] = 70_000.0 })]
#[case::nan_in_mask(|parts: &mut InputParts| parts.attention_mask = Some(Array4::from_elem((1, 1, 2, 6), f32::NAN)))]
#[case::plus_infinity_in_mask(|parts: &mut InputParts| parts.attention_mask = Some(Array4::from_elem((1, 1, 1, 1), f32::INFINITY)))]
#[case::mask_does_not_broadcast(|parts: &mut InputParts| parts.attention_mask = Some(Array4::zeros((1, 3, 2, 6))))]
#[case::nan_scaling(|parts: &mut InputParts| parts.scaling = Some(f64::NAN))]
#[case::head_dims_differ(|parts: &mut InputParts| parts.k = Array4::zeros((1, 1, 6, 5)))]
#[case::batches_differ(|parts: &mut InputParts| parts.k = Array4::zeros((2, 1, 6, 4)))]
#[case::values_do_not_fit(|parts: &mut InputParts| parts.v = Array4::zeros((1, 1, 7, 3)))]
#[case::heads_do_not_divide(|parts: &mut InputParts| { parts.k = Array4::zeros((1, 3, 6, 4)); parts.v = Array4::zeros((1, 3, 6, 3)) })]
#[case::no_keys(|parts: &mut InputParts| { parts.k = Array4::zeros((1, 1, 0, 4)); parts.v = Array4::zeros((1, 1, 0, 3)) })]
#[case::more_queries_than_keys(|parts: &mut InputParts| { parts.q = Array4::zeros((1, 2, 7, 4)) })]
fn inputs(#[context] context: Context, #[case] change: Change) {
    insta::assert_snapshot!(name("inputs", &context), inputs_error(change));
}

#[rstest]
#[case::count_zero(HeavySize::count(0).unwrap_err().to_string())]
#[case::not_a_number(HeavySize::fraction(f64::NAN).unwrap_err().to_string())]
#[case::fraction_zero(HeavySize::fraction(0.0).unwrap_err().to_string())]
#[case::fraction_above_one(HeavySize::fraction(1.5).unwrap_err().to_string())]
#[case::fraction_negative(HeavySize::fraction(-0.5).unwrap_err().to_string())]
#[case::json_count_zero(from_json::<HeavySize>("heavy_size", "0").unwrap_err().to_string())]
#[case::json_negative(from_json::<HeavySize>("heavy_size", "-1").unwrap_err().to_string())]
#[case::json_fraction(from_json::<HeavySize>("heavy_size", "2.0").unwrap_err().to_string())]
#[case::json_text(from_json::<HeavySize>("heavy_size", "\"64\"").unwrap_err().to_string())]
fn heavy_size(#[context] context: Context, #[case] error: String) {
    insta::assert_snapshot!(name("heavy_size", &context), error);
}

#[rstest]
#[case::group_factor_zero(GroupFactor::new(0).unwrap_err().to_string())]
#[case::label_bits_zero(LabelBits::new(0).unwrap_err().to_string())]
#[case::label_bits_17(LabelBits::new(17).unwrap_err().to_string())]
#[case::head_mode("summed".parse::<HeadMode>().unwrap_err().to_string())]
#[case::channel_kind("v_proj".parse::<ChannelKind>().unwrap_err().to_string())]
#[case::repeated_channel(ChannelOrder::new(vec![vec![0, 1], vec![3, 3]]).unwrap_err().to_string())]
#[case::ragged_rows(ChannelOrder::new(vec![vec![0, 1], vec![3]]).unwrap_err().to_string())]
#[case::no_rows(ChannelOrder::new(vec![]).unwrap_err().to_string())]
#[case::negative_weight(Mask::from_weights(Array4::from_elem((1, 2, 2, 6), -1.0), &small_case().call.inputs.dims()).unwrap_err().to_string())]
#[case::mask_shape(Mask::from_weights(Array4::zeros((1, 2, 2, 5)), &small_case().call.inputs.dims()).unwrap_err().to_string())]
fn settings(#[context] context: Context, #[case] error: String) {
    insta::assert_snapshot!(name("settings", &context), error);
}

fn answer_error(change: fn(&mut Case)) -> String {
    let mut case = small_case();
    change(&mut case);
    Reference::default().answer(&case).unwrap_err().to_string()
}

fn order(rows: &[&[usize]]) -> ChannelOrder {
    ChannelOrder::new(rows.iter().map(|row| row.to_vec()).collect()).unwrap()
}

#[rstest]
#[case::group_factor_does_not_divide(|case: &mut Case| case.instance.selection.group_factor = GroupFactor::new(3).unwrap())]
#[case::channel_out_of_range(|case: &mut Case| *case = case.with_channels(order(&[&[0, 4]])))]
#[case::too_many_rows(|case: &mut Case| *case = case.with_channels(order(&[&[0, 1], &[0, 1], &[0, 1]])))]
#[case::too_few_channels(|case: &mut Case| *case = case.with_channels(order(&[&[0]])))]
#[case::summed_labels_without_shared_row(|case: &mut Case| {
    case.instance.selection.heads = HeadMode::SummedLabels;
    *case = case.with_channels(order(&[&[0, 1], &[1, 0]]));
})]
#[case::labels_leave_f16(|case: &mut Case| {
    let mut parts = case.call.inputs.parts().clone();
    parts.storage = Storage::F16;
    parts.k.slice_mut(s![0, 0, 3, ..]).assign(&ndarray::arr1(&[0.0, 1e-4, 2e-4, 1e-4]));
    case.call.inputs = Inputs::new(parts).unwrap().into();
})]
fn answers(#[context] context: Context, #[case] change: fn(&mut Case)) {
    insta::assert_snapshot!(name("answers", &context), answer_error(change));
}

#[test]
fn summed_labels_needs_one_mask_for_all_heads() {
    let error = answer_error(|case: &mut Case| {
        let mut parts = case.call.inputs.parts().clone();
        parts.attention_mask =
            Some(Array4::from_shape_fn((1, 2, 1, 6), |(_, head, _, key)| (head * key) as f32));
        case.call.inputs = Inputs::new(parts).unwrap().into();
        case.instance.selection.heads = HeadMode::SummedLabels;
        *case = case.with_channels(order(&[&[0, 1]]));
    });
    insta::assert_snapshot!(error);
}

#[rstest]
#[case::not_json("{")]
#[case::not_an_object("[1, 2]")]
#[case::empty("{}")]
#[case::other_key(r#"{"layers.0": [[0]]}"#)]
#[case::wrong_kind(r#"{"model.layers.0.self_attn.x_proj": [[0, 1]]}"#)]
#[case::not_rows(r#"{"model.layers.0.self_attn.q_proj": 7}"#)]
#[case::not_a_row(r#"{"model.layers.0.self_attn.q_proj": [[0, 1], "x"]}"#)]
#[case::not_a_number(r#"{"model.layers.0.self_attn.q_proj": [[0, 1.5]]}"#)]
#[case::negative(r#"{"model.layers.0.self_attn.q_proj": [[0, -1]]}"#)]
#[case::duplicate(r#"{"model.layers.3.self_attn.k_proj": [[0, 1], [1, 1]]}"#)]
#[case::out_of_range(r#"{"model.layers.3.self_attn.k_proj": [[0, 2]]}"#)]
#[case::ragged(r#"{"model.layers.3.self_attn.k_proj": [[0, 1], [0]]}"#)]
#[case::no_rows(r#"{"model.layers.3.self_attn.k_proj": []}"#)]
fn channel_files(#[context] context: Context, #[case] text: &str) {
    let error = ChannelFile::from_json(text).unwrap_err().to_string();
    insta::assert_snapshot!(name("channel_file", &context), error);
}

#[test]
fn a_layer_or_kind_that_a_channel_file_lacks() {
    let text = r#"{"model.layers.0.self_attn.q_proj": [[0]], "model.layers.1.self_attn.q_proj": [[0]],
                   "model.layers.4.self_attn.q_proj": [[0]], "model.layers.4.mlp.down_proj": [[0]]}"#;
    let file = ChannelFile::from_json(text).unwrap();
    insta::assert_snapshot!("missing_layer", file.order(ChannelKind::QProj, 3).unwrap_err().to_string());
    insta::assert_snapshot!("missing_kind", file.order(ChannelKind::KProj, 0).unwrap_err().to_string());
}

#[rstest]
#[case::unknown_field(r#"{"maskers":[],"dense_layer":[0]}"#)]
#[case::unknown_masker(r#"{"maskers":[{"random":{"size":4}}]}"#)]
#[case::unknown_field_of_masker(r#"{"maskers":[{"sink":{"sink_size":4}}]}"#)]
#[case::head_mode(
    r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"sorted_channel_file":"c","heads":"all"}}]}"#
)]
#[case::label_bits(
    r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"sorted_channel_file":"c","label_bits":0}}]}"#
)]
#[case::group_factor(
    r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"sorted_channel_file":"c","group_factor":0}}]}"#
)]
#[case::unknown_field_of_double_sparsity(
    r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"sorted_channel_file":"c","label_bit":8}}]}"#
)]
#[case::heavy_size_missing(r#"{"maskers":[{"double_sparsity":{"sorted_channel_file":"c"}}]}"#)]
#[case::trailing_text(r#"{"maskers":[]} x"#)]
fn configurations(#[context] context: Context, #[case] text: &str) {
    let error = AttentionConfig::from_json(text).unwrap_err().to_string();
    insta::assert_snapshot!(name("configuration", &context), error);
}

/// A case file whose bytes are cut or changed anywhere is an error or a case, never a panic.
#[test]
fn damaged_files_never_panic() {
    let bytes = file::to_bytes(&small_case());
    for length in 0..bytes.len() {
        assert!(Reader::default().parse(&bytes[..length], "cut").is_err());
    }
    for position in 0..bytes.len() {
        for flip in [0x01, 0x10, 0x80, 0xFF] {
            let mut bytes = bytes.clone();
            bytes[position] ^= flip;
            let _ = Reader::default().parse(&bytes, "damaged");
        }
    }
}

#[rstest]
#[case::no_metadata(r#"{}"#)]
#[case::unknown_kind(r#"{"__metadata__":{"author":"x"}}"#)]
#[case::no_tensors(r#"{"__metadata__":{"case":"{\"heavy_size\":1,\"group_factor\":1,\"label_bits\":4,\"causal\":true,\"dtype\":\"f32\"}"}}"#)]
#[case::dtype(r#"{"__metadata__":{"case":"{\"heavy_size\":1,\"group_factor\":1,\"label_bits\":4,\"causal\":true,\"dtype\":\"f8\"}"}}"#)]
#[case::recipe_sizes(r#"{"__metadata__":{"case":"{\"heavy_size\":1,\"group_factor\":1,\"label_bits\":4,\"causal\":true,\"dtype\":\"f32\"}","recipe":"{\"generator\":\"splitmix-1\",\"seed\":1,\"batch\":1,\"heads\":18446744073709551615,\"kv_heads\":1,\"queries\":2,\"keys\":1,\"head_dim\":8}"}}"#)]
#[case::recipe_generator(r#"{"__metadata__":{"case":"{\"heavy_size\":1,\"group_factor\":1,\"label_bits\":4,\"causal\":true,\"dtype\":\"f32\"}","recipe":"{\"generator\":\"mt19937\",\"seed\":1,\"batch\":1,\"heads\":1,\"kv_heads\":1,\"queries\":1,\"keys\":1,\"head_dim\":8}"}}"#)]
fn case_files(#[context] context: Context, #[case] header: &str) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let error = Reader::default().parse(&bytes, "case").unwrap_err().to_string();
    insta::assert_snapshot!(name("case_file", &context), error);
}
