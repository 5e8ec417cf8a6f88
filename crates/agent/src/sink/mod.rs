//! Sinks: where events go.
//!
//! A sink of an agent is an [`Outlet`]. Those here take events as they are; [`store`] wraps any sink of the registry.
//!
//! Invariant: an outlet that is handed the same events again after an error, or after a crash before the commit, shows
//! them once where it says *exactly once*, and else at least once.

pub(crate) mod avro;
pub(crate) mod file;
pub(crate) mod group;
pub(crate) mod logger;
pub(crate) mod store;
pub(crate) mod topic;

use crate::event::Event;
use async_trait::async_trait;
use tidemill_core::{Guarantee, Result};

/// Where a sink writes, of which an agent calls one method at a time.
#[async_trait]
pub trait Outlet: Send {
    /// For people: `file out/a1`.
    fn describe(&self) -> String;

    /// What it promises when it is handed the same events again after a crash, over a durable channel.
    fn guarantee(&self) -> Guarantee;

    /// Called before the first events, and again after it failed. `left` is what [`Outlet::deliver`] left with the last
    /// commit: all behind that is to be undone. `durable` says whether the channel is. What it gives back is kept before
    /// the first events come, so that they can be undone, too.
    ///
    /// # Errors
    /// When it can't begin; it is called again later.
    async fn open(&mut self, left: Option<String>, durable: bool) -> Result<Option<String>>;

    /// Takes events where they belong. What it gives back is kept together with the channel's position, and comes
    /// back to [`Outlet::open`].
    ///
    /// # Errors
    /// When it can't take all of them: they come again, here or to another sink of the group, after `open`.
    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>>;

    /// The events of the last `deliver` are committed: what was only prepared may be shown. May come again after a
    /// restart, from `open`.
    ///
    /// # Errors
    /// When it can't; it is called again.
    async fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}
