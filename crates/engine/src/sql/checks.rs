//! What must hold of names and columns before a statement is taken.
//!
//! Invariant: an error names the column and the way out. Called by
//! [`super::catalog`].

use super::mistakes;
use crate::{StreamingContext, plan::StreamInput};
use arrow_schema::SchemaRef;
use std::collections::BTreeSet;
use tidemill_core::{Error, Result, nearest};

/// A source that has columns of its own may not have those that were declared.
pub(super) fn check_columns(declared: &SchemaRef, input: &StreamInput) -> Result<()> {
    for field in declared.fields() {
        match input.schema.field_with_name(field.name()) {
            Ok(found) if found.data_type() == field.data_type() => {}
            Ok(found) => {
                return Err(Error::user(format!(
                    "column `{}` is declared as {} and the source gives {}: declare it so, or leave the columns out",
                    field.name(),
                    field.data_type(),
                    found.data_type()
                )));
            }
            Err(_) => {
                let own = input.own_columns().into_iter().map(|at| input.schema.field(at).name().as_str());
                return Err(Error::user(format!(
                    "column `{}` is declared and the source has no such column; it has {}",
                    field.name(),
                    own.collect::<Vec<_>>().join(", ")
                )));
            }
        }
    }
    Ok(())
}

/// The column that a name means: as it is, or in another case when it stood without quotes.
pub(super) fn real_name(schema: &SchemaRef, name: &str) -> Result<String> {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    match names.iter().find(|n| **n == name).or_else(|| names.iter().find(|n| n.to_lowercase() == name)) {
        Some(found) => Ok((*found).to_string()),
        None => {
            let hint = nearest(name, &names)
                .map_or_else(|| format!("; it has {}", names.join(", ")), |n| format!("; did you mean `{n}`?"));
            Err(Error::user(format!("WATERMARK FOR `{name}`: the stream has no such column{hint}")))
        }
    }
}

/// Event time is a timestamp.
pub(super) fn check_time(schema: &SchemaRef, column: &str) -> Result<()> {
    match schema.field_with_name(column).map(arrow_schema::Field::data_type) {
        Ok(arrow_schema::DataType::Timestamp(..)) | Err(_) => Ok(()),
        Ok(other) => Err(Error::user(format!(
            "WATERMARK FOR `{column}`: the column is {}, and event time is a TIMESTAMP: declare the column so",
            mistakes::spelt(&other.to_string())
        ))),
    }
}

pub(super) fn unique_names(schema: &SchemaRef) -> Result<()> {
    let mut seen = BTreeSet::new();
    match schema.fields().iter().find(|f| !seen.insert(f.name())) {
        Some(twice) => {
            Err(Error::user(format!("two columns are called `{}`: give one another name with AS", twice.name())))
        }
        None => Ok(()),
    }
}

/// Takes the names of a statement's parts.
pub(super) fn claim_parts(context: &StreamingContext, parts: &[String]) -> Result<()> {
    parts.iter().try_for_each(|part| context.declare.claim("part", part))
}
