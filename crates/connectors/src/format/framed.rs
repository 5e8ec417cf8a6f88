//! JSON in the frame of a schema registry.
//!
//! The frame is taken off and the rest is JSON as anywhere; the schema is needed
//! for the columns alone, and only where a stream declares none. Then they are the
//! properties of the subject's newest JSON Schema.
//!
//! Invariant: rows and refusals are those of the format within, and a record
//! without a frame is refused. Called by the crate's list of formats.

use super::{
    column::{TAKES, nullable},
    json::JsonFormat,
    registry::{self, Language, SchemaRegistry},
    typed::refuse_lines,
};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{Block, Decoder, Error, Format, Options, Refusal, Result, Span};

/// Bytes of the frame.
const FRAME: u32 = 5;
/// How deep a JSON Schema is followed.
const DEPTH: usize = 16;

/// JSON, framed where option `registry` is given.
pub(crate) fn json_from_options(options: &Options, columns: Option<SchemaRef>) -> Result<Arc<dyn Format>> {
    let Some(registry) = SchemaRegistry::from_options(options)? else {
        return Ok(Arc::new(JsonFormat::from_options(options, columns)?));
    };
    refuse_lines(options, "a schema registry")?;
    let columns = match columns {
        Some(columns) => columns,
        None => {
            let subject = registry::subject(options)?;
            let newest = registry.newest(&subject)?;
            let wrong = |why: String| {
                Error::user(format!(
                    "{}: the newest schema of `{subject}`: {why}; declare the columns",
                    options.owner()
                ))
            };
            columns_of(&newest.of(Language::Json).map_err(wrong)?.text).map_err(wrong)?
        }
    };
    Ok(Arc::new(Framed(Arc::new(JsonFormat::from_options(options, Some(columns))?))))
}

/// The columns of a JSON Schema: its properties, all of which may be missing.
fn columns_of(text: &str) -> Result<SchemaRef, String> {
    let root: Value = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
    let object = resolved(&root, &root, DEPTH);
    let properties = object.get("properties").and_then(Value::as_object);
    let properties = properties.filter(|p| !p.is_empty()).ok_or("it describes no object with properties")?;
    let fields = properties.iter().map(|(name, property)| field(name, &root, property, DEPTH));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<Field>>())))
}

/// What a schema says once its references, and its one alternative to null, are followed.
fn resolved<'a>(root: &'a Value, schema: &'a Value, depth: usize) -> &'a Value {
    if depth == 0 {
        return schema;
    }
    if let Some(place) = schema.get("$ref").and_then(Value::as_str) {
        let found = place.strip_prefix('#').and_then(|place| root.pointer(place));
        return found.map_or(schema, |found| resolved(root, found, depth - 1));
    }
    let ways = ["oneOf", "anyOf"].iter().find_map(|key| schema.get(*key)).and_then(Value::as_array);
    let is_null = |way: &&Value| way.get("type").and_then(Value::as_str) == Some("null");
    match ways.map(|ways| ways.iter().filter(|way| !is_null(way)).collect::<Vec<_>>()).as_deref() {
        Some([one]) => resolved(root, one, depth - 1),
        _ => schema,
    }
}

fn field(name: &str, root: &Value, schema: &Value, depth: usize) -> Field {
    match type_of(root, schema, depth) {
        Some(ty) => nullable(name, ty),
        // Of several types, or of none that is known.
        None => nullable(name, DataType::Utf8).with_metadata(HashMap::from([(TAKES.to_string(), "any".to_string())])),
    }
}

