//! Values as text: for unions of several types, records within themselves, and
//! TEXT columns over what is nested.
//!
//! A string is given as it is; all else as JSON, with times as ISO 8601, decimals
//! as numbers and bytes as hexadecimal digits. Invariant: what is written is
//! JSON, whatever the bytes are. Called by the decoder.

use super::{
    schema::{Id, Logical, Schema, Type},
    wire::{DEPTH, Fault, Input},
};
use crate::format::typed::digits;
use std::fmt::Write;
use tidemill_core::Timestamp;

/// Appends a value; a string without quotes.
pub(super) fn plain(schema: &Schema, id: Id, input: &mut Input<'_>, out: &mut String) -> Result<(), Fault> {
    let mut id = id;
    if let Type::Union(branches) = &schema.get(id).ty {
        id = branches[input.index(branches.len())?];
    }
    let typed = schema.get(id);
    match (&typed.ty, typed.logical) {
        (Type::String, _) => {
            out.push_str(utf8(input.bytes()?)?);
            Ok(())
        }
        (Type::Enum { symbols, .. }, _) => {
            out.push_str(&symbols[input.index(symbols.len())?]);
            Ok(())
        }
        (
            _,
            Some(Logical::Date | Logical::TimeMillis | Logical::TimeMicros | Logical::Timestamp { .. } | Logical::Uuid),
        )
        | (Type::Bytes | Type::Fixed(_), None) => {
            let from = out.len();
            json(schema, id, input, out, DEPTH)?;
            // A text of plain characters in quotes.
            if out[from..].starts_with('"') {
                out.pop();
                out.remove(from);
            }
            Ok(())
        }
        _ => json(schema, id, input, out, DEPTH),
    }
}

fn json(schema: &Schema, id: Id, input: &mut Input<'_>, out: &mut String, depth: usize) -> Result<(), Fault> {
    let below = depth.checked_sub(1).ok_or("values lie too deep in each other")?;
    let typed = schema.get(id);
    match &typed.ty {
        Type::Null => out.push_str("null"),
        Type::Boolean => out.push_str(if input.boolean()? { "true" } else { "false" }),
        Type::Int => timed(input.int()?.into(), typed.logical, out),
        Type::Long => timed(input.long()?, typed.logical, out),
        Type::Float => float(input.float()?.into(), true, out),
        Type::Double => float(input.double()?, false, out),
        Type::Bytes => bytes(input.bytes()?, typed.logical, out),
        Type::Fixed(size) => bytes(input.take(*size)?, typed.logical, out),
        Type::String => quoted(utf8(input.bytes()?)?, out),
        Type::Enum { symbols, .. } => quoted(&symbols[input.index(symbols.len())?], out),
        Type::Union(branches) => {
            let branch = branches[input.index(branches.len())?];
            json(schema, branch, input, out, below)?;
        }
        Type::Array(item) => {
            out.push('[');
            let mut first = true;
            input.items::<Fault>(|input| {
                comma(&mut first, out);
                json(schema, *item, input, out, below)
            })?;
            out.push(']');
        }
        Type::Map(value) => {
            out.push('{');
            let mut first = true;
            input.items::<Fault>(|input| {
                comma(&mut first, out);
                quoted(utf8(input.bytes()?)?, out);
                out.push(':');
                json(schema, *value, input, out, below)
            })?;
            out.push('}');
        }
        Type::Record { fields, .. } => {
            out.push('{');
            let mut first = true;
            for field in fields {
                comma(&mut first, out);
                quoted(&field.name, out);
                out.push(':');
                json(schema, field.ty, input, out, below)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn comma(first: &mut bool, out: &mut String) {
    if !std::mem::replace(first, false) {
        out.push(',');
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| "a string that is no UTF-8")
}

/// A text in quotes.
fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => put(out, format_args!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _written = out.write_fmt(what);
}

fn bytes(bytes: &[u8], logical: Option<Logical>, out: &mut String) {
    match (logical, unscaled(bytes)) {
        (Some(Logical::Decimal { scale, .. }), Some(value)) => digits(value, scale, out),
        (Some(Logical::Uuid), _) => {
            out.push('"');
            uuid(bytes, out);
            out.push('"');
        }
        _ => {
            out.push('"');
            bytes.iter().for_each(|byte| put(out, format_args!("{byte:02x}")));
            out.push('"');
        }
    }
}

/// The number that bytes of a decimal are, if it has at most 16 that count.
pub(super) fn unscaled(bytes: &[u8]) -> Option<i128> {
    let fill = if bytes.first().is_some_and(|first| first & 0x80 != 0) { 0xff } else { 0 };
    let more = bytes.len().saturating_sub(16);
    let (before, last) = bytes.split_at(more);
    let mut whole = [fill; 16];
    whole[16 - last.len()..].copy_from_slice(last);
    let value = i128::from_be_bytes(whole);
    // What stands before must be the sign alone.
    (before.iter().all(|byte| *byte == fill) && (value < 0) == (fill == 0xff)).then_some(value)
}

/// 16 bytes as a UUID.
pub(super) fn uuid(bytes: &[u8], out: &mut String) {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        put(out, format_args!("{byte:02x}"));
    }
}

fn float(value: f64, single: bool, out: &mut String) {
    if !value.is_finite() {
        out.push_str("null");
    } else if single {
        #[expect(clippy::cast_possible_truncation, reason = "it was one before")]
        let value = value as f32;
        put(out, format_args!("{value}"));
    } else {
        put(out, format_args!("{value}"));
    }
}

/// A number with what it counts.
fn timed(value: i64, logical: Option<Logical>, out: &mut String) {
    let day = 86_400_000_000;
    let (micros, kind) = match logical {
        Some(Logical::Date) => (value.checked_mul(day), 'd'),
        Some(Logical::TimeMillis) => (value.checked_mul(1000), 't'),
        Some(Logical::TimeMicros) => (Some(value), 't'),
        Some(Logical::Timestamp { nanos, local }) => {
            let micros = if nanos >= 1000 { value.checked_mul(nanos / 1000) } else { Some(value.div_euclid(1000)) };
            (micros, if local { 'l' } else { 'z' })
        }
        _ => (None, 'n'),
    };
    // What is no time of ours stays a number.
    let Some(micros) = micros.filter(|micros| kind != 't' || (0..day).contains(micros)) else {
        put(out, format_args!("{value}"));
        return;
    };
    let at = Timestamp(micros).to_string();
    let (date, clock) = at.trim_end_matches('Z').split_once('T').unwrap_or((&at, ""));
    let finer = micros.rem_euclid(1000);
    out.push('"');
    match kind {
        'd' => out.push_str(date),
        't' => out.push_str(clock),
        _ => put(out, format_args!("{date}T{clock}")),
    }
    if finer != 0 {
        put(out, format_args!("{finer:03}"));
    }
    if kind == 'z' {
        out.push('Z');
    }
    out.push('"');
}
