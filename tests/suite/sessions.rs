//! Sessions of serving engines (SPEC §2.14): what random ones hold, that right subjects conform, that files keep them, and that what
//! must be refused is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use doublecheck::algorithm::Storage;
use doublecheck::behaviours::{CACHE_RELATIONS, CacheFault, CacheFaultKind};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::session_plan::{Stream, session};
use doublecheck::cases::{
    Answer, Call, Capabilities, CaseFile, Feature, Held, Instance, NoAnswer, Opening, Outcome, Promise,
    Reader, RoundingModel, Session, Step, StepAnswer, session_file,
};
use doublecheck::reports::counterexamples::write_finding;
use doublecheck::reports::html;
use doublecheck::runner::check::{Options, check_sessions};
use doublecheck::runner::faults::Planted;
use doublecheck::subjects::{Engine, PagedEngine, Reference, Subject, ask_session};
use doublecheck::verdicts::{SessionJudge, judge_session};
use rayon::prelude::*;

fn offering() -> Capabilities {
    Reference::serving().capabilities()
}

fn sessions(capabilities: &Capabilities, count: u64) -> Vec<Session> {
    let sessions: Vec<Session> = (0..count).filter_map(|seed| session(capabilities, seed)).collect();
    assert!(10 * sessions.len() as u64 > 8 * count, "{} of {count} seeds have a session", sessions.len());
    sessions
}

/// What happens in a session, by name.
fn events(session: &Session) -> BTreeSet<String> {
    let page = session.opening.page_size;
    let mut held = Held::new(&session.opening);
    let mut found = BTreeSet::new();
    let mut add = |name: &str| {
        found.insert(name.to_owned());
    };
    let mut freed: Vec<usize> = Vec::new();
    let mut begun: BTreeMap<usize, usize> = BTreeMap::new();
    let mut truncated: BTreeMap<usize, usize> = BTreeMap::new();
    // Of forks: the other one, the length, and how many attends there were since.
    let mut forks: Vec<(usize, usize, usize)> = Vec::new();
    let (mut was_full, mut was_refused) = (false, false);
    let mut last_batch: Option<Vec<usize>> = None;
    add(&format!("layers {}", session.opening.layers.len()));
    for step in &session.steps {
        let outcome = held.outcome(step);
        assert_ne!(outcome, Outcome::Either);
        let done = outcome == Outcome::Done;
        if let Outcome::Refused(errors) = &outcome {
            errors.iter().for_each(|error| add(&format!("refused {} of {}", error.kind(), step.name())));
            was_refused |= errors.iter().any(|error| error.kind() == "capacity");
        }
        match step {
            Step::Append { layer, parts, .. } if done => {
                for &(request, count) in parts {
                    let before = held.tokens(request, *layer).len();
                    let after = before + count;
                    if before == 0 && *layer == session.opening.layers[0] {
                        begun.insert(request, count);
                        for &old in &freed {
                            add(match count.cmp(&old) {
                                std::cmp::Ordering::Less => "room taken by a shorter request",
                                std::cmp::Ordering::Equal => "room taken by one as long",
                                std::cmp::Ordering::Greater => "room taken by a longer one",
                            });
                        }
                        freed.clear();
                    } else if count > 1 {
                        add("a later chunk");
                    }
                    for (name, size) in [("page", page), ("tile", 16), ("tile", 32), ("tile", 64)] {
                        for (edge, length) in [("- 1", size - 1), ("", size), ("+ 1", size + 1)] {
                            if count == length && length > 1 {
                                add(&format!("a chunk of a {name} {edge}"));
                            }
                            if after == length && after > 1 {
                                add(&format!("as long as a {name} {edge}"));
                            }
                        }
                    }
                    if count == 1 {
                        add("one key");
                    }
                    if let Some(kept) = truncated.remove(&request) {
                        add("grown again after a truncate");
                        if kept.is_multiple_of(page) {
                            add("grown again from the edge of a page");
                        }
                    }
                    for &(other, length, attends) in &forks {
                        if request == other {
                            add(if attends == 0 { "diverges at once" } else { "diverges later" });
                            if length % page > 0 && page > 1 {
                                add("diverges within a page");
                            }
                        }
                    }
                }
                if parts.len() > 1 {
                    add("several requests appended together");
                }
                if was_refused {
                    add("appended after a refusal for room");
                }
            }
            Step::Attend { parts, .. } if done => {
                forks.iter_mut().for_each(|(_, _, attends)| *attends += 1);
                let batch: Vec<usize> = parts.iter().map(|(request, _)| *request).collect();
                add(&format!("batch {}", batch.len()));
                if batch.windows(2).any(|pair| pair[0] > pair[1]) {
                    add("not in the order of numbers");
                }
                if let Some(last) = &last_batch {
                    let same: BTreeSet<_> = batch.iter().collect();
                    if last.len() != batch.len() {
                        add("a batch of another size");
                    } else if *last != batch && last.iter().collect::<BTreeSet<_>>() == same {
                        add("the same batch in another order");
                    }
                }
                last_batch = Some(batch);
                if parts.iter().any(|(_, count)| *count > 1) {
                    add("several queries");
                }
                let counts: BTreeSet<_> = parts.iter().map(|(_, count)| count).collect();
                if counts.len() > 1 {
                    add("unequal numbers of queries");
                }
            }
            &Step::Fork { from, to, length } if done => {
                if length.is_multiple_of(page) {
                    add("forked at the edge of a page");
                }
                if length < held.length(from) {
                    add("forked before the end");
                }
                forks.extend([(from, length, 0), (to, length, 0)]);
            }
            &Step::Truncate { request, length } if done => {
                truncated.insert(request, length);
                if length.is_multiple_of(page) {
                    add("truncated to the edge of a page");
                }
            }
            Step::Free { request } if done => freed.push(held.length(*request)),
            _ => {}
        }
        if done {
            held.apply(step);
        }
        let pages: usize = held.requests().map(|request| held.length(request).div_ceil(page)).sum();
        if pages * page == session.opening.capacity {
            add("full");
            was_full = true;
        } else if was_full {
            add("room again");
        }
        let requests = held.requests().count();
        add(&format!("requests {requests}"));
    }
    found
}

