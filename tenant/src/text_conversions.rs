//! The conversions of types that are written as a text.

/// Implements the conversions of a type from a text by its `parse`, and to a text by its `Display`.
macro_rules! text_conversions {
    ($type:ty) => {
        impl std::str::FromStr for $type {
            type Err = crate::Invalid;
            fn from_str(text: &str) -> Result<Self, crate::Invalid> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = crate::Invalid;
            fn try_from(text: String) -> Result<Self, crate::Invalid> {
                Self::parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use text_conversions;
