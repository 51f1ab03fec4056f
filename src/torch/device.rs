//! Where libtorch computes. CUDA is found at run time: the program links libtorch's CPU libraries only, and opens
//! `libtorch_cuda.so` where there is one, so that one binary serves machines with and without CUDA.

use std::str::FromStr;
use std::sync::OnceLock;

use tch::{Cuda, Device, Kind, Tensor};

use crate::algorithm::Detail;

/// What a person asks for: `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device, by number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let number = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        let detail = || Detail::new("--device", format!("{text:?}"), "cpu, cuda or cuda:N");
        number.map(Self::Cuda).ok_or_else(|| DeviceError::Unknown(detail()))
    }
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("device not known: {0}")]
    Unknown(Detail),
    /// No CUDA library, or no device that answers.
    #[error("no CUDA device: {0}")]
    NoCuda(Detail),
    /// Results would be less exact than the rounding model says.
    #[error("arithmetic not exact enough: {0}")]
    Arithmetic(Detail),
}

const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// Opens libtorch's CUDA library, once; its operators register themselves. The message says what was looked for.
fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(open_cuda_library).clone()
}

#[allow(unsafe_code)]
fn open_cuda_library() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: opening runs the library's initialisers. They are those that every program linked with libtorch's CUDA build
    // runs before main; the library belongs to the same release as the CPU libraries that are loaded already, is opened
    // once, and is never closed.
    let library = unsafe { Library::open(Some(CUDA_LIBRARY), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).map_err(|error| error.to_string())
}

/// Makes a device ready. Errors: [`DeviceError::NoCuda`], which says what was looked for.
pub fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    let DeviceChoice::Cuda(number) = choice else {
        return Ok(Device::Cpu);
    };
    let missing = |found: String| {
        let expected = format!(
            "{CUDA_LIBRARY} of libtorch 2.11.0 on the library path (LD_LIBRARY_PATH) and a CUDA device {number} that answers"
        );
        DeviceError::NoCuda(Detail::new("device", found, expected))
    };
    load_cuda().map_err(missing)?;
    let devices = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    if number as i64 >= devices {
        return Err(missing(format!("{devices} CUDA devices")));
    }
    let device = Device::Cuda(number);
    check_arithmetic(probes(device).map_err(|error| missing(error.to_string()))?)?;
    Ok(device)
}

/// The name of a device: for CUDA, what the driver's tool reports, where there is one.
pub fn describe(device: Device) -> String {
    let Device::Cuda(number) = device else {
        return "cpu".into();
    };
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader", "-i", &number.to_string()];
    let output = std::process::Command::new("nvidia-smi").args(query).output();
    let name = output.ok().filter(|output| output.status.success());
    let name = name.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("cuda:{number} ({})", name.unwrap_or_else(|| "name not known".into()))
}

/// Proves that f32 products are not rounded to TF32 and that sums of half-precision products are accumulated in f32.
fn check_arithmetic((tf32, sum): (f64, f64)) -> Result<(), DeviceError> {
    let wrong = |field: &str, found: f64, expected: f64| {
        let expected = format!("{expected}, as f32 arithmetic gives");
        Err(DeviceError::Arithmetic(Detail::new(field, found, expected)))
    };
    if tf32 != TF32_EXPECTED {
        return wrong("f32 product of 1 + 2^-12 and 1, kept by f32 but not by TF32", tf32, TF32_EXPECTED);
    }
    if sum != SUM_EXPECTED {
        return wrong("f16 sum of 4096 ones and 1/2, kept by f32 but not by f16", sum, SUM_EXPECTED);
    }
    Ok(())
}

const TF32_EXPECTED: f64 = 1.0 + 1.0 / 4096.0;
const SUM_EXPECTED: f64 = 4096.5;

/// An f32 product that TF32 would round, and an f16 sum that f16 accumulation would round.
fn probes(device: Device) -> super::error::Result<(f64, f64)> {
    let a = Tensor::f_full([1, 64, 64], TF32_EXPECTED, (Kind::Float, device))?;
    let identity = Tensor::f_eye(64, (Kind::Float, device))?.f_unsqueeze(0)?;
    let tf32 = a.f_bmm(&identity)?.f_double_value(&[0, 63, 63])?;
    let ones = Tensor::f_ones([1, 8, 4097], (Kind::Half, device))?;
    let _ = ones.f_narrow(2, 4096, 1)?.f_fill_(0.5)?;
    let sum = super::layer::product(&ones, &Tensor::f_ones([1, 4097, 8], (Kind::Half, device))?)?;
    Ok((tf32, sum.f_double_value(&[0, 7, 7])?))
}

/// One line that shows the two probes, for reports.
pub fn arithmetic(device: Device) -> String {
    match probes(device) {
        Ok((tf32, sum)) => format!(
            "TF32 off: 1 + 2^-12 times 1 is {tf32} (TF32 gives 1); f16 products are summed in f32: 4096 ones and 1/2 give {sum} \
             (f16 gives 4096)"
        ),
        Err(error) => format!("the arithmetic could not be probed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("expected cpu, cuda or cuda:N"), "{error}");
        }
    }

    /// No machine has this many devices; the message must say what was looked for.
    #[test]
    fn a_missing_device_says_what_was_looked_for() {
        let error = open(DeviceChoice::Cuda(4096)).unwrap_err().to_string();
        assert!(error.contains("libtorch_cuda.so") && error.contains("4096"), "{error}");
    }
}
