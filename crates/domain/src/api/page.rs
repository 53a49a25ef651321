//! Pages of a list: by key, never by offset, so that what is inserted meanwhile moves nothing.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Items of a page unless the request says otherwise, and at most.
pub const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 100;

/// How many items a request gets.
pub fn limit(asked: Option<u32>) -> u32 {
    asked.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT)
}

/// Where the next page begins. Opaque to clients; the keys of the last item for us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(String);

impl JsonSchema for Cursor {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Cursor".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "`next` of the page before; opaque",
        })
    }
}

impl Cursor {
    /// After the item with these keys; no id holds the separator.
    pub fn after<const N: usize>(keys: [&str; N]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let text = keys.join("\0");
        let digits = text.bytes().flat_map(|byte| {
            [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]].map(char::from)
        });
        Self(digits.collect())
    }

    /// The keys; refused when it is none of ours.
    pub fn keys<const N: usize>(&self) -> Result<[String; N], Refusal> {
        let invalid = || Refusal::Invalid("cursor: not one that was given out".into());
        let digits: Option<Vec<u32>> = self.0.chars().map(|digit| digit.to_digit(16)).collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(invalid)?;
        let bytes = digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(|_| invalid())?;
        let text = String::from_utf8(bytes).map_err(|_| invalid())?;
        let keys: Vec<String> = text.split('\0').map(str::to_owned).collect();
        keys.try_into().map_err(|_| invalid())
    }
}

/// One page of a list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// For the parameter `cursor` of the next request; null at the end.
    pub next: Option<Cursor>,
}

impl<T> Listed<T> {
    /// A page out of one item more than it holds: that one only says that there is more.
    pub fn new(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> Cursor) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| has_more).map(cursor);
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_a_made_up_one_is_refused() {
        let cursor = Cursor::after(["42", "ünïcode"]);
        assert_eq!(cursor.keys::<2>().unwrap(), ["42", "ünïcode"]);
        assert!(cursor.keys::<1>().is_err());
        for bad in ["x", "abc", "ff", "zz"] {
            assert!(Cursor(bad.into()).keys::<1>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_says_whether_there_is_more() {
        let cursor = |item: &u32| Cursor::after([&item.to_string()]);
        assert_eq!(Listed::new(vec![1, 2, 3], 2, cursor).next, Some(cursor(&2)));
        assert_eq!(Listed::new(vec![1, 2], 2, cursor).next, None);
        assert_eq!((limit(None), limit(Some(0)), limit(Some(1_000))), (50, 1, 100));
    }
}
