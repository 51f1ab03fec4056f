//! A check as text: what was asked, each finding with its counterexample and diagnosis, what was left out, a summary.

use std::fmt::Write;

#[cfg(feature = "probes")]
use super::probes;
use super::{rows, sequence, sessions, stages};
use crate::cases::{NoAnswer, Observation, Promise, StageAnswer, StageCall, Takes};
use crate::runner::check::{Excuse, Finding, Like, Report, Sessions};
use crate::verdicts::rows::ComparedRow;
use crate::verdicts::{StageVerdict, Verdict};
use crate::visible;

/// The whole report. Times are left out where `with_times` is false, so that the text is the same for each run.
pub fn render(report: &Report, with_times: bool) -> String {
    let mut text = format!("subject: {} (rounding model: {})\n", report.subject, report.rounding_model);
    if with_times {
        let commit = report.commit.map_or(String::new(), |commit| format!(" (commit {commit})"));
        let _ = writeln!(text, "asked by: doublecheck {}{commit} on {}", report.version, report.machine);
    }
    let _ = writeln!(
        text,
        "asked: {} random sequences (seed {}{}){} and {} of {} goldens, {} calls{}",
        report.sequences,
        report.seed,
        report.shard.map_or(String::new(), |shard| format!(", share {shard}")),
        large(report),
        report.goldens,
        report.coverage.goldens,
        report.calls,
        planned(report)
    );
    let coverage = &report.coverage;
    if let Some(domain) = coverage.domain_in_words() {
        let _ = writeln!(text, "domain: {domain}");
    }
    if !coverage.sizes.is_empty() {
        let _ = writeln!(text, "sizes asked: {}", coverage.sizes_in_words());
    }
    let _ = writeln!(text, "parts asked: {}", coverage.parts_in_words());
    if let Some(shapes) = report.shapes {
        let _ = writeln!(text, "shapes asked: {shapes} distinct ones, as they are bounded");
    }
    if let Some(stages) = &report.stages {
        let gives: Vec<_> = stages.gives.iter().map(|given| given.name()).collect();
        let _ = writeln!(text, "stages: takes {}, gives {}", stages.takes.name(), gives.join(", "));
    }
    let _ = writeln!(text, "answered: {}", answered(report));
    if let Some(sessions) = &report.sessions {
        let _ = writeln!(text, "sessions: {}", sessions_in_words(sessions));
    }
    text += &again(report);
    #[cfg(feature = "probes")]
    if let Some(probed) = &report.probes {
        text += &probes::brief(probed);
    }
    if !report.left_out.is_empty() {
        let part = |(name, goldens): (&String, &usize)| match goldens {
            0 => name.clone(),
            goldens => format!("{name} ({goldens} goldens)"),
        };
        let parts: Vec<_> = report.left_out.iter().map(part).collect();
        let _ = writeln!(text, "not offered, skipped: {}", parts.join(", "));
    }
    if !report.declared.is_empty() {
        let _ = writeln!(text, "declared divergences: {}", report.declared.join(", "));
    }
    for declaration in report.declarations.iter().filter(|declaration| declaration.occurs) {
        if declaration.why != Excuse::default() {
            let _ = writeln!(text, "known: {declaration}");
        }
    }
    for declaration in report.stale() {
        let fails = if report.is_stale() { ", which fails the check" } else { "" };
        let _ = writeln!(text, "known, but did not occur{fails}: {declaration}");
    }
    for (index, finding) in report.findings.iter().enumerate() {
        text += &self::finding(index, finding);
    }
    for error in &report.bad_inputs {
        let _ = writeln!(text, "\nbad input: {}", visible::one_line(error));
    }
    if let Some(why) = &report.stopped {
        let _ = writeln!(text, "\nstopped early: {why}");
    }
    if report.interrupted {
        text += "\ninterrupted: this is what was found until then\n";
    }
    text += &by_size(report);
    text += &summary(report, with_times);
    visible::lines(&text).into_owned()
}

