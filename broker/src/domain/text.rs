//! The limits of texts that a column can hold.

/// Reason why no column can hold a text, for the caller.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidText(pub String);

/// Refuses a NUL byte or more than `most` characters, because no column holds them.
pub fn storable(what: &str, value: &str, most: usize) -> Result<(), InvalidText> {
    no_nul(what, value)?;
    // The length in bytes is compared first because it is known and never smaller than the number of characters.
    if value.len() > most && value.chars().count() > most {
        return Err(InvalidText(format!(
            "{what} may have at most {most} characters"
        )));
    }
    Ok(())
}

/// Refuses a NUL byte, because PostgreSQL's text cannot hold it.
pub fn no_nul(what: &str, value: &str) -> Result<(), InvalidText> {
    if value.contains('\0') {
        return Err(InvalidText(format!("{what} contains a NUL byte")));
    }
    Ok(())
}
