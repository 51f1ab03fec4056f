//! What a machine is called in a record: what it is, not which one.

use std::process::Command;

use serde::Serialize;

/// Processor, memory and versions; "not known" where the system does not say.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: Option<u64>,
    pub rustc: String,
    /// `DOUBLECHECK_TORCH_VERSION`.
    pub libtorch: String,
}

impl Machine {
    pub fn this() -> Self {
        let unknown = || "not known".to_owned();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib(),
            rustc: rustc().unwrap_or_else(unknown),
            libtorch: std::env::var("DOUBLECHECK_TORCH_VERSION").unwrap_or_else(|_| unknown()),
        }
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let Self { processor, cores, rustc, libtorch, .. } = self;
        let memory = self.memory_gib.map_or("not known".into(), |gib| format!("{gib} GiB"));
        format!("{processor}, {cores} cores, {memory} of memory; {rustc}; libtorch {libtorch}")
    }
}

/// What follows the first `name:` of a file in /proc.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gib() -> Option<u64> {
    let kib = field("/proc/meminfo", "MemTotal")?;
    let kib: f64 = kib.split_whitespace().next()?.parse().ok()?;
    Some((kib / f64::from(1 << 20)).round() as u64)
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // Without commit and date.
    Some(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}
