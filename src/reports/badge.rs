//! A badge: the JSON that shields.io's endpoint badges take (<https://shields.io/badges/endpoint-badge>).

use serde::Serialize;

use super::record::Record;

/// The badge of a check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Badge {
    schema_version: u8,
    label: &'static str,
    message: String,
    color: &'static str,
    /// Such a badge cannot be given another colour.
    is_error: bool,
}

impl Badge {
    /// Green where everything conforms or diverges as known, red where something else diverged, grey where it could not be asked.
    pub fn of(record: &Record) -> Self {
        let (color, is_error) = match record.exit_code() {
            0 => ("brightgreen", false),
            1 => ("red", false),
            _ => ("lightgrey", true),
        };
        Self { schema_version: 1, label: "doublecheck", message: record.outcome(), color, is_error }
    }
}
