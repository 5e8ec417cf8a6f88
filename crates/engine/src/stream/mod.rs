//! The typed surface: [`DStream`], a sequence of batches of one record type.
//!
//! A stream is a value to describe, not to run: methods build lineage, and
//! nothing happens before the context starts. Functions receive records in
//! their borrowed form ([`Record::Ref`]) and return owned ones.
//!
//! The methods live beside their operators in [`crate::ops`].

pub(crate) mod chain;

pub use chain::{Chain, Emit, Emittable, Read};

use crate::{
    declare::Declare,
    plan::{Lineage, Operator},
    record::Record,
};
use chain::Input;
use std::{fmt, marker::PhantomData, sync::Arc};

/// A sequence of batches of records of type `T`.
///
/// The second parameter is the loop fused so far. Functions and structs name
/// only `DStream<T>`; [`DStream::erase`] turns any stream into one.
pub struct DStream<T: Record, C: Chain<Out = T> = Read<T>> {
    pub(crate) chain: C,
    pub(crate) declare: Declare,
    pub(crate) record: PhantomData<fn() -> T>,
}

impl<T: Record, C: Chain<Out = T>> Clone for DStream<T, C> {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), declare: self.declare.clone(), record: PhantomData }
    }
}

impl<T: Record, C: Chain<Out = T>> fmt::Debug for DStream<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DStream over {:?}", self.chain.input())
    }
}

impl<T: Record> DStream<T> {
    /// A stream over a node.
    pub(crate) fn over(declare: &Declare, node: Arc<Lineage>) -> Self {
        Self {
            chain: Read { input: Input(node), record: PhantomData },
            declare: declare.unnamed(),
            record: PhantomData,
        }
    }

    /// A stream over a new node.
    pub(crate) fn of(declare: &Declare, inputs: Vec<Arc<Lineage>>, operator: impl Operator + 'static) -> Self {
        Self::over(declare, declare.node(inputs, operator))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// The same stream with a longer chain.
    pub(crate) fn with<D: Chain>(&self, chain: D) -> DStream<D::Out, D> {
        DStream { chain, declare: self.declare.clone(), record: PhantomData }
    }

    /// Names the next operator that is declared from this stream: its state and
    /// its part of a checkpoint are kept under the name, so that a program may
    /// change around it. Without a name an operator is called after its verb and
    /// its place among its like (`reduce_by_key-2`).
    ///
    /// Fused steps (`map`, `filter`, `flat_map`) have no name and hand it on. Of
    /// `[A-Za-z0-9._-]`, 1 to 100 of them, unique in the program; anything else
    /// is an error at the start.
    ///
    /// ```
    /// # use tidemill_engine::{StreamingContext, Trigger};
    /// let context = StreamingContext::builder("words").trigger(Trigger::Drain).build();
    /// let words = context.queue_stream([vec!["a".to_string()]])?;
    /// let totals = words
    ///     .map(|word| (word.to_string(), 1_i64))
    ///     .with_name("totals")
    ///     .update_state_by_key(|new, total: Option<i64>| Some(total.unwrap_or(0) + new.iter().sum::<i64>()));
    /// # let _ = totals;
    /// # Ok::<(), tidemill_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_name(&self, name: &str) -> Self {
        Self { declare: self.declare.naming(name), ..self.clone() }
    }

    /// The node that this stream's chain reads.
    pub(crate) fn base(&self) -> Arc<Lineage> {
        Arc::clone(&self.chain.input().0)
    }
}

#[cfg(test)]
mod tests {
    use crate::{StreamingContext, Trigger};

    fn start_with_names(names: [&str; 2]) -> Result<(), String> {
        let context = StreamingContext::builder("test").trigger(Trigger::Drain).build();
        let pairs = context.queue_stream([vec![(1, 1)]]).unwrap();
        for name in names {
            pairs.map_values(|v| v).with_name(name).map_values(|v| v).reduce_by_key(|a, b| a + b).print();
        }
        context.start().map_err(|e| e.to_string())
    }

    #[test]
    fn names_must_be_unique_and_plain() {
        start_with_names(["a", "b"]).unwrap();
        assert!(start_with_names(["a", "a"]).unwrap_err().contains("`a`: the name is taken"));
        for bad in ["", "..", ".a", "a/b", "a b", "ä", &"x".repeat(101)] {
            assert!(start_with_names(["a", bad]).unwrap_err().contains("can't name an operator"), "{bad}");
        }
    }
}
