//! Commands as subjects, with real processes: a good one answers exactly as the reference does, and for each
//! thing that a command can do wrong (`examples/subject/misbehaviour.rs`) there is the right sentence, in
//! time, an answer to the next question, and nothing left running.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::small_case;
use doublecheck::algorithm::{Error, InputParts, Inputs};
use doublecheck::cases::sequence_plan::sequence_plans;
use doublecheck::cases::session_plan::session as random_session;
use doublecheck::cases::strategies::plans;
use doublecheck::cases::{Answer, Case, NoAnswer, RoundingModel, Sequence, Step};
use doublecheck::subjects::process::ProcessError;
use doublecheck::subjects::{Process, Reference, Subject, ask_session};
use ndarray::Array4;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rstest::rstest;

const TIMEOUT: Duration = Duration::from_secs(1);
/// For a hello, which starts with loading a program.
const HELLO: Duration = Duration::from_secs(10);

/// More than what a finding takes besides the timeout: starting, ending, last words, on a busy machine.
const SLACK: Duration = Duration::from_secs(4);

/// A command for one test: everything it starts can be found again.
struct Run {
    folder: tempfile::TempDir,
    mark: String,
}

impl Run {
    fn new() -> Self {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("TEST_OF_PROCESSES={}-{count}", std::process::id());
        Self { folder: tempfile::tempdir().unwrap(), mark }
    }

    /// Does something wrong each time.
    fn always(&self, misbehaviour: &str) -> String {
        format!("export {}; exec {} {misbehaviour}", self.mark, example().display())
    }

    /// Does something wrong once.
    fn once(&self, misbehaviour: &str) -> String {
        format!("{} {}", self.always(misbehaviour), self.folder.path().join("done").display())
    }

    /// How many processes of this command there are, whatever became of their parents.
    fn running(&self) -> usize {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let environment = |path: PathBuf| std::fs::read(path.join("environ")).unwrap_or_default();
        let marked = |environment: &Vec<u8>| {
            environment.split(|byte| *byte == 0).any(|entry| entry == self.mark.as_bytes())
        };
        processes.map(|process| environment(process.path())).filter(marked).count()
    }
}

/// Cargo builds examples beside the tests.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples/subject")
}

fn start(command: &str) -> Process {
    Process::start_within(command, TIMEOUT, HELLO).unwrap()
}

fn start_error(command: &str, hello: Duration) -> String {
    let start = Instant::now();
    let error = Process::start_within(command, TIMEOUT, hello).err().unwrap();
    assert!(start.elapsed() < hello + SLACK);
    assert!(matches!(error, ProcessError::Hello { .. }));
    error.to_string()
}

fn failure<T: std::fmt::Debug>(answer: Result<T, NoAnswer>) -> String {
    match answer {
        Err(NoAnswer::Failed(sentence)) => sentence,
        other => panic!("found {other:?}, expected a failure"),
    }
}

