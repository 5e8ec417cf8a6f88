//! Counts and sums of groups that can be taken back.
//!
//! | State | As | Taken back |
//! |---|---|---|
//! | `Int64`, `UInt64` | 64 bits that wrap, as DataFusion's sums do | exactly |
//! | `Decimal128` | 128 bits that wrap | exactly |
//! | `Float64`, as the mean of integers has it | as it is | while all are integers below 2^53 |
//!
//! Invariant: what is held of a group is what adding up its states anew would give.
//! A number for which that could not be said is refused ([`Sums::apply`]): floats
//! don't drift. Called by [`super::running`].

use arrow_array::{
    Array, ArrayRef, Decimal128Array, Float64Array, Int64Array, UInt64Array,
    cast::AsArray,
    types::{Decimal128Type, Float64Type, Int64Type, UInt64Type},
};
use arrow_buffer::NullBuffer;
use arrow_schema::DataType;
use datafusion::{
    common::{Result as DfResult, internal_err},
    physical_expr::aggregate::AggregateFunctionExpr,
};
use std::sync::Arc;

/// Whether all states of an aggregate can be taken back.
pub(super) fn can(aggregate: &AggregateFunctionExpr) -> DfResult<bool> {
    let known = matches!(aggregate.fun().name(), "count" | "sum" | "avg") && !aggregate.is_distinct();
    Ok(known && aggregate.state_fields()?.iter().all(|field| Sums::new(field.data_type()).is_some()))
}

/// Whether states come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

#[derive(Debug)]
enum Values {
    Whole(Vec<i64>),
    Wide(Vec<i128>),
    Float(Vec<f64>),
}

/// Integers up to here, and sums of them, are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// One column of states, by number of the group.
#[derive(Debug)]
pub(super) struct Sums {
    kind: DataType,
    values: Values,
    /// How many of a group's states are NULL. Empty until one is.
    nulls: Vec<u32>,
}

