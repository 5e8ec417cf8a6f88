//! Alerts, as people and machines are told of them.
//!
//! The engine keeps where each key of an alert stands and puts an
//! [`AlertReport`] on the board after each batch that changed something; pages
//! read it, and ask for silence or a test with an [`AlertAsk`], which the next
//! batch takes. Invariant: a report is of a committed batch, and bounded.

use crate::{BatchId, Timestamp};
use serde::{Deserialize, Serialize};

/// Where a key of an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// The condition does not hold.
    #[default]
    Ok,
    /// It holds, for less long than it has to.
    Pending,
    /// It has held for as long as it has to, and is not over.
    Firing,
    /// Nothing has come for longer than is allowed.
    Missing,
    /// No state: a row that somebody asked for to see where it goes.
    Test,
}

impl AlertState {
    /// As it stands in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Missing => "missing",
            Self::Test => "test",
        }
    }

    /// The state of this name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Ok, Self::Pending, Self::Firing, Self::Missing, Self::Test]
            .into_iter()
            .find(|state| state.name() == name)
    }

    /// Whether somebody should look.
    pub fn is_on(self) -> bool {
        matches!(self, Self::Firing | Self::Missing)
    }
}

/// A key that is not well now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertNow {
    /// The key as text; empty for an alert without one.
    pub key: String,
    /// Where it stands.
    pub state: AlertState,
    /// Since when.
    pub since: Timestamp,
    /// What the condition looked at, when that is a number.
    pub value: Option<f64>,
    /// For people.
    pub message: String,
    /// Whether it is silenced.
    pub silenced: bool,
}

/// A key went from one state to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertChange {
    /// The key as text; empty for an alert without one.
    pub key: String,
    /// Where it stands from then on.
    pub state: AlertState,
    /// Where it stood before.
    pub was: AlertState,
    /// Since when what it stands in has held.
    pub since: Timestamp,
    /// The time of the batch that said so.
    pub at: Timestamp,
    /// What the condition looked at, when that is a number.
    pub value: Option<f64>,
    /// For people.
    pub message: String,
    /// Whether it was silenced then.
    pub silenced: bool,
}

/// A key, or all keys, of an alert of which nobody wants to hear for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Silence {
    /// The key as text; `None` for all.
    pub key: Option<String>,
    /// Until when, by batch time. What is past lifts a silence.
    pub until: Timestamp,
    /// Why, and by whom: for people.
    pub why: String,
}

/// How an alert stands after a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AlertReport {
    /// Its name.
    pub name: String,
    /// The view that it looks at.
    pub view: String,
    /// How urgent it is, in the program's words.
    pub severity: String,
    /// The condition as it stands in the program.
    pub condition: String,
    /// The batch after which it stood so; 0 before the first.
    pub batch: BatchId,
    /// That batch's time.
    pub time: Timestamp,
    /// Keys that are pending.
    pub pending: usize,
    /// Keys that are firing.
    pub firing: usize,
    /// Keys that are missing.
    pub missing: usize,
    /// The keys that are not well, by key; the first of them where there are many.
    pub now: Vec<AlertNow>,
    /// Silences that last.
    pub silences: Vec<Silence>,
    /// The last changes, the oldest first.
    pub changes: Vec<AlertChange>,
}

/// What somebody asks of an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlertAsk {
    /// One row of state `test`, to see where it goes.
    Test,
    /// A silence, or the end of one.
    Silence(Silence),
}
