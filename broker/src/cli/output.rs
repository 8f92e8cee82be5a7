//! The output of commands on the standard streams.

use std::io::Write;

use crate::http::ServeError;

pub(super) enum Stream {
    Out,
    Err,
}

/// Writes to a standard stream. A closed pipe is no error.
pub(super) fn say(stream: Stream, text: &str) -> Result<(), ServeError> {
    let mut to: Box<dyn Write> = match stream {
        Stream::Out => Box::new(std::io::stdout().lock()),
        Stream::Err => Box::new(std::io::stderr().lock()),
    };
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ServeError::failed("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Replaces control characters, so that a name cannot imitate a line of the broker's output.
pub(super) fn one_line(name: &str) -> String {
    name.replace(char::is_control, "\u{fffd}")
}
