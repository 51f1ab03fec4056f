//! `--subject` and `--device`: who is checked, and where it computes.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Failure, interrupts, seconds};
use crate::behaviours::{CATALOGUE, CacheFault, Fault};
use crate::cases::Precision;
use crate::diagnosis::independent;
use crate::reports::quoted;
use crate::subjects::{Engine, Faulty, PagedEngine, Process, Reference, Subject};

/// How long a command may take for one answer by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Choice {
    /// Which implementation of this project is checked
    #[arg(long, value_enum, default_value_t = Kind::Reference)]
    subject: Kind,
    /// Where torch computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// A command that answers the process protocol (docs/PROTOCOL.md); run by sh
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["subject", "fault"])]
    command: Option<String>,
    /// How long the command may take for one answer, and above 120 for its hello, in seconds [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The reference with deliberate faults: names or rows of SPEC §3, separated by commas; or one fault of what sessions hold
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "subject")]
    fault: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The pure-Rust reference
    Reference,
    /// The decode engine: a label cache, in pure Rust
    Engine,
    /// Double Sparsity in libtorch operations (feature torch)
    Torch,
    /// The label cache for decode steps, scores in f32 (feature torch)
    TorchCache,
    /// The same with scores and attention weights in the storage type, as the author's code keeps them
    TorchCacheStorage,
}

impl Choice {
    /// These arguments again, as a command line names the same subject.
    pub fn again(&self) -> String {
        if let Some(command) = &self.command {
            return format!("--command {}", quoted(command));
        }
        if !self.fault.is_empty() {
            return format!("--fault {}", self.fault.join(","));
        }
        match self.subject {
            Kind::Reference => "--subject reference".into(),
            Kind::Engine => "--subject engine".into(),
            Kind::Torch => format!("--subject torch --device {}", self.device),
            Kind::TorchCache => format!("--subject torch-cache --device {}", self.device),
            Kind::TorchCacheStorage => format!("--subject torch-cache-storage --device {}", self.device),
        }
    }

    /// The subject, ready to be asked.
    pub fn open(&self) -> Result<Box<dyn Subject>, Failure> {
        if let Some(command) = &self.command {
            let timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
            interrupts::end_with_this_process()?;
            return Ok(Box::new(Process::start(command, timeout)?));
        }
        if let Some(timeout) = self.timeout {
            let found = timeout.as_secs_f64();
            return Err(
                format!("--timeout: found {found} without --command, expected both or neither").into()
            );
        }
        if let [name] = &self.fault[..]
            && let Some(fault) = CacheFault::find(name)
        {
            return Ok(Box::new(PagedEngine::new(Some(fault))));
        }
        if !self.fault.is_empty() {
            let faults = faults(&self.fault, "--fault")?;
            if !independent(&faults) {
                let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
                let found = names.join(", ");
                return Err(
                    format!("--fault: found {found}, expected faults that do not undo each other").into()
                );
            }
            return Ok(Box::new(Faulty::new(&faults)));
        }
        match self.subject {
            Kind::Reference | Kind::Engine if self.device != "cpu" => {
                let found = &self.device;
                let who = if self.subject == Kind::Engine { "engine" } else { "reference" };
                Err(format!("--device: found {found:?} for the {who}, expected cpu, or --subject torch")
                    .into())
            }
            Kind::Reference => Ok(Box::new(Reference::serving())),
            Kind::Engine => Ok(Box::new(Engine::default())),
            Kind::Torch => torch(&self.device, None),
            Kind::TorchCache => torch(&self.device, Some(Precision::F32)),
            Kind::TorchCacheStorage => torch(&self.device, Some(Precision::Storage)),
        }
    }
}

/// The masker, or the label cache with what its scores are kept in.
#[cfg(feature = "torch")]
fn torch(device: &str, cache: Option<Precision>) -> Result<Box<dyn Subject>, Failure> {
    use crate::subjects::{Torch, TorchCache};
    use crate::torch::device;
    let choice = device.parse()?;
    let torch = Torch::new(choice)?;
    let found = torch.device();
    super::complain(&format!("torch on {}; {}", device::describe(found), device::arithmetic(found)));
    Ok(match cache {
        None => Box::new(torch),
        Some(kept) => Box::new(TorchCache::new(choice, kept)?),
    })
}

#[cfg(not(feature = "torch"))]
fn torch(_device: &str, _cache: Option<Precision>) -> Result<Box<dyn Subject>, Failure> {
    Err(format!("--subject torch: {}", super::WITHOUT_TORCH).into())
}

/// Faults of the catalogue by name or row of SPEC §3, for `option`.
pub fn faults(names: &[String], option: &str) -> Result<Vec<&'static Fault>, Failure> {
    let mut faults = Vec::new();
    for name in names {
        let found = Fault::find_all(name);
        if found.is_empty() {
            let expected: Vec<_> = CATALOGUE.iter().map(|fault| fault.name).collect();
            let expected = expected.join(", ");
            return Err(format!("{option}: found {name:?}, expected D1 to D23 or one of {expected}").into());
        }
        faults.extend(found);
    }
    Ok(faults)
}
