//! The schemas that records were written with, and how records of each are read.
//!
//! A format makes a plan for each schema and choice of columns once, and keeps it;
//! also that there can be none, with the reason, as what has a number never changes.
//!
//! Invariant: what can't be asked for now is an error and is not kept, nor is that a
//! registry does not know an id: it may come to. Called by the formats `avro` and
//! `protobuf`.

use super::registry::{Registered, SchemaRegistry};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::Result;

/// What records were written with.
pub(super) enum Writer<S> {
    /// All with one schema.
    One(S),
    /// Each with the one that its frame names.
    Registry(Arc<SchemaRegistry>),
    /// Each with the one that is known under the number in front of it.
    Known(Arc<Known<S>>),
}

/// Schemas by number, or why there is none.
pub(super) type Known<S> = dyn Fn(u64) -> Result<S, String> + Send + Sync;

/// A plan, or why records of its schema can't be read.
pub(super) type Planned<P> = Result<Arc<P>, String>;

/// Plans by the schema's number (0 where there is one alone), and what else they depend on.
pub(super) struct Plans<S, K, P> {
    pub(super) writer: Writer<S>,
    made: Mutex<HashMap<(u64, K), Planned<P>>>,
}

impl<S: Clone, K: Hash + Eq, P> Plans<S, K, P> {
    /// None yet.
    pub(super) fn new(writer: Writer<S>) -> Self {
        Self { writer, made: Mutex::default() }
    }

    /// The plan for records of a schema.
    ///
    /// # Errors
    /// When the registry is asked for the schema, and does not answer.
    pub(super) fn plan(
        &self,
        id: u64,
        of: K,
        parse: impl FnOnce(&Registered) -> Result<S, String>,
        make: impl FnOnce(&S) -> Result<P, String>,
    ) -> Result<Planned<P>> {
        let key = (id, of);
        if let Some(plan) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(plan.clone());
        }
        let planned = match &self.writer {
            Writer::One(schema) => make(schema),
            Writer::Registry(registry) => match registry.schema(u32::try_from(id).unwrap_or(u32::MAX))? {
                Ok(found) => {
                    parse(&found).and_then(|schema| make(&schema)).map_err(|why| format!("schema {id}: {why}"))
                }
                Err(unknown) => return Ok(Err(unknown)),
            },
            Writer::Known(schemas) => match schemas(id) {
                Ok(schema) => make(&schema),
                Err(unknown) => return Ok(Err(unknown)),
            },
        };
        let planned = planned.map(Arc::new);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(key, planned.clone());
        Ok(planned)
    }
}
