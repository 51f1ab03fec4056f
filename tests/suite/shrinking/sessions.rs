//! What shrinking promises of sessions: what is left still fails, has as few steps, requests, layers, keys, queries and pages as the
//! failure lets it have, and was within what may be asked all along; and how many questions that takes.

use std::sync::Arc;
use std::time::Duration;

use doublecheck::algorithm::{ChannelFile, ChannelKind, ChannelOrder, HeavySize, Selection, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::session::Part;
use doublecheck::cases::{Capabilities, Held, Instance, Opening, Outcome, Session, Step};
use doublecheck::runner::shrink::Limits;
use doublecheck::runner::shrink::sessions::shrink_session;
use ndarray::Array3;

use super::subjects::LIMITS;

fn numbers(rows: usize, heads: usize, width: usize, from: u64) -> Array3<f32> {
    let words = Words::new(3, from);
    Array3::from_shape_fn((rows, heads, width), |(t, h, c)| words.value(((t * heads + h) * width + c) as u64))
}

fn rows(parts: &[Part]) -> usize {
    parts.iter().map(|(_, count)| count).sum()
}

fn append(layer: usize, parts: &[Part]) -> Step {
    let t = rows(parts);
    Step::Append { layer, parts: parts.to_vec(), k: numbers(t, 2, 4, 1), v: numbers(t, 2, 3, 2) }
}

fn attend(layer: usize, parts: &[Part]) -> Step {
    Step::Attend { layer, parts: parts.to_vec(), q: numbers(rows(parts), 6, 4, 3) }
}

fn fork(from: usize, to: usize, length: usize) -> Step {
    Step::Fork { from, to, length }
}

fn truncate(request: usize, length: usize) -> Step {
    Step::Truncate { request, length }
}

/// Two layers with room for 16 pages of 6 tokens, 6 heads over 2 KV heads, f16.
fn session(steps: Vec<Step>) -> Session {
    let mut file = ChannelFile::default();
    for layer in [2, 5] {
        file.insert(ChannelKind::QkProj, layer, ChannelOrder::new(vec![vec![3, 1, 0, 2]]).unwrap());
    }
    let opening = Opening {
        layers: vec![2, 5],
        capacity: 96,
        page_size: 6,
        heads: 6,
        kv_heads: 2,
        head_dim: 4,
        value_dim: 3,
        dtype: Storage::F16,
        scaling: Some(0.3),
    };
    let instance = Instance {
        selection: Selection::new(HeavySize::count(3).unwrap(), 2, 4).unwrap(),
        earlier_maskers: Vec::new(),
        dense_layers: Vec::new(),
        channel_selection: ChannelKind::QkProj,
        channel_file: Arc::new(file),
    };
    Session { name: "session".into(), instance, opening, steps }
}

/// Requests 7, 9 and 4 in two layers, in which everything happens that may.
fn eventful() -> Session {
    session(vec![
        append(2, &[(7, 7), (9, 3)]),
        append(5, &[(7, 7), (9, 3)]),
        attend(2, &[(7, 3), (9, 1)]),
        attend(5, &[(7, 3), (9, 1)]),
        fork(7, 4, 5),
        append(2, &[(4, 2)]),
        append(2, &[(9, 1), (4, 2), (7, 2)]),
        append(5, &[(4, 2), (7, 2)]),
        attend(5, &[(4, 2), (7, 1)]),
        truncate(9, 2),
        append(2, &[(9, 4)]),
        append(5, &[(9, 4)]),
        attend(2, &[(9, 2), (4, 1)]),
        Step::Free { request: 7 },
        append(2, &[(7, 5)]),
        attend(2, &[(7, 2)]),
    ])
}

/// Steps that must be refused among those that are done.
fn refused() -> Session {
    let wrong = |mut step: Step, more: usize| {
        let (Step::Append { parts, .. } | Step::Attend { parts, .. }) = &mut step else { unreachable!() };
        parts[0].1 += more;
        step
    };
    session(vec![
        append(2, &[(1, 4), (2, 3)]),
        wrong(append(2, &[(1, 2), (3, 2)]), 1),
        wrong(attend(2, &[(1, 2), (2, 1)]), 1),
        attend(2, &[(1, 2), (2, 1)]),
        attend(2, &[(3, 1)]),
        attend(2, &[(2, 5)]),
        fork(1, 3, 9),
        truncate(2, 8),
        fork(6, 3, 1),
        Step::Free { request: 8 },
        append(2, &[(1, 3), (2, 3)]),
        attend(2, &[(1, 4), (2, 2)]),
    ])
}

fn of_parts(parts: &[Part]) -> String {
    parts.iter().map(|(request, count)| format!(" {request}:{count}")).collect()
}

/// A session in words: its steps, and everything else in which it differs from the plainest.
fn told(session: &Session) -> String {
    let step = |step: &Step| match step {
        Step::Append { layer, parts, .. } => format!("append {layer}{}", of_parts(parts)),
        Step::Attend { layer, parts, .. } => format!("attend {layer}{}", of_parts(parts)),
        Step::Fork { from, to, length } => format!("fork {from} {to} {length}"),
        Step::Truncate { request, length } => format!("truncate {request} {length}"),
        Step::Free { request } => format!("free {request}"),
    };
    let mut told = vec![session.steps.iter().map(step).collect::<Vec<_>>().join(", ")];
    let Session { opening, instance, .. } = session;
    let Opening { layers, capacity, page_size, heads, kv_heads, head_dim, value_dim, dtype, scaling } =
        opening;
    let selection = &instance.selection;
    let mut tell = |name: &str, value: usize| {
        if value > 1 {
            told.push(format!("{name} {value}"));
        }
    };
    tell("layers", layers.len());
    tell("page size", *page_size);
    tell("pages", capacity / page_size);
    tell("hk", *kv_heads);
    tell("g", heads / kv_heads);
    tell("d", *head_dim);
    tell("dv", *value_dim);
    tell("G", selection.group_factor.get());
    tell("H", selection.heavy_size.resolve(usize::MAX));
    let bits = selection.label_bits;
    told.extend(bits.quantises().then(|| format!("B {}", bits.get())));
    told.extend((*dtype != Storage::F32).then(|| dtype.to_string()));
    told.extend(scaling.map(|_| "scaled".into()));
    let mut tensors = Vec::new();
    for step in &session.steps {
        match step {
            Step::Append { k, v, .. } => tensors.extend([("k", k), ("v", v)]),
            Step::Attend { q, .. } => tensors.push(("q", q)),
            _ => {}
        }
    }
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.iter().copied().filter(|x| x.to_bits() != 0).collect();
        told.extend((!values.is_empty()).then(|| format!("{name} {values:?}")));
    }
    told.join("; ")
}