impl Sums {
    /// Of states of a type; `None` when they can't be taken back.
    pub(super) fn new(kind: &DataType) -> Option<Self> {
        let values = match kind {
            DataType::Int64 | DataType::UInt64 => Values::Whole(Vec::new()),
            DataType::Decimal128(..) => Values::Wide(Vec::new()),
            DataType::Float64 => Values::Float(Vec::new()),
            _ => return None,
        };
        Some(Self { kind: kind.clone(), values, nulls: Vec::new() })
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Whole(values) => values.capacity() * size_of::<i64>(),
            Values::Wide(values) => values.capacity() * size_of::<i128>(),
            Values::Float(values) => values.capacity() * size_of::<f64>(),
        };
        values + self.nulls.capacity() * size_of::<u32>()
    }

    /// Room for so many groups.
    pub(super) fn grow(&mut self, groups: usize) {
        match &mut self.values {
            Values::Whole(values) => values.resize(groups, 0),
            Values::Wide(values) => values.resize(groups, 0),
            Values::Float(values) => values.resize(groups, 0.0),
        }
        if !self.nulls.is_empty() {
            self.nulls.resize(groups, 0);
        }
    }

    /// Adds states of groups, or takes them away again. `false`: it can't be done exactly, and these sums are of no more use.
    pub(super) fn apply(&mut self, groups: &[u32], states: &ArrayRef, way: Way) -> DfResult<bool> {
        let nulls = states.nulls().filter(|nulls| nulls.null_count() > 0);
        if let Some(nulls) = nulls {
            let count = match &self.values {
                Values::Whole(values) => values.len(),
                Values::Wide(values) => values.len(),
                Values::Float(values) => values.len(),
            };
            self.nulls.resize(count, 0);
            for (group, _) in groups.iter().zip(nulls.iter()).filter(|(_, valid)| !valid) {
                let held = &mut self.nulls[*group as usize];
                *held = if way == Way::In { *held + 1 } else { *held - 1 };
            }
        }
        match (&mut self.values, &self.kind) {
            (Values::Whole(values), DataType::Int64) => {
                let states = states.as_primitive::<Int64Type>().values();
                each(values, groups, states.iter().copied(), nulls, |held, new| match way {
                    Way::In => held.wrapping_add(new),
                    Way::Out => held.wrapping_sub(new),
                });
            }
            (Values::Whole(values), DataType::UInt64) => {
                let states = states.as_primitive::<UInt64Type>().values();
                each(values, groups, states.iter().map(|new| new.cast_signed()), nulls, |held, new| match way {
                    Way::In => held.wrapping_add(new),
                    Way::Out => held.wrapping_sub(new),
                });
            }
            (Values::Wide(values), _) => {
                let states = states.as_primitive::<Decimal128Type>().values();
                each(values, groups, states.iter().copied(), nulls, |held, new| match way {
                    Way::In => held.wrapping_add(new),
                    Way::Out => held.wrapping_sub(new),
                });
            }
            (Values::Float(values), _) => {
                let mut exact = true;
                let states = states.as_primitive::<Float64Type>().values();
                each(values, groups, states.iter().copied(), nulls, |held, new| {
                    let sum = if way == Way::In { held + new } else { held - new };
                    // NaN and the infinities have no whole part either.
                    exact &= new.trunc() == new && new.abs() < EXACT && sum.abs() < EXACT;
                    sum
                });
                return Ok(exact);
            }
            (values @ Values::Whole(_), kind) => return internal_err!("a sum of {kind} in {values:?}"),
        }
        Ok(true)
    }

    /// Whether a group, which has so many states, has none but NULLs.
    fn is_null(&self, group: usize, states: u32) -> bool {
        self.nulls.get(group).is_some_and(|nulls| *nulls >= states)
    }

    /// The states of these groups, which are of so many rows.
    pub(super) fn of(&self, groups: &[u32], alive: &[u32]) -> DfResult<ArrayRef> {
        let places = || groups.iter().map(|group| *group as usize);
        let nulls = (!self.nulls.is_empty())
            .then(|| places().map(|group| !self.is_null(group, alive[group])).collect::<NullBuffer>())
            .filter(|nulls| nulls.null_count() > 0);
        Ok(match (&self.values, &self.kind) {
            (Values::Whole(values), DataType::Int64) => {
                Arc::new(Int64Array::new(places().map(|group| values[group]).collect(), nulls))
            }
            (Values::Whole(values), _) => {
                Arc::new(UInt64Array::new(places().map(|group| values[group].cast_unsigned()).collect(), nulls))
            }
            (Values::Wide(values), kind) => {
                let values = places().map(|group| values[group]).collect();
                Arc::new(Decimal128Array::new(values, nulls).with_data_type(kind.clone()))
            }
            (Values::Float(values), _) => {
                Arc::new(Float64Array::new(places().map(|group| values[group]).collect(), nulls))
            }
        })
    }

    /// Only these groups, numbered in this order.
    pub(super) fn only(&self, groups: &[u32]) -> Self {
        let places = || groups.iter().map(|group| *group as usize);
        let values = match &self.values {
            Values::Whole(values) => Values::Whole(places().map(|group| values[group]).collect()),
            Values::Wide(values) => Values::Wide(places().map(|group| values[group]).collect()),
            Values::Float(values) => Values::Float(places().map(|group| values[group]).collect()),
        };
        let nulls = if self.nulls.is_empty() { Vec::new() } else { places().map(|group| self.nulls[group]).collect() };
        Self { kind: self.kind.clone(), values, nulls }
    }

    /// What a group's value is ordered by, larger for larger ones; `None` when it is NULL.
    pub(super) fn rank(&self, group: usize, states: u32) -> Option<i128> {
        if self.is_null(group, states) {
            return None;
        }
        Some(match (&self.values, &self.kind) {
            (Values::Whole(values), DataType::Int64) => i128::from(values[group]),
            (Values::Whole(values), _) => i128::from(values[group].cast_unsigned()),
            (Values::Wide(values), _) => values[group],
            (Values::Float(values), _) => rank_of(values[group]),
        })
    }

    /// As [`Self::rank`], of this column over a count: a mean as DataFusion computes it. `None` where it isn't one of floats.
    #[expect(clippy::cast_precision_loss, reason = "as the mean itself is computed")]
    pub(super) fn rank_of_mean(&self, counts: &Self, group: usize, states: u32) -> Option<i128> {
        let (Values::Float(sums), Values::Whole(counts)) = (&self.values, &counts.values) else { return None };
        (!self.is_null(group, states)).then(|| rank_of(sums[group] / counts[group].cast_unsigned() as f64))
    }

    /// Whether it holds floats.
    pub(super) fn is_float(&self) -> bool {
        matches!(self.values, Values::Float(_))
    }
}

/// Combines each group's value with the new one, where there is one.
fn each<T: Copy>(
    values: &mut [T],
    groups: &[u32],
    news: impl Iterator<Item = T>,
    nulls: Option<&NullBuffer>,
    mut combine: impl FnMut(T, T) -> T,
) {
    match nulls {
        None => {
            for (group, new) in groups.iter().zip(news) {
                let held = &mut values[*group as usize];
                *held = combine(*held, new);
            }
        }
        Some(nulls) => {
            for ((group, new), _) in groups.iter().zip(news).zip(nulls.iter()).filter(|(_, valid)| *valid) {
                let held = &mut values[*group as usize];
                *held = combine(*held, new);
            }
        }
    }
}

/// The order of floats as that of integers.
fn rank_of(value: f64) -> i128 {
    let bits = value.to_bits().cast_signed();
    i128::from(bits ^ (((bits >> 63).cast_unsigned() >> 1).cast_signed()))
}
