//! Channel files of real models load. They are not part of this project and are looked for beside it; where they are not, the
//! test is counted as ignored, never as passed, and a line says why.

mod support;

use doublecheck::algorithm::ChannelFile;
use doublecheck::algorithm::ChannelKind::{KProj, QProj, QkProj};
use libtest_mimic::{Arguments, Failed, Trial};

const FOLDER: &str = "channels";

fn main() {
    let missing = support::shared(FOLDER).is_none();
    if missing {
        eprintln!("ignored: published_channel_files_load: no ../shared/{FOLDER} beside the project");
    }
    let trial = Trial::test("published_channel_files_load", published_channel_files_load);
    libtest_mimic::run(&Arguments::from_args(), vec![trial.with_ignored_flag(missing)]).exit();
}

fn published_channel_files_load() -> Result<(), Failed> {
    let folder = support::shared(FOLDER).ok_or("no folder of channel files")?;
    let file =
        |name: &str| ChannelFile::read(&folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected = [
        ("Llama-3.1-8B-Instruct.json", vec![QProj, KProj, QkProj], 32, 32, 8, 128),
        ("Llama-3.2-11B-Vision-Instruct.json", vec![QProj, KProj, QkProj], 32, 32, 8, 128),
        ("Mistral-7B-v0.1.json", vec![QProj, QkProj], 32, 32, 0, 128),
        ("llama-7b.json", vec![QProj, KProj, QkProj], 32, 32, 32, 128),
        ("SmolLM2-135M.json", vec![QkProj], 30, 9, 0, 64),
    ];
    for (name, kinds, layers, heads, kv_heads, head_dim) in expected {
        let file = file(name);
        assert_eq!(file.kinds().collect::<Vec<_>>(), kinds, "{name}");
        for kind in kinds {
            assert_eq!(file.layers(kind).count(), layers, "{name}");
            let rows = if kind == KProj { kv_heads } else { heads };
            for (layer, order) in file.layers(kind) {
                assert_eq!((order.rows().len(), order.width()), (rows, head_dim), "{name} layer {layer}");
                // SPEC D2: in no layer are all rows alike.
                assert!(!order.is_shared(order.width()), "{name} layer {layer}");
            }
        }
    }
    // SPEC §4: this model has 40 layers, 8 of which attend to images and have no channels.
    let vision = file("Llama-3.2-11B-Vision-Instruct.json");
    assert_eq!(vision.layers(QkProj).last().unwrap().0, 39);
    assert!(vision.order(QkProj, 3).is_err());
    Ok(())
}
