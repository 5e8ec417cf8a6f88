//! Bytes of a message into columns, along a plan.
//!
//! A message is looked through once: of a field that comes once its last value is
//! kept, of one that comes often the place of each. Then the columns are filled in
//! their order. Messages within lie on the same two stacks, so that a record
//! allocates nothing once these have grown.
//!
//! Invariant: of a oneof the last field counts; a message that comes in several
//! parts is the sum of them; a record that is refused leaves parts of it in columns
//! only behind the rows before. Called by the format's decoder.

use super::{
    plan::{Absent, MessagePlan, Of, Shape},
    wire::{Cursor, Raw, zigzag},
};
use crate::format::{
    column::{Column, Values},
    time::{self, Unit},
    typed::{fits, number},
};
use prost_reflect::DynamicMessage;
use std::fmt::Write;

/// What was found of messages that are being read.
#[derive(Default)]
pub(super) struct Found {
    /// A frame for each message: the last value of each slot.
    single: Vec<Raw>,
    /// What comes more than once, with its slot.
    many: Vec<(usize, Raw)>,
}

/// Where the parts of a message lie.
#[derive(Clone, Copy)]
struct Parts {
    first: (usize, usize),
    /// Further ones: those of a slot among some of [`Found::many`].
    more: Option<(usize, usize, usize)>,
}

/// Appends a message to the columns.
pub(super) fn record(
    plan: &MessagePlan,
    record: &[u8],
    from: usize,
    found: &mut Found,
    columns: &mut [Column],
) -> Result<(), String> {
    found.single.clear();
    found.many.clear();
    Walk { record, found }.message(plan, Parts { first: (from, record.len()), more: None }, columns)
}

struct Walk<'a> {
    record: &'a [u8],
    found: &'a mut Found,
}