fn type_of(root: &Value, schema: &Value, depth: usize) -> Option<DataType> {
    let below = depth.checked_sub(1)?;
    let schema = resolved(root, schema, depth);
    let name = match schema.get("type")? {
        Value::String(name) => name.as_str(),
        Value::Array(names) => {
            match names.iter().filter_map(Value::as_str).filter(|n| *n != "null").collect::<Vec<_>>()[..] {
                [one] => one,
                ["integer", "number"] | ["number", "integer"] => "number",
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(match name {
        "string" if schema.get("format").and_then(Value::as_str) == Some("date-time") => {
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        }
        "string" => DataType::Utf8,
        "integer" => DataType::Int64,
        "number" => DataType::Float64,
        "boolean" => DataType::Boolean,
        "array" => DataType::List(Arc::new(field("item", root, schema.get("items")?, below))),
        "object" => {
            let properties = schema.get("properties")?.as_object().filter(|p| !p.is_empty())?;
            let fields = properties.iter().map(|(name, property)| field(name, root, property, below));
            DataType::Struct(fields.collect::<Vec<_>>().into())
        }
        _ => return None,
    })
}

/// A format whose records have a frame.
#[derive(Debug)]
struct Framed(Arc<dyn Format>);

impl Format for Framed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        Box::new(FramedDecoder(self.0.decoder(projection)))
    }
}

struct FramedDecoder(Box<dyn Decoder>);

impl Decoder for FramedDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let (mut spans, mut rows, mut bare) = (Vec::with_capacity(block.len()), Vec::new(), Vec::new());
        for (row, span) in block.spans.iter().enumerate() {
            match registry::unframe(block.record(row)) {
                Ok(_) => {
                    spans.push(Span { start: span.start + FRAME, end: span.end });
                    rows.push(row);
                }
                Err(why) => bare.push(Refusal { row, reason: why.to_string() }),
            }
        }
        let mut within = Vec::new();
        let batch = self.0.decode(&Block::new(block.bytes.clone(), spans), &mut within)?;
        bare.extend(within.into_iter().map(|refusal| Refusal { row: rows[refusal.row], reason: refusal.reason }));
        bare.sort_by_key(|refusal| refusal.row);
        refused.append(&mut bare);
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_schema_gives_columns() {
        let text = r##"{"type":"object","definitions":{"P":{"type":"object","properties":{"x":{"type":"number"}}}},
            "properties":{
              "a":{"type":"integer"}, "b":{"oneOf":[{"type":"null"},{"type":"string"}]},
              "c":{"type":["null","boolean"]}, "d":{"$ref":"#/definitions/P"},
              "e":{"type":"array","items":{"type":"string","format":"date-time"}},
              "f":{"type":["string","integer"]}}}"##;
        let columns = columns_of(text).unwrap();
        let shown: Vec<String> = columns.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        assert_eq!(shown[..3], ["a Int64", "b Utf8", "c Boolean"]);
        assert!(
            shown[3].starts_with("d Struct") && shown[4].starts_with("e List") && shown[5] == "f Utf8",
            "{shown:?}"
        );
        assert!(columns.field(5).metadata().contains_key(TAKES));
        assert!(columns_of("{\"type\":\"string\"}").is_err());
        // One that names itself comes to an end.
        let itself = r##"{"properties":{"a":{"$ref":"#/properties/a"},"b":{"type":"array","items":{"$ref":"#/properties/b"}}}}"##;
        assert_eq!(columns_of(itself).unwrap().fields().len(), 2);
    }

    #[test]
    fn the_frame_is_taken_off_and_one_without_is_refused() {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        let format = Framed(Arc::new(JsonFormat::new(Arc::new(schema)).unwrap()));
        let framed = |text: &str| [b"\0\0\0\0\x07", text.as_bytes()].concat();
        let records = [framed("{\"n\":1}"), b"{\"n\":2}".to_vec(), framed("nonsense"), Vec::new(), framed("{\"n\":5}")];
        let mut refused = Vec::new();
        let rows = format.decoder(&[0]).decode(&Block::from_records(records), &mut refused).unwrap();
        assert_eq!(rows.num_rows(), 2);
        assert_eq!(refused.iter().map(|refusal| refusal.row).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(refused[0].reason.contains("schema registry"), "{refused:?}");
    }
}