fn bits(values: &Array4<f32>) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn assert_same(found: &Result<Answer, NoAnswer>, case: &Case) {
    match (found, &Reference::default().answer(case)) {
        (Ok(found), Ok(expected)) => {
            assert_eq!(bits(found.mask.weights()), bits(expected.mask.weights()));
            assert_eq!(found.output.as_ref().map(bits), expected.output.as_ref().map(bits));
        }
        (Err(NoAnswer::Refused(found)), Err(NoAnswer::Refused(expected))) => {
            assert_eq!(found.kind(), expected.kind());
        }
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

#[test]
fn a_good_command_answers_as_the_reference_does() {
    let run = Run::new();
    let mut process = start(&run.always(""));
    assert_eq!(process.name(), concat!("the reference in a process ", env!("CARGO_PKG_VERSION")));
    assert_eq!(process.rounding_model(), RoundingModel::REFERENCE);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut answered = 0;
    for _ in 0..300 {
        let case = plans().new_tree(&mut runner).unwrap().current().case().unwrap();
        let answer = process.answer(&case);
        assert_same(&answer, &case);
        answered += usize::from(answer.is_ok());
    }
    assert!(answered > 200, "{answered} of 300");
    assert_eq!(process.restarts(), 0);
    drop(process);
    assert_eq!(run.running(), 0);
}

/// Every tensor arrives in shared memory, of every type, after smaller and larger ones.
#[test]
#[cfg(target_os = "linux")]
fn a_command_that_shares_memory_gets_the_same_tensors() {
    let run = Run::new();
    // Each child has memory of its own.
    let mut processes = [start(&run.always("shared")), start(&run.always("shared"))];
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[4; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let (mut types, mut previous, mut additive) = (HashSet::new(), 0, 0);
    for index in 0..200 {
        let case = plans().new_tree(&mut runner).unwrap().current().case().unwrap();
        let answer = processes[index % 2].answer(&case);
        assert_same(&answer, &case);
        if answer.is_ok() {
            types.insert(case.call.inputs.storage());
            previous += usize::from(case.call.previous.is_some());
            additive += usize::from(case.call.inputs.parts().attention_mask.is_some());
        }
    }
    assert!(types.len() == 3 && previous > 20 && additive > 20, "{types:?}, {previous}, {additive}");
    assert_eq!(processes.each_ref().map(Process::restarts), [0, 0]);
    drop(processes);
    assert_eq!(run.running(), 0);
}

/// k and v arrive with NaN or large numbers where lengths end: a command that reads them would not answer as the reference.
#[test]
fn a_command_that_offers_ragged_gets_lengths() {
    let run = Run::new();
    let mut process = start(&run.always("ragged"));
    assert!(process.capabilities().ragged && !start(&run.always("")).capabilities().ragged);
    let plans = sequence_plans(&process.capabilities());
    let mut runner = TestRunner::deterministic();
    let mut ragged = 0;
    for _ in 0..200 {
        let sequence = plans.new_tree(&mut runner).unwrap().current().sequence().unwrap();
        for call in sequence.calls.iter().filter(|call| call.inputs.lengths().is_some()) {
            let (name, instance, call) = (sequence.name.clone(), sequence.instance.clone(), call.clone());
            let case = Case {
                name,
                instance,
                call,
                recipe: None,
                expectation: None,
                unknown: serde_json::Map::new(),
            };
            assert_same(&process.answer(&case), &case);
            ragged += 1;
        }
    }
    assert!(ragged > 30, "{ragged}");
}

/// Sessions over a pipe, with tensors in frames or in shared memory, get the answers of the reference; a command that is started anew
/// has lost its session.
#[test]
fn a_command_that_offers_sessions_is_asked_in_them() {
    let run = Run::new();
    for argument in ["sessions", "shared"] {
        let mut process = start(&run.always(argument));
        let capabilities = process.capabilities();
        assert!(capabilities.sessions);
        let (mut steps, mut refused) = (0, 0);
        for session in (0..60).filter_map(|seed| random_session(&capabilities, seed)) {
            let found = ask_session(&mut process, &session);
            let expected = ask_session(&mut Reference::serving(), &session);
            assert_eq!(found.answers.len(), expected.answers.len());
            for (found, expected) in found.answers.iter().zip(&expected.answers) {
                match (found, expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                    (Err(NoAnswer::Refused(found)), Err(NoAnswer::Refused(expected))) => {
                        assert_eq!(found.kind(), expected.kind());
                        refused += 1;
                    }
                    _ => panic!("found {found:?}, expected {expected:?}"),
                }
                steps += 1;
            }
            let step = Step::Free { request: 1 << 20 };
            assert!(matches!(process.step(&step), Err(NoAnswer::Refused(_))));
        }
        assert!(steps > 2000 && refused > 20, "{steps} steps, {refused} refused");
        assert!(process.restart());
        assert!(failure(process.step(&Step::Free { request: 1 })).contains("before a session"));
    }
}

#[test]
fn several_calls_of_one_instance_need_one_configuration() {
    let run = Run::new();
    let mut process = start(&run.always(""));
    let case = small_case();
    let Sequence { instance, calls, .. } = case.sequence();
    assert_eq!(failure(process.call(&calls[0])), "called before it was configured");
    process.configure(&instance).unwrap();
    for _ in 0..3 {
        assert_same(&process.call(&calls[0]), &case);
    }
    let missing = doublecheck::cases::Call { layer: 7, ..calls[0].clone() };
    assert!(matches!(process.call(&missing), Err(NoAnswer::Refused(Error::MissingLayer(_)))));
}

/// After these the conversation is in doubt, and the command is started anew.
#[rstest]
#[case::crash(
    "crash",
    "the command ended without an answer (exit status: 3); its standard error ended with:\n  the kernel broke"
)]
#[case::third("third", "the command ended without an answer (exit status: 3)")]
#[case::abort("abort", "the command ended without an answer (signal: 6 (SIGABRT)")]
#[case::hang("hang", "no answer within 1s; nothing on its standard error")]
#[case::endless_bytes("endless-bytes", "found a frame of 18446744073709551615 bytes, expected at most 10")]
#[case::endless_errors(
    "endless-errors",
    "no answer within 1s; its standard error ended with:\n  still working\n"
)]
#[case::garbage("garbage", "found a frame of 64 bytes that is no message: ")]
#[case::text("text", "found text \"Hello from the kernel\\n")]
#[case::huge("huge", "found a frame of 1099511627776 bytes, expected at most 10")]
#[case::truncated("truncated", " bytes (exit status: 0)")]
#[case::killed("killed", " bytes (signal: 9 (SIGKILL))")]
#[case::half_an_answer("half-an-answer", "no answer within 1s: found the beginning of a frame of ")]
#[case::wrong_id("wrong-id", ", one answer to each question, in order")]
#[case::wrong_message("wrong-message", "type: found \"configured\", expected answer, refused, failed")]
#[case::child("child", "the command ended without an answer (exit status: 3)")]
#[case::escaped_child("escaped-child", "the command ended without an answer (exit status: 3)")]
fn a_broken_conversation_is_a_finding_and_starts_anew(#[case] misbehaviour: &str, #[case] expected: &str) {
    let run = Run::new();
    let mut process = start(&run.once(misbehaviour));
    let case = small_case();
    if misbehaviour == "third" {
        (0..2).for_each(|_| assert_same(&process.answer(&case), &case));
    }
    let start = Instant::now();
    let found = failure(process.answer(&case));
    assert!(start.elapsed() < TIMEOUT + SLACK, "{:?}", start.elapsed());
    assert!(found.contains(expected), "{found}");
    assert_eq!(run.running(), 0);
    // Without a configuration of its own: the instance is configured again.
    assert_same(&process.call(&case.sequence().calls[0]), &case);
    assert_same(&process.answer(&case), &case);
    assert_eq!(process.restarts(), 1);
    drop(process);
    assert_eq!(run.running(), 0);
}

