//! The plan of a check: what is asked within a time, of few shapes, until it is interrupted or has found enough; and what is told
//! on the way.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use doublecheck::behaviours::Fault;
use doublecheck::cases::stage_plan::{LargeStage, stage_call_of};
use doublecheck::cases::{
    Answer, Call, Capabilities, Feature, Given, Instance, NoAnswer, Shape, Stages, Takes,
};
use doublecheck::runner::check::{Event, check_with};
use doublecheck::runner::shrink::Limits;
use doublecheck::subjects::{Faulty, Reference, Subject};
use doublecheck::{Options, check};

/// The reference, and what it was asked.
#[derive(Default)]
struct Recording {
    reference: Reference,
    shapes: Option<NonZeroUsize>,
    instance: Option<Instance>,
    /// The channel file of each instance, in which no two random ones are the same.
    instances: Vec<String>,
    /// The keys of each call.
    keys: Vec<usize>,
    asked: Vec<Shape>,
}

impl Subject for Recording {
    fn name(&self) -> String {
        "recording".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shapes: self.shapes, lacks: [Feature::Output].into(), ..self.reference.capabilities() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instances.push(format!("{:?} {:?}", instance.selection, instance.channel_file));
        self.instance = Some(instance.clone());
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.keys.push(call.inputs.dims().keys);
        self.asked.push(Shape::of(self.instance.as_ref().unwrap(), call));
        Ok(Answer::new(self.reference.call(call)?.mask, None))
    }
}

fn within(seconds: f64) -> Options {
    let seconds = Some(Duration::from_secs_f64(seconds));
    Options { cases: usize::MAX, seconds, largest_keys: 4096, probes: false, ..Options::default() }
}

fn faulty(names: &[&str]) -> Faulty {
    let faults: Vec<_> = names.iter().flat_map(|name| Fault::find_all(name)).collect();
    assert_eq!(faults.len(), names.len());
    Faulty::new(&faults)
}

#[test]
fn every_size_has_its_turn_before_a_larger_one() {
    let mut subject = Recording::default();
    let report = check(&mut subject, &within(2.0));
    assert!(report.conforms() && report.seconds < 20.0, "{report}");
    let first = |least: usize, most: usize| {
        let place = subject.keys.iter().position(|keys| (least..=most).contains(keys));
        place.unwrap_or_else(|| panic!("no call of {least} to {most} keys"))
    };
    let firsts = [first(1, 40), first(41, 256), first(257, 1024), first(1025, 4096)];
    assert!(firsts.is_sorted(), "{firsts:?}");
    assert!(subject.keys.iter().all(|&keys| keys <= 4096));
    let sizes = report.by_size.sizes();
    assert_eq!(sizes.iter().map(|size| size.keys).collect::<Vec<_>>(), [40, 256, 1024, 4096]);
    assert_eq!(sizes.iter().map(|size| size.calls).sum::<usize>(), report.calls);
    let (rows, selecting) = sizes.iter().fold((0, 0), |(a, b), size| (a + size.rows, b + size.selecting));
    assert!(
        0 < selecting && selecting < rows && sizes.iter().all(|size| size.selecting <= size.rows),
        "{sizes:?}"
    );
    assert_eq!(report.planned_seconds, Some(2.0));
}

#[test]
fn time_decides_how_many_sequences_are_asked_and_not_which() {
    let (mut short, mut long) = (Recording::default(), Recording::default());
    check(&mut short, &within(0.5));
    check(&mut long, &within(1.5));
    // Small ones come first: at least one in seven of all.
    let count = short.instances.len().min(long.instances.len()) / 8;
    assert!(count >= 3, "{count}");
    assert_eq!(short.instances[..count], long.instances[..count]);
    // With a count they are the same in each run.
    let (mut one, mut other) = (Recording::default(), Recording::default());
    let options = Options { cases: 40, probes: false, ..Options::default() };
    check(&mut one, &options);
    check(&mut other, &options);
    assert_eq!(one.instances, other.instances);
    assert_eq!(one.instances[..3], short.instances[..3]);
}

#[test]
fn few_shapes_are_asked_with_many_numbers() {
    for most in [1, 3, 8, 24] {
        let mut subject = Recording { shapes: NonZeroUsize::new(most), ..Recording::default() };
        let report = check(&mut subject, &Options { cases: 200, ..Options::default() });
        assert!(report.conforms(), "{report}");
        let shapes: BTreeSet<_> = subject.asked.iter().collect();
        assert!((most.div_ceil(2)..=most).contains(&shapes.len()), "{} of {most}", shapes.len());
        assert_eq!(report.shapes, Some(report.shapes.unwrap().min(most)));
        let instances: BTreeSet<_> = subject.instances.iter().collect();
        assert!(instances.len() >= 150, "{} of {most}", instances.len());
        assert_eq!((report.sequences, report.large > 0), (200, most >= 3));
        let selecting: usize = report.by_size.sizes().iter().map(|size| size.selecting).sum();
        assert!(selecting > 100, "{report}");
    }
    // What the options say bounds them as well, and faults are still found.
    let profile = Capabilities { shapes: NonZeroUsize::new(8), ..Capabilities::default() };
    let options = Options { cases: 200, profile, ..Options::default() };
    for name in ["first-layers-channels", "ties-to-highest", "least-important-channels"] {
        let report = check(&mut faulty(&[name]), &options);
        assert_eq!(report.conforms(), name == "ties-to-highest", "{name}: {report}");
    }
}

