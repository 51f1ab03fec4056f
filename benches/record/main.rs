//! Makes the record of a run of the benches out of what they left: `bench.json` (everything), `bench.txt` (a table) and
//! `bench.svg` (a step's time over n). `ci/bench` runs it.
//!
//!     record FIGURES OUT [PORT]
//!
//! FIGURES holds the lines that the benches printed; criterion's files are where it puts them (`CRITERION_HOME`). PORT is
//! optional: times of the port's masker, measured elsewhere, as JSON `{"machine": "…", "masker_ms": {"32768,B4": 1.0, …}}`,
//! n and B as in the table of masks.

mod aims;
#[path = "../support/estimates.rs"]
mod estimates;
mod machine;
mod measured;
mod plot;
mod table;

use std::path::Path;

use serde_json::json;

use measured::Measured;

/// Anything that ends the record.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (figures, out, port) = match arguments.as_slice() {
        [figures, out] => (figures, out, None),
        [figures, out, port] => (figures, out, Some(Path::new(port))),
        _ => return Err("usage: record FIGURES OUT [PORT]".into()),
    };
    let measured = Measured::read(&estimates::folder(), Path::new(figures), port)?;
    let machine = machine::Machine::this();
    let aims = aims::aims(&measured);
    let bounds = aims::bounds(&measured);
    let record = json!({
        "doublecheck": env!("CARGO_PKG_VERSION"),
        "machine": machine,
        "aims": aims,
        "bounds": bounds,
        "times": measured.estimates,
        "figures": measured.figures,
        "port": measured.port,
    });
    let text = table::render(&machine, &measured, &aims, &bounds);
    print!("{text}");
    let out = Path::new(out);
    std::fs::write(out.join("bench.json"), format!("{record:#}\n"))?;
    std::fs::write(out.join("bench.svg"), plot::step_over_keys(&measured).into_string() + "\n")?;
    std::fs::write(out.join("bench.txt"), text)?;
    Ok(())
}
