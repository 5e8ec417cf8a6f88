//! What the page of a running program asks: now, or as it was after a batch.
//!
//! At a batch, states are those after it; topics that are streams of the program
//! end where the batch had read them; dead letters are those up to it; and views
//! are what the asker remembers of them. Static tables and other topics are as now.
//!
//! Invariant: as [`super::query`]'s: nothing is changed or kept from moving on.
//! Called through [`Answers`] by whoever assembles a program with a page.

use super::{
    functions,
    query::{Asked, DEAD, rows_table},
    session::{config, session},
};
use crate::StreamingContext;
use arrow_schema::Schema;
use async_trait::async_trait;
use datafusion::{
    scalar::ScalarValue,
    sql::sqlparser::{
        keywords::{RESERVED_FOR_COLUMN_ALIAS, RESERVED_FOR_TABLE_ALIAS},
        tokenizer::Token,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tidemill_core::{
    Answer, Answers, AskedTable, BatchId, Error, Names, Offset, Progress, Question, Result, StreamName, Timestamp,
};
use tidemill_store::{Past, ledger::OperatorEntry};

/// A batch of the past that is kept.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) batch: BatchId,
    at: Timestamp,
    /// Where it had read each stream up to.
    pub(super) ends: BTreeMap<StreamName, BTreeMap<u32, Offset>>,
    /// The program's own topic of dead letters.
    pub(super) letters: String,
    /// Views of which nobody remembers what they showed then.
    pub(super) forgotten: BTreeSet<String>,
}

impl Moment {
    /// The batch's time, as a literal.
    pub(super) fn time(&self) -> ScalarValue {
        ScalarValue::TimestampMicrosecond(Some(self.at.0), Some("UTC".into()))
    }
}

impl StreamingContext {
    fn past(&self) -> Result<Option<Past>> {
        let Some(data) = &self.config.data_dir else { return Ok(None) };
        Past::read(&*self.config.disk, &data.join("programs").join(self.name()).join("ledger"))
    }

    /// What was there after `batch`.
    fn moment(&self, batch: BatchId) -> Result<Moment> {
        let past = self.past()?.ok_or_else(|| {
            Error::user("nothing of the past is kept here: ask without a batch, or give the program a data directory")
        })?;
        let Some(kept) = past.recent().find(|kept| kept.id == batch) else {
            let kept = super::past::kept(&past);
            return Err(Error::user(format!("batch {batch} is not kept: kept are {kept}")));
        };
        let at = kept.time;
        let mut ends: BTreeMap<StreamName, BTreeMap<u32, Offset>> = BTreeMap::new();
        // The oldest first: a partition that is read later for the first time ended where that begins.
        for kept in past.recent() {
            for (stream, ranges) in &kept.ranges {
                let ends = ends.entry(stream.clone()).or_default();
                for range in ranges {
                    let Ok(partition) = range.partition.0.parse::<u32>() else { continue };
                    if kept.id <= batch {
                        ends.insert(partition, range.end);
                    } else {
                        ends.entry(partition).or_insert(range.start);
                    }
                }
            }
        }
        Ok(Moment { batch, at, ends, letters: format!("{}{DEAD}", self.name()), forgotten: BTreeSet::new() })
    }

    fn asked(&self, question: Question, progress: Arc<Progress>) -> Result<Asked> {
        let mut moment = question.at.map(|batch| self.moment(batch)).transpose()?;
        let mut tables = self.queryable(moment.as_ref())?;
        if let Some(then) = &mut moment {
            for name in self.board().view_names() {
                match question.views.get(&name) {
                    Some(rows) => drop(tables.insert(name, rows_table(rows)?)),
                    None => {
                        tables.remove(&name);
                        then.forgotten.insert(name);
                    }
                }
            }
        }
        let states = self.states().map(|states| states.after(question.at));
        Ok(Asked { question, tables, states, moment, progress })
    }

    /// The states of the program, as `state.<name>` names them, with their columns where an operator shows its rows as
    /// it keeps them.
    fn state_names(&self) -> Result<Vec<AskedTable>> {
        let entries = self.past()?.map(|past| past.program().operators).unwrap_or_default();
        let named = |entry: OperatorEntry| -> Result<AskedTable> {
            let columns = entry.columns()?.filter(|_| entry.kind != "aggregate");
            let columns = columns.map(|columns| names_of(&columns)).unwrap_or_default();
            Ok(AskedTable { name: format!("state.{}", quoted(&entry.name)), kind: "state", columns })
        };
        entries.into_iter().map(named).collect()
    }
}

/// A name as it stands in a query.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && name.starts_with(|c: char| !c.is_ascii_digit())
        && !is_word(name);
    if plain { name.to_string() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Whether a name means something else to SQL where it stands without quotes.
fn is_word(name: &str) -> bool {
    match Token::make_word(name, None) {
        Token::Word(word) => {
            RESERVED_FOR_COLUMN_ALIAS.contains(&word.keyword) || RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword)
        }
        _ => false,
    }
}

fn names_of(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| quoted(field.name())).collect()
}

#[async_trait]
impl Answers for StreamingContext {
    async fn answer(&self, question: Question, progress: Arc<Progress>) -> Result<Answer> {
        self.asked(question, progress)?.answer().await
    }

    fn names(&self) -> Result<Names> {
        let views = self.board().view_names();
        let log = self.log();
        let is_topic = |name: &str| log.as_ref().is_some_and(|log| log.topic(name).is_some());
        let table = |(name, table): (String, Arc<dyn datafusion::catalog::TableProvider>)| {
            let kind = match name.as_str() {
                name if views.iter().any(|view| view == name) => "view",
                name if name.ends_with(DEAD) || name == &DEAD[1..] => "letters",
                name if is_topic(name) => "topic",
                _ => "table",
            };
            AskedTable { name: quoted(&name), kind, columns: names_of(&table.schema()) }
        };
        let mut tables: Vec<AskedTable> = self.queryable(None)?.into_iter().map(table).collect();
        tables.extend(self.state_names()?);
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        let session = session(config(1), None);
        functions::keep_allowed(&session);
        Ok(Names { tables, functions: functions::names(&session) })
    }
}
