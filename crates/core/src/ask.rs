//! Questions about a running program, and notebooks that hold them.
//!
//! The engine answers ([`Answers`]) and whoever assembles a program says where
//! notebooks lie ([`Shelf`]); pages ask and know neither. Invariant: a question
//! changes nothing; its answer is bounded by the rows that were asked for; and
//! one that was stopped ends, whatever it computes. Errors in a question's text
//! begin with their place, as in `line 2, column 8: …`.

use crate::{BatchId, Result};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The value of a parameter. It stands in the query as one literal, whatever it contains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// NULL.
    Null,
    /// TRUE or FALSE.
    Truth(bool),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A SELECT, and over what.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The SELECT. `{{name}}` stands for the parameter `name`.
    pub sql: String,
    /// Values of its parameters.
    pub parameters: BTreeMap<String, Parameter>,
    /// As it was after this batch; `None` is as it is now.
    pub at: Option<BatchId>,
    /// What the views showed then, of those that are still known; looked at when `at` says when.
    pub views: BTreeMap<String, RecordBatch>,
    /// Rows at most; more are left out, and the answer says so.
    pub rows: usize,
}

/// The rows of an answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Their columns.
    pub schema: SchemaRef,
    /// The rows, as many as were asked for.
    pub rows: Vec<RecordBatch>,
    /// Whether there would have been more.
    pub more: bool,
}

/// How far an answer is; shared by who computes it and who waits for it.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Counts rows that were read.
    pub fn add(&self, rows: usize) {
        self.read.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Rows read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Ends the computation at its next step.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether it is to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// Something that can be asked, for completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AskedTable {
    /// Its name as it stands in FROM.
    pub name: String,
    /// `view`, `topic`, `letters`, `state` or `table`.
    pub kind: &'static str,
    /// Names of its columns, in order; none where they are not known before it is asked.
    pub columns: Vec<String>,
}

/// What a question may name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Names {
    /// Tables, by name.
    pub tables: Vec<AskedTable>,
    /// Functions, by name.
    pub functions: Vec<String>,
}

/// Who answers questions about a program while it runs.
#[async_trait]
pub trait Answers: Send + Sync + fmt::Debug {
    /// Answers. Dropping the future, or stopping `progress`, ends the computation.
    ///
    /// # Errors
    /// When it is no SELECT, names what is not there, or needs more than its
    /// share of memory; those about its text begin with their place.
    async fn answer(&self, question: Question, progress: Arc<Progress>) -> Result<Answer>;

    /// What a question may name now.
    ///
    /// # Errors
    /// When what is kept can't be read.
    fn names(&self) -> Result<Names>;
}

/// A notebook's text, and what tells it from any other text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notebook {
    /// Its text, which is Markdown.
    pub text: String,
    /// Differs when the text does.
    pub revision: String,
}

/// What became of a text that was to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shelved {
    /// It is kept, under this revision.
    As(String),
    /// Another text is there than the writer had seen, and stays; its revision, or `None` where there is none.
    Refused(Option<String>),
}

/// Where notebooks are kept, by names of `[A-Za-z0-9._-]`.
pub trait Shelf: Send + Sync + fmt::Debug {
    /// Their names, in order.
    ///
    /// # Errors
    /// When the place can't be read.
    fn names(&self) -> Result<Vec<String>>;

    /// A notebook, if it is there.
    ///
    /// # Errors
    /// When it can't be read.
    fn read(&self, name: &str) -> Result<Option<Notebook>>;

    /// Keeps a text whole or not at all, if what is there is the revision `seen` (`None`: nothing is there).
    ///
    /// # Errors
    /// When it can't be written.
    fn keep(&self, name: &str, text: &str, seen: Option<&str>) -> Result<Shelved>;
}
