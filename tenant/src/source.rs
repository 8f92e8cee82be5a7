//! Reads a file's text with bounded time and memory, for any kind of file at the path.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{Diagnostic, diagnostic::Snippet, mask::Mask};

/// The largest file that is read, in bytes. A configuration has a few hundred.
pub const MAX_FILE: u64 = 1 << 20;

/// A text and its path. `Debug` shows the path only, because the text may hold passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Makes a source of a text in memory.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        // Removes a byte order mark, because editors count columns without it.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        Self {
            path: path.into(),
            text,
        }
    }

    /// Reads the file at `path`: a regular file of at most 1 MiB of UTF-8.
    ///
    /// # Errors
    /// A diagnostic at `PATH:1:1`, or at the first byte that is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, Diagnostic> {
        let bytes = read_bytes(path, MAX_FILE).map_err(|error| error.diagnostic(path))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(path, text)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let bytes = error.into_bytes();
                let hint = advice_on_encoding(&bytes);
                // Each bad sequence becomes one replacement character, and all of them come after `at`.
                let source = Self {
                    path: path.to_owned(),
                    text: String::from_utf8_lossy(&bytes).into_owned(),
                };
                let bad = bytes.get(at).copied().unwrap_or_default();
                Err(source.diagnostic(
                    at..at,
                    format!("the file is not UTF-8: byte 0x{bad:02X}"),
                    Some(hint.to_owned()),
                ))
            }
        }
    }

    /// Returns the path of the text.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder for relative paths in this file, absolute if the current folder is known.
    pub fn folder(&self) -> PathBuf {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        path.parent().map(Path::to_path_buf).unwrap_or_default()
    }

    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Makes an error at a place in this text (a range of bytes).
    pub fn diagnostic(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        let start = floor(&self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |n| n + 1);
        let line_end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |n| start + n);
        let end = floor(&self.text, span.end.clamp(start, line_end));
        let line = self.text[..line_start].matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count() + 1;
        let width = self.text[start..end].chars().count();
        let text = self.text[line_start..line_end].trim_end_matches('\r');
        let snippet = Snippet::new(
            &Mask::of_line(text, &self.text[..line_start]),
            column - 1,
            width,
        );
        let mut diagnostic = Diagnostic::at_start(&self.path, message, hint);
        (diagnostic.line, diagnostic.column) = (line, column);
        // An empty file has no line to show.
        diagnostic.snippet = (!self.text.is_empty()).then(|| Box::new(snippet));
        diagnostic
    }
}

/// Returns a hint for a file that is not UTF-8.
pub(crate) fn advice_on_encoding(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        "the file is UTF-16; save it as UTF-8"
    } else {
        "save the file as UTF-8"
    }
}

/// Returns the last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.path).finish()
    }
}

/// An error in reading a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it is {0}, not a regular file")]
    NotAFile(&'static str),
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it is a link to something that does not exist")]
    Dangling,
    #[error("cannot read it: {0}")]
    Io(#[source] io::Error),
}

impl ReadError {
    fn diagnostic(self, path: &Path) -> Diagnostic {
        let hint = match &self {
            Self::NotAFile(_) => {
                Some("only regular files, or links to them, are read; move it elsewhere".to_owned())
            }
            Self::TooLarge => {
                Some("a configuration is a few hundred bytes; is this the right file?".to_owned())
            }
            Self::Dangling => Some("remove the link or create what it points to".to_owned()),
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("it must be readable by the user that reads it".to_owned())
            }
            Self::Io(_) => None,
        };
        Diagnostic::at_start(path, self.to_string(), hint)
    }
}

/// Reads at most `most` bytes of the regular file at `path`; refuses a larger file without reading it.
pub(crate) fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, ReadError> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_ok() {
            ReadError::Dangling
        } else {
            ReadError::Io(error)
        }
    })?;
    // Checks the type before opening, because opening some devices has effects, and again after, because the file may
    // be replaced in between. O_NONBLOCK, because opening a FIFO would wait for a writer.
    regular(&metadata)?;
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(ReadError::Io)?;
    let metadata = file.metadata().map_err(ReadError::Io)?;
    regular(&metadata)?;
    if metadata.len() > most {
        return Err(ReadError::TooLarge);
    }
    let mut bytes = Vec::new();
    // Limits the read, because the file may grow meanwhile.
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(ReadError::Io)?;
    if bytes.len() as u64 > most {
        Err(ReadError::TooLarge)
    } else {
        Ok(bytes)
    }
}

fn regular(metadata: &std::fs::Metadata) -> Result<(), ReadError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(ReadError::NotAFile(what))
}

#[cfg(test)]
mod tests;