/// However few the shapes are, they are such that channels of a layer, rows and the ranking of keys matter.
#[test]
fn the_fewest_shapes_show_what_is_wrong_in_every_shape() {
    for most in 1..=8 {
        let profile = Capabilities { shapes: NonZeroUsize::new(most), ..Capabilities::default() };
        let shrinking = Limits { tries: 0, ..Limits::default() };
        let stop_after = NonZeroUsize::new(1);
        let options = Options { cases: 400, profile, shrinking, stop_after, ..Options::default() };
        for name in ["first-layers-channels", "least-important-channels", "one-key-fewer", "smallest-scores"]
        {
            let report = check(&mut faulty(&[name]), &options);
            assert!(!report.findings.is_empty(), "{name} with {most} shapes: {report}");
        }
    }
}

#[test]
fn a_check_ends_after_enough_findings_and_need_not_shrink() {
    let shrinking = Limits { tries: 0, ..Limits::default() };
    let options = Options { cases: 300, shrinking, stop_after: NonZeroUsize::new(1), ..Options::default() };
    let report = check(&mut faulty(&["first-layers-channels"]), &options);
    assert_eq!(report.stopped.as_deref(), Some("after 1 finding, as asked"));
    assert!(report.sequences < 300);
    let finding = &report.findings[0];
    assert_eq!((finding.tries, finding.shrunk), (0, false));
    assert_eq!(finding.diagnosis, ["first-layers-channels"]);
    assert!(report.to_string().contains("  not shrunk: "), "{report}");
}

#[test]
fn shrinking_has_one_time_for_all_findings() {
    let shrinking_in_all = Some(Duration::from_millis(1));
    let options = Options { cases: 60, shrinking_in_all, ..Options::default() };
    let report = check(&mut faulty(&["first-layers-channels"]), &options);
    assert!(
        report.findings.iter().all(|finding| !finding.shrunk && finding.shrinking_seconds < 1.0),
        "{report}"
    );
}

#[test]
fn findings_are_told_before_and_after_they_are_shrunk() {
    let (mut told, mut shrinking) = (Vec::new(), Vec::new());
    let mut watch = |event: Event<'_>| match event {
        Event::Asking(progress) => assert!((0.0..=1.0).contains(&progress.done)),
        Event::Found(number, finding) => told.push((number, "found", finding.size.keys)),
        Event::Shrinking(number, tries) => shrinking.push((number, tries)),
        Event::Naming(findings) => assert_eq!(findings, 1),
        Event::Shrunk(number, finding) => told.push((number, "shrunk", finding.size.keys)),
    };
    let options = Options { cases: 60, ..Options::default() };
    check_with(&mut faulty(&["first-layers-channels"]), &options, &mut watch);
    let [(1, "found", before), (1, "shrunk", after)] = told[..] else { panic!("{told:?}") };
    assert!(after < before && shrinking.len() > 20, "{told:?}");
}

#[test]
fn an_interrupted_check_reports_what_it_has() {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    let options = Options { cases: 500, interrupted: Some(&INTERRUPTED), ..Options::default() };
    let mut asked = 0;
    let mut watch = |event: Event<'_>| {
        asked += usize::from(matches!(event, Event::Asking(_)));
        INTERRUPTED.store(asked == 20, Ordering::Relaxed);
    };
    let report = check_with(&mut Reference::default(), &options, &mut watch);
    assert_eq!((report.interrupted, report.sequences, report.exit_code()), (true, 20, 0));
    assert!(report.to_string().contains("\ninterrupted: "), "{report}");
    // While a finding is shrunk: the finding stays as it is.
    INTERRUPTED.store(false, Ordering::Relaxed);
    let mut watch = |event: Event<'_>| {
        INTERRUPTED.fetch_or(matches!(event, Event::Found(..)), Ordering::Relaxed);
    };
    let report = check_with(&mut faulty(&["first-layers-channels"]), &options, &mut watch);
    assert_eq!((report.findings.len(), report.findings[0].tries, report.exit_code()), (1, 0, 1));
}

#[test]
fn large_questions_to_one_stage_have_the_sizes_asked_for() {
    for (takes, gives) in [(Takes::Scores, Given::Selected), (Takes::Selection, Given::Output)] {
        let stages = Stages::new(takes, Some(&[gives])).unwrap();
        let capabilities = Capabilities { stages, ..Capabilities::default() };
        let (mut applied, mut others) = (0, 0);
        for seed in 0..40 {
            let large = |turn| Some(LargeStage { least: 1025, most: 4096, turn });
            let Some(call) = stage_call_of(&capabilities, seed, seed, large(5)) else { continue };
            let like = stage_call_of(&capabilities, seed + 100, seed, large(5)).unwrap();
            assert!((1025..=4096).contains(&call.dims().keys));
            assert_eq!(call.dims(), like.dims());
            others += usize::from(call != like);
            applied += 1;
        }
        assert!(applied >= 35 && others >= 30, "{takes:?}: {applied}, {others}");
    }
}
