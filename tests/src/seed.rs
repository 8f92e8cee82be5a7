//! Seeds of tests that choose at random: the same on every machine, unless a new one is asked for.

/// Reads the seed from an environment variable: a number is that seed, `random` deals a new one, and without the variable
/// it is `fixed`. Prints it, so that the run can be repeated.
///
/// # Panics
/// When the variable holds anything else.
#[must_use]
pub fn seed(variable: &str, fixed: u64) -> u64 {
    let seed = match std::env::var(variable).as_deref() {
        Err(_) | Ok("") => fixed,
        Ok("random") => fastrand::u64(..),
        Ok(number) => number
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number or \"random\", not {number:?}")),
    };
    println!("{variable}={seed}");
    seed
}
