//! A receiver of your own, and a program in SQL that reads it.
//!
//! ```text
//! cargo run --example receiver
//! ```
//!
//! Ends by itself: the sensor is asked a fixed number of times. `docs/guides/add-source.md` takes it apart.

use async_trait::async_trait;
use std::sync::Arc;
use tidemill::{
    Options, Registry,
    core::{Block, Input, Intake, Receiver, Stop},
    prelude::*,
};

/// Asks a sensor again and again, each reading once.
#[derive(Debug)]
struct Sensor {
    every: Duration,
    readings: u64,
}

#[async_trait]
impl Receiver for Sensor {
    fn describe(&self) -> String {
        "sensor".to_string()
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        // A restart goes on behind the last reading that is in the log.
        let mut next = intake.resume().and_then(|token| token.parse().ok()).unwrap_or(0);
        intake.report("asking the sensor");
        while next < self.readings && !stop.is_stopped() {
            let record = measure(next);
            next += 1;
            // Waits while the program is behind; the token is kept with the record, or neither is.
            let durable = intake.append(Block::from_records([record]), Some(next.to_string())).await?;
            // Now the reading is kept: a peer that wants to know it is told here.
            durable.await?;
            tokio::select! {
                () = stop.stopped() => {}
                () = tokio::time::sleep(self.every) => {}
            }
        }
        Ok(())
    }
}

/// What is outside: here, a temperature that goes up and down with the tide.
fn measure(n: u64) -> String {
    format!(r#"{{"n":{n},"celsius":{}}}"#, 12 + (n % 7).abs_diff(3))
}

/// The connectors that come with Tidemill, and `sensor`.
pub(crate) fn registry() -> Registry {
    let mut registry = tidemill::connectors::registry();
    registry.add_input("sensor", |options: &Options| {
        let every = options.duration("every", Duration::from_millis(1))?;
        let readings = options.parse("readings", u64::MAX)?;
        Ok(Input::Receivers(vec![Arc::new(Sensor { every, readings })]))
    });
    registry
}

/// A program that reads it.
pub(crate) fn program(readings: u64) -> String {
    format!(
        "CREATE STREAM readings (n BIGINT NOT NULL, celsius BIGINT NOT NULL)
           WITH (connector = 'sensor', readings = '{readings}', format = 'json');
         CREATE VIEW warm AS SELECT count(*) AS n, count(DISTINCT n) AS different, max(celsius) AS most FROM readings;"
    )
}

fn main() -> Result<()> {
    let data = tempfile::tempdir().map_err(|e| Error::external("a directory").because(e))?;
    // The second life goes on where the first one ended.
    for readings in [20, 50] {
        let context = tidemill::context("receiver").registry(registry()).data_dir(data.path()).trigger(Trigger::Drain);
        let context = context.build();
        context.declare_sql(&program(readings))?;
        let board = context.board();
        context.start()?;
        context.await_termination()?;
        let view = board.view("warm").ok_or_else(|| Error::internal("the view has no rows"))?;
        println!("{}", arrow_cast::pretty::pretty_format_batches(std::slice::from_ref(&view.rows)).expect("a table"));
    }
    Ok(())
}
