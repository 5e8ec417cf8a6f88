//! A value that may be gone, as a column of a state.
//!
//! As `Option<S>`: a null says that the key was removed. Where `S` may itself
//! be null, so that a null could mean two things, each value is wrapped in a
//! struct of one field.
//!
//! Invariant: a value that is there reads as one that is there, also `None`.
//! Used for the rows of keyed states on disk.

use super::Record;
use arrow_array::ArrayRef;
use arrow_schema::DataType;
use tidemill_core::Result;

/// A value, or the note that it was removed.
#[derive(Debug, Clone)]
pub(crate) struct Kept<S>(pub(crate) Option<S>);

/// A column of values that may be gone.
#[derive(Clone)]
pub(crate) enum KeptColumn<S: Record> {
    Plain(<Option<S> as Record>::Column),
    Wrapped(<Option<(S,)> as Record>::Column),
}

/// A growing column of values that may be gone.
pub(crate) enum KeptBuilder<S: Record> {
    Plain(<Option<S> as Record>::Builder),
    Wrapped(<Option<(S,)> as Record>::Builder),
}

impl<S: Record> Record for Kept<S> {
    type Ref<'a> = Option<S::Ref<'a>>;
    type Column = KeptColumn<S>;
    type Builder = KeptBuilder<S>;

    fn data_type() -> DataType {
        if S::nullable() { <(S,)>::data_type() } else { S::data_type() }
    }
    fn nullable() -> bool {
        true
    }
    fn column(array: &ArrayRef) -> Result<Self::Column> {
        Ok(if S::nullable() {
            KeptColumn::Wrapped(Option::<(S,)>::column(array)?)
        } else {
            KeptColumn::Plain(Option::<S>::column(array)?)
        })
    }
    #[inline]
    fn get(column: &Self::Column, row: usize) -> Option<S::Ref<'_>> {
        match column {
            KeptColumn::Plain(column) => Option::<S>::get(column, row),
            KeptColumn::Wrapped(column) => Option::<(S,)>::get(column, row).map(|(value,)| value),
        }
    }
    #[inline]
    fn borrow(&self) -> Option<S::Ref<'_>> {
        self.0.as_ref().map(Record::borrow)
    }
    #[inline]
    fn own(value: Option<S::Ref<'_>>) -> Self {
        Self(value.map(S::own))
    }
    fn builder(capacity: usize) -> Self::Builder {
        if S::nullable() {
            KeptBuilder::Wrapped(Option::<(S,)>::builder(capacity))
        } else {
            KeptBuilder::Plain(Option::<S>::builder(capacity))
        }
    }
    #[inline]
    fn append(builder: &mut Self::Builder, value: Option<S::Ref<'_>>) {
        match builder {
            KeptBuilder::Plain(builder) => Option::<S>::append(builder, value),
            KeptBuilder::Wrapped(builder) => Option::<(S,)>::append(builder, value.map(|value| (value,))),
        }
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        match builder {
            KeptBuilder::Plain(builder) => Option::<S>::finish(builder),
            KeptBuilder::Wrapped(builder) => Option::<(S,)>::finish(builder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{batch_of, records_of};

    #[test]
    fn a_value_that_is_null_is_not_one_that_is_gone() {
        let rows: Vec<(i64, Kept<Option<i64>>)> =
            vec![(1, Kept(Some(Some(5)))), (2, Kept(Some(None))), (3, Kept(None))];
        let back = records_of::<(i64, Kept<Option<i64>>)>(&batch_of(rows).unwrap()).unwrap();
        assert_eq!(back.into_iter().map(|(_, kept)| kept.0).collect::<Vec<_>>(), [Some(Some(5)), Some(None), None]);
    }

    #[test]
    fn other_values_lie_in_the_column_as_they_are() {
        let kept = batch_of([(1_i64, Kept(Some(5_i64))), (2, Kept(None))]).unwrap();
        assert_eq!(kept, batch_of([(1_i64, Some(5_i64)), (2, None)]).unwrap());
    }
}
