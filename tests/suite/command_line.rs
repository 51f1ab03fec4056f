//! The commands as a person runs them: exit codes, output, and what happens to damaged files.

use std::path::{Path, PathBuf};

use doublecheck::cases::file;

use crate::running::{run, stdout};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn verify_runs_from_any_folder_and_shows_a_table() {
    let output = run(&["verify", text(&golden("small")), "--no-times", "--random-cases", "50"]);
    insta::assert_snapshot!(stdout(&output));
    assert_eq!(output.status.code(), Some(0));
}

/// Copies one bundled file into a folder of its own, with the list of checksums, and changes one byte of it.
fn damaged(name: &str, position_from_end: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (group, _) = name.split_once('/').unwrap();
    std::fs::create_dir(folder.path().join(group)).unwrap();
    let mut bytes = std::fs::read(golden(name)).unwrap();
    let position = bytes.len() - 1 - position_from_end;
    bytes[position] ^= 1;
    std::fs::write(folder.path().join(name), bytes).unwrap();
    let sums = std::fs::read_to_string(golden("SHA256SUMS")).unwrap();
    let line = sums.lines().find(|line| line.ends_with(name)).unwrap();
    std::fs::write(folder.path().join("SHA256SUMS"), format!("{line}\n")).unwrap();
    folder
}

#[test]
fn one_changed_byte_of_an_expectation_is_found() {
    let name = first_case("small");
    // The data of the last tensor end the file, so these are bytes of expectations, low and high ones.
    for position in [0, 1, 2, 3, 4, 7, 64] {
        let folder = damaged(&name, position);
        let file = folder.path().join(&name);
        for path in [folder.path(), file.parent().unwrap(), &file] {
            let output = run(&["verify", text(path), "--random-cases", "0"]);
            assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
            assert!(stdout(&output).contains(name.rsplit_once('/').unwrap().1), "{}", stdout(&output));
            assert!(stdout(&output).contains("the stored expectation falls outside"), "{}", stdout(&output));
        }
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let folder = damaged(&first_case("small"), 0);
    let sums = folder.path().join("SHA256SUMS");
    let text_of_sums = std::fs::read_to_string(&sums).unwrap();
    std::fs::write(&sums, format!("{text_of_sums}{:064}  small/gone.safetensors\n", 0)).unwrap();
    let output = run(&["verify", text(folder.path()), "--random-cases", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("small/gone.safetensors"));
}

fn first_case(group: &str) -> String {
    let files = doublecheck::cases::bundled::find(&golden("")).unwrap();
    files.into_iter().find(|file| file.group() == group).unwrap().name
}

#[test]
fn a_key_moved_in_an_expectation_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    // Reports group files by their folder, which must have the same name each time.
    let group = folder.path().join("moved");
    std::fs::create_dir(&group).unwrap();
    let input = group.join("case.safetensors");
    let mut case = crate::support::small_case();
    let mut answer =
        doublecheck::subjects::Subject::answer(&mut doublecheck::subjects::Reference::default(), &case)
            .unwrap();
    let (key, _) = answer.mask.row((0, 1, 1)).next().unwrap();
    answer.mask.remove((0, 1, 1), key);
    answer.mask.add((0, 1, 1), [if key == 0 { 5 } else { 0 }]);
    case.expectation = Some(doublecheck::cases::Expectation::from_answer(&answer, "a wrong answer".into()));
    file::write(&input, &case).unwrap();
    let output = run(&["verify", text(&input), "--no-times", "--random-cases", "0"]);
    insta::assert_snapshot!(stdout(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn bad_input_exits_with_2_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.safetensors");
    std::fs::write(&file, b"not safetensors").unwrap();
    for (arguments, expected) in [
        (&["verify", text(&file), "--random-cases", "0"][..], "not a case file"),
        (&["verify", "no/such/folder"], "cannot access no/such/folder"),
        (&["verify", text(folder.path()), "--random-cases", "0"], "not a case file"),
        (&["inspect", text(&file)], "not a case file"),
        (&["inspect", "nothing.json"], "cannot access nothing.json"),
        (&["run", text(&file), "-o", "out.safetensors"], "not a case file"),
        (&["calibrate", text(&file), "-o", "out.json"], "not a case file"),
        (&["no-such-command"], "unrecognized subcommand 'no-such-command'"),
    ] {
        let output = run(arguments);
        let said = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let empty = tempfile::tempdir().unwrap();
    let output = run(&["verify", text(empty.path())]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected at least one *.safetensors"));
}

#[test]
fn run_writes_a_case_that_verifies_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (input, result) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    file::write(&input, &crate::support::small_case()).unwrap();
    assert_eq!(run(&["run", text(&input), "-o", text(&result)]).status.code(), Some(0));
    let json = folder.path().join("report.json");
    let output = run(&["verify", text(&result), "--random-cases", "0", "--json", text(&json)]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["groups"][0]["bit_exact"], 1);
    let inspected = run(&["inspect", text(&result)]);
    insta::assert_snapshot!(stdout(&inspected).replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn inspect_shows_a_channel_file() {
    let output = run(&["inspect", text(&golden("channels/SmolLM2-135M.json"))]);
    insta::assert_snapshot!(stdout(&output));
}

#[test]
fn calibrate_derives_rows_per_head_and_a_shared_row() {
    let folder = tempfile::tempdir().unwrap();
    // Channel c of head h has magnitude 1 + (c + h) mod 4 in every token, in two layers of one block each.
    let shape = [1, 2, 3, 4];
    let q: Vec<u8> = ndarray::Array4::from_shape_fn(shape, |(_, head, _, c)| (1 + (c + head) % 4) as f32)
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &q).unwrap();
    let files: Vec<_> = [0, 5]
        .iter()
        .map(|layer| {
            let path = folder.path().join(format!("layer{layer}.safetensors"));
            let metadata = std::collections::HashMap::from([("layer".to_owned(), layer.to_string())]);
            let bytes = safetensors::serialize([("q_proj", view.clone())], Some(metadata)).unwrap();
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    let result = folder.path().join("channels.json");
    // Summed over the two heads the importance is 3, 5, 7, 5.
    let cases = [(false, "[[3,2,1,0],[2,1,0,3]]"), (true, "[[2,1,3,0]]")];
    for (shared, rows) in cases {
        let mut arguments = vec!["calibrate", text(&files[0]), text(&files[1]), "-o", text(&result)];
        if shared {
            arguments.push("--shared");
        }
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(stdout(&output), "q_proj: layers 0, 5, 2 blocks\n");
        let expected = format!(
            "{{\"model.layers.0.self_attn.q_proj\":{rows},\"model.layers.5.self_attn.q_proj\":{rows}}}\n"
        );
        assert_eq!(std::fs::read_to_string(&result).unwrap(), expected);
    }
}

/// What needs libtorch says how to get a build that has it.
#[cfg(not(feature = "torch"))]
#[test]
fn a_build_without_libtorch_says_how_to_make_one_with_it() {
    for arguments in [
        &["verify", "--subject", "torch"][..],
        &["eval", "perplexity", "--model", "m.gguf", "--text", "t.txt"],
        &["calibrate", "--model", "m.gguf", "--text", "t.txt", "-o", "channels.json"],
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr.contains("cargo build --release --features torch"), "{arguments:?}: {stderr}");
    }
}
