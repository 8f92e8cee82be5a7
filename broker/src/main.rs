//! `brokkr-broker`: parse, then run one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    brokkr_broker::cli::main()
}
