//! A schema of Avro, as JSON says it.
//!
//! Types lie in one list and name each other by their place in it, so that a
//! record may hold itself. Invariant: every place that a type names is in the
//! list; what a schema says that nobody here knows (a logical type, a property)
//! is passed over, as the specification asks.

use serde_json::{Map, Value};
use std::collections::HashMap;

/// Place of a type in its schema.
pub(crate) type Id = usize;

/// A schema.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    types: Vec<Typed>,
    root: Id,
}

/// A type and what its bytes mean.
#[derive(Debug, Clone)]
pub(crate) struct Typed {
    pub(crate) ty: Type,
    pub(crate) logical: Option<Logical>,
}

/// A type.
#[derive(Debug, Clone)]
pub(crate) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum { symbols: Vec<String>, default: Option<usize> },
    Array(Id),
    Map(Id),
    Union(Vec<Id>),
    Record { name: String, fields: Vec<RecordField> },
}

/// A field of a record.
#[derive(Debug, Clone)]
pub(crate) struct RecordField {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) ty: Id,
    pub(crate) default: Option<Value>,
}

/// What the values of a type mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logical {
    Date,
    TimeMillis,
    TimeMicros,
    /// Nanoseconds of one unit, and whether it is a time of the calendar without a zone.
    Timestamp {
        nanos: i64,
        local: bool,
    },
    Decimal {
        precision: usize,
        scale: usize,
    },
    Uuid,
}

/// What is known while a schema is read.
#[derive(Default)]
struct Reading {
    types: Vec<Typed>,
    names: HashMap<String, Id>,
}

/// Names that are types by themselves.
fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::String,
        _ => return None,
    })
}

impl Schema {
    /// The schema of a text: JSON, or the bare name of a primitive type. `references` are schemas whose named types
    /// it may use, each after those that it uses itself.
    ///
    /// # Errors
    /// With what is wrong in it.
    pub(crate) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let mut reading = Reading::default();
        for reference in references {
            reading.text(reference).map_err(|why| format!("a schema that it refers to: {why}"))?;
        }
        let root = reading.text(text)?;
        Ok(Self { types: reading.types, root })
    }

    /// The type that a record of it is.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    /// A type.
    pub(crate) fn get(&self, id: Id) -> &Typed {
        &self.types[id]
    }

    /// The one type beside null of a union of two, and whether null comes first.
    pub(crate) fn nullable(&self, id: Id) -> Option<Id> {
        match &self.get(id).ty {
            Type::Union(branches) => match branches[..] {
                [one, other] if matches!(self.get(one).ty, Type::Null) => Some(other),
                [other, one] if matches!(self.get(one).ty, Type::Null) => Some(other),
                _ => None,
            },
            _ => None,
        }
    }

    /// For people.
    pub(crate) fn name(&self, id: Id) -> String {
        match &self.get(id).ty {
            Type::Null => "null".to_string(),
            Type::Boolean => "boolean".to_string(),
            Type::Int => "int".to_string(),
            Type::Long => "long".to_string(),
            Type::Float => "float".to_string(),
            Type::Double => "double".to_string(),
            Type::Bytes => "bytes".to_string(),
            Type::String => "string".to_string(),
            Type::Fixed(size) => format!("fixed of {size} bytes"),
            Type::Enum { .. } => "enum".to_string(),
            Type::Array(_) => "array".to_string(),
            Type::Map(_) => "map".to_string(),
            Type::Union(_) => "union".to_string(),
            Type::Record { name, .. } => format!("record {name}"),
        }
    }
}

impl Reading {
    fn text(&mut self, text: &str) -> Result<Id, String> {
        let trimmed = text.trim();
        let value = match primitive(trimmed) {
            Some(_) => Value::String(trimmed.to_string()),
            None => serde_json::from_str(trimmed).map_err(|e| format!("no JSON: {e}"))?,
        };
        self.read(&value, "")
    }

    fn add(&mut self, ty: Type, logical: Option<Logical>) -> Id {
        self.types.push(Typed { ty, logical });
        self.types.len() - 1
    }

