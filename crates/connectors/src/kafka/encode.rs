//! Rows as records: the bytes of value and key of each.
//!
//! Invariant: a record for each row, in their order. Called by the sink.

use super::typed::Typed;
use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{DataType, Schema};
use std::sync::Arc;
use tidemill_core::{Error, Options, Result, nearest};

/// How a value is written.
#[derive(Debug, Clone)]
enum Form {
    /// A JSON object of all columns; nulls are left out.
    Json,
    /// The one column beside the key, as it is.
    Text,
    /// A record of Avro or Protobuf of all columns; framed where there is a registry.
    Typed(Arc<Typed>),
}

/// How rows become records.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    form: Form,
    key: Option<String>,
}

/// Records of some rows.
#[derive(Debug)]
pub(super) struct Records {
    /// What `values` points into.
    bytes: Vec<u8>,
    values: Values,
    key: Option<ArrayRef>,
}

#[derive(Debug)]
enum Values {
    /// Where each lies.
    Spans(Vec<(usize, usize)>),
    Column(ArrayRef),
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(ty: &DataType) -> bool {
    matches!(ty, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

impl Encoder {
    /// From `format` and `key_column`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let form = match options.get("format").unwrap_or("json") {
            "json" => Form::Json,
            "text" => Form::Text,
            "avro" => Form::Typed(Arc::new(Typed::avro(options)?)),
            "protobuf" => Form::Typed(Arc::new(Typed::protobuf(options)?)),
            other => {
                return Err(Error::user(format!(
                    "{}: option `format` must be `json` (default), `avro`, `protobuf` or `text`, not `{other}`",
                    options.owner()
                )));
            }
        };
        Ok(Self { form, key: options.get("key_column").map(str::to_string) })
    }

    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match &self.form {
            Form::Json => "json",
            Form::Text => "text",
            Form::Typed(typed) => typed.name(),
        }
    }

    /// Whether rows of these columns become records.
    pub(super) fn check(&self, schema: &Schema) -> Result<()> {
        if let Some(key) = &self.key {
            let Ok(field) = schema.field_with_name(key) else {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                let hint = nearest(key, &names).map_or_else(
                    || format!("there are {}", names.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(Error::user(format!("kafka: option `key_column`: there is no column `{key}`; {hint}")));
            };
            let ty = field.data_type();
            if !is_bytes(ty) && (ty.is_nested() || !arrow_cast::can_cast_types(ty, &DataType::Utf8)) {
                return Err(Error::user(format!(
                    "kafka: option `key_column`: column `{key}` is {ty}, which is no key: take text, bytes, numbers or times"
                )));
            }
        }
        match &self.form {
            Form::Json => {}
            Form::Text => drop(self.value_column(schema)?),
            Form::Typed(typed) => typed.check(schema)?,
        }
        Ok(())
    }

    /// Registers the schema of rows of these columns or asks for it, where there is a registry; waits for it.
    pub(super) fn register(&self, schema: &Schema) -> Result<()> {
        match &self.form {
            Form::Typed(typed) => typed.open(schema),
            Form::Json | Form::Text => Ok(()),
        }
    }

    /// Whether these very rows become records; waits.
    pub(super) fn prove(&self, rows: &RecordBatch) -> Result<()> {
        match &self.form {
            Form::Typed(typed) => typed.prove(rows),
            Form::Json | Form::Text => Ok(()),
        }
    }

    /// The one column beside the key.
    fn value_column(&self, schema: &Schema) -> Result<usize> {
        let rest = |at: &usize| schema.fields().len() == 1 || Some(schema.field(*at).name()) != self.key.as_ref();
        let columns: Vec<usize> = (0..schema.fields().len()).filter(rest).collect();
        match columns[..] {
            [column] if is_text(schema.field(column).data_type()) || is_bytes(schema.field(column).data_type()) => {
                Ok(column)
            }
            _ => {
                let columns: Vec<String> = columns
                    .iter()
                    .map(|at| schema.field(*at))
                    .map(|f| format!("{} {}", f.name(), f.data_type()))
                    .collect();
                Err(Error::user(format!(
                    "kafka: format `text` takes one column of TEXT or BYTEA beside that of option `key_column`, not ({}); choose `json`",
                    columns.join(", ")
                )))
            }
        }
    }

    /// The records of rows.
    pub(super) fn encode(&self, rows: &RecordBatch) -> Result<Records> {
        let broken = |e| Error::user("kafka: these columns can't be written").because(e);
        let bytes = |column: &ArrayRef| {
            // Bytes stay what they are, text is its UTF-8, and the rest is written as text.
            let text = if is_bytes(column.data_type()) {
                Arc::clone(column)
            } else {
                arrow_cast::cast(column, &DataType::Utf8).map_err(broken)?
            };
            arrow_cast::cast(&text, &DataType::Binary).map_err(broken)
        };
        let key = self.key.as_ref().and_then(|key| rows.column_by_name(key)).map(bytes).transpose()?;
        if let Form::Typed(typed) = &self.form {
            let (bytes, values) = typed.encode(rows)?;
            return Ok(Records { bytes, values: Values::Spans(values), key });
        }
        if matches!(self.form, Form::Text) {
            let column = self.value_column(&rows.schema())?;
            return Ok(Records { bytes: Vec::new(), values: Values::Column(bytes(rows.column(column))?), key });
        }
        let mut json = Vec::new();
        let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut json);
        writer.write(rows).and_then(|()| writer.finish()).map_err(broken)?;
        drop(writer);
        // A line end within a text is escaped, so each one ends an object.
        let mut values = Vec::with_capacity(rows.num_rows());
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', &json) {
            values.push((from, end));
            from = end + 1;
        }
        if values.len() != rows.num_rows() {
            return Err(Error::internal(format!("kafka: {} rows became {} objects", rows.num_rows(), values.len())));
        }
        Ok(Records { bytes: json, values: Values::Spans(values), key })
    }
}

