//! Indexes of a collection, as the options name them.
//!
//! Invariant: making one that is there changes nothing. Called by the sink.

use arrow_schema::{DataType, Schema};
use mongodb::bson::{Document, doc};
use std::time::Duration;
use tidemill_core::{Error, Options, Result, nearest};

/// An index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    /// Members, and whether they descend.
    members: Vec<(String, bool)>,
    unique: bool,
    /// Documents go so long after the time in the one member.
    ttl: Option<Duration>,
}

impl Index {
    /// From the options `indexes`, `ttl` and `ttl_field`.
    ///
    /// # Errors
    /// When one can't be read.
    pub(super) fn from_options(options: &Options) -> Result<Vec<Self>> {
        let owner = options.owner();
        let mut all = Vec::new();
        for text in options.get("indexes").unwrap_or_default().split(';').map(str::trim).filter(|t| !t.is_empty()) {
            all.push(Self::parse(text).ok_or_else(|| {
                Error::user(format!(
                    "{owner}: option `indexes`: `{text}` can't be read: write columns with commas, indexes with semicolons, such as 'author, created_at desc; unique handle'"
                ))
            })?);
        }
        let none = Duration::ZERO;
        match (options.duration("ttl", none)?, options.get("ttl_field")) {
            (Duration::ZERO, None) => {}
            (ttl, Some(field)) if ttl >= Duration::from_secs(1) => {
                all.push(Self { members: vec![(field.trim().to_string(), false)], unique: false, ttl: Some(ttl) });
            }
            (Duration::ZERO, Some(_)) => {
                return Err(Error::user(format!(
                    "{owner}: option `ttl` is missing: how long documents stay, such as 30d"
                )));
            }
            (_, None) => {
                let purpose = "it names the column with the time from which `ttl` is counted";
                return Err(Error::user(format!("{owner}: option `ttl_field` is missing: {purpose}")));
            }
            _ => return Err(Error::user(format!("{owner}: option `ttl` must be at least 1s"))),
        }
        Ok(all)
    }

    fn parse(text: &str) -> Option<Self> {
        let (unique, text) = text.strip_prefix("unique ").map_or((false, text), |rest| (true, rest));
        let member = |part: &str| {
            let mut words = part.split_whitespace();
            let name = words.next()?.to_string();
            let descends = match words.next() {
                None | Some("asc") => false,
                Some("desc") => true,
                Some(_) => return None,
            };
            words.next().is_none().then_some((name, descends))
        };
        Some(Self { members: text.split(',').map(member).collect::<Option<_>>()?, unique, ttl: None })
    }

    /// Which option asks for it.
    pub(super) fn option(&self) -> &'static str {
        if self.ttl.is_some() { "ttl" } else { "indexes" }
    }

    /// Whether the rows have its members; members of structs are taken on trust.
    pub(super) fn check(&self, schema: &Schema) -> Result<(), String> {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        for (name, _) in &self.members {
            let column = name.split('.').next().unwrap_or_default();
            let Ok(field) = schema.field_with_name(column) else {
                let hint = nearest(column, &names).map_or_else(
                    || format!("there are {}", names.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                let option = if self.ttl.is_some() { "ttl_field" } else { "indexes" };
                return Err(format!("option `{option}`: the rows have no column `{column}`; {hint}"));
            };
            let is_time = matches!(field.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64);
            if self.ttl.is_some() && name == column && !is_time {
                return Err(format!("option `ttl_field`: column `{name}` is {}, and no time", field.data_type()));
            }
        }
        Ok(())
    }

    /// The command that makes it.
    pub(super) fn command(&self, collection: &str) -> Document {
        let direction = |descends: bool| if descends { -1 } else { 1 };
        let keys: Document =
            self.members.iter().map(|(name, descends)| (name.clone(), direction(*descends).into())).collect();
        let parts: Vec<String> =
            self.members.iter().map(|(name, descends)| format!("{name}_{}", direction(*descends))).collect();
        let mut index = doc! { "key": keys, "name": parts.join("_") };
        if self.unique {
            index.insert("unique", true);
        }
        if let Some(ttl) = self.ttl {
            index.insert("expireAfterSeconds", i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX));
        }
        doc! { "createIndexes": collection, "indexes": [index] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::rows;

    fn read(options: &[(&str, &str)]) -> Result<Vec<Index>, String> {
        Index::from_options(&Options::new("sink \"s\"", options.iter().copied())).map_err(|e| e.to_string())
    }

    #[test]
    fn indexes_are_read_and_slips_are_told() {
        let all = read(&[("indexes", "n, word desc; unique word;"), ("ttl", "1h"), ("ttl_field", "at")]).unwrap();
        let commands: Vec<Document> = all.iter().map(|index| index.command("c")).collect();
        let want = |index: Document| doc! { "createIndexes": "c", "indexes": [index] };
        assert_eq!(
            commands,
            [
                want(doc! { "key": { "n": 1, "word": -1 }, "name": "n_1_word_-1" }),
                want(doc! { "key": { "word": 1 }, "name": "word_1", "unique": true }),
                want(doc! { "key": { "at": 1 }, "name": "at_1", "expireAfterSeconds": 3600 }),
            ]
        );
        let schema = rows([]).schema();
        assert!(all[0].check(&schema).is_ok());
        assert!(all[2].check(&schema).unwrap_err().contains("no column `at`"));
        let wrong = read(&[("ttl", "1h"), ("ttl_field", "word")]).unwrap()[0].check(&schema).unwrap_err();
        assert!(wrong.contains("Utf8, and no time"), "{wrong}");
        assert!(read(&[("indexes", "wrd")]).unwrap()[0].check(&schema).unwrap_err().contains("did you mean `word`?"));
        for (options, want) in [
            (&[("indexes", "n down")][..], "can't be read"),
            (&[("indexes", "n,,m")], "can't be read"),
            (&[("ttl", "1h")], "`ttl_field` is missing"),
            (&[("ttl_field", "at")], "`ttl` is missing"),
            (&[("ttl", "1ms"), ("ttl_field", "at")], "at least 1s"),
        ] {
            let told = read(options).unwrap_err();
            assert!(told.contains(want), "{told}");
        }
    }
}
