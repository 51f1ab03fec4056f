//! The tests of the library and of the command, without libtorch: one program, as each further one is linked with everything
//! that it uses. `cargo test --release --test suite faults::` runs one file.

mod running;
#[path = "../support/mod.rs"]
mod support;

mod action;
mod bad_files;
mod bounds;
mod by_hand;
mod certification;
mod check_command;
mod choosing;
mod ci_reports;
mod command_line;
mod conditions;
mod domain;
mod domain_limits;
mod engine;
mod errors;
mod evaluation_report;
mod exact;
mod exhaustive;
mod factored;
mod faults;
mod file_limits;
mod fuzzed;
mod goldens;
mod html;
mod invariants;
mod known;
mod large;
mod maskers;
mod package;
mod plan;
mod probes;
mod processes;
mod promises;
mod ragged;
mod records;
mod relations;
mod rules;
mod same_bytes;
mod sequences;
mod sessions;
mod shards;
mod shrinking;
mod simulated;
mod site;
mod stages;
mod strategies;
mod tasks;
mod verdicts;
mod verify;
mod widths;
mod world;
