//! The frames of the protocol without a process, both ways: what is asked, as it is sent, and what bytes from a command are taken
//! for. For tests and fuzzing, which have frames that no command would send.

use super::{messages, sessions, stages};
use crate::cases::{Call, Instance, Session, StageCall};

/// The number of the question that bytes are read as the answer to.
const ID: u64 = 1;

/// Whether a frame, after its length, is a message. Errors: as those of a conversation that cannot go on.
pub fn message(bytes: &[u8]) -> Result<(), String> {
    messages::Message::parse(bytes).map(drop)
}

/// The frames that configure an instance and ask a call of it.
pub fn of_call(instance: &Instance, call: &Call) -> Vec<Vec<u8>> {
    vec![messages::configure(ID, instance), messages::mask(ID, call, None)]
}

/// The frame that asks one stage.
pub fn of_stage(call: &StageCall) -> Vec<u8> {
    match call {
        StageCall::Scores(call) => stages::select(ID, call, None),
        StageCall::Selection(call) => stages::attend(ID, call, None),
    }
}

/// The frames of a session.
pub fn of_session(session: &Session) -> Vec<Vec<u8>> {
    let step = |step| sessions::step(ID, step, session.opening.dtype, None);
    let opened = [messages::configure(ID, &session.instance), sessions::open(ID, &session.opening)];
    opened.into_iter().chain(session.steps.iter().map(step)).collect()
}

/// Reads the answer to `hello`. Errors: as [`message`]'s.
pub fn read_hello(bytes: &[u8]) -> Result<(), String> {
    messages::read_hello(bytes).map(drop)
}

/// Reads the answer to `configure`, and that to `open`. Errors: as [`message`]'s.
pub fn read_configured(bytes: &[u8]) -> Result<(), String> {
    let opened = sessions::read_opened(bytes, ID).map(drop);
    messages::read_configured(bytes, ID).map(drop).or(opened)
}

/// Reads the answer to a call. Errors: as [`message`]'s.
pub fn read_answer(bytes: &[u8], instance: &Instance, call: &Call) -> Result<(), String> {
    messages::read_answer(bytes, ID, instance, call, true).map(drop)
}

/// Reads the answer of one stage. Errors: as [`message`]'s.
pub fn read_stage(bytes: &[u8], call: &StageCall) -> Result<(), String> {
    match call {
        StageCall::Scores(call) => stages::read_selection(bytes, ID, call, true).map(drop),
        StageCall::Selection(call) => stages::read_attention(bytes, ID, call).map(drop),
    }
}

/// Reads bytes as the answer to each step of a session; how many of the steps they can be an answer to.
pub fn read_session(bytes: &[u8], session: &Session) -> usize {
    let Ok(calls) = session.calls() else { return 0 };
    let of_step = |(index, step)| {
        let calls: Vec<Call> =
            calls.iter().filter(|(of, _)| *of == index).map(|(_, call)| call.clone()).collect();
        sessions::read_step(bytes, ID, step, &session.instance, &calls, true)
    };
    session.steps.iter().enumerate().map(of_step).filter(Result::is_ok).count()
}
