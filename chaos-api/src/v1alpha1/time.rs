//! A point in time, as objects of Kubernetes carry it.

use std::borrow::Cow;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// To a whole second in documents, in UTC: `2026-11-30T12:00:00Z` (RFC 3339); a fraction is read, and
/// not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct Time(pub Timestamp);

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        Self(time)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_to_the_second_and_read_as_it_stands() {
        let time: Time = serde_json::from_str("\"2026-11-30T12:00:00.75+01:00\"").unwrap();
        assert_eq!(time.0.as_millisecond(), 1_796_036_400_750);
        let written = serde_json::to_string(&time).unwrap();
        assert_eq!(written, "\"2026-11-30T11:00:00Z\"");
    }
}
