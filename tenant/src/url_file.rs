//! A file that holds a database URL, so that the URL's password stands in no other file.

use std::path::Path;

use crate::{
    DatabaseUrl, Invalid,
    source::{advice_on_encoding, read_bytes},
};

/// The largest content of the file, in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// Reads the URL on the only line of the file. A relative `sslrootcert` is resolved against the file's folder.
///
/// # Errors
/// When the file cannot be read or holds no URL. No message holds a part of the file.
pub fn read(path: &Path) -> Result<DatabaseUrl, Invalid> {
    let bytes = read_bytes(path, MAX_SIZE)
        .map_err(|error| Invalid::new(error.to_string()).hint("it holds the URL on one line"))?;
    let hint = advice_on_encoding(&bytes);
    let text = String::from_utf8(bytes)
        .map_err(|_| Invalid::new("it is not UTF-8".to_owned()).hint(hint))?;
    // Removes the line end that editors write, and the byte order mark of some.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let url = DatabaseUrl::parse(text.trim_end_matches(['\r', '\n']))?;
    let base = path.parent().unwrap_or(Path::new(""));
    Ok(url.within(base))
}
