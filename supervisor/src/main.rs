//! The program `brokkr-supervisor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    brokkr_supervisor::main()
}
