//! The records of runs on machines that tests cannot use must belong to the current goldens: a stale record shows.

use doublecheck::cases::bundled::{read, sha256};
use serde_json::Value;

fn cuda() -> Value {
    serde_json::from_str(include_str!("../../golden/records/cuda.json")).unwrap()
}

#[test]
fn the_cuda_record_belongs_to_the_current_goldens() {
    let sums = read("SHA256SUMS").unwrap();
    assert_eq!(
        cuda()["goldens_sha256"],
        sha256(&sums),
        "golden/records/cuda.json was made with other goldens: run ci/gpu again (see docs/libtorch.md)"
    );
}

#[test]
fn the_cuda_record_has_no_divergence() {
    let record = cuda();
    let cases = String::from_utf8(read("SHA256SUMS").unwrap()).unwrap().lines().count();
    assert_eq!(record["goldens"]["exit_code"], 0);
    assert!(record["goldens"]["total"]["cases"].as_u64().unwrap() as usize >= cases);
    assert_eq!(record["random_cases"]["finding"], Value::Null);
    assert!(record["random_cases"]["cases"].as_u64().unwrap() >= 20_000);
    assert_eq!(record["repeats"]["cases_whose_masks_differ"], 0);
    assert_eq!(record["repeats"]["tied_rows_of_131072_keys"]["masks_that_differ"], 0);
}
