//! Nexmark's queries, each as a program that is restarted after every batch with another number of partitions.
//! Called by nobody but the tests' runner: long, so `ci/reliability` asks for it.

use super::{
    QUERIES,
    generate::{Events, Kind},
    side_input, text,
};
use async_trait::async_trait;
use std::{path::Path, sync::Arc};
use tidemill_core::{Budget, ChunkStream, OffsetRange, Position, Result, Shape, Source};
use tidemill_engine::testing::{Setup, Trial};

/// Events in all, and those of a batch.
const EVENTS: u64 = 3_000;
const EACH: u64 = 600;

/// Events of which a batch reads so many.
#[derive(Debug)]
struct Pieces(Events);

#[async_trait]
impl Source for Pieces {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn shape(&self) -> Shape {
        self.0.shape()
    }
    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        self.0.plan(position, Budget { records: EACH, ..budget }).await
    }
    fn read(&self, range: &OffsetRange) -> ChunkStream {
        self.0.read(range)
    }
    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        self.0.is_exhausted(position).await
    }
}

fn program(name: &str, side: &Path) -> String {
    let streams = text("streams.sql", side).unwrap();
    let (streams, _sink) = streams.split_once("CREATE SINK").unwrap();
    // A trial's clock begins in 1970, and events do not.
    let streams = streams.replace("connector = 'program'", "connector = 'program', max_ahead = 'any'");
    let query = text(&format!("{name}.sql"), side).unwrap();
    format!("{streams}\n{}", query.replace("INSERT INTO out", "CREATE VIEW out AS"))
}

#[test]
#[ignore = "half a minute on two cores; ci/reliability runs it"]
fn every_query_restarted_at_every_batch_gives_the_same() {
    let side = side_input().unwrap();
    let mut empty = Vec::new();
    for (name, _) in QUERIES {
        let sql = program(name, side.path());
        let trial = Trial::new(|trial: &Setup<'_>| {
            for kind in Kind::ALL {
                trial.context().provide_source(kind.name(), Arc::new(Pieces(Events::new(kind, 7, EVENTS))));
            }
            trial.context().declare_sql(&sql)
        });
        trial.restart_at_every_batch(&[1, 2, 3]);
        if trial.run().unwrap().times().is_empty() {
            empty.push(name);
        }
    }
    assert!(empty.is_empty(), "these give nothing: {empty:?}");
}
