//! What an evaluation has done so far, written down step by step, so that an interrupted run resumes where it stopped.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::contenders::Contender;
use super::recall::RecallSums;
use super::results::{Setup, Unit};
use super::work::{Error, Result, Work};
use crate::algorithm::Detail;
use crate::model::Model;

/// What one contender made of one piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Index of the work.
    pub work: usize,
    /// SHA-256 of everything that is known of the contender ([`Contender::fingerprint`]).
    pub contender: String,
    /// Display name, with H.
    pub name: String,
    /// Empty where it failed.
    pub units: Vec<Unit>,
    /// Why it failed.
    pub failed: Option<String>,
    /// What was generated.
    pub answer: Option<String>,
    /// Keys attended to, keys there were, and rows.
    pub tally: (f64, f64, f64),
    /// What was kept of exact top-k.
    pub recall: RecallSums,
    /// Wall-clock time, without prefilling.
    pub seconds: f64,
}

/// The trials done so far, by this run or an earlier one: in the file a line of JSON each, below a line with the settings.
#[derive(Debug)]
pub struct Progress {
    done: Vec<Trial>,
    file: Option<File>,
}

impl Progress {
    /// Progress kept in memory only.
    pub fn unwritten() -> Self {
        Self { done: Vec::new(), file: None }
    }

    /// Progress kept in a file; what an earlier run with the same settings has written there is taken over. A last line that
    /// was cut off, and what failed, is done again.
    ///
    /// Errors: [`Error::Progress`] for other settings and for files that cannot be read or written.
    pub fn open(path: &Path, settings: &Value) -> Result<Self> {
        let name = path.display().to_string();
        let wrong =
            |found: String, expected: &str| Error::Progress(Detail::new(name.clone(), found, expected));
        let bytes = if path.exists() {
            std::fs::read(path).map_err(|error| wrong(error.to_string(), "a readable file"))?
        } else {
            Vec::new()
        };
        // The last character may be cut off, too.
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        if let Some(first) = lines.next()
            && serde_json::from_str::<Value>(first).ok().as_ref() != Some(settings)
        {
            let expected = "those of this run, or another folder for --out";
            return Err(wrong("an evaluation with other settings".into(), expected));
        }
        let whole = lines.map_while(|line| serde_json::from_str::<Trial>(line).ok());
        let done: Vec<Trial> = whole.filter(|trial| trial.failed.is_none()).collect();
        // Written beside it and put in its place, so that being stopped here loses nothing.
        let fresh = path.with_extension("new");
        let unwritable = |error: std::io::Error| wrong(error.to_string(), "a file that can be written");
        let file = File::create(&fresh).map_err(unwritable)?;
        let mut progress = Self { done: Vec::new(), file: Some(file) };
        progress.write(settings)?;
        done.into_iter().try_for_each(|trial| progress.save(trial))?;
        std::fs::rename(&fresh, path).map_err(unwritable)?;
        Ok(progress)
    }

    /// Progress kept in `progress.jsonl` of a folder, which is created if needed, for this model, set-up and work.
    ///
    /// Errors: [`Error::Progress`] for a folder that cannot be made; those of [`Progress::open`].
    pub fn in_folder(folder: &Path, model: &Model, setup: Setup, work: &[Work]) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| {
            let expected = "a folder that can be made";
            Error::Progress(Detail::new(folder.display().to_string(), error, expected))
        })?;
        let settings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": model.sha256,
            "setup": setup,
            "device": format!("{:?}", model.llama.device()),
            "work": Work::fingerprint(work),
        });
        Self::open(&folder.join("progress.jsonl"), &settings)
    }

    /// All trials of one contender, by its fingerprint, in the order of the work.
    pub(super) fn of(&self, contender: &str) -> Vec<&Trial> {
        let mut trials: Vec<_> = self.done.iter().filter(|trial| trial.contender == contender).collect();
        trials.sort_by_key(|trial| trial.work);
        trials
    }

    /// How many trials of these contenders there are.
    pub fn count(&self, contenders: &[Contender]) -> usize {
        let known: Vec<_> = contenders.iter().map(Contender::fingerprint).collect();
        self.done.iter().filter(|trial| known.contains(&trial.contender)).count()
    }

    pub(super) fn has(&self, work: usize, contender: &str) -> bool {
        self.done.iter().any(|trial| trial.work == work && trial.contender == contender)
    }

    pub(super) fn save(&mut self, trial: Trial) -> Result<()> {
        self.write(&trial)?;
        self.done.push(trial);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let text = serde_json::to_string(line).map_err(std::io::Error::from);
        let written = text.and_then(|text| writeln!(file, "{text}")).and_then(|()| file.flush());
        written.map_err(|error| {
            Error::Progress(Detail::new("progress file", error, "a file that can be written"))
        })
    }
}