/// After these the conversation goes on with the same process.
#[rstest]
#[case::shape("wrong-shape", "mask: found shape [1, 2, 6, 2], expected [1, 2, 2, 6]")]
#[case::dtype(
    "wrong-type",
    "mask: found I32 [1, 2, 2, 6], expected U8, BOOL, F32, F16, BF16 with 4 dimensions"
)]
#[case::nan("nan-in-mask", "mask(0, 0, 0, 0): found NaN, expected a finite weight of at least 0")]
#[case::negative("negative-in-mask", "mask(0, 0, 0, 0): found -1.0, expected a finite weight of at least 0")]
#[case::no_mask("no-mask", "mask: found nothing, expected a tensor mask or selected")]
#[case::fails("fails", "CUDA out of memory")]
fn an_impossible_answer_is_a_finding(#[case] misbehaviour: &str, #[case] expected: &str) {
    let run = Run::new();
    let mut process = start(&run.once(misbehaviour));
    let case = small_case();
    let found = failure(process.answer(&case));
    assert!(found.contains(expected), "{found}");
    assert_same(&process.answer(&case), &case);
    assert_eq!(process.restarts(), 0);
    drop(process);
    assert_eq!(run.running(), 0);
}

#[test]
fn nan_in_the_output_is_left_to_the_judge() {
    let run = Run::new();
    let mut process = start(&run.once("nan-in-output"));
    let answer = process.answer(&small_case()).unwrap();
    assert!(answer.output.unwrap()[[0, 0, 0, 0]].is_nan());
}

