//! A run of row operators as one loop.
//!
//! A [`Chain`] is the program from the columns of a lineage node to the records
//! of a stream. Each `map`, `filter` or `flat_map` wraps the chain before it, as
//! iterator adaptors do, so the compiler sees one loop: no intermediate batch,
//! no call through a pointer for each record.
//!
//! Invariant: `drive` visits the records in row order. Wide operators end a
//! chain and start a new one with [`Read`].

use crate::{
    plan::Lineage,
    record::{Record, Str, read_batch},
};
use arrow_array::RecordBatch;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;

/// From the columns of a lineage node to records.
pub trait Chain: Clone + Send + Sync + 'static {
    /// What comes out.
    type Out: Record;

    /// Calls `each` with every record that the rows give.
    ///
    /// # Errors
    /// When the rows have other columns than the chain reads.
    fn drive<E>(&self, rows: &RecordBatch, each: E) -> Result<()>
    where
        E: FnMut(<Self::Out as Record>::Ref<'_>);

    #[doc(hidden)]
    fn input(&self) -> &Input;
}

/// The lineage node that a chain reads.
#[derive(Clone)]
pub struct Input(pub(crate) Arc<Lineage>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

/// The beginning of a chain: the rows of a lineage node as records.
pub struct Read<T> {
    pub(crate) input: Input,
    pub(crate) record: PhantomData<fn() -> T>,
}

impl<T> Clone for Read<T> {
    fn clone(&self) -> Self {
        Self { input: self.input.clone(), record: PhantomData }
    }
}

impl<T> fmt::Debug for Read<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read({:?})", self.input)
    }
}

impl<T: Record> Chain for Read<T> {
    type Out = T;

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut(T::Ref<'_>),
    {
        let column = read_batch::<T>(rows)?;
        for row in 0..rows.num_rows() {
            each(T::get(&column, row));
        }
        Ok(())
    }

    fn input(&self) -> &Input {
        &self.input
    }
}

/// Where `flat_map` puts what it makes: each record goes on down the chain at once.
pub struct Emit<'a, U: Record> {
    each: &'a mut dyn FnMut(U::Ref<'_>),
}

impl<U: Record> fmt::Debug for Emit<'_, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Emit")
    }
}

impl<'a, U: Record> Emit<'a, U> {
    pub(crate) fn new(each: &'a mut dyn FnMut(U::Ref<'_>)) -> Self {
        Self { each }
    }

    /// Emits one record.
    #[inline]
    pub fn push(&mut self, record: impl Emittable<U>) {
        record.emit(self);
    }

    /// Emits several records.
    #[inline]
    pub fn extend<R: Emittable<U>>(&mut self, records: impl IntoIterator<Item = R>) {
        for record in records {
            record.emit(self);
        }
    }

    /// Emits one record in its borrowed form, which is never copied on the way.
    #[inline]
    pub fn push_ref(&mut self, record: U::Ref<'_>) {
        (self.each)(record);
    }
}

/// What can be emitted as a record `U`: itself, and for text also `&str`,
/// which is handed on as it lies.
pub trait Emittable<U: Record> {
    /// Emits this value.
    fn emit(self, into: &mut Emit<'_, U>);
}

impl<U: Record> Emittable<U> for U {
    #[inline]
    fn emit(self, into: &mut Emit<'_, U>) {
        into.push_ref(self.borrow());
    }
}

macro_rules! text {
    ($($from:ty => $text:ty),*) => {$(
        impl Emittable<$text> for $from {
            #[inline]
            fn emit(self, into: &mut Emit<'_, $text>) {
                into.push_ref(self.as_ref());
            }
        }
    )*};
}

text!(&str => String, &str => Str, &String => String, &String => Str, &Str => String, &Str => Str, String => Str, Str => String);