fn serving() -> Capabilities {
    Capabilities { sessions: true, ..Capabilities::default() }
}

/// What is left of a session that fails, in words, and how many questions that took. All of them are offered.
fn shrunk(session: Session, fails: impl Fn(&Session) -> bool) -> (String, usize) {
    let capabilities = serving();
    assert!(capabilities.offers_session(&session));
    assert!(fails(&session));
    let mut asked = 0;
    let found = shrink_session(session, LIMITS, &capabilities, &mut |candidate| {
        asked += 1;
        assert!(capabilities.offers_session(candidate));
        fails(candidate)
    });
    assert!(found.finished && fails(&found.session));
    (told(&found.session), asked)
}

/// Whether some step is done with which this holds, given what was held before.
fn some_step(session: &Session, holds: impl Fn(&Held, &Step) -> bool) -> bool {
    let mut held = Held::new(&session.opening);
    let mut found = false;
    for step in &session.steps {
        if held.outcome(step) == Outcome::Done {
            found |= holds(&held, step);
            held.apply(step);
        }
    }
    found
}

fn some_refused(session: &Session, is: impl Fn(&Step) -> bool) -> bool {
    let outcomes = session.outcomes().unwrap();
    session.steps.iter().zip(outcomes).any(|(step, outcome)| outcome != Outcome::Done && is(step))
}

/// The keys that each request of some attend has, and its queries.
fn some_attend(session: &Session, holds: impl Fn(&[Part], &[usize]) -> bool) -> bool {
    some_step(session, |held, step| match step {
        Step::Attend { layer, parts, .. } => {
            let keys: Vec<usize> = parts.iter().map(|(r, _)| held.tokens(*r, *layer).len()).collect();
            holds(parts, &keys)
        }
        _ => false,
    })
}

fn position(session: &Session, name: &str) -> Option<usize> {
    session.steps.iter().position(|step| step.name() == name)
}

fn follows(session: &Session, first: &str, then: &str) -> bool {
    let done = session.outcomes().unwrap().iter().all(|outcome| *outcome == Outcome::Done);
    let first = position(session, first).filter(|_| done);
    first.is_some_and(|first| session.steps[first..].iter().any(|step| step.name() == then))
}

