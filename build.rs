//! With the feature `torch`, lets programs and tests find libtorch without LD_LIBRARY_PATH. torch-sys, a direct dependency for
//! this purpose, says where it found libtorch. And tells the crate of which commit it is built, for its reports.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(folder) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath={}", folder.to_string_lossy());
    }
    if let Some(commit) = commit() {
        println!("cargo::rustc-env=DOUBLECHECK_COMMIT={commit}");
    }
}

/// What the crate is built of.
const BUILT: [&str; 5] = ["build.rs", "Cargo.toml", "Cargo.lock", "src", "golden/bundled.tar.zst"];

/// The commit of the checkout, with a `+` where files of the build differ from it. `None` where this is no checkout or there is no
/// git; and in builds for the project's own tests, which would be built anew for each commit.
fn commit() -> Option<String> {
    println!("cargo::rerun-if-env-changed=DOUBLECHECK_COMMIT");
    if let Ok(said) = std::env::var("DOUBLECHECK_COMMIT") {
        return Some(said);
    }
    if std::env::var_os("CARGO_FEATURE_INTERNALS").is_some() {
        return None;
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let git = |arguments: &[&str]| git(&root, arguments);
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    // A copy within another checkout, such as one of vendored crates, has no commit of its own.
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // The log of HEAD grows with each commit and checkout.
    let of_git = ["HEAD", "logs/HEAD"].into_iter().filter_map(|name| git(&["rev-parse", "--git-path", name]));
    for path in of_git.chain(BUILT.map(String::from)) {
        if root.join(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed =
        [&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"][..], &BUILT]
            .concat();
    let differs = !git(&changed)?.is_empty();
    Some(if differs { commit + "+" } else { commit })
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}
