//! The messages of the libraries, bounded.

/// The longest message from a library, in bytes, because it may quote a whole value.
pub(super) const MESSAGE: usize = 600;

/// Cuts a text after at most [`MESSAGE`] bytes, and marks the cut.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= MESSAGE {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MESSAGE)])
}
