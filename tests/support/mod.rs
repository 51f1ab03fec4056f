//! What several test files need.

#![allow(dead_code)]

pub mod markup;

use std::path::PathBuf;

use doublecheck::algorithm::{HeavySize, Selection};
use doublecheck::cases::Case;
use proptest::test_runner::{Config, FileFailurePersistence};

/// Counterexamples are kept for ever, in `proptest-regressions/` under the name of the test file. Cases that are rejected do
/// not count, and a property that rejects as many as it applies to fails.
pub fn proptest_config(cases: u32, file: &'static str) -> Config {
    Config {
        cases,
        max_global_rejects: cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    }
}

/// Whether long tests run in full: where `DOUBLECHECK_LONG` is set, as by `ci/long`.
pub fn is_long() -> bool {
    std::env::var_os("DOUBLECHECK_LONG").is_some()
}

/// How many cases a long test takes: all of them where it runs in full, otherwise a tenth.
pub fn of_long(cases: u32) -> u32 {
    if is_long() { cases } else { cases / 10 }
}

/// A folder of real inputs beside the project. Where there is none, tests that need it are ignored.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(folder);
    path.is_dir().then_some(path)
}

/// A small valid case: 1 batch entry, 2 heads over 1 KV head, 2 queries, 6 keys, d = 4, r = 2.
pub fn small_case() -> Case {
    small_plan().case().unwrap()
}

/// What [`small_case`] looks like.
pub fn small_plan() -> doublecheck::cases::strategies::Plan {
    doublecheck::cases::strategies::Plan {
        seed: 7,
        batch: 1,
        kv_heads: 1,
        group: 2,
        queries: 2,
        keys: 6,
        label_channels: 2,
        value_dim: 3,
        selection: Selection::new(HeavySize::count(2).unwrap(), 2, 4).unwrap(),
        storage: doublecheck::algorithm::Storage::F32,
        causal: true,
        additive: doublecheck::cases::strategies::AdditiveMask::Absent,
        masks_per_head: true,
        previous: doublecheck::cases::strategies::Previous::Absent,
        earlier_maskers: Vec::new(),
        rows: doublecheck::cases::strategies::ChannelRows::PerHead,
        q: doublecheck::cases::strategies::Values::Normal,
        k: doublecheck::cases::strategies::Values::Normal,
        scaling: None,
    }
}

/// What the kernel says of this process, in MiB.
pub fn memory(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib / 1024)
}
