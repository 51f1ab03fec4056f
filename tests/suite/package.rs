//! What is published: the archive of bundled cases holds the files of `golden/`, and the package is small enough for crates.io.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use doublecheck::cases::bundled;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The archive is packed by hand, so that it may be of an earlier state of the folder.
#[test]
fn the_archive_holds_the_files_of_the_folder() {
    let folder = Path::new(ROOT).join("golden");
    let names =
        |found: Vec<bundled::Found>| found.into_iter().map(|found| found.name).collect::<BTreeSet<_>>();
    let expected = names(bundled::find(&folder).unwrap());
    assert_eq!(names(bundled::cases().unwrap()), expected, "run ci/bundle");
    assert!(expected.len() > 100, "{}", expected.len());
    for name in expected.iter().map(String::as_str).chain(["SHA256SUMS"]) {
        let file = std::fs::read(folder.join(name)).unwrap();
        assert!(bundled::read(name).unwrap() == file, "{name} differs: run ci/bundle");
    }
}

/// Each file in the archive has a checksum there, and `verify` compares it.
#[test]
fn every_file_of_the_archive_has_its_checksum() {
    let mut checksums = bundled::Checksums::default();
    for found in bundled::cases().unwrap() {
        let sum = bundled::sha256(&found.read().unwrap());
        assert_eq!(checksums.recorded(&found).unwrap(), Some(sum), "{}", found.name);
    }
}

/// crates.io takes 10 MB; the limit here leaves room.
#[test]
fn the_package_is_small_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["package", "--no-verify", "--allow-dirty", "--offline", "--quiet", "--target-dir"])
        .arg(folder.path())
        .current_dir(ROOT)
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !messages.contains("manifest has no"), "{messages}");
    let name = format!("doublecheck-{}.crate", env!("CARGO_PKG_VERSION"));
    let size = std::fs::metadata(folder.path().join("package").join(name)).unwrap().len();
    assert!(size <= 8_000_000, "{size} bytes");
}
