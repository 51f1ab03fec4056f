//! What a command can do wrong, for the tests: `subject NAME [FILE]`. It happens at the first answer that it
//! fits; if a file is named, only once, over all starts of the command, which the file records.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Failure, Message, frame, write};

/// What goes wrong, and what is needed to do it at the right time.
pub struct Misbehaviour {
    name: String,
    /// Says that it was done.
    done: Option<PathBuf>,
    masks: usize,
}

impl Misbehaviour {
    pub fn from_arguments() -> Self {
        let mut arguments = std::env::args().skip(1);
        let name = arguments.next().unwrap_or_default();
        let done = arguments.next().map(PathBuf::from);
        Self { name, done, masks: 0 }
    }

    /// Writes the answer to a question, or does something else.
    pub fn write(&mut self, question: &Value, mut answer: Message) -> Result<(), Failure> {
        let kind = question["type"].as_str().unwrap_or_default();
        self.masks += usize::from(kind == "mask");
        if !self.is_time(kind) {
            return Ok(write(&frame(&answer)?)?);
        }
        if let Some(file) = &self.done {
            std::fs::write(file, "")?;
        }
        if self.happens(&mut answer)? { Ok(()) } else { Ok(write(&frame(&answer)?)?) }
    }

    /// Whether this is the answer that goes wrong.
    fn is_time(&self, kind: &str) -> bool {
        let done = self.done.as_ref().is_some_and(|file| file.exists());
        match self.name.as_str() {
            "" | super::RAGGED | super::SHARED => false,
            "dies-after-first-start" => (kind == "hello") == done && kind != "configure",
            _ if done => false,
            "no-hello" | "protocol-3" | "unknown-capability" | "exit-before-hello" | "failed-hello" => {
                kind == "hello"
            }
            "refuses-configure" | "hangs-at-configure" => kind == "configure",
            "stops-reading" => kind == "configure",
            "third" => self.masks == 3,
            _ => kind == "mask",
        }
    }

    /// Does it; false where the answer, perhaps changed, is still to be written.
    fn happens(&self, answer: &mut Message) -> Result<bool, Failure> {
        let whole = frame(answer)?;
        match self.name.as_str() {
            "crash" | "third" | "exit-before-hello" | "dies-after-first-start" => {
                eprintln!("the kernel broke");
                std::process::exit(3)
            }
            "abort" => std::process::abort(),
            "hang" | "no-hello" | "hangs-at-configure" => forever(),
            "stops-reading" => {
                write(&whole)?;
                forever()
            }
            "endless-bytes" => loop {
                write(&[0xff; 4096])?;
            },
            "endless-answers" => loop {
                write(&whole)?;
            },
            "endless-errors" => loop {
                eprintln!("still working");
            },
            "garbage" => {
                write(&[&64u64.to_le_bytes()[..], &[0x5a; 64]].concat())?;
                Ok(true)
            }
            "text" => {
                write(b"Hello from the kernel\n")?;
                Ok(false)
            }
            "huge" => {
                write(&(1u64 << 40).to_le_bytes())?;
                forever()
            }
            "truncated" => {
                write(&whole[..whole.len() / 2])?;
                std::process::exit(0)
            }
            "half-an-answer" => {
                write(&whole[..whole.len() / 2])?;
                forever()
            }
            "killed" => {
                write(&whole[..whole.len() / 2])?;
                Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status()?;
                forever()
            }
            "twice" => {
                write(&whole)?;
                Ok(false)
            }
            "child" => {
                Command::new("sleep").arg("300").spawn()?;
                std::process::exit(3)
            }
            "escaped-child" => {
                Command::new("setsid").args(["sleep", "300"]).spawn()?;
                sleep(Duration::from_millis(50));
                std::process::exit(3)
            }
            "quiet-children" => {
                Command::new("sleep").arg("300").spawn()?;
                Command::new("setsid").args(["sleep", "300"]).spawn()?;
                Ok(false)
            }
            _ => {
                self.change(answer)?;
                Ok(false)
            }
        }
    }

    fn change(&self, answer: &mut Message) -> Result<(), Failure> {
        match self.name.as_str() {
            "wrong-shape" => answer.tensors[0].shape.swap(2, 3),
            "wrong-type" => {
                answer.tensors[0].dtype = Dtype::I32;
            }
            "nan-in-mask" => answer.tensors[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            "nan-in-output" => answer.tensors[1].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            "negative-in-mask" => answer.tensors[0].bytes[..4].copy_from_slice(&(-1f32).to_le_bytes()),
            "no-mask" => answer.tensors.clear(),
            "wrong-id" => answer.json["id"] = json!(answer.json["id"].as_u64().unwrap_or_default() + 1),
            "wrong-message" => answer.json["type"] = json!("configured"),
            "protocol-3" => answer.json["protocol"] = json!(3),
            "unknown-capability" => answer.json["lacks"] = json!(["sequnces"]),
            "failed-hello" => answer.json = json!({"type": "failed", "message": "no CUDA device"}),
            "refuses" | "refuses-configure" => {
                *answer =
                    no_answer(answer, json!({"type": "refused", "kind": "group_factor", "message": "not 2"}));
            }
            "fails" => {
                *answer = no_answer(answer, json!({"type": "failed", "message": "CUDA out of memory"}))
            }
            other => return Err(format!("nothing is called {other}").into()),
        }
        Ok(())
    }
}

fn no_answer(answer: &Message, mut json: Value) -> Message {
    json["id"] = answer.json["id"].clone();
    Message { json, tensors: Vec::new() }
}

fn forever() -> ! {
    loop {
        sleep(Duration::from_secs(3600));
    }
}
