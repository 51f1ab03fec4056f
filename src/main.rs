//! The `doublecheck` command; see the README.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