/// How many large sequences were asked, where any were.
pub(super) fn large(report: &Report) -> String {
    match report.large {
        0 => String::new(),
        1 => ", 1 large one".into(),
        large => format!(", {large} large ones"),
    }
}

/// That the time decided how many were asked, where it did.
pub(super) fn planned(report: &Report) -> String {
    report.planned_seconds.map(|seconds| format!(", as many as fit into {seconds} s")).unwrap_or_default()
}

/// How many sessions conform, and what was asked in them.
pub(super) fn sessions_in_words(sessions: &Sessions) -> String {
    let Sessions { asked, conforming, steps, refused, rows, .. } = sessions;
    format!(
        "{conforming} of {asked} conform, {steps} steps ({refused} refused, as expected), {rows} attended rows"
    )
}

/// What was answered, counted; of one stage only what it can give.
pub(super) fn answered(report: &Report) -> String {
    let (masks, outputs, labels) = (report.answered, report.outputs, report.labels);
    let whole = format!("{masks} masks, {outputs} of them with output, {labels} with labels");
    match &report.stages {
        None => whole,
        Some(stages) => match stages.takes {
            Takes::Inputs => format!("{whole}, {} with scores, {} with lse", stages.scores, stages.lse),
            Takes::Scores => format!("{masks} selections"),
            Takes::Selection => format!("{outputs} outputs, {} lse", stages.lse),
        },
    }
}

impl std::fmt::Display for Report {
    /// The whole report, with times.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&render(self, true))
    }
}

/// One finding with its counterexample.
pub fn finding(index: usize, finding: &Finding) -> String {
    let text = headline(index, finding) + &counterexample(finding);
    visible::lines(&text).into_owned()
}

