//! JSON from outside, with errors that name the field.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::Error;

/// What an error calls the document as a whole.
const TOP: &str = "(top level)";

/// Parses one whole JSON document.
pub(super) fn parse<T: DeserializeOwned>(file: &Path, text: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let reason = error.inner().to_string();
        Error::field_of(file, &field(&error.path().to_string(), &reason), &reason)
    })?;
    reader
        .end()
        .map_err(|error| Error::field_of(file, TOP, &error.to_string()))?;
    Ok(value)
}

/// The field that serde's message is about: it names a missing, unknown or repeated one only in
/// its text, below the path.
fn field(path: &str, reason: &str) -> String {
    let path = if path == "." { "" } else { path };
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| reason.strip_prefix(start))
        .and_then(|rest| rest.split('`').next());
    match (path, named) {
        ("", None) => TOP.to_owned(),
        ("", Some(name)) => name.to_owned(),
        (_, Some(name)) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        _ => path.to_owned(),
    }
}
