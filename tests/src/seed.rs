//! Seeds of random tests: the same on every machine, unless a new seed is asked for.

/// Returns the seed in an environment variable: a number is that seed, `random` a new seed; without the variable it is
/// `fixed`. Prints the seed so that the run can be repeated.
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
