//! The parts of the contract that a check can speak of, and what it says of each: what is judged, and what is asked for. A part
//! conforms where it was judged and no finding concerns it.

use super::record::{Finding, Record};

/// A part.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// In a word or two.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The kinds of findings that concern it.
    kinds: &'static [&'static str],
    of: fn(&Record) -> Extent,
}

/// How much of a part was judged.
enum Extent {
    /// So many answers, entries or questions.
    Judged(usize),
    NotOffered,
    NotAsked,
    /// The report does not say.
    NotRecorded,
}

/// What a check says of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// So much was judged, and no finding concerns it.
    Conforms(usize),
    /// These findings concern it, by their place.
    Diverges(Vec<usize>),
    /// The implementation does not offer it.
    NotOffered,
    /// It was not asked.
    NotAsked,
    /// The report does not say.
    NotRecorded,
}

/// All parts, in the order of the algorithm.
pub const PARTS: [Part; 11] = [
    Part {
        name: "labels",
        about: "label channels, quantised as SPEC §2.5 says",
        kinds: &["labels differ"],
        of: labels,
    },
    Part { name: "scores", about: "within their bounds", kinds: &["scores out of bounds"], of: scores },
    Part {
        name: "selection",
        about: "which keys are selected, and how many",
        kinds: &[
            "wrong keys",
            "selected a key that is no candidate",
            "wrong number of keys",
            "changed an earlier mask",
            "wrong weight",
            "mask not full",
            "heads differ",
        ],
        of: selection,
    },
    Part {
        name: "output",
        about: "the attention, within its bounds",
        kinds: &["output out of bounds"],
        of: output,
    },
    Part { name: "lse", about: "the log-sum-exp, within its bounds", kinds: &["lse out of bounds"], of: lse },
    Part {
        name: "answers",
        about: "valid input is answered, by something that can be used",
        kinds: &["gave no usable answer", "refused what must be answered"],
        of: answers,
    },
    Part {
        name: "refusals",
        about: "invalid input is refused",
        kinds: &["answered what must be refused"],
        of: refusals,
    },
    Part {
        name: "lengths",
        about: "batch entries of unequal lengths",
        kinds: &["selected padding"],
        of: lengths,
    },
    Part {
        name: "repeats",
        about: "the same question is answered in the same way",
        kinds: &["not repeatable"],
        of: repeats,
    },
    Part {
        name: "promises",
        about: "what the implementation promises is kept",
        kinds: &["broken promise"],
        of: promises,
    },
    Part {
        name: "sessions",
        about: "keys that the implementation holds between steps",
        kinds: &[],
        of: sessions,
    },
];

impl Part {
    /// What a check says of it.
    pub fn verdict(&self, record: &Record) -> Verdict {
        let concerns = |(_, finding): &(usize, &Finding)| self.concerns(finding);
        let found: Vec<usize> =
            record.findings.iter().enumerate().filter(concerns).map(|(index, _)| index).collect();
        match (self.of)(record) {
            _ if !found.is_empty() => Verdict::Diverges(found),
            Extent::Judged(_) if record.not_looked_into > 0 => Verdict::NotRecorded,
            Extent::Judged(count) => Verdict::Conforms(count),
            Extent::NotOffered => Verdict::NotOffered,
            Extent::NotAsked => Verdict::NotAsked,
            Extent::NotRecorded => Verdict::NotRecorded,
        }
    }

    /// Whether a finding concerns it. One of a session conforms where it is asked as a call.
    fn concerns(&self, finding: &Finding) -> bool {
        if finding.is_session() {
            return self.name == "sessions";
        }
        let kinds = std::iter::once(&finding.kind).chain(finding.more.iter().map(|like| &like.kind));
        let of_kind = kinds.into_iter().any(|kind| self.kinds.contains(&kind.as_str()));
        of_kind || self.name == "lengths" && finding.is_ragged()
    }
}

/// The part that a finding concerns first.
pub fn first_of(finding: &Finding) -> &'static str {
    PARTS.iter().find(|part| part.concerns(finding)).map_or("other", |part| part.name)
}

/// What was counted of calls, where any were asked.
fn counted(record: &Record, count: usize) -> Extent {
    match count {
        0 if !record.asks_calls() => Extent::NotAsked,
        0 => Extent::NotOffered,
        count => Extent::Judged(count),
    }
}

fn labels(record: &Record) -> Extent {
    counted(record, record.labels)
}

fn scores(record: &Record) -> Extent {
    counted(record, record.stages.as_ref().map_or(0, |stages| stages.scores))
}

fn selection(record: &Record) -> Extent {
    match &record.stages {
        Some(stages) if stages.takes == "selection" => Extent::NotOffered,
        _ if record.answered == 0 => Extent::NotAsked,
        _ => Extent::Judged(record.answered),
    }
}

fn output(record: &Record) -> Extent {
    counted(record, record.outputs)
}

fn lse(record: &Record) -> Extent {
    counted(record, record.stages.as_ref().map_or(0, |stages| stages.lse))
}

fn answers(record: &Record) -> Extent {
    if record.asks_calls() { Extent::Judged(record.calls) } else { Extent::NotAsked }
}

fn refusals(record: &Record) -> Extent {
    let asked = record.coverage.as_ref().map(|coverage| coverage.parts.get("refusals").copied());
    match (record.refused, asked) {
        (refused @ 1.., _) => Extent::Judged(refused),
        (0, _) if record.left_out.contains_key("refusals") => Extent::NotOffered,
        // A stage alone is asked nothing that it must refuse.
        (0, Some(None)) => Extent::NotAsked,
        (0, Some(Some(0))) => Extent::NotAsked,
        (0, Some(Some(count))) => Extent::Judged(count),
        (0, None) => Extent::NotRecorded,
    }
}

fn lengths(record: &Record) -> Extent {
    match record.coverage.as_ref().map(|coverage| coverage.parts.get("ragged")) {
        None => Extent::NotRecorded,
        Some(None) => Extent::NotOffered,
        Some(Some(0)) => Extent::NotAsked,
        Some(Some(&count)) => Extent::Judged(count),
    }
}

fn repeats(record: &Record) -> Extent {
    let observed = record.promises.get("repeatable").map_or(0, |kept| kept.of);
    match record.repeats {
        None => Extent::NotRecorded,
        Some(repeats) => match repeats.asked.max(observed) {
            0 => Extent::NotAsked,
            count => Extent::Judged(count),
        },
    }
}

fn promises(record: &Record) -> Extent {
    let promised: Vec<_> = record.promises.values().filter(|kept| kept.promised).collect();
    match promised.iter().fold(0usize, |sum, kept| sum.saturating_add(kept.of)) {
        _ if record.repeats.is_none() => Extent::NotRecorded,
        _ if promised.is_empty() => Extent::NotOffered,
        0 => Extent::NotAsked,
        count => Extent::Judged(count),
    }
}

fn sessions(record: &Record) -> Extent {
    match &record.sessions {
        Some(sessions) if sessions.asked > 0 => Extent::Judged(sessions.asked),
        Some(_) => Extent::NotAsked,
        None if record.left_out.contains_key("sessions") => Extent::NotAsked,
        None => Extent::NotOffered,
    }
}
