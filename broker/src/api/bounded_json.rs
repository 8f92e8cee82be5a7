//! Parses JSON of any shape, with a bound on its memory: a few bytes of text can take hundreds of bytes in memory.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Largest number of values in a document, including nested values.
const MOST: u32 = 20_000;

/// A document of at most [`MOST`] values.
pub(super) struct BoundedJson(pub(super) Value);

impl<'de> de::Deserialize<'de> for BoundedJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Part(&Cell::new(MOST)).deserialize(deserializer).map(Self)
    }
}

/// Parser of one value, with the number of values that the document may still hold.
#[derive(Clone, Copy)]
struct Part<'a>(&'a Cell<u32>);

impl Part<'_> {
    fn spend<E: de::Error>(self) -> Result<(), E> {
        match self.0.get().checked_sub(1) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom(format!("more than {MOST} values in one body"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            values.insert(key, map.next_value_seed(self)?);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_read_as_it_is_and_what_does_not_is_refused_by_number() {
        for text in [
            "null",
            r#"{"a":[1,-2,3.5,"x",true,null],"b":{"c":{}}}"#,
            "[]",
            "18446744073709551615",
        ] {
            let read: BoundedJson = serde_json::from_str(text).unwrap();
            assert_eq!(
                read.0,
                serde_json::from_str::<Value>(text).unwrap(),
                "{text}"
            );
        }
        let bomb = format!("[{}0]", r#"{"":0},"#.repeat(MOST as usize));
        let error = serde_json::from_str::<BoundedJson>(&bomb).err().unwrap();
        assert!(
            error.to_string().contains("more than 20000 values"),
            "{error}"
        );
    }
}
