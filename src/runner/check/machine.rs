//! What a report was made with, beside the version: a commit and a machine.

use std::sync::OnceLock;

use crate::visible;

/// The commit of the build, with a `+` where its files differ from that; `None` where it was not built in a checkout, and in builds
/// for this project's own tests.
pub fn commit() -> Option<&'static str> {
    option_env!("DOUBLECHECK_COMMIT")
}

/// This machine in words: processor, cores that may be used, system. `Xeon 2.1 GHz, 16 cores, linux x86_64`
pub fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let (system, kind) = (std::env::consts::OS, std::env::consts::ARCH);
        let cores = match std::thread::available_parallelism().map_or(1, usize::from) {
            1 => "1 core".to_owned(),
            cores => format!("{cores} cores"),
        };
        let processor = processor().unwrap_or_else(|| "processor unknown".to_owned());
        format!("{processor}, {cores}, {system} {kind}")
    })
}

/// What Linux says of the first processor. Other systems do not say it in a file.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?.1;
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then(|| visible::one_line(&name).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_in_three_parts_and_stays_the_same() {
        let parts: Vec<&str> = machine().rsplitn(3, ", ").collect();
        assert_eq!(parts[0], format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
        let (count, word) = parts[1].split_once(' ').unwrap();
        assert!(count.parse::<usize>().unwrap() >= 1 && word.starts_with("core"), "{parts:?}");
        assert!(!parts[2].is_empty());
        assert_eq!(machine(), machine());
    }
}