    fn read(&mut self, value: &Value, namespace: &str) -> Result<Id, String> {
        match value {
            Value::String(name) => match primitive(name) {
                Some(ty) => Ok(self.add(ty, None)),
                None => self.named(name, namespace),
            },
            Value::Array(branches) => {
                let mut ids = Vec::with_capacity(branches.len());
                for branch in branches {
                    let id = self.read(branch, namespace)?;
                    if matches!(self.types[id].ty, Type::Union(_)) {
                        return Err("a union holds a union".to_string());
                    }
                    ids.push(id);
                }
                if ids.is_empty() {
                    return Err("a union of nothing".to_string());
                }
                Ok(self.add(Type::Union(ids), None))
            }
            Value::Object(object) => self.object(object, namespace),
            other => Err(format!("{other} is no type")),
        }
    }

    fn named(&self, name: &str, namespace: &str) -> Result<Id, String> {
        let full =
            if name.contains('.') || namespace.is_empty() { name.to_string() } else { format!("{namespace}.{name}") };
        let found = self.names.get(&full).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| format!("there is no type `{full}`"))
    }

    fn object(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<Id, String> {
        let name = match object.get("type") {
            Some(Value::String(name)) => name.as_str(),
            Some(nested) => return self.read(nested, namespace),
            None => return Err("a type has no `type`".to_string()),
        };
        let logical = logical(object);
        let part = |key: &str| object.get(key).ok_or_else(|| format!("{name}: no `{key}`"));
        Ok(match name {
            "array" => {
                let items = self.read(part("items")?, namespace)?;
                self.add(Type::Array(items), None)
            }
            "map" => {
                let values = self.read(part("values")?, namespace)?;
                self.add(Type::Map(values), None)
            }
            "fixed" => {
                let size = part("size")?.as_u64().and_then(|size| usize::try_from(size).ok());
                let size = size.filter(|size| *size <= 1 << 30).ok_or("fixed: `size` must be a number of bytes")?;
                let id = self.add(Type::Fixed(size), logical.filter(|l| fits(*l, Some(size))));
                self.define(object, namespace, id)?;
                id
            }
            "enum" => {
                let symbols = part("symbols")?.as_array().ok_or("enum: `symbols` must be a list")?;
                let symbols: Option<Vec<String>> = symbols.iter().map(|s| s.as_str().map(str::to_string)).collect();
                let symbols = symbols.ok_or("enum: a symbol must be a text")?;
                let default = object.get("default").and_then(Value::as_str);
                let default = default.and_then(|default| symbols.iter().position(|symbol| symbol == default));
                let id = self.add(Type::Enum { symbols, default }, None);
                self.define(object, namespace, id)?;
                id
            }
            "record" | "error" => self.record(object, namespace)?,
            other => match primitive(other) {
                Some(ty) => {
                    let is_bytes = matches!(ty, Type::Bytes);
                    let suits = |logical: &Logical| match logical {
                        Logical::Date | Logical::TimeMillis => matches!(ty, Type::Int),
                        Logical::TimeMicros | Logical::Timestamp { .. } => matches!(ty, Type::Long),
                        Logical::Decimal { .. } => is_bytes && fits(*logical, None),
                        Logical::Uuid => matches!(ty, Type::String),
                    };
                    let logical = logical.filter(suits);
                    self.add(ty, logical)
                }
                None => self.named(other, namespace)?,
            },
        })
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<Id, String> {
        let id = self.add(Type::Null, None);
        let (full, inner) = self.define(object, namespace, id)?;
        let wrong = |why: &str| format!("record {full}: {why}");
        let given = object.get("fields").and_then(Value::as_array).ok_or_else(|| wrong("no list of `fields`"))?;
        let mut fields: Vec<RecordField> = Vec::with_capacity(given.len());
        for field in given {
            let name = field.get("name").and_then(Value::as_str).ok_or_else(|| wrong("a field has no `name`"))?;
            let ty = field.get("type").ok_or_else(|| wrong(&format!("field `{name}` has no `type`")))?;
            // `{"name": "n", "type": "bytes", "logicalType": "decimal"}` says it one place too high; it is no logical type.
            let ty = self.read(ty, &inner).map_err(|why| format!("field `{name}`: {why}"))?;
            if fields.iter().any(|other| other.name == name) {
                return Err(wrong(&format!("two fields `{name}`")));
            }
            let default = field.get("default").cloned();
            fields.push(RecordField { name: name.to_string(), aliases: texts(field.get("aliases")), ty, default });
        }
        self.types[id].ty = Type::Record { name: full, fields };
        Ok(id)
    }

    /// Notes a named type and its aliases; its full name, and the namespace of what is in it.
    fn define(&mut self, object: &Map<String, Value>, outer: &str, id: Id) -> Result<(String, String), String> {
        let name = object.get("name").and_then(Value::as_str).ok_or("a named type has no `name`")?;
        let given = object.get("namespace").and_then(Value::as_str);
        let (space, short) = match (name.rsplit_once('.'), given) {
            (Some((space, short)), _) => (space, short),
            (None, Some(space)) => (space, name),
            (None, None) => (outer, name),
        };
        let join =
            |space: &str, short: &str| if space.is_empty() { short.to_string() } else { format!("{space}.{short}") };
        let full = join(space, short);
        if self.names.insert(full.clone(), id).is_some() {
            return Err(format!("the type `{full}` is defined twice"));
        }
        Ok((full, space.to_string()))
    }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let texts = value.and_then(Value::as_array).map(|list| list.iter().filter_map(Value::as_str));
    texts.into_iter().flatten().map(str::to_string).collect()
}

fn logical(object: &Map<String, Value>) -> Option<Logical> {
    let number = |key: &str| object.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let timestamp = |nanos, local| Logical::Timestamp { nanos, local };
    Some(match object.get("logicalType")?.as_str()? {
        "date" => Logical::Date,
        "time-millis" => Logical::TimeMillis,
        "time-micros" => Logical::TimeMicros,
        "timestamp-millis" => timestamp(1_000_000, false),
        "timestamp-micros" => timestamp(1000, false),
        "timestamp-nanos" => timestamp(1, false),
        "local-timestamp-millis" => timestamp(1_000_000, true),
        "local-timestamp-micros" => timestamp(1000, true),
        "local-timestamp-nanos" => timestamp(1, true),
        "decimal" => Logical::Decimal { precision: number("precision")?, scale: number("scale").unwrap_or(0) },
        "uuid" => Logical::Uuid,
        _ => return None,
    })
}

/// Whether a logical type can be one of bytes, or of a fixed of so many. Decimals of more digits than a column holds
/// stay bytes.
fn fits(logical: Logical, size: Option<usize>) -> bool {
    match logical {
        Logical::Decimal { precision, scale } => (1..=38).contains(&precision) && scale <= precision,
        Logical::Uuid => size == Some(16),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_namespaces() {
        let text = r#"{"type":"record","name":"a.b.Outer","fields":[
            {"name":"one","type":{"type":"enum","name":"E","symbols":["X"]}},
            {"name":"two","type":"E"},
            {"name":"three","type":"a.b.E"},
            {"name":"next","type":["null","Outer"]}]}"#;
        let schema = Schema::parse(text, &[]).unwrap();
        let Type::Record { name, fields } = &schema.get(schema.root()).ty else { panic!("a record") };
        assert_eq!(name, "a.b.Outer");
        assert_eq!((fields[0].ty, fields[0].ty), (fields[1].ty, fields[2].ty));
        assert_eq!(schema.nullable(fields[3].ty), Some(schema.root()));
    }

    #[test]
    fn a_schema_may_use_the_types_of_another() {
        let address = r#"{"type":"record","name":"x.Address","fields":[{"name":"street","type":"string"}]}"#;
        let person = r#"{"type":"record","name":"x.Person","fields":[{"name":"home","type":"Address"}]}"#;
        assert!(Schema::parse(person, &[]).unwrap_err().contains("no type `x.Address`"));
        Schema::parse(person, &[address.to_string()]).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("{", "no JSON"),
            ("7", "7 is no type"),
            (r#"{"type":"record","name":"R","fields":[{"name":"a"}]}"#, "field `a` has no `type`"),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
                "two fields",
            ),
            (r#"{"type":"array"}"#, "array: no `items`"),
            (r#"["null",["int"]]"#, "a union holds a union"),
            (r#"{"type":"fixed","name":"F","size":-1}"#, "`size`"),
        ] {
            let error = Schema::parse(text, &[]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn logical_types_stand_only_where_they_belong() {
        let logical = |text: &str| {
            let schema = Schema::parse(text, &[]).unwrap();
            schema.get(schema.root()).logical
        };
        assert_eq!(logical(r#"{"type":"int","logicalType":"date"}"#), Some(Logical::Date));
        assert_eq!(logical(r#"{"type":"long","logicalType":"date"}"#), None);
        assert_eq!(logical(r#"{"type":"bytes","logicalType":"decimal","precision":50}"#), None);
        assert_eq!(
            logical(r#"{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}"#),
            Some(Logical::Decimal { precision: 9, scale: 2 })
        );
    }
}
