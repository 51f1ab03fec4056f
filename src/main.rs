//! The `doublecheck` command; see the README.

fn main() -> std::process::ExitCode {
    doublecheck::command()
}
