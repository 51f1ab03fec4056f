//! The drawing of the folders in CONTRIBUTING.md against the imports of the code: no folder imports one that stands at the
//! same stop or at a later one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{path, read};

/// Stops in the order of the drawing; folders of one stop are independent of one another.
fn stops() -> Vec<Vec<String>> {
    let contributing = read("CONTRIBUTING.md");
    let drawing = contributing.split("```").find(|block| block.contains("─▶")).expect("a drawing");
    let mut lines = drawing.lines().filter(|line| line.contains("─▶")).map(|line| {
        line.trim_end_matches(['─', '┘', ' '])
            .split("─▶")
            .map(|stop| stop.split(',').map(|folder| folder.trim().to_owned()).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    });
    let (mut stops, branch) = (lines.next().expect("a main line"), lines.next().expect("a branch"));
    // The branch joins the main line at the reports, and nothing between imports it.
    let reports = stops.iter().position(|stop| stop.contains(&"reports".to_owned())).expect("reports");
    stops.splice(reports..reports, branch);
    stops.insert(0, vec!["compute".into(), "checksum".into(), "visible".into()]);
    stops
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of the crate that a text names, unit tests left out: `crate::name`.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::").skip(1).map(name).filter(|name| !name.is_empty()).collect()
}

#[test]
fn no_folder_imports_a_later_one() {
    let stops = stops();
    let rank: BTreeMap<&str, usize> = stops
        .iter()
        .enumerate()
        .flat_map(|(rank, stop)| stop.iter().map(move |folder| (folder.as_str(), rank)))
        .collect();
    let source = path("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    let (mut arrows, mut unknown) = (0, Vec::new());
    for file in files {
        let relative = file.strip_prefix(&source).unwrap();
        let top = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let folder = top.trim_end_matches(".rs");
        if ["lib", "main", "prelude"].contains(&folder) {
            continue;
        }
        let Some(&own) = rank.get(folder) else {
            unknown.push(folder.to_owned());
            continue;
        };
        for name in imports(&std::fs::read_to_string(&file).unwrap()) {
            if name == folder {
                continue;
            }
            // What is not a folder is an item of the crate's root, which only the command may use.
            let Some(&other) = rank.get(name.as_str()) else {
                assert_eq!(
                    folder,
                    "cli",
                    "{}: found {name}, expected a folder of the drawing",
                    relative.display()
                );
                continue;
            };
            arrows += 1;
            let (own_stop, other_stop) = (&stops[own], &stops[other]);
            assert!(
                other < own,
                "src/{}: found an import of {name} ({other_stop:?}), expected folders before {own_stop:?} only",
                relative.display()
            );
        }
    }
    assert_eq!(unknown, Vec::<String>::new(), "folders that the drawing lacks");
    assert!(arrows > 100, "found {arrows} imports between folders, expected the crate's");
}
