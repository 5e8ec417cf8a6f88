//! Small files of JSON, checked to the last byte.
//!
//! ```json
//! {
//!   "version": 2,
//!   "pins": {},
//!   "crc": "1a2b3c4d"
//! }
//! ```
//!
//! `crc` is the CRC-32C of all bytes before the comma that it follows; what is
//! from there on is compared as it stands. Files of version 1 have none.
//!
//! Invariant: what is read is what was written, or an error that names the file.
//! Called for `topic.json`, `pins.json`, and requests to replay letters.

use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use tidemill_core::{Error, Result};

/// The version of all such files that this build writes, and the newest that it reads.
pub const VERSION: u32 = 2;

/// Bytes from the comma before the checksum to the end.
const TAIL: usize = 24;

fn tail(crc: u32) -> String {
    format!(",\n  \"crc\": \"{crc:08x}\"\n}}\n")
}

/// The bytes of a file with these fields, of which there is one at least; one is `version`.
///
/// # Panics
/// When the fields are no object, or have no form in JSON.
pub fn sealed<T: Serialize>(fields: &T) -> Vec<u8> {
    let text = serde_json::to_string_pretty(fields).expect("plain fields always become JSON");
    let mut bytes = text.strip_suffix("\n}").expect("fields become an object").as_bytes().to_vec();
    bytes.extend(tail(crc32c::crc32c(&bytes)).bytes());
    bytes
}

/// The fields in the bytes of the file at `path`.
///
/// # Errors
/// When the file is damaged, or of a version that this build doesn't know.
pub fn opened<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    let damaged = |why: &str| Error::external(format!("{} is damaged: {why}", path.display())).fatal();
    let not_json = |e: serde_json::Error| damaged("it can't be read").because(e);
    let whole = bytes.len().checked_sub(TAIL).is_some_and(|at| {
        let (fields, end) = bytes.split_at(at);
        *end == *tail(crc32c::crc32c(fields)).as_bytes()
    });
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(not_json)?;
    let version = value["version"].as_u64();
    let crc = value.as_object_mut().and_then(|fields| fields.remove("crc"));
    match version {
        Some(1) if crc.is_none() => {}
        _ if !whole && crc.is_some() => return Err(damaged("its checksum is wrong")),
        Some(newer) if newer > u64::from(VERSION) => {
            return Err(Error::user(format!(
                "{} has format version {newer}, this build reads versions up to {VERSION}: use a newer Tidemill",
                path.display()
            )));
        }
        _ if !whole => return Err(damaged("it has no checksum")),
        _ => {}
    }
    serde_json::from_value(value).map_err(not_json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        version: u32,
        names: BTreeMap<String, u64>,
    }

    fn fields() -> Fields {
        Fields { version: VERSION, names: BTreeMap::from([("潮 }\n".to_string(), 7), ("crc".to_string(), 1)]) }
    }

    fn read(bytes: &[u8]) -> Result<Fields> {
        opened(bytes, Path::new("a/b.json"))
    }

    #[test]
    fn what_is_written_is_read_and_is_json() {
        let bytes = sealed(&fields());
        assert_eq!(read(&bytes).unwrap(), fields());
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["crc"].as_str().map(str::len), Some(8));
        assert!(bytes.ends_with(tail(crc32c::crc32c(&bytes[..bytes.len() - TAIL])).as_bytes()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_told() {
        let bytes = sealed(&fields());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let error = read(&flipped).unwrap_err();
                assert!(error.to_string().starts_with("a/b.json is damaged"), "byte {at}, bit {bit}: {error}");
            }
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn older_ones_are_read_and_newer_ones_named() {
        let old = Fields { version: 1, ..fields() };
        assert_eq!(read(&serde_json::to_vec(&old).unwrap()).unwrap(), old);
        let newer = Fields { version: 9, ..fields() };
        for bytes in [sealed(&newer), br#"{"version": 9}"#.to_vec()] {
            let error = read(&bytes).unwrap_err();
            assert!(error.to_string().contains("version 9, this build reads versions up to 2"), "{error}");
        }
        // Of this version, one without a checksum has lost it.
        assert!(read(&serde_json::to_vec(&fields()).unwrap()).unwrap_err().to_string().contains("no checksum"));
    }
}
