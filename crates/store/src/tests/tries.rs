//! How often tests try, from which seed, and what they tell of it.
//!
//! Everyday tests try little. `TIDEMILL_TEST_SEEDS` says how often the tests of
//! one run try instead, and `TIDEMILL_TEST_SEED` where their seeds begin; the
//! reliability run (`ci/reliability`) sets both. Every crate's tests have this file.

/// How often to try: `everyday` times, unless the environment says otherwise.
pub(crate) fn tries(everyday: u64) -> u64 {
    number("TIDEMILL_TEST_SEEDS").unwrap_or(everyday)
}

/// The first seed.
pub(crate) fn first_seed() -> u64 {
    number("TIDEMILL_TEST_SEED").unwrap_or(0)
}

/// Tells what a test did: how many faults landed, and where.
pub(crate) fn landed(what: impl std::fmt::Display) {
    println!("landed: {what}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
