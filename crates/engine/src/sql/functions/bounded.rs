//! DataFusion's functions that make much from little, each with a bound: a
//! short statement must not end the process.
//!
//! `range(1, 9000000000)` and `repeat('x', 2000000000)` allocate their whole
//! value at once, which no memory limit of a plan sees. Invariant: a call gives
//! what DataFusion's own gives, or is refused before anything is allocated.
//! Registered by [`crate::sql::session::session`].

use arrow_array::{Array, Int64Array, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, FieldRef};
use datafusion::{
    common::{Result as DfResult, exec_datafusion_err},
    logical_expr::{
        ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    },
};
use std::sync::Arc;

/// Values that a call may make for one batch.
const VALUES: u128 = 16 << 20;
/// Bytes of text that a call may make for one batch.
const BYTES: u128 = 128 << 20;

/// What of a call's result has a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Makes {
    /// Numbers from a first to a last.
    Range,
    /// The second argument says how many values.
    Values,
    /// The first argument, as often as the second says.
    Repeats,
    /// The second argument says how many characters.
    Characters,
}

const FUNCTIONS: [(&str, Makes); 6] = [
    ("range", Makes::Range),
    ("generate_series", Makes::Range),
    ("array_repeat", Makes::Values),
    ("repeat", Makes::Repeats),
    ("lpad", Makes::Characters),
    ("rpad", Makes::Characters),
];

/// Those of `known` that need a bound, with it.
pub(super) fn all(known: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<ScalarUDF> {
    let bounded = |(name, makes)| Some(ScalarUDF::from(Bounded { of: known(name)?, makes }));
    FUNCTIONS.into_iter().filter_map(bounded).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    of: Arc<ScalarUDF>,
    makes: Makes,
}

impl Bounded {
    fn check(&self, args: &ScalarFunctionArgs) -> DfResult<()> {
        let is_array = |arg: &ColumnarValue| matches!(arg, ColumnarValue::Array(_));
        let rows = if args.args.iter().any(is_array) { args.number_rows } else { 1 };
        let counts = |at: usize| args.args.get(at).map_or(Ok(None), integers);
        let (made, most, what) = match self.makes {
            Makes::Range => {
                let (first, second, step) = (counts(0)?, counts(1)?, counts(2)?);
                let Some(first) = first else { return Ok(()) };
                let values = |row: usize| {
                    let at = |of: &Option<Int64Array>, or: i64| of.as_ref().map_or(i128::from(or), |n| value(n, row));
                    let (from, to) =
                        if second.is_some() { (value(&first, row), at(&second, 0)) } else { (0, value(&first, row)) };
                    let step = at(&step, 1);
                    if step == 0 { 0 } else { ((to - from) / step + 1).max(0).unsigned_abs() }
                };
                ((0..rows).map(values).sum::<u128>(), VALUES, "values")
            }
            Makes::Values => (total(rows, counts(1)?, |_| 1), VALUES, "values"),
            Makes::Characters => (total(rows, counts(1)?, |_| 1), BYTES, "characters"),
            Makes::Repeats => {
                let Some(text) = args.args.first() else { return Ok(()) };
                let text = text.to_array(1)?;
                let length = |row: usize| match text.data_type() {
                    DataType::Utf8 => {
                        text.as_string::<i32>().value_length(row.min(text.len() - 1)).unsigned_abs().into()
                    }
                    // Of another layout: as long as all its rows together.
                    _ => text.get_array_memory_size() as u128,
                };
                let of_row = |row| if text.is_empty() { 0 } else { length(row) };
                (total(rows, counts(1)?, of_row), BYTES, "bytes")
            }
        };
        if made > most {
            let name = self.of.name();
            return Err(exec_datafusion_err!("`{name}` would make {made} {what} at once, and {most} are the most"));
        }
        Ok(())
    }
}

/// Whole numbers; `None` of an argument that is none.
fn integers(arg: &ColumnarValue) -> DfResult<Option<Int64Array>> {
    if !arg.data_type().is_integer() {
        return Ok(None);
    }
    let array = arrow_cast::cast(&arg.to_array(1)?, &DataType::Int64)?;
    Ok(Some(array.as_primitive::<Int64Type>().clone()))
}

/// The number of a row; of a single number, that of every row.
fn value(numbers: &Int64Array, row: usize) -> i128 {
    let row = row.min(numbers.len().saturating_sub(1));
    if numbers.is_empty() || numbers.is_null(row) { 0 } else { numbers.value(row).into() }
}

fn total(rows: usize, counts: Option<Int64Array>, each: impl Fn(usize) -> u128) -> u128 {
    let Some(counts) = counts else { return 0 };
    (0..rows).map(|row| value(&counts, row).max(0).unsigned_abs().saturating_mul(each(row))).sum()
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.of.name()
    }
    fn aliases(&self) -> &[String] {
        self.of.aliases()
    }
    fn signature(&self) -> &Signature {
        self.of.signature()
    }
    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        self.of.return_type(types)
    }
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> DfResult<FieldRef> {
        self.of.return_field_from_args(args)
    }
    fn coerce_types(&self, types: &[DataType]) -> DfResult<Vec<DataType>> {
        self.of.coerce_types(types)
    }
    fn documentation(&self) -> Option<&Documentation> {
        self.of.documentation()
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        self.check(&args)?;
        self.of.invoke_with_args(args)
    }
}