#[test]
fn random_sessions_hold_what_breaks_caches() {
    let sessions = sessions(&offering(), 1000);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for session in &sessions {
        assert!(offering().offers_session(session), "{}", session.name);
        events(session).into_iter().for_each(|event| *counts.entry(event).or_default() += 1);
    }
    println!("{counts:#?}");
    let mut expected: Vec<String> = (1..=4).map(|layers| format!("layers {layers}")).collect();
    expected.extend((1..=8).map(|count| format!("requests {count}")));
    expected.extend((1..=8).map(|count| format!("batch {count}")));
    for size in ["page", "tile"] {
        expected.extend(["- 1", "", "+ 1"].map(|edge| format!("a chunk of a {size} {edge}")));
        expected.extend(["- 1", "", "+ 1"].map(|edge| format!("as long as a {size} {edge}")));
    }
    let refused = [
        "request of attend",
        "request of truncate",
        "request of free",
        "request of fork",
        "length of fork",
        "length of truncate",
        "length of attend",
        "capacity of append",
        "missing_layer of append",
        "shape of append",
    ];
    expected.extend(refused.map(|refusal| format!("refused {refusal}")));
    let others = [
        "one key",
        "a later chunk",
        "several queries",
        "unequal numbers of queries",
        "several requests appended together",
        "not in the order of numbers",
        "a batch of another size",
        "the same batch in another order",
        "room taken by a shorter request",
        "room taken by one as long",
        "room taken by a longer one",
        "grown again after a truncate",
        "grown again from the edge of a page",
        "truncated to the edge of a page",
        "forked at the edge of a page",
        "forked before the end",
        "diverges at once",
        "diverges later",
        "diverges within a page",
        "full",
        "room again",
        "appended after a refusal for room",
    ];
    expected.extend(others.map(str::to_owned));
    for name in expected {
        let count = counts.get(&name).copied().unwrap_or(0);
        assert!(100 * count >= sessions.len(), "{name:?} in {count} of {} sessions", sessions.len());
    }
}

#[test]
fn the_reference_conforms_in_sessions() {
    let model = Reference::serving().rounding_model();
    let (mut rows, mut refused) = (0, 0);
    for session in sessions(&offering(), 150) {
        let verdict = judge_session(&ask_session(&mut Reference::serving(), &session), model);
        assert!(verdict.conforms(), "{}: {:?}", session.name, verdict.failure);
        rows += verdict.rows;
        refused += verdict.refused;
    }
    assert!(rows > 5000 && refused > 100, "{rows} rows, {refused} refused");
}

