//! The program `brokkr-broker`: parses its arguments, then runs one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    brokkr_broker::cli::main()
}
