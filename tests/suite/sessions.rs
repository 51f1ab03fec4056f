//! Sessions of serving engines (SPEC §2.14): what random ones hold, that right subjects conform, that files keep them, and that what
//! must be refused is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use doublecheck::cases::session_plan::{Stream, session};
use doublecheck::cases::{
    Answer, Capabilities, CaseFile, Feature, Held, Outcome, Reader, Session, Step, session_file,
};
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

/// What the kernel says of this process, in MiB.
fn memory(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib / 1024)
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
        let (now, peak) = (memory("VmRSS"), memory("VmHWM"));
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

/// Faults that two requests cannot show: one ends, and two others have its page, before or after.
const OF_THREE: [&str; 2] = ["frees-shared-pages", "frees-twice"];

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
        let requests = if OF_THREE.contains(&result.name) { 3 } else { 2 };
        let small = size.calls <= 6 && size.requests.is_some_and(|count| count <= requests);
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