type Expected = (fn(&Session) -> bool, &'static str, usize);

fn assert_shrinks_to(start: &Session, cases: &[Expected]) {
    let mut wrong = Vec::new();
    for &(fails, told, questions) in cases {
        let found = shrunk(start.clone(), fails);
        if found != (told.to_owned(), questions) {
            wrong.push((found, (told, questions)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn as_little_of_a_session_is_left_as_fails() {
    let cases: &[Expected] = &[
        (|s| some_attend(s, |_, _| true), "append 2 1:1, attend 2 1:1", 55),
        (|s| some_attend(s, |parts, _| parts.len() > 1), "append 2 1:1 2:1, attend 2 1:1 2:1; pages 2", 107),
        (|s| some_attend(s, |parts, _| parts[0].1 > 1), "append 2 1:2, attend 2 1:2; pages 2", 89),
        (|s| some_attend(s, |_, keys| keys[0] > 5), "append 2 1:6, attend 2 1:1; pages 6", 158),
        (
            |s| some_attend(s, |_, keys| keys.len() > 1 && keys[0] > keys[1] + 2),
            "append 2 1:4 2:1, attend 2 1:1 2:1; pages 5",
            170,
        ),
        (
            |s| some_attend(s, |parts, keys| parts.len() == 2 && parts[0].1 == 2 && keys[1] > 4),
            "append 5 1:5 2:2, attend 5 2:2 1:1; pages 7",
            200,
        ),
        (|s| follows(s, "fork", "attend"), "append 5 1:1, fork 1 2 0, attend 5 1:1", 90),
        (|s| follows(s, "truncate", "attend"), "append 2 1:1, truncate 1 1, attend 2 1:1", 81),
        (|s| follows(s, "free", "attend"), "append 2 1:1, free 1, append 2 1:1, attend 2 1:1", 124),
        (
            |s| some_step(s, |_, step| matches!(step, Step::Fork { length, .. } if *length > 2)),
            "append 2 1:3, fork 1 2 3; pages 6",
            132,
        ),
        (
            |s| some_step(s, |_, step| matches!(step, Step::Truncate { length, .. } if *length > 1)),
            "append 2 1:2, truncate 1 2; pages 2",
            110,
        ),
        (
            |s| s.steps.iter().filter(|step| step.name() == "append").count() > 2,
            "append 2 1:1, append 5 1:1, append 2 1:1; layers 2",
            122,
        ),
        (|s| s.requests().len() > 2, "attend 2 1:1 2:1, free 3", 85),
        (|s| s.opening.layers.len() > 1, "attend 2 1:1; layers 2", 28),
        (|s| s.opening.page_size > 2, "attend 2 1:1; page size 3", 29),
        (|s| s.opening.capacity / s.opening.page_size > 3, "attend 2 1:1; pages 4", 32),
        (|s| s.opening.capacity > 20, "attend 2 1:1; page size 2; pages 11", 92),
        (|s| s.opening.kv_heads > 1, "attend 2 1:1; hk 2", 26),
        (|s| s.opening.heads > s.opening.kv_heads, "attend 2 1:1; g 2", 26),
        (|s| s.opening.head_dim > 2, "attend 2 1:1; d 3", 38),
        (|s| s.opening.value_dim > 1, "attend 2 1:1; dv 2", 26),
        (|s| s.instance.selection.label_bits.quantises(), "attend 2 1:1; B 1", 25),
        (|s| s.opening.dtype == Storage::F16, "attend 2 1:1; f16", 24),
        (|s| s.opening.scaling.is_some(), "attend 2 1:1; scaled", 24),
        (|s| s.queries() > 4, "attend 2 1:2 1:1, attend 2 1:2", 109),
        (|s| s.longest() > 7, "append 2 1:8; pages 8", 198),
    ];
    assert_shrinks_to(&eventful(), cases);
}

#[test]
fn refusals_stay_where_they_are_needed() {
    let cases: &[Expected] = &[
        (|s| some_attend(s, |_, keys| keys[0] > 5), "append 2 1:6, attend 2 1:1; pages 6", 155),
        (|s| some_refused(s, |_| true), "attend 2 1:1", 27),
        (|s| some_refused(s, |step| step.name() == "append"), "append 2 1:3 1:2", 46),
        (|s| some_refused(s, |step| step.name() == "attend"), "attend 2 1:1", 27),
        (
            |s| some_refused(s, |step| step.name() == "append") && some_attend(s, |parts, _| parts[0].1 > 1),
            "append 2 1:2, append 2 1:3 1:2, attend 2 1:2; pages 2",
            169,
        ),
        (
            |s| some_refused(s, |step| step.name() == "attend") && some_attend(s, |_, keys| keys[0] > 5),
            "append 2 1:3, attend 2 1:3 1:1, append 2 1:3, attend 2 1:1; pages 6",
            370,
        ),
    ];
    assert_shrinks_to(&refused(), cases);
}

/// A search that its limits end says so, and what it found still fails.
#[test]
fn a_search_ends_within_its_limits() {
    let fails = |s: &Session| s.longest() > 7;
    for tries in [0, 1, 7, 20] {
        let limits = Limits { tries, ..LIMITS };
        let found = shrink_session(eventful(), limits, &serving(), &mut |s| fails(s));
        assert_eq!((found.tries, found.finished), (tries, false));
        assert!(fails(&found.session));
    }
    // Of questions that take 10 ms each, six begin within 60 ms.
    let limits = Limits { time: Duration::from_millis(60), ..LIMITS };
    let found = shrink_session(eventful(), limits, &serving(), &mut |s| {
        std::thread::sleep(Duration::from_millis(10));
        fails(s)
    });
    assert!(found.tries <= 6 && !found.finished, "{}", found.tries);
    assert!(fails(&found.session));
}