#[rstest]
#[case("twice")]
#[case("endless-answers")]
fn an_answer_that_nobody_asked_for_is_found_with_the_next_question(#[case] misbehaviour: &str) {
    let run = Run::new();
    let mut process = start(&run.once(misbehaviour));
    let case = small_case();
    assert_same(&process.answer(&case), &case);
    let found = failure(process.answer(&case));
    assert!(found.starts_with("id: found 2, expected 3, one answer to each question"), "{found}");
    assert_same(&process.answer(&case), &case);
    assert_eq!(process.restarts(), 1);
}

#[test]
fn a_refused_configuration_refuses_every_call() {
    let run = Run::new();
    let mut process = start(&run.once("refuses-configure"));
    let case = small_case();
    let Sequence { instance, calls, .. } = case.sequence();
    for answer in [process.configure(&instance), process.call(&calls[0]).map(|_| ())] {
        assert!(matches!(answer, Err(NoAnswer::Refused(Error::GroupFactor(_)))), "{answer:?}");
    }
    assert_same(&process.answer(&case), &case);
    assert_eq!(process.restarts(), 0);
}

#[test]
fn a_command_that_hangs_when_configured_is_a_finding() {
    let run = Run::new();
    let mut process = start(&run.once("hangs-at-configure"));
    let case = small_case();
    assert!(failure(process.answer(&case)).starts_with("no answer within 1s"));
    assert_same(&process.answer(&case), &case);
}

/// About 1 MB of keys, more than a pipe holds.
fn large_case() -> Case {
    let mut case = small_case();
    let parts = case.call.inputs.parts().clone();
    let (keys, wide) = (30_000, |tensor: &Array4<f32>, keys| {
        let (b, h, _, last) = tensor.dim();
        Array4::from_elem((b, h, keys, last), 0.5f32)
    });
    let parts = InputParts { k: wide(&parts.k, keys), v: wide(&parts.v, keys), ..parts };
    case.call.inputs = Arc::new(Inputs::new(parts).unwrap());
    case
}

#[test]
fn a_command_that_stops_reading_is_a_finding() {
    let run = Run::new();
    let mut process = start(&run.once("stops-reading"));
    let case = large_case();
    let start = Instant::now();
    let found = failure(process.answer(&case));
    assert!(start.elapsed() < TIMEOUT + SLACK);
    assert!(found.starts_with("no answer within 1s"), "{found}");
    assert_eq!(run.running(), 0);
    assert_same(&process.answer(&case), &case);
}

#[test]
fn closing_standard_output_is_a_finding() {
    let run = Run::new();
    let crash = run.once("crash").replace("exec ", "");
    let done = run.folder.path().join("done");
    // The shell stays, without its output.
    let command = format!("{crash}; [ -e {0}2 ] || {{ touch {0}2; exec >&- sleep 300; }}", done.display());
    let mut process = start(&command);
    let case = small_case();
    let found = failure(process.answer(&case));
    assert!(found.starts_with("the command closed its standard output without an answer"), "{found}");
    assert_eq!(run.running(), 0);
    assert_same(&process.answer(&case), &case);
}

#[test]
fn children_of_a_good_command_end_with_it() {
    let run = Run::new();
    let mut process = start(&run.once("quiet-children"));
    let case = small_case();
    assert_same(&process.answer(&case), &case);
    // A process that is just becoming another one shows no environment for a moment.
    let seen = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(25));
        run.running() >= 3
    });
    assert!(seen, "found {} processes, expected the command and its two children", run.running());
    let start = Instant::now();
    drop(process);
    assert!(start.elapsed() < SLACK);
    assert_eq!(run.running(), 0);
}

