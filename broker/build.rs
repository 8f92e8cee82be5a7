//! Rebuilds the broker when a migration is added, because the macro that embeds migrations notices only changed files.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