/// Session = calls: what the engine holds answers as the reference does from all keys, bit for bit where masks are concerned.
#[test]
fn the_engine_conforms_in_sessions() {
    let (mut rows, mut refused, mut equal) = (0, 0, 0);
    for session in sessions(&Engine::default().capabilities(), 400) {
        let observation = ask_session(&mut Engine::default(), &session);
        let verdict = judge_session(&observation, Engine::default().rounding_model());
        assert!(verdict.conforms(), "{}: {:?}", session.name, verdict.failure);
        let reference = ask_session(&mut Reference::serving(), &session);
        for (found, expected) in observation.answers.iter().zip(&reference.answers) {
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    let masks =
                        |answers: &[Answer]| answers.iter().map(|a| a.mask.clone()).collect::<Vec<_>>();
                    assert_eq!(masks(found), masks(expected), "{}", session.name);
                    equal += found.len();
                }
                (Err(_), Err(_)) => {}
                _ => panic!("{}: {found:?}, expected {expected:?}", session.name),
            }
        }
        rows += verdict.rows;
        refused += verdict.refused;
    }
    assert!(
        rows > 20_000 && refused > 300 && equal > 5000,
        "{rows} rows, {refused} refused, {equal} equal masks"
    );
}

/// One session of many steps, each judged; `ci/soak` asks a million.
#[test]
fn the_engine_holds_nothing_that_is_over() {
    let steps = std::env::var("DOUBLECHECK_SOAK").ok().map_or(10_000, |steps| steps.parse().unwrap());
    let mut engine = Engine::default();
    let (capabilities, model) = (engine.capabilities(), engine.rounding_model());
    let start = Instant::now();
    let (mut asked, mut rows, mut most) = (0, 0, 0);
    for seed in 0.. {
        if asked >= steps {
            break;
        }
        let Some(mut stream) = Stream::new(&capabilities, seed) else { continue };
        let instance = stream.instance().clone();
        engine.configure(&instance).unwrap();
        engine.open(stream.opening()).unwrap();
        let mut judge = SessionJudge::new(stream.opening(), &instance, model);
        let share = (steps / 10).max(1000);
        while judge.verdict.steps < share {
            for step in stream.round() {
                let answer = engine.step(&step);
                assert!(judge.step(&step, &answer), "stream {seed}: {:?}", judge.verdict.failure);
            }
            most = most.max(engine.held_bytes());
        }
        for step in stream.end() {
            assert!(judge.step(&step, &engine.step(&step)));
        }
        assert_eq!(engine.held_bytes(), 0);
        asked += judge.verdict.steps;
        rows += judge.verdict.rows;
        let (now, peak) = (crate::support::memory("VmRSS"), crate::support::memory("VmHWM"));
        let rate = asked as f64 / start.elapsed().as_secs_f64();
        println!(
            "{asked} steps, {rows} rows, {rate:.0} steps a second, {now:?} MiB now, {peak:?} at most, {most} bytes held at most"
        );
    }
    assert!(rows > steps / 2, "{rows} rows");
}

#[test]
fn files_keep_sessions() {
    for session in sessions(&offering(), 60) {
        let bytes = session_file::to_bytes(&session, "a test");
        let Ok(CaseFile::Session(stored)) = Reader::default().parse(&bytes, &session.name) else { panic!() };
        assert_eq!(stored.session, session);
        assert_eq!(stored.source, "a test");
    }
}

#[test]
fn what_is_lacked_is_not_asked() {
    let lacks = [
        Feature::Refusals,
        Feature::Batch,
        Feature::ManyQueries,
        Feature::GroupedHeads,
        Feature::EarlierMaskers,
        Feature::DenseLayers,
    ];
    let capabilities = Capabilities { lacks: lacks.into(), ..offering() };
    for session in sessions(&capabilities, 60) {
        assert!(session.outcomes().unwrap().iter().all(|outcome| *outcome == Outcome::Done));
        let one = |step: &Step| match step {
            Step::Append { parts, .. } => parts.len() == 1,
            Step::Attend { parts, .. } => parts.len() == 1 && parts[0].1 == 1,
            _ => true,
        };
        assert!(session.steps.iter().all(one), "{}", session.name);
        assert!(session.queries() > 0);
    }
}

