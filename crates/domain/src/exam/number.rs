//! Numbers as people write them: 0.1 + 0.2 is 0.3.

use std::str::FromStr as _;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A decimal number of at most 28 digits. Kept as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(Decimal);

impl Number {
    /// A JSON number, or a text that is a number; a comma counts as the decimal point.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => parse(&number.to_string()),
            Value::String(text) => parse(&text.trim().replace(',', ".")),
            _ => None,
        }
    }

    /// As JSON; a text where a JSON number would not be exact.
    pub fn to_value(self) -> Value {
        let text = self.0.normalize().to_string();
        let number: Option<Value> = serde_json::from_str(&text).ok();
        let is_exact = |value: &Value| Self::of(value) == Some(self);
        number.filter(is_exact).unwrap_or(Value::String(text))
    }

    /// Whether it is off by at most the tolerance.
    pub fn is_near(self, other: Self, tolerance: Self) -> bool {
        let difference = self.0.checked_sub(other.0);
        difference.is_some_and(|difference| difference.abs() <= tolerance.0)
    }
}

fn parse(text: &str) -> Option<Number> {
    let plain = Decimal::from_str(text).or_else(|_| Decimal::from_scientific(text));
    plain.ok().map(Number)
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.normalize())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| serde::de::Error::custom("not a number"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerance_is_exact() {
        let number = |value: Value| Number::of(&value).unwrap();
        assert!(number(json!(0.4)).is_near(number(json!(0.3)), number(json!(0.1))));
        assert!(!number(json!(0.41)).is_near(number(json!(0.3)), number(json!(0.1))));
        assert!(number(json!(" 2,50 ")).is_near(number(json!(2.5)), number(json!(0))));
        assert!(number(json!("1e3")).is_near(number(json!(1000)), number(json!(0))));
        for no in [json!("two"), json!(true), json!(null), json!([1]), json!("")] {
            assert_eq!(Number::of(&no), None, "{no}");
        }
    }
}