impl Walk<'_> {
    fn message(&mut self, plan: &MessagePlan, parts: Parts, columns: &mut [Column]) -> Result<(), String> {
        let (single, many) = (self.found.single.len(), self.found.many.len());
        self.scan_all(plan, parts)?;
        for (at, column) in columns.iter_mut().enumerate().take(plan.slots.len()) {
            self.slot(plan, at, (single, many), column)?;
        }
        self.found.single.truncate(single);
        self.found.many.truncate(many);
        Ok(())
    }

    /// Looks through all parts of a message; its frame lies behind what was there.
    fn scan_all(&mut self, plan: &MessagePlan, parts: Parts) -> Result<(), String> {
        let single = self.found.single.len();
        let many = self.found.many.len();
        self.found.single.resize(single + plan.slots.len(), Raw::None);
        self.scan(plan, parts.first, single, many)?;
        if let Some((slot, from, to)) = parts.more {
            for at in from..to {
                if let (of, Raw::Bytes(from, to)) = self.found.many[at]
                    && of == slot
                {
                    self.scan(plan, (from, to), single, many)?;
                }
            }
        }
        Ok(())
    }

    fn scan(
        &mut self,
        plan: &MessagePlan,
        (at, end): (usize, usize),
        single: usize,
        many: usize,
    ) -> Result<(), String> {
        let mut cursor = Cursor { record: self.record, at, end };
        while !cursor.is_at_end() {
            let (number, raw) = cursor.field()?;
            let Some(entry) = plan.entry(number) else { continue };
            for cleared in &entry.clears {
                self.found.single[single + cleared] = Raw::None;
                self.found.many[many..]
                    .iter_mut()
                    .filter(|(slot, _)| slot == cleared)
                    .for_each(|one| one.1 = Raw::None);
            }
            let Some(slot) = entry.slot.filter(|_| raw != Raw::None) else { continue };
            match &plan.slots[slot].shape {
                Shape::List(_) | Shape::Map(_) => self.found.many.push((slot, raw)),
                // Further parts of a message count too.
                Shape::One(Of::Message(_) | Of::Wrapper(_) | Of::Timestamp | Of::Duration | Of::Json(_))
                    if self.found.single[single + slot] != Raw::None =>
                {
                    self.found.many.push((slot, raw));
                }
                _ => self.found.single[single + slot] = raw,
            }
        }
        Ok(())
    }

    fn slot(
        &mut self,
        plan: &MessagePlan,
        at: usize,
        (single, many): (usize, usize),
        column: &mut Column,
    ) -> Result<(), String> {
        let slot = &plan.slots[at];
        let named = |column: &Column, why: String| format!("field \"{}\": {why}", column.field.name());
        match &slot.shape {
            Shape::Never => return column.null(),
            Shape::One(of) => match (self.found.single[single + at], slot.absent) {
                (Raw::None, Absent::Null) => return column.null(),
                (Raw::None, Absent::Refused) => return Err(named(column, "missing, and required".to_string())),
                (Raw::None, Absent::Default) => return self.default(of, column),
                (raw, _) => {
                    let more = Some((at, many, self.found.many.len()));
                    return self.value(of, raw, more, column);
                }
            },
            Shape::List(of) => {
                let Values::List { ends, item } = &mut column.values else { return Err("no list".to_string()) };
                let done = self.items(of, at, many, item);
                ends.push(item.len());
                done.map_err(|why| named(column, why))?;
            }
            Shape::Map(entry) => {
                let Values::Map { ends, keys, values } = &mut column.values else { return Err("no map".to_string()) };
                let done = self.entries(entry, at, many, keys, values);
                ends.push(keys.len());
                done.map_err(|why| named(column, why))?;
            }
        }
        column.valid();
        Ok(())
    }

    fn items(&mut self, of: &Of, slot: usize, many: usize, item: &mut Column) -> Result<(), String> {
        for at in many..self.found.many.len() {
            match self.found.many[at] {
                (found, Raw::Bytes(from, to)) if found == slot && of.packs() => {
                    let mut cursor = Cursor { record: self.record, at: from, end: to };
                    while !cursor.is_at_end() {
                        let raw = match of {
                            Of::Double | Of::Fixed64 | Of::Sfixed64 => Raw::Fixed64(cursor.fixed64()?),
                            Of::Float | Of::Fixed32 | Of::Sfixed32 => Raw::Fixed32(cursor.fixed32()?),
                            _ => Raw::Varint(cursor.varint()?),
                        };
                        self.value(of, raw, None, item)?;
                    }
                }
                (found, raw) if found == slot && raw != Raw::None => self.value(of, raw, None, item)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn entries(
        &mut self,
        entry: &MessagePlan,
        slot: usize,
        many: usize,
        keys: &mut Column,
        values: &mut Column,
    ) -> Result<(), String> {
        for at in many..self.found.many.len() {
            let (found, raw) = self.found.many[at];
            if found != slot {
                continue;
            }
            let Raw::Bytes(from, to) = raw else { return Err("an entry is no message".to_string()) };
            let (single, inner) = (self.found.single.len(), self.found.many.len());
            self.scan_all(entry, Parts { first: (from, to), more: None })?;
            self.slot(entry, 0, (single, inner), keys)?;
            self.slot(entry, 1, (single, inner), values)?;
            self.found.single.truncate(single);
            self.found.many.truncate(inner);
        }
        Ok(())
    }

    /// What a field without presence has when it is not there.
    fn default(&mut self, of: &Of, column: &mut Column) -> Result<(), String> {
        let empty = Raw::Bytes(self.record.len(), self.record.len());
        let raw = match of {
            // The empty text is no time.
            Of::Text if matches!(column.values, Values::Time { .. }) => return column.null(),
            Of::Key(key) => zero(key).unwrap_or(empty),
            of => zero(of).unwrap_or(empty),
        };
        self.value(of, raw, None, column)
    }

    /// Appends a value, of which there may be more parts.
    fn value(
        &mut self,
        of: &Of,
        raw: Raw,
        more: Option<(usize, usize, usize)>,
        column: &mut Column,
    ) -> Result<(), String> {
        let done = match (of, raw) {
            (Of::Message(_) | Of::Wrapper(_) | Of::Timestamp | Of::Duration | Of::Json(_), Raw::Bytes(from, to)) => {
                self.nested(of, Parts { first: (from, to), more }, column)
            }
            _ => scalar(self.record, of, raw, &mut column.values),
        };
        match done {
            // The value of a wrapper is the column's.
            Ok(()) if matches!(of, Of::Wrapper(_)) => Ok(()),
            Ok(()) => {
                column.valid();
                Ok(())
            }
            Err(why) => Err(format!("field \"{}\": {why}", column.field.name())),
        }
    }

    fn nested(&mut self, of: &Of, parts: Parts, column: &mut Column) -> Result<(), String> {
        match (of, &mut column.values) {
            (Of::Message(plan), Values::Struct { children, .. }) => self.message(plan, parts, children),
            (Of::Wrapper(plan), _) => {
                let (single, many) = (self.found.single.len(), self.found.many.len());
                self.scan_all(plan, parts)?;
                self.slot(plan, 0, (single, many), column)?;
                self.found.single.truncate(single);
                self.found.many.truncate(many);
                Ok(())
            }
            (Of::Timestamp | Of::Duration, values) => {
                let (seconds, nanos) = self.span(parts)?;
                let micros = seconds.checked_mul(1_000_000).and_then(|s| s.checked_add(nanos.div_euclid(1000)));
                let range = || format!("{seconds} s and {nanos} ns are out of range");
                match values {
                    Values::Time { micros: values, unit, .. } => {
                        values.push(micros.filter(|at| fits(*at, *unit)).ok_or_else(range)?);
                        Ok(())
                    }
                    values => number(values, micros.ok_or_else(range)?),
                }
            }
            (Of::Json(message), Values::Text { text, ends, .. }) => {
                let mut bytes = Vec::new();
                self.each(parts, |walk, from, to| {
                    bytes.extend_from_slice(&walk.record[from..to]);
                    Ok(())
                })?;
                let message = DynamicMessage::decode(message.clone(), &bytes[..]).map_err(|e| e.to_string())?;
                let json = serde_json::to_string(&message).map_err(|e| e.to_string())?;
                text.push_str(&json);
                ends.push(text.len());
                Ok(())
            }
            _ => Err("the column is not of the type that was planned for".to_string()),
        }
    }

    /// Each part of a message.
    fn each(&self, parts: Parts, mut act: impl FnMut(&Self, usize, usize) -> Result<(), String>) -> Result<(), String> {
        act(self, parts.first.0, parts.first.1)?;
        let Some((slot, from, to)) = parts.more else { return Ok(()) };
        for (of, raw) in &self.found.many[from..to] {
            if let Raw::Bytes(from, to) = raw
                && *of == slot
            {
                act(self, *from, *to)?;
            }
        }
        Ok(())
    }

    /// Seconds and nanoseconds.
    fn span(&self, parts: Parts) -> Result<(i64, i64), String> {
        let (mut seconds, mut nanos) = (0, 0);
        self.each(parts, |walk, at, end| {
            let mut cursor = Cursor { record: walk.record, at, end };
            while !cursor.is_at_end() {
                match cursor.field()? {
                    (1, Raw::Varint(value)) => seconds = value.cast_signed(),
                    #[expect(clippy::cast_possible_truncation, reason = "an int32 has its lower bits")]
                    (2, Raw::Varint(value)) => nanos = i64::from(value as i32),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok((seconds, nanos))
    }
}

/// The bytes of the default of what is no text and no message.
fn zero(of: &Of) -> Option<Raw> {
    match of {
        Of::Double | Of::Fixed64 | Of::Sfixed64 => Some(Raw::Fixed64(0)),
        Of::Float | Of::Fixed32 | Of::Sfixed32 => Some(Raw::Fixed32(0)),
        of => of.packs().then_some(Raw::Varint(0)),
    }
}

/// Appends the key of an entry as text.
fn key(of: &Of, raw: Raw, text: &mut String) -> Result<(), String> {
    if let (Of::Bool, Raw::Varint(value)) = (of, raw) {
        text.push_str(if value == 0 { "false" } else { "true" });
        return Ok(());
    }
    // As the column would have it that holds all of them.
    let mut number = Values::Decimal { values: Vec::with_capacity(1), precision: 38, scale: 0 };
    scalar(&[], of, raw, &mut number)?;
    if let Values::Decimal { values, .. } = number {
        let _written = write!(text, "{}", values.first().copied().unwrap_or_default());
    }
    Ok(())
}

/// Appends a value that is no message.
#[expect(clippy::cast_possible_truncation, reason = "a field of 32 bits has the lower ones")]
fn scalar(record: &[u8], of: &Of, raw: Raw, values: &mut Values) -> Result<(), String> {
    match (of, raw, values) {
        (Of::Bool, Raw::Varint(value), Values::Bool(values)) => values.push(value != 0),
        (Of::Float, Raw::Fixed32(bits), Values::Float(values)) => values.push(f32::from_bits(bits).into()),
        (Of::Double, Raw::Fixed64(bits), Values::Float(values)) => values.push(f64::from_bits(bits)),
        (Of::Text, Raw::Bytes(from, to), Values::Text { text, ends, .. }) => {
            text.push_str(utf8(&record[from..to])?);
            ends.push(text.len());
        }
        (Of::Text, Raw::Bytes(from, to), Values::Time { micros, unit, .. }) => {
            let text = utf8(&record[from..to])?;
            let at = time::instant(text).filter(|at| fits(*at, *unit));
            micros.push(at.ok_or_else(|| {
                format!("expected a timestamp, found \"{}\"", text.chars().take(40).collect::<String>())
            })?);
        }
        (Of::Bytes, Raw::Bytes(from, to), Values::Bytes { bytes, ends }) => {
            bytes.extend_from_slice(&record[from..to]);
            ends.push(bytes.len());
        }
        (Of::Key(of), raw, Values::Text { text, ends, .. }) => {
            key(of, raw, text)?;
            ends.push(text.len());
        }
        (Of::Enum(names), Raw::Varint(value), Values::Text { text, ends, .. }) => {
            match names.get(&(value as i32)) {
                Some(name) => text.push_str(name),
                None => text.push_str(&(value as i32).to_string()),
            }
            ends.push(text.len());
        }
        (Of::Int32, Raw::Varint(value), values) => return whole(values, (value as i32).into()),
        (Of::Int64, Raw::Varint(value), values) => return whole(values, value.cast_signed()),
        (Of::Uint32, Raw::Varint(value), values) => return whole(values, (value as u32).into()),
        (Of::Sint32, Raw::Varint(value), values) => return whole(values, zigzag(value & 0xffff_ffff)),
        (Of::Sint64, Raw::Varint(value), values) => return whole(values, zigzag(value)),
        (Of::Fixed32, Raw::Fixed32(value), values) => return whole(values, value.into()),
        (Of::Sfixed32, Raw::Fixed32(value), values) => return whole(values, value.cast_signed().into()),
        (Of::Sfixed64, Raw::Fixed64(value), values) => return whole(values, value.cast_signed()),
        (Of::Uint64, Raw::Varint(value), values) | (Of::Fixed64, Raw::Fixed64(value), values) => {
            return unsigned(values, value);
        }
        _ => return Err("its bytes are not of the kind that its type has".to_string()),
    }
    Ok(())
}

/// A whole number into a column of numbers or times.
fn whole(values: &mut Values, value: i64) -> Result<(), String> {
    let Values::Time { micros, unit, number: count } = values else { return number(values, value) };
    let factor = match count {
        Unit::Iso => {
            return Err("a plain number in a TIMESTAMP column: set option `timestamp` to s, ms or us".to_string());
        }
        Unit::Seconds => 1_000_000,
        Unit::Millis => 1000,
        Unit::Micros => 1,
    };
    let at = value.checked_mul(factor).filter(|at| fits(*at, *unit));
    micros.push(at.ok_or_else(|| format!("the time {value} is out of range"))?);
    Ok(())
}

/// A number of 64 bits without a sign.
fn unsigned(values: &mut Values, value: u64) -> Result<(), String> {
    match (i64::try_from(value), values) {
        (Ok(value), values) => whole(values, value),
        (Err(_), Values::Unsigned { values, max }) if value <= *max => {
            values.push(value);
            Ok(())
        }
        #[expect(clippy::cast_precision_loss, reason = "the column is that coarse")]
        (Err(_), Values::Float(values)) => {
            values.push(value as f64);
            Ok(())
        }
        (Err(_), Values::Decimal { values, precision, scale: 0 })
            if *precision >= 38 || u128::from(value) < 10_u128.pow((*precision).into()) =>
        {
            values.push(value.into());
            Ok(())
        }
        (Err(_), _) => Err(format!("{value} is larger than its column takes")),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| "a string that is no UTF-8".to_string())
}