#[test]
fn sessions_stay_inside_a_domain() {
    let json = r#"{"head_dim": [64], "queries": [1], "batch": {"to": 2}, "page_size": [16], "dtype": ["f16"],
                   "keys": {"multiple_of": 16, "to": 64}}"#;
    let domains = domains_from_json(&serde_json::from_str(json).unwrap()).unwrap();
    let capabilities = Capabilities { domains, largest_keys: Some(50), ..offering() };
    let mut asked = 0;
    for session in sessions(&capabilities, 60) {
        assert!(session.longest() <= 48, "{}", session.name);
        assert_eq!((session.opening.page_size, session.opening.head_dim), (16, 64));
        assert_eq!(session.opening.dtype, Storage::F16);
        for (step, call) in session.calls().unwrap() {
            let dims = call.inputs.dims();
            assert!(dims.keys.is_multiple_of(16) && dims.queries == 1 && dims.keys <= 48, "{dims:?}");
            assert!(session.steps[step].requests().len() <= 2);
            asked += 1;
        }
    }
    assert!(asked > 200, "{asked}");
}

#[test]
fn a_finding_is_a_story_that_is_kept_and_replayed() {
    let fault = CacheFault::find("stale-after-truncate").unwrap();
    let options = Options { cases: 20, ..Options::default() };
    let report = check_sessions(&mut PagedEngine::new(Some(fault)), &options, &mut |_| {});
    let finding = &report.findings[0];
    assert_eq!((finding.diagnosis.as_slice(), finding.rows.as_slice()), (&[fault.name][..], &["§2.14"][..]));
    let text = report.to_string();
    for part in [
        "sessions: ",
        "append to layer",
        "truncate: request 1 keeps its first 0 keys",
        "1 query over 2 keys   <- diverges",
        "request 1, found:",
        fault.sentence,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(html::check(&report, "--fault stale-after-truncate").contains("&lt;- diverges"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("finding-1.safetensors");
    write_finding(1, finding, &report.subject, &file).unwrap();
    let replayed = |subject: [&str; 2]| {
        let arguments = ["replay", file.to_str().unwrap()];
        let command = env!("CARGO_BIN_EXE_doublecheck");
        std::process::Command::new(command).args(arguments).args(subject).output().unwrap()
    };
    let wrong = replayed(["--fault", fault.name]);
    let said = String::from_utf8(wrong.stdout).unwrap();
    assert!(wrong.status.code() == Some(1) && said.contains("DIVERGES"), "{said}");
    for subject in ["engine", "reference"] {
        let right = replayed(["--subject", subject]);
        let said = String::from_utf8(right.stdout).unwrap();
        assert!(right.status.success() && said.contains("conform: 4 steps, 1 attended rows"), "{said}");
    }
}

/// Entries depend neither on their companions nor on what was asked before: who promises it and does not keep it is found.
#[test]
fn promises_hold_in_sessions() {
    struct Promising {
        engine: Engine,
        by_batch: bool,
    }
    impl Subject for Promising {
        fn name(&self) -> String {
            "promising".into()
        }
        fn rounding_model(&self) -> RoundingModel {
            self.engine.rounding_model()
        }
        fn capabilities(&self) -> Capabilities {
            let promises = Some([Promise::BatchInvariant, Promise::Repeatable].into());
            Capabilities { promises, ..self.engine.capabilities() }
        }
        fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
            self.engine.configure(instance)
        }
        fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
            self.engine.open(opening)
        }
        fn step(&mut self, step: &Step) -> StepAnswer {
            let mut answers = self.engine.step(step)?;
            if self.by_batch && answers.len() > 1 {
                let outputs = answers.iter_mut().filter_map(|answer| answer.output.as_mut());
                outputs.for_each(|output| output.mapv_inplace(|x| if x == 0.0 { x } else { x.next_up() }));
            }
            Ok(answers)
        }
    }
    let options = Options { cases: 60, ..Options::default() };
    let checked = |by_batch| {
        let mut subject = Promising { engine: Engine::default(), by_batch };
        check_sessions(&mut subject, &options, &mut |_| {})
    };
    let kept = checked(false);
    assert!(kept.conforms(), "{kept}");
    for promise in [Promise::BatchInvariant, Promise::Repeatable] {
        let kept = &kept.promises[promise.name()];
        assert!(kept.of > 100 && kept.held == kept.of, "{promise:?}");
    }
    let broken = checked(true);
    let finding = &broken.findings[0];
    assert_eq!((broken.findings.len(), finding.kind), (1, "broken promise"), "{broken}");
    assert!(finding.size.calls <= 2 && finding.size.requests == Some(2), "{broken}");
}

/// What no named fault explains: whether companions or earlier steps decide is told all the same.
#[test]
fn what_decides_is_told_of_unknown_faults() {
    struct Halving {
        engine: Engine,
        by_batch: bool,
        attends: usize,
    }
    impl Subject for Halving {
        fn name(&self) -> String {
            "halving".into()
        }
        fn rounding_model(&self) -> RoundingModel {
            self.engine.rounding_model()
        }
        fn capabilities(&self) -> Capabilities {
            self.engine.capabilities()
        }
        fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
            self.engine.configure(instance)
        }
        fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
            self.engine.call(call)
        }
        fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
            self.attends = 0;
            self.engine.open(opening)
        }
        fn step(&mut self, step: &Step) -> StepAnswer {
            let mut answers = self.engine.step(step)?;
            self.attends += usize::from(!answers.is_empty());
            let halves = if self.by_batch { answers.len() > 1 } else { self.attends.is_multiple_of(2) };
            if halves {
                let outputs = answers.iter_mut().filter_map(|answer| answer.output.as_mut());
                outputs.for_each(|output| output.mapv_inplace(|x| x / 2.0));
            }
            Ok(answers)
        }
    }
    for (by_batch, told, calls) in
        [(true, "companions of a step decide", 2), (false, "earlier steps decide", 4)]
    {
        let mut subject = Halving { engine: Engine::default(), by_batch, attends: 0 };
        let options = Options { cases: 60, ..Options::default() };
        let report = check_sessions(&mut subject, &options, &mut |_| {});
        let finding = &report.findings[0];
        assert_eq!(report.findings.len(), 1, "{report}");
        assert!(finding.sentence.contains(told) && finding.size.calls <= calls, "{report}");
    }
}

