//! `map`, `filter`, `flat_map`: one record at a time.
//!
//! They keep no state, know no time, and fuse: a chain of them compiles to one
//! loop over the rows (see [`crate::stream::Chain`]).
//!
//! ```
//! # use tidemill_engine::{testing::check, Str};
//! check(
//!     [vec!["to be or".to_string()], vec!["not".to_string()]],
//!     |lines| lines.flat_map::<Str, _>(|line, out| out.extend(line.split(' '))).map(|word: &str| Str::from(word.to_uppercase())),
//!     [vec!["TO", "BE", "OR"].into_iter().map(Str::from).collect::<Vec<_>>(), vec![Str::from("NOT")]],
//! );
//! ```

use crate::{
    record::Record,
    stream::{Chain, DStream, Emit, chain::Input},
};
use arrow_array::RecordBatch;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;

/// A chain and a function on its records.
pub(crate) struct Step<C, F, U> {
    chain: C,
    f: Arc<F>,
    kind: PhantomData<fn() -> U>,
}

impl<C: Clone, F, U> Clone for Step<C, F, U> {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), f: Arc::clone(&self.f), kind: PhantomData }
    }
}

impl<C: fmt::Debug, F, U> fmt::Debug for Step<C, F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Step({:?})", self.chain)
    }
}

/// A step that makes one record of each.
#[derive(Debug)]
pub struct Map<C, F, U>(Step<C, F, U>);
/// A step that keeps some records.
#[derive(Debug)]
pub struct Filter<C, F>(Step<C, F, ()>);
/// A step that makes any number of records of each.
#[derive(Debug)]
pub struct FlatMap<C, F, U>(Step<C, F, U>);

impl<C: Clone, F, U> Clone for Map<C, F, U> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
impl<C: Clone, F> Clone for Filter<C, F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
impl<C: Clone, F, U> Clone for FlatMap<C, F, U> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C, F, U> Chain for Map<C, F, U>
where
    C: Chain,
    U: Record,
    F: for<'a> Fn(<C::Out as Record>::Ref<'a>) -> U + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut(U::Ref<'_>),
    {
        let f = &*self.0.f;
        self.0.chain.drive(rows, |record| each(f(record).borrow()))
    }

    fn input(&self) -> &Input {
        self.0.chain.input()
    }
}

impl<C, F> Chain for Filter<C, F>
where
    C: Chain,
    F: for<'a> Fn(<C::Out as Record>::Ref<'a>) -> bool + Send + Sync + 'static,
{
    type Out = C::Out;

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut(<C::Out as Record>::Ref<'_>),
    {
        let f = &*self.0.f;
        self.0.chain.drive(rows, |record| {
            if f(record) {
                each(record);
            }
        })
    }

    fn input(&self) -> &Input {
        self.0.chain.input()
    }
}

impl<C, F, U> Chain for FlatMap<C, F, U>
where
    C: Chain,
    U: Record,
    F: for<'a> Fn(<C::Out as Record>::Ref<'a>, &mut Emit<'_, U>) + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut(U::Ref<'_>),
    {
        let f = &*self.0.f;
        self.0.chain.drive(rows, |record| f(record, &mut Emit::new(&mut each)))
    }

    fn input(&self) -> &Input {
        self.0.chain.input()
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    fn step<F, U>(&self, f: F) -> Step<C, F, U> {
        Step { chain: self.chain.clone(), f: Arc::new(f), kind: PhantomData }
    }

    /// One record of each.
    pub fn map<U, F>(&self, f: F) -> DStream<U, Map<C, F, U>>
    where
        U: Record,
        F: for<'a> Fn(T::Ref<'a>) -> U + Send + Sync + 'static,
    {
        self.with(Map(self.step(f)))
    }

    /// The records for which `f` holds.
    pub fn filter<F>(&self, f: F) -> DStream<T, Filter<C, F>>
    where
        F: for<'a> Fn(T::Ref<'a>) -> bool + Send + Sync + 'static,
    {
        self.with(Filter(self.step(f)))
    }

    /// Any number of records of each; `f` puts them into its second argument.
    pub fn flat_map<U, F>(&self, f: F) -> DStream<U, FlatMap<C, F, U>>
    where
        U: Record,
        F: for<'a> Fn(T::Ref<'a>, &mut Emit<'_, U>) + Send + Sync + 'static,
    {
        self.with(FlatMap(self.step(f)))
    }
}

impl<K: Record, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Changes the values and keeps the keys.
    pub fn map_values<U: Record>(
        &self,
        f: impl for<'a> Fn(V::Ref<'a>) -> U + Send + Sync + 'static,
    ) -> DStream<(K, U), impl Chain<Out = (K, U)>> {
        self.map(move |(key, value)| (K::own(key), f(value)))
    }

    /// Any number of values of each, under the same key.
    pub fn flat_map_values<U: Record>(
        &self,
        f: impl for<'a> Fn(V::Ref<'a>, &mut Emit<'_, U>) + Send + Sync + 'static,
    ) -> DStream<(K, U), impl Chain<Out = (K, U)>> {
        self.flat_map(move |(key, value): (K::Ref<'_>, V::Ref<'_>), out: &mut Emit<'_, (K, U)>| {
            // Owned, since two borrows of unlike lives make no borrowed pair.
            f(value, &mut Emit::new(&mut |made: U::Ref<'_>| out.push((K::own(key), U::own(made)))));
        })
    }

    /// The keys.
    pub fn keys(&self) -> DStream<K, impl Chain<Out = K>> {
        self.map(|(key, _): (K::Ref<'_>, V::Ref<'_>)| K::own(key))
    }

    /// The values.
    pub fn values(&self) -> DStream<V, impl Chain<Out = V>> {
        self.map(|(_, value): (K::Ref<'_>, V::Ref<'_>)| V::own(value))
    }
}
