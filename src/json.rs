//! Objects of the Kubernetes API out of JSON. How one is read is in the program once for each kind of source it is read from,
//! a quarter of a megabyte for what a Pod holds; so all are read from text, and by way of [`read`], as the API server's answers
//! are. For the same reason all are written as text, also where that is read as a `Value`.

mod lenient;

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

pub use lenient::Failed;
use lenient::Ready;

/// Reads an object, without its `managedFields`.
///
/// # Errors
/// Not such an object.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failed> {
    let mut ready = Ready::of(text, false);
    let mut read = serde_json::from_str(&ready.text);
    if read.is_err() && ready.lacks_time {
        ready = Ready::of(text, true);
        read = serde_json::from_str(&ready.text);
    }
    read.map_err(|error| ready.failed(error))
}

/// Reads an object.
///
/// # Errors
/// Text that is not UTF-8, or not such an object.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    read(std::str::from_utf8(text).map_err(serde_json::Error::custom)?).map_err(|failed| failed.error)
}

/// Reads what another type of the same fields, or a value, is written as.
///
/// # Errors
/// Not such an object; without the place in a text that nobody has seen.
pub fn convert<T: DeserializeOwned>(from: &impl Serialize) -> serde_json::Result<T> {
    read(&serde_json::to_string(from)?).map_err(|Failed { error, .. }| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        serde_json::Error::custom(error.to_string().trim_end_matches(&place))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, EphemeralContainer};

    use super::*;

    #[test]
    fn text_values_and_other_types_are_read() {
        let container: Container = from_slice(br#"{"name": "c"}"#).unwrap();
        assert_eq!(container.name, "c");
        assert_eq!(convert::<Container>(&serde_json::json!({"name": "c"})).unwrap(), container);
        let ephemeral = EphemeralContainer { name: "c".into(), ..Default::default() };
        assert_eq!(convert::<Container>(&ephemeral).unwrap(), container);
    }

    #[test]
    fn what_is_not_text_is_an_error() {
        let said = from_slice::<Container>(b"{\"name\": \"\xff\"}").unwrap_err().to_string();
        assert!(said.contains("utf-8"), "{said}");
    }

    #[test]
    fn mistakes_in_values_have_no_place() {
        let said = convert::<Container>(&serde_json::json!({"name": 1})).unwrap_err().to_string();
        assert_eq!(said, "invalid type: integer `1`, expected a string");
    }
}
