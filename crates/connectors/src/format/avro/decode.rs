//! Bytes of a record into columns, along a plan.
//!
//! Invariant: a record that is refused leaves parts of it in columns only behind
//! the rows before, where the caller cuts them off; nothing is allocated for a
//! record but the room that columns grow by. Called by the format's decoder.

use super::{
    resolve::{Plan, RecordStep, Root, Step},
    schema::Schema,
    text,
    wire::{DEPTH, Fault, Input},
};
use crate::format::{
    column::{Column, Values},
    time,
    typed::{decimal, fits, number},
};

/// Appends a record to the columns.
pub(super) fn record(plan: &Plan, bytes: &[u8], columns: &mut [Column]) -> Result<(), String> {
    let mut input = Input::new(bytes);
    match &plan.root {
        Root::Record(step) => fields(step, &plan.schema, &mut input, columns)?,
        Root::Nullable { null, record } => {
            if input.index(2)? == *null {
                return Err("the record is null".to_string());
            }
            fields(record, &plan.schema, &mut input, columns)?;
        }
        Root::Value(id, None) => input.skip(&plan.schema, *id, DEPTH)?,
        Root::Value(_, Some(step)) => match columns {
            [column] => put(step, &plan.schema, &mut input, column)?,
            _ => return Err("a value is one column".to_string()),
        },
    }
    match input.left() {
        0 => Ok(()),
        left => Err(format!("{left} bytes are left behind the record: it was written with another schema")),
    }
}

fn fields(step: &RecordStep, schema: &Schema, input: &mut Input<'_>, columns: &mut [Column]) -> Result<(), String> {
    for field in &step.fields {
        match &field.into {
            Some((at, step)) => put(step, schema, input, &mut columns[*at])?,
            None => {
                input.skip(schema, field.ty, DEPTH).map_err(|fault| format!("field \"{}\": {fault}", field.name))?;
            }
        }
    }
    for (at, instead) in &step.absent {
        match instead {
            Some(instead) => {
                put(&instead.step, &instead.schema, &mut Input::new(&instead.bytes), &mut columns[*at])?;
            }
            None => columns[*at].null()?,
        }
    }
    Ok(())
}

fn put(step: &Step, schema: &Schema, input: &mut Input<'_>, column: &mut Column) -> Result<(), String> {
    let in_column = |column: &Column, why: &str| format!("field \"{}\": {why}", column.field.name());
    match step {
        Step::Null => return column.null(),
        Step::Union(steps) => {
            let branch = input.index(steps.len()).map_err(|fault| in_column(column, fault))?;
            return put(&steps[branch], schema, input, column);
        }
        Step::Refuse(why) => return Err(why.clone()),
        _ => {}
    }
    match value(step, schema, input, &mut column.values) {
        Ok(()) => {
            column.valid();
            Ok(())
        }
        Err(why) => Err(in_column(column, &why)),
    }
}

fn value(step: &Step, schema: &Schema, input: &mut Input<'_>, values: &mut Values) -> Result<(), String> {
    match (step, values) {
        (Step::Bool, Values::Bool(values)) => values.push(input.boolean()?),
        (Step::Int, values) => return number(values, input.int()?.into()),
        (Step::Long, values) => return number(values, input.long()?),
        (Step::Float, Values::Float(values)) => values.push(input.float()?.into()),
        (Step::Double, Values::Float(values)) => values.push(input.double()?),
        (Step::Time(nanos), Values::Time { micros, unit, .. }) => {
            let value = input.long()?;
            let at = in_micros(value, *nanos).filter(|at| fits(*at, *unit));
            micros.push(at.ok_or_else(|| format!("the time {value} is out of range"))?);
        }
        (Step::Time(nanos), Values::Clock(micros)) => {
            let value = input.long()?;
            let at = in_micros(value, *nanos).filter(|at| (0..86_400_000_000).contains(at));
            micros.push(at.ok_or_else(|| format!("{value} is no time of day"))?);
        }
        (Step::Instant, Values::Time { micros, unit, .. }) => {
            let text = utf8(input.bytes()?)?;
            let at = time::instant(text).filter(|at| fits(*at, *unit));
            micros.push(at.ok_or_else(|| format!("expected a timestamp, found \"{}\"", shown(text)))?);
        }
        (Step::Text, Values::Text { text, ends, .. }) => {
            text.push_str(utf8(input.bytes()?)?);
            ends.push(text.len());
        }
        (Step::Bytes, Values::Bytes { bytes, ends }) => {
            bytes.extend_from_slice(input.bytes()?);
            ends.push(bytes.len());
        }
        (Step::Fixed(size), Values::Bytes { bytes, ends }) => {
            bytes.extend_from_slice(input.take(*size)?);
            ends.push(bytes.len());
        }
        (Step::Uuid, Values::Text { text, ends, .. }) => {
            text::uuid(input.take(16)?, text);
            ends.push(text.len());
        }
        (Step::Enum(symbols), Values::Text { text, ends, .. }) => {
            text.push_str(symbols[input.index(symbols.len())?].as_ref().map_err(Clone::clone)?);
            ends.push(text.len());
        }
        (Step::Decimal { fixed, scale }, values) => {
            let bytes = match fixed {
                Some(size) => input.take(*size)?,
                None => input.bytes()?,
            };
            return decimal(values, text::unscaled(bytes).ok_or("a decimal of more than 38 digits")?, *scale);
        }
        (Step::Json(id), Values::Text { text, ends, .. }) => {
            text::plain(schema, *id, input, text)?;
            ends.push(text.len());
        }
        (Step::List(step), Values::List { ends, item }) => {
            input.items::<String>(|input| put(step, schema, input, item))?;
            ends.push(item.len());
        }
        (Step::Map(step), Values::Map { ends, keys, values }) => {
            input.items::<String>(|input| {
                put(&Step::Text, schema, input, keys)?;
                put(step, schema, input, values)
            })?;
            ends.push(keys.len());
        }
        (Step::Record(step), Values::Struct { children, .. }) => fields(step, schema, input, children)?,
        // The plan was made for these columns.
        _ => return Err("the column is not of the type that was planned for".to_string()),
    }
    Ok(())
}

fn in_micros(value: i64, nanos: i64) -> Option<i64> {
    if nanos >= 1000 { value.checked_mul(nanos / 1000) } else { Some(value.div_euclid(1000 / nanos.max(1))) }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| "a string that is no UTF-8")
}

/// The beginning of a text, for a reason.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}
