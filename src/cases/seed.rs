//! Random cases follow from a seed and from nothing else.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Makes the random cases of one seed.
pub fn test_runner(seed: u64) -> TestRunner {
    test_runner_with(seed, Config::default())
}

/// The same with other limits.
pub fn test_runner_with(seed: u64, config: Config) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config { failure_persistence: None, ..config }, rng)
}