/// One sequence asked again: everything that was asked, found and wrong.
pub fn replay(subject: &str, observation: &Observation, verdicts: &[Verdict]) -> String {
    let mut text = sequence::render(&observation.sequence, "");
    for (call, (answer, verdict)) in observation.answers.iter().zip(verdicts).enumerate() {
        let conforms = if verdict.conforms() { "conforms" } else { "DIVERGES" };
        let _ = writeln!(text, "\ncall {call}, the answer of {subject} {conforms}:");
        text += &sequence::answer(answer);
        for line in verdict.explanations() {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

/// Sequences asked again, and how far promises were kept.
fn again(report: &Report) -> String {
    let mut text = String::new();
    let repeats = report.repeats;
    if repeats.asked > 0 {
        let _ = writeln!(
            text,
            "asked again: {} repeats, of which {} diverged and {} differed from the first answer",
            repeats.asked, repeats.diverged, repeats.differed
        );
    }
    for (title, promised) in [("promised", true), ("observed", false)] {
        let parts = promises(report, promised);
        if !parts.is_empty() {
            let _ = writeln!(text, "{title}: {}", parts.join(", "));
        }
    }
    text
}

/// One question to one stage asked again.
pub fn replay_stage(
    subject: &str,
    call: &StageCall,
    answer: &Result<StageAnswer, NoAnswer>,
    verdict: &StageVerdict,
) -> String {
    let conforms = if verdict.conforms() { "conforms" } else { "DIVERGES" };
    let mut text = stages::render(call, &[]);
    let _ = writeln!(text, "\nthe answer of {subject} {conforms}:");
    text += &stages::answer(answer);
    for line in &verdict.explanations {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// How often each property held: those promised, or those observed.
pub(super) fn promises(report: &Report, promised: bool) -> Vec<String> {
    let shown = Promise::ALL.into_iter().filter_map(|promise| {
        let kept = report.promises.get(promise.name())?;
        let seen = kept.promised == promised && (promised || kept.of > 0);
        seen.then(|| format!("{} in {} of {} {}", promise.name(), kept.held, kept.of, promise.unit()))
    });
    shown.collect()
}

fn headline(index: usize, finding: &Finding) -> String {
    let mut text = format!(
        "\nFINDING {}: {} (after {} sequences, in {} of all)\n",
        index + 1,
        finding.kind,
        finding.after,
        finding.sequences
    );
    if let Some(stage) = finding.stage {
        let _ = writeln!(text, "  stage: {stage}");
    }
    let _ = writeln!(text, "  diagnosis: {}", finding.sentence);
    if let Some(why) = &finding.known {
        let _ = writeln!(text, "  known: {why}");
    }
    let _ = writeln!(text, "  {}", shrinking(finding));
    for edge in &finding.edges {
        let _ = writeln!(text, "  edge: {edge}");
    }
    if let Some(condition) = &finding.condition {
        let _ = writeln!(text, "  condition: {}", condition.sentence);
    }
    if let Some(state) = finding.state.as_ref().filter(|state| !state.sentence.is_empty()) {
        let _ = writeln!(text, "  state: {}", state.sentence);
    }
    if !finding.more.is_empty() {
        let _ = writeln!(text, "  {}", more_like_it(finding));
    }
    let place = failing_place(finding);
    for line in &finding.explanations {
        let _ = writeln!(text, "  {place}: {line}");
    }
    if let Some(file) = &finding.file {
        let _ = writeln!(text, "  written to {}", file.display());
    }
    text
}

/// Which call or step fails.
pub fn failing_place(finding: &Finding) -> String {
    match &finding.session {
        None => format!("call {}", finding.call),
        Some(example) => {
            let step = example.failure.as_ref().and_then(|failure| failure.step);
            step.map_or("open".into(), |step| format!("step {step}"))
        }
    }
}

/// Failures of other kinds that count as one with a finding, in words.
pub fn more_like_it(finding: &Finding) -> String {
    let kind = |like: &Like| format!("{} (in {} of all: {})", like.kind, like.sequences, like.explanation);
    let kinds: Vec<String> = finding.more.iter().map(kind).collect();
    format!("{} more like it: {}", kinds.len(), kinds.join("; "))
}

/// How far a finding was shrunk, in words.
pub fn shrinking(finding: &Finding) -> String {
    let Finding { tries, size, shrunk, inside_domain, .. } = finding;
    if *tries == 0 && !shrunk {
        return format!("not shrunk: {size}");
    }
    let unfinished = if *shrunk { "" } else { " (stopped at the shrinking limit)" };
    let inside = if *inside_domain { ", inside the subject's domain" } else { "" };
    format!("shrunk in {tries} tries to {size}{inside}{unfinished}")
}

/// The shrunk sequence, what was answered and what the reference answers.
pub fn counterexample(finding: &Finding) -> String {
    let observation = &finding.observation;
    let mut text = String::new();
    if let Some(example) = &finding.example {
        text += "\n";
        indent(&mut text, &stages::render(&example.call, &keys_that_matter(finding)));
        text += "\n  found:\n";
        indent(&mut text, &stages::answer(&example.answer));
        indent(&mut text, &rows::render(&finding.compared));
        text += "  the reference:\n";
        indent(&mut text, &stages::answer(&example.reference));
        return text;
    }
    if let Some(session) = &finding.session {
        text += "\n";
        indent(&mut text, &sessions::example(session));
        return text;
    }
    for (index, earlier) in finding.state.iter().flat_map(|state| &state.earlier).enumerate() {
        let _ = writeln!(text, "\n  asked before ({}):", index + 1);
        for line in sequence::render(earlier, "").lines().skip(1) {
            let _ = writeln!(text, "  {line}");
        }
        text += "\n  then:\n";
    }
    let rendered = sequence::render_with(&observation.sequence, "", &keys_that_matter(finding));
    // The first line names the sequence that it was shrunk from.
    for line in rendered.lines().skip(1) {
        let _ = writeln!(text, "  {line}");
    }
    let other = finding.other.iter().flat_map(|other| &other.answers).enumerate();
    for (call, answer) in other.filter(|(call, _)| *call == finding.call) {
        let _ = writeln!(text, "\n  call {call}, found at another time:");
        indent(&mut text, &sequence::answer(answer));
    }
    let answers = observation.answers.iter().zip(finding.reference.iter()).enumerate();
    for (call, (found, expected)) in answers.filter(|(call, _)| *call == finding.call) {
        let _ = writeln!(text, "\n  call {call}, found:");
        indent(&mut text, &sequence::answer(found));
        indent(&mut text, &rows::render(&finding.compared));
        let _ = writeln!(text, "  call {call}, the reference:");
        indent(&mut text, &sequence::answer(expected));
    }
    text
}

/// Keys whose rows a reader looks for.
pub(super) fn keys_that_matter(finding: &Finding) -> Vec<usize> {
    finding.compared.iter().flat_map(ComparedRow::keys_that_matter).collect()
}

fn indent(text: &mut String, lines: &str) {
    for line in lines.lines() {
        let _ = writeln!(text, "  {line}");
    }
}

/// How many rows selected, by numbers of keys.
fn by_size(report: &Report) -> String {
    let selected = selecting(report);
    let mut text = format!("\n{:>12}  {:>9}  {:>11}  {selected}\n", "keys up to", "calls", "rows judged");
    for size in report.by_size.sizes() {
        let (keys, calls, rows, selecting) = (size.keys, size.calls, size.rows, size.selecting);
        let _ =
            writeln!(text, "{keys:>12}  {calls:>9}  {rows:>11}  {selecting:>width$}", width = selected.len());
    }
    if report.by_size.sizes().is_empty() { String::new() } else { text }
}

/// What is counted of rows that left out a key, in words.
pub(super) fn selecting(report: &Report) -> &'static str {
    match &report.stages {
        Some(stages) if stages.takes == Takes::Selection => "with fewer than all keys",
        _ => "with more candidates than H",
    }
}

fn summary(report: &Report, with_times: bool) -> String {
    let in_sessions = report.sessions.map_or(0, |sessions| sessions.goldens);
    let asked = report.sequences + report.large + report.goldens + report.probed - in_sessions;
    let sequences = format!("{} of {asked} sequences", report.conforming);
    let sessions = report.sessions.filter(|sessions| sessions.asked > 0);
    let sessions = sessions.map(|sessions| format!("{} of {} sessions", sessions.conforming, sessions.asked));
    let parts = [Some(sequences).filter(|_| asked > 0 || sessions.is_none()), sessions];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let mut text = format!("\n{} conform", parts.join(" and "));
    if report.refused > 0 {
        let _ = write!(text, " ({} calls refused, as expected)", report.refused);
    }
    if report.known > 0 {
        let _ = write!(text, "; {} diverge as declared", report.known);
    }
    if report.diverged > 0 || !report.findings.is_empty() {
        let findings = report.findings.len();
        let plural = if findings == 1 { "finding" } else { "findings" };
        let known = report.findings.iter().filter(|finding| finding.known.is_some()).count();
        let known = if known == 0 { String::new() } else { format!(" ({known} known)") };
        let _ = write!(text, "; {} diverge, {findings} {plural}{known}", report.diverged);
        if report.not_looked_into > 0 {
            let _ = write!(text, ", {} of them not looked into", report.not_looked_into);
        }
        if report.explained {
            let _ = write!(text, ", and {} every answer", what_reproduces(report));
            if report.not_kept > 0 {
                let _ = write!(text, " but {} that were too large to keep", report.not_kept);
            }
        }
    }
    if let Some(open) = report.sharpness.open_per_row() {
        let _ = write!(text, "; {open:.3} open keys a row");
    }
    if with_times {
        let _ =
            write!(text, "; {:.1} s, {:.0} sequences a second", report.seconds, report.sequences_per_second);
    }
    text + "\n"
}

/// What is told as the cause of all that fails, with its verb.
pub(super) fn what_reproduces(report: &Report) -> &'static str {
    let is_relation =
        |finding: &Finding| finding.relation.as_ref().is_some_and(|told| told.relation.is_some());
    if report.findings.iter().any(is_relation) {
        "the cause told reproduces"
    } else {
        "the named faults reproduce"
    }
}