impl Records {
    /// One record without a key.
    pub(super) fn of(value: Vec<u8>) -> Self {
        let values = Values::Spans(vec![(0, value.len())]);
        Self { bytes: value, values, key: None }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Spans(values) => values.len(),
            Values::Column(column) => column.len(),
        }
    }

    /// The value of a record; a text or bytes that are null make one without a value.
    pub(super) fn value(&self, at: usize) -> Option<&[u8]> {
        match &self.values {
            Values::Spans(values) => values.get(at).map(|(from, to)| &self.bytes[*from..*to]),
            Values::Column(column) => bytes_at(column, at),
        }
    }

    /// The key of a record.
    pub(super) fn key(&self, at: usize) -> Option<&[u8]> {
        self.key.as_ref().and_then(|column| bytes_at(column, at))
    }
}

fn bytes_at(column: &ArrayRef, at: usize) -> Option<&[u8]> {
    column.is_valid(at).then(|| column.as_binary::<i32>().value(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::registry;
    use arrow_array::{BinaryArray, Int64Array, StringArray};

    fn rows() -> RecordBatch {
        let columns: [(&str, ArrayRef); 3] = [
            ("n", Arc::new(Int64Array::from(vec![Some(1), None]))),
            ("word", Arc::new(StringArray::from(vec![Some("ebb\nand \"flow\""), None]))),
            ("raw", Arc::new(BinaryArray::from_opt_vec(vec![None, Some(b"\xff")]))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    fn encoder(options: &[(&str, &str)]) -> Encoder {
        Encoder::from_options(&Options::new("sink \"s\"", options.iter().copied())).unwrap()
    }

    fn records(encoder: &Encoder, rows: &RecordBatch) -> Vec<(Option<String>, Option<String>)> {
        encoder.check(&rows.schema()).unwrap();
        let records = encoder.encode(rows).unwrap();
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
        (0..records.len()).map(|at| (text(records.key(at)), text(records.value(at)))).collect()
    }

    #[test]
    fn a_row_is_an_object_with_its_key() {
        let some = |text: &str| Some(text.to_string());
        let two = rows().project(&[0, 1]).unwrap();
        let first = "{\"n\":1,\"word\":\"ebb\\nand \\\"flow\\\"\"}";
        assert_eq!(records(&encoder(&[]), &two), [(None, some(first)), (None, some("{}"))]);
        assert_eq!(records(&encoder(&[("key_column", "n")]), &two), [(some("1"), some(first)), (None, some("{}"))]);
    }

    #[test]
    fn a_column_is_written_as_it_is() {
        let some = |text: &str| Some(text.to_string());
        let words = rows().project(&[0, 1]).unwrap();
        let text = encoder(&[("format", "text"), ("key_column", "n")]);
        assert_eq!(records(&text, &words), [(some("1"), some("ebb\nand \"flow\"")), (None, None)]);
        let raw = encoder(&[("format", "text")]);
        assert_eq!(records(&raw, &rows().project(&[2]).unwrap()), [(None, None), (None, some("\u{fffd}"))]);
    }

    #[test]
    fn a_row_is_a_record_of_avro_framed_with_the_id_of_its_schema() {
        let server = crate::format::registry::server::Server::start();
        let two = rows().project(&[0, 1]).unwrap();
        let plain = encoder(&[("format", "avro"), ("topic", "out-1"), ("key_column", "n")]);
        let framed = encoder(&[("format", "avro"), ("topic", "out-1"), ("registry", &server.url)]);
        framed.register(&two.schema()).unwrap();
        let (plain, framed) = (plain.encode(&two).unwrap(), framed.encode(&two).unwrap());
        assert_eq!(server.asked(), ["POST /subjects/out-1-value/versions"], "once, at the start");
        assert!(server.newest("out-1-value").unwrap().contains("\"name\":\"out_1\""));
        assert_eq!((plain.key(0), plain.key(1)), (Some(&b"1"[..]), None));
        assert_eq!(plain.value(1), Some(&[0, 0][..]));
        for at in 0..2 {
            assert_eq!(registry::unframe(framed.value(at).unwrap()), Ok((1, plain.value(at).unwrap())));
        }
        let counted = RecordBatch::try_from_iter([("count(*)", Arc::clone(two.column(0)))]).unwrap();
        let error = encoder(&[("format", "avro"), ("topic", "t")]).check(&counted.schema()).unwrap_err().to_string();
        assert!(error.contains("AS total"), "{error}");
    }

    #[test]
    fn columns_that_make_no_record_are_told() {
        let schema = rows().schema();
        let error = |options: &[(&str, &str)]| encoder(options).check(&schema).unwrap_err().to_string();
        assert!(error(&[("key_column", "wrod")]).contains("did you mean `word`?"));
        assert!(error(&[("format", "text")]).contains("(n Int64, word Utf8, raw Binary)"));
        assert!(Encoder::from_options(&Options::new("s", [("format", "orc")])).is_err());
    }
}
