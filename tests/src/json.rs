//! Values of an answer, checked for the types that they must have.

use serde_json::Value;

/// A text.
///
/// # Panics
/// When it is none.
#[track_caller]
#[must_use]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// A whole number, not negative.
///
/// # Panics
/// When it is none.
#[track_caller]
#[must_use]
pub fn whole(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no whole number: {value}"))
}

/// A number.
///
/// # Panics
/// When it is none.
#[track_caller]
#[must_use]
pub fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

/// The elements of an array.
///
/// # Panics
/// When it is none.
#[track_caller]
#[must_use]
pub fn array(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no array: {value}"))
}

/// The keys of an object, sorted.
///
/// # Panics
/// When it is none.
#[track_caller]
#[must_use]
pub fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object();
    let object = object.unwrap_or_else(|| panic!("no object: {value}"));
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
