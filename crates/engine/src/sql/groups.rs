//! Groups of an aggregate by number.
//!
//! A group has the number under which it came first, for as long as it is known:
//! what is kept of it is a place in an array, and what comes for it is found
//! without hashing once more. Invariant: `values` holds the groups in the order of
//! their numbers. Called by [`super::running`], [`super::held`] and [`super::tops`].

use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_schema::SchemaRef;
use datafusion::{
    common::{DataFusionError, Result as DfResult},
    physical_plan::aggregates::{
        group_values::{GroupValues, new_group_values},
        order::GroupOrdering,
    },
};

/// Chunks of values that are held before they are made one.
const CHUNKS: usize = 64;

/// The groups and their values.
pub(super) struct Groups {
    schema: SchemaRef,
    numbers: Box<dyn GroupValues>,
    /// Values of the groups, some after some, each with the number of its first.
    values: Vec<(usize, Vec<ArrayRef>)>,
    found: Vec<usize>,
}

impl Groups {
    /// None yet, of these columns.
    pub(super) fn new(schema: SchemaRef) -> DfResult<Self> {
        let numbers = new_group_values(SchemaRef::clone(&schema), &GroupOrdering::None)?;
        Ok(Self { schema, numbers, values: Vec::new(), found: Vec::new() })
    }

    /// How many there are: the next new one has this number.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The number of each row's group.
    pub(super) fn number(&mut self, keys: &[ArrayRef]) -> DfResult<Vec<u32>> {
        let before = self.numbers.len();
        self.found.clear();
        self.numbers.intern(keys, &mut self.found)?;
        if self.numbers.len() > before {
            // The first row of each new group, in the order of their numbers.
            let mut next = before;
            let news = (0_u32..).zip(&self.found).filter(|(_, group)| {
                let is_new = **group == next;
                next += usize::from(is_new);
                is_new
            });
            let news = UInt32Array::from_iter_values(news.map(|(row, _)| row));
            let values = keys.iter().map(|keys| Ok(arrow_select::take::take(keys, &news, None)?));
            self.values.push((before, values.collect::<DfResult<_>>()?));
            if self.values.len() > CHUNKS {
                self.values = vec![(0, self.all()?)];
            }
        }
        let small = |group: &usize| {
            u32::try_from(*group).map_err(|_| DataFusionError::Plan("an aggregate has over four billion groups".into()))
        };
        self.found.iter().map(small).collect()
    }

    /// The values of all groups, by number.
    pub(super) fn all(&self) -> DfResult<Vec<ArrayRef>> {
        if let [(_, one)] = self.values.as_slice() {
            return Ok(one.clone());
        }
        let column = |at: usize| -> DfResult<ArrayRef> {
            let parts: Vec<&dyn Array> = self.values.iter().map(|(_, columns)| columns[at].as_ref()).collect();
            if parts.is_empty() {
                return Ok(arrow_array::new_empty_array(self.schema.field(at).data_type()));
            }
            Ok(arrow_select::concat::concat(&parts)?)
        };
        (0..self.schema.fields().len()).map(column).collect()
    }

    /// The values of these groups.
    pub(super) fn of(&self, numbers: &[u32]) -> DfResult<Vec<ArrayRef>> {
        if let [(_, one)] = self.values.as_slice() {
            let numbers = UInt32Array::from(numbers.to_vec());
            return one.iter().map(|column| Ok(arrow_select::take::take(column, &numbers, None)?)).collect();
        }
        let place = |number: &u32| {
            let chunk = self.values.partition_point(|(first, _)| *first <= *number as usize) - 1;
            (chunk, *number as usize - self.values[chunk].0)
        };
        let places: Vec<(usize, usize)> = numbers.iter().map(place).collect();
        let column = |at: usize| -> DfResult<ArrayRef> {
            let parts: Vec<&dyn Array> = self.values.iter().map(|(_, columns)| columns[at].as_ref()).collect();
            if parts.is_empty() {
                return Ok(arrow_array::new_empty_array(self.schema.field(at).data_type()));
            }
            Ok(arrow_select::interleave::interleave(&parts, &places)?)
        };
        (0..self.schema.fields().len()).map(column).collect()
    }

    /// Only these groups, numbered in this order.
    pub(super) fn only(&self, numbers: &[u32]) -> DfResult<Self> {
        let mut groups = Self::new(SchemaRef::clone(&self.schema))?;
        if !numbers.is_empty() {
            groups.number(&self.of(numbers)?)?;
        }
        Ok(groups)
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        let values = self.values.iter().flat_map(|(_, columns)| columns).map(|column| column.get_array_memory_size());
        self.numbers.size() + values.sum::<usize>() + self.found.capacity() * size_of::<usize>()
    }
}
