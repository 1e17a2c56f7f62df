//! Random sequences of operations. Those that once broke a rule are seeds in `tests/fuzz`.

use std::cell::Cell;
use std::env;
use std::thread;

use assay_pair::{Op, play, tell};
use proptest::array::uniform4;
use proptest::collection::vec;
use proptest::num::u8::ANY;
use proptest::test_runner::{
    Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRng, TestRunner,
};

/// How many sequences, unless `ASSAY_PAIR_SEQUENCES` says otherwise. They take some seconds.
const SEQUENCES: u64 = 1_000;
/// The longest sequence.
const LONGEST: usize = 40;

#[test]
fn rules_hold_in_random_sequences() {
    if let Ok(sequence) = env::var("ASSAY_PAIR_REPLAY") {
        let sequence = Op::sequence(&unhex(&sequence));
        return tell(&sequence).unwrap_or_else(|broken| panic!("{broken}"));
    }
    let sequences = number("ASSAY_PAIR_SEQUENCES").unwrap_or(SEQUENCES);
    let seed = number("ASSAY_PAIR_SEED").unwrap_or(1);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    println!("{sequences} sequences with seed {seed}");
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || try_sequences(sequences.div_ceil(threads), seed, thread));
        }
    });
}

fn try_sequences(sequences: u64, seed: u64, thread: u64) {
    let config = Config {
        cases: u32::try_from(sequences).expect("a number of sequences"),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 5_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&thread.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let (tried, has_failed) = (Cell::new(0), Cell::new(false));
    let outcome = runner.run(&vec(uniform4(ANY), 1..=LONGEST), |bytes| {
        // After the first sequence that fails or panics, the runner only tries shorter forms of it.
        let is_shorter = has_failed.replace(true);
        tried.set(tried.get() + u32::from(!is_shorter));
        let outcome = play(&Op::sequence(bytes.as_flattened()));
        has_failed.set(is_shorter || outcome.is_err());
        outcome.map_err(|broken| TestCaseError::fail(broken.0))
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, bytes)) => {
            let sequence = Op::sequence(bytes.as_flattened());
            panic!(
                "after {} sequences: {reason}\n{sequence:#?}\nTo see it \
                 again: ASSAY_PAIR_REPLAY={} cargo test -p assay-pair -- --nocapture",
                tried.get(),
                hex(bytes.as_flattened())
            );
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0;
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    digits.iter().map(|pair| byte(pair).expect("two hexadecimal digits a byte")).collect()
}