/// Relations have no names, and are planted like those that have one: each is told, and reproduces every session.
#[test]
fn relations_of_what_is_held_are_told() {
    let told = CACHE_RELATIONS.par_iter().map(|fault| {
        let options = Options { cases: 60, ..Options::default() };
        let report = check_sessions(&mut PagedEngine::new(Some(fault)), &options, &mut |_| {});
        let finding = &report.findings[0];
        assert_eq!(report.findings.len(), 1, "{report}");
        // Rows here are short: where no tile ends in a row, tiles of several sizes do the same.
        assert!(finding.sentence.contains(fault.sentence), "{}: {report}", fault.sentence);
        if let CacheFaultKind::TailOverNext { .. } = fault.kind {
            assert!(finding.size.calls <= 2 && finding.size.requests == Some(2), "{report}");
        }
        usize::from(finding.sentence.starts_with(fault.sentence))
    });
    let told: usize = told.sum();
    assert!(told >= 2, "{told}");
}

/// An engine that attends to what lies behind a request's keys gives the number that the author's fast path gave.
#[test]
fn what_lies_behind_the_keys_of_a_request_is_what_a_fork_left_there() {
    let name = "author-fast-session-stale-slot";
    let bytes = std::fs::read(format!("docs/counterexamples/{name}.safetensors")).unwrap();
    let Ok(CaseFile::Session(stored)) = Reader::default().parse(&bytes, name) else { panic!() };
    let fault = CACHE_RELATIONS.iter().find(|fault| fault.kind == CacheFaultKind::BeyondLength);
    let observation = ask_session(&mut PagedEngine::new(fault), &stored.session);
    let output = observation.answers[2].as_ref().unwrap()[0].output.as_ref().unwrap();
    assert_eq!(format!("{:.9}", output[[0, 0, 0, 98]]), "-0.000000783");
}

/// Faults that answer what must be refused: what they do then is not asked, so that these two are told together.
const TOLD_TOGETHER: [&str; 2] = ["drops-overrun", "evicts-oldest"];

#[test]
fn faults_of_what_is_held_are_caught_shrunk_and_named() {
    let cases = if std::env::var_os("DOUBLECHECK_LONG").is_some() { 2000 } else { 50 };
    let options = Options { cases, ..Options::default() };
    let right = check_sessions(&mut PagedEngine::new(None), &options, &mut |_| {});
    assert!(right.conforms(), "{right}");
    let planted = Planted::of_sessions();
    assert!(planted.len() >= 20);
    planted.par_iter().for_each(|planted| {
        let (result, report) = planted.check(&options);
        let Some(size) = result.size else { panic!("{} is not caught", result.name) };
        let small = size.calls <= 6 && size.requests.is_some_and(|count| count <= 2);
        assert!(small && size.keys <= 8, "{report}");
        if TOLD_TOGETHER.contains(&result.name) {
            let sentence = &report.findings[0].sentence;
            assert!(result.diagnosis.is_empty(), "{report}");
            assert!(TOLD_TOGETHER.iter().all(|name| sentence.contains(name)), "{report}");
        } else {
            assert_eq!(result.diagnosis, [result.name], "{report}");
        }
    });
}
