//! Who was checked, in parts: the name of a subject, its version, and the device that it computes on. Subjects say all of it in one
//! name, `sglang, double sparsity 0.5.5, cuda`: a version is the last word of it, a device follows after a comma.

use serde::{Deserialize, Serialize};

/// Devices that a name may end with, each also with a number: `cuda:1`.
const DEVICES: [&str; 7] = ["cpu", "cuda", "rocm", "mps", "xpu", "tpu", "npu"];

/// The parts of a subject's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Implementation {
    /// Without version and device.
    pub name: String,
    /// A version such as `0.5.5`, or a commit.
    pub version: Option<String>,
    /// Where it computes.
    pub device: Option<String>,
}

impl Implementation {
    /// The parts of a name.
    pub fn of(subject: &str) -> Self {
        let subject = subject.trim();
        let (rest, device) = match subject.rsplit_once(", ") {
            Some((rest, last)) if is_device(last) => (rest, Some(last.to_owned())),
            _ => (subject, None),
        };
        let (name, version) = match rest.rsplit_once(' ') {
            Some((name, last)) if is_version(last) => {
                (name.trim_end_matches([',', ' ']), Some(last.to_owned()))
            }
            _ => (rest, None),
        };
        Self { name: name.to_owned(), version, device }
    }
}

fn is_device(word: &str) -> bool {
    let (name, number) = word.split_once(':').unwrap_or((word, "0"));
    DEVICES.contains(&name) && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
}

/// Numbers with a point between them, or the hexadecimal digits of a commit.
fn is_version(word: &str) -> bool {
    let number = word.strip_prefix('v').unwrap_or(word);
    let dotted = number.starts_with(|c: char| c.is_ascii_digit()) && number.contains('.');
    let commit = (7..=40).contains(&word.len())
        && word.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
        && word.contains(|c: char| c.is_ascii_digit());
    dotted || commit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (subject, name, version, device) in [
            (
                "sglang, double sparsity 1 0.5.5, cuda",
                "sglang, double sparsity 1",
                Some("0.5.5"),
                Some("cuda"),
            ),
            ("torch sdpa 2.11.0+cu130, cuda:1", "torch sdpa", Some("2.11.0+cu130"), Some("cuda:1")),
            (
                "andy-yang-1/DoubleSparse, fast path b0575e6, cuda",
                "andy-yang-1/DoubleSparse, fast path",
                Some("b0575e6"),
                Some("cuda"),
            ),
            ("xAlg-ai/sparse-attention-hub 1a048c9", "xAlg-ai/sparse-attention-hub", Some("1a048c9"), None),
            ("mine v1.2", "mine", Some("v1.2"), None),
            ("reference with first-layers-channels", "reference with first-layers-channels", None, None),
            ("kernel 2", "kernel 2", None, None),
            ("effaced decadent", "effaced decadent", None, None),
            ("", "", None, None),
        ] {
            let expected = Implementation {
                name: name.into(),
                version: version.map(str::to_owned),
                device: device.map(str::to_owned),
            };
            assert_eq!(Implementation::of(subject), expected, "{subject}");
        }
    }
}
