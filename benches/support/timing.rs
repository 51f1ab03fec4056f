//! Times of CUDA work, for the benches that run on a CUDA machine (`ci/gpu`).

use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent};
use tch::{Device, Kind, Tensor};

/// Anything that ends a bench.
pub type Failure = Box<dyn std::error::Error>;

/// Long enough for a device at rest to raise its clocks.
pub const WARM_UP: Duration = Duration::from_millis(500);

/// The median time of some work between two CUDA events, the way `triton.testing.do_bench` takes it: after the device has had
/// time to raise its clocks, with a cold L2 cache, and without waiting for the device between repeats, so that launches overlap
/// with the work before them as they do in a model.
pub fn median_ms<T>(warm_up: Duration, mut work: impl FnMut() -> Result<T, Failure>) -> Result<f64, Failure> {
    const REPEATS: usize = 101;
    const CACHE_BYTES: i64 = 256 << 20;
    let context = CudaContext::new(0)?;
    let stream = context.default_stream();
    let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let mut cache = Tensor::f_empty([CACHE_BYTES], (Kind::Int8, Device::Cuda(0)))?;
    let begin = Instant::now();
    while begin.elapsed() < warm_up {
        let _ = work()?;
        context.synchronize()?;
    }
    let mut events = Vec::new();
    for _ in 0..REPEATS {
        let _ = cache.f_zero_()?;
        let start = stream.record_event(flags)?;
        let _ = work()?;
        events.push((start, stream.record_event(flags)?));
    }
    context.synchronize()?;
    let elapsed = |(start, end): &(CudaEvent, CudaEvent)| start.elapsed_ms(end).map(f64::from);
    let mut times = events.iter().map(elapsed).collect::<Result<Vec<f64>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}
