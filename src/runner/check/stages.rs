//! Checks an implementation of one stage: random questions to it, each answer judged, the first failure of each kind shrunk.
//! Bundled cases are of whole layers and are not asked. A cause is not looked for, as what the stage started from was given.

use std::time::{Duration, Instant};

use super::Options;
use super::coverage::Coverage;
use super::probing::taken;
use super::report::{Finding, Report, ReportedStages, StageExample};
use super::run::{MOST_UNUSABLE, left_out};
use crate::cases::recipe::mix;
use crate::cases::stage_plan::stage_call;
use crate::cases::{Capabilities, StageAnswer, StageCall, Takes};
use crate::diagnosis::probes::probe;
use crate::runner::shrink::stages::shrink_stage;
use crate::subjects::{Reference, Subject, ask_stage};
use crate::verdicts::judge_stage;

/// Questions that the domain leaves out, for each one that it leaves in, before the search for more is given up.
const MOST_REJECTED: usize = 100;

/// Checks a subject that takes scores or a selection.
pub(super) fn check_stages(
    subject: &mut dyn Subject,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Report {
    let start = Instant::now();
    let capabilities = subject.capabilities().and(&options.profile);
    let coverage = Coverage::of_stage(&capabilities);
    let mut report = Report::new(subject.name(), subject.rounding_model(), options.seed, coverage);
    report.left_out = left_out(&capabilities);
    report.left_out.insert(Takes::Inputs.name().into(), 0);
    #[cfg(feature = "files")]
    let goldens = super::goldens::of_stage(&capabilities, options, &mut report);
    #[cfg(not(feature = "files"))]
    let goldens = Vec::new();
    report.declared = options.known.iter().map(|fault| fault.name).collect();
    report.stages = ReportedStages::of(&capabilities.stages);
    let mut probed = options.probes.then(|| probe(subject, &capabilities, &options.known));
    let mut deviating = probed.as_mut().map(|probed| taken(probed).1).unwrap_or_default().into_iter();
    report.probes = probed;
    let (mut thinking, mut unusable) = (Duration::ZERO, (Duration::ZERO, 0));
    let mut tried = 0u64;
    let total = options.cases + goldens.len();
    let mut goldens = goldens.into_iter();
    while report.stopped.is_none() {
        let random =
            report.sequences < options.cases && tried <= (MOST_REJECTED * options.cases.max(10)) as u64;
        let call = if random {
            let drawn = stage_call(&capabilities, mix(mix(options.seed).wrapping_add(tried)));
            tried += 1;
            let Some(call) = drawn else { continue };
            report.sequences += 1;
            (format!("random question {} of seed {}", report.sequences, options.seed), call)
        } else if let Some(golden) = goldens.next() {
            report.goldens += 1;
            golden
        } else {
            let Some(deviation) = deviating.next() else { break };
            report.probed += 1;
            deviation
        };
        let (name, call) = call;
        report.calls += 1;
        report.coverage.add_stage(&call);
        progress(report.calls, total, report.findings.len());
        let asking = Instant::now();
        let answer = ask_stage(subject, &call);
        let verdict = judge_stage(&call, &answer, report.model);
        count(&mut report, &answer);
        let Some(kind) = verdict.kind else {
            report.conforming += 1;
            report.sharpness.add(&verdict.sharpness);
            continue;
        };
        report.diverged += 1;
        if answer.is_err() {
            unusable = (unusable.0 + asking.elapsed(), unusable.1 + 1);
            if unusable.0 > MOST_UNUSABLE.0 && unusable.1 >= MOST_UNUSABLE.1 {
                let (time, count) = unusable;
                let seconds = time.as_secs_f64();
                report.stopped =
                    Some(format!("{count} questions without a usable answer took {seconds:.0} s"));
            }
        }
        if let Some(known) = report.findings.iter_mut().find(|finding| finding.kind == kind) {
            known.sequences += 1;
        } else if report.findings.len() >= options.most_findings {
            report.not_looked_into += 1;
        } else {
            let shrinking = Instant::now();
            let finding = find(subject, &capabilities, options, (name, call), kind, &report);
            report.findings.push(finding);
            thinking += shrinking.elapsed();
        }
    }
    if report.sequences < options.cases && report.stopped.is_none() {
        report.bad_inputs.push(format!(
            "random questions: found {} that both the subject and the profile offer, expected {}",
            report.sequences, options.cases
        ));
    }
    if report.calls == 0 && options.cases == 0 {
        let takes = capabilities.stages.takes.name();
        report.bad_inputs.push(format!(
            "cases: found 0, and no golden for a subject that takes {takes}, expected something to ask"
        ));
    }
    report.explained = report.findings.is_empty();
    report.seconds = start.elapsed().as_secs_f64();
    let asking = report.seconds - thinking.as_secs_f64();
    report.sequences_per_second = report.calls as f64 / asking.max(1e-9);
    report
}

fn count(report: &mut Report, answer: &Result<StageAnswer, crate::cases::NoAnswer>) {
    match answer {
        Err(_) => {}
        Ok(StageAnswer::Selected(_)) => report.answered += 1,
        Ok(StageAnswer::Attended(attended)) => {
            report.outputs += usize::from(attended.output.is_some());
            if let Some(stages) = &mut report.stages {
                stages.lse += usize::from(attended.lse.is_some());
            }
        }
    }
}

/// Shrinks a failure of a kind.
fn find(
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    options: &Options,
    (first_seen, call): (String, StageCall),
    kind: &'static str,
    report: &Report,
) -> Finding {
    let model = report.model;
    let mut fails = |candidate: &StageCall| {
        let answer = ask_stage(subject, candidate);
        judge_stage(candidate, &answer, model).kind == Some(kind)
    };
    let shrunk = shrink_stage(call, options.shrinking, capabilities, &mut fails);
    let answer = ask_stage(subject, &shrunk.call);
    let verdict = judge_stage(&shrunk.call, &answer, model);
    let reference = ask_stage(&mut Reference::default(), &shrunk.call);
    let (tries, seconds, finished) = (shrunk.tries, shrunk.seconds, shrunk.finished);
    let example = StageExample { call: shrunk.call, answer, reference };
    let mut finding = Finding::of_stage(first_seen, report.calls, &verdict, example);
    finding.kind = if verdict.conforms() { "conforms when asked again" } else { kind };
    (finding.tries, finding.shrinking_seconds, finding.shrunk) = (tries, seconds, finished);
    finding
}