#[rstest]
#[case::silent("hang")]
#[case::not_reading("stops-reading")]
fn a_command_that_ignores_signals_and_goodbye_is_ended(#[case] misbehaviour: &str) {
    let run = Run::new();
    let command = format!("trap '' TERM INT HUP; {}", run.always(misbehaviour));
    let mut process = start(&command);
    let (case, start) = (small_case(), Instant::now());
    process.configure(&case.sequence().instance).unwrap();
    drop(process);
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    assert_eq!(run.running(), 0);
    let mut process = self::start(&command);
    assert!(failure(process.answer(&case)).starts_with("no answer within 1s"));
    assert_eq!(run.running(), 0);
}

#[rstest]
#[case::silent("no-hello", "did not say hello: no answer within 1s")]
#[case::exit(
    "exit-before-hello",
    "the command ended without an answer (exit status: 3); its standard error ended with:\n  the kernel broke"
)]
#[case::protocol("protocol-3", "found protocol 3, expected 1 or 2")]
#[case::capability(
    "unknown-capability",
    "hello.lacks[0]: unknown variant `sequnces`, expected one of `attention_mask`"
)]
#[case::failed("failed-hello", "it failed: no CUDA device")]
fn a_command_without_a_hello_cannot_be_used(#[case] misbehaviour: &str, #[case] expected: &str) {
    let run = Run::new();
    // One that says nothing is waited for; the others say something as soon as they run.
    let hello = if misbehaviour == "no-hello" { TIMEOUT } else { HELLO };
    let error = start_error(&run.always(misbehaviour), hello);
    assert!(error.contains(expected), "{error}");
    assert_eq!(run.running(), 0);
}

#[rstest]
#[case::missing("no-such-command-anywhere", "not found")]
#[case::text("echo Hello, I am no subject", "found text \"Hello, I am no subject\\n\"")]
#[case::short_text("printf hi; sleep 0.1", "found text \"hi\" on standard output")]
#[case::nothing(
    "true",
    "the command ended without an answer (exit status: 0); nothing on its standard error"
)]
fn other_commands_cannot_be_used(#[case] command: &str, #[case] expected: &str) {
    let error = start_error(command, HELLO);
    assert!(error.contains(expected), "{error}");
}

/// The suite's own hello is one, too.
#[test]
fn an_echo_is_found_with_the_first_question() {
    let found = failure(start("cat").answer(&small_case()));
    assert!(found.starts_with("type: found \"configure\", expected configured, refused, failed"), "{found}");
}

#[test]
fn a_command_that_cannot_be_started_again_is_given_up() {
    let run = Run::new();
    let mut process = start(&run.once("dies-after-first-start"));
    let case = small_case();
    assert!(
        failure(process.answer(&case)).starts_with("the command ended without an answer (exit status: 3)")
    );
    for _ in 0..3 {
        let found = failure(process.answer(&case));
        assert!(found.starts_with("the command could not be started again: "), "{found}");
        assert!(found.contains("the kernel broke"), "{found}");
    }
    for _ in 0..2 {
        let found = failure(process.answer(&case));
        assert!(found.contains("3 times in a row without a hello, and is not started again"), "{found}");
    }
    assert_eq!(process.restarts(), 3);
}

/// Not a test but a measurement, of which our side is a part: `cargo test --release --test suite processes:: --
/// --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn round_trip_time() {
    let mut process = start(&Run::new().always(""));
    let case = small_case();
    let Sequence { instance, calls, .. } = case.sequence();
    process.configure(&instance).unwrap();
    let mut reference = Reference::default();
    reference.configure(&instance).unwrap();
    for (name, subject) in [("process", &mut process as &mut dyn Subject), ("within", &mut reference)] {
        let mut times: Vec<Duration> = (0..5000)
            .map(|_| {
                let start = Instant::now();
                subject.call(&calls[0]).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("{name}: median {:?}, 99 % {:?}", times[2500], times[4950]);
    }
}
