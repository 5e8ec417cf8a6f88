//! W1: the field's first program, words counted in batches.
//!
//! Each batch counts its words; the callback adds up the batches, since the
//! job's answer is the count over all lines.

use crate::{
    check::Rows,
    input::{files::Files, serve},
    measure::{Side, timed},
};
use hashbrown::HashMap;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tidemill_connectors::{files::FilesSource, format::TextFormat, tcp::TcpClient};
use tidemill_core::{Receiver, Source};
use tidemill_engine::{DStream, Str, StreamingContext, Trigger};

type Counts = Arc<Mutex<HashMap<Str, i64>>>;

/// How a program says to count words.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spelling {
    /// `split`, `count_by_value`.
    Short,
    /// `flat_map`, `map`, `reduce_by_key`.
    Steps,
}

/// W1 from files: how often each word stands in the lines of `files.dir`.
pub(crate) fn w1_file(files: &Files, threads: usize, spelling: Spelling) -> Option<Side<'_, String, u64>> {
    Some(Box::new(move || {
        timed(
            || {
                let data = tempfile::tempdir()?;
                let context = StreamingContext::builder("words")
                    .data_dir(data.path())
                    .trigger(Trigger::Drain)
                    .batch_bytes(256 << 20)
                    .partitions(threads)
                    .build();
                let source: Arc<dyn Source> = Arc::new(FilesSource::new(&files.dir.to_string_lossy())?);
                let lines = context.source_stream::<String>("lines", source, Some(Arc::new(TextFormat::default())))?;
                let counts = match spelling {
                    Spelling::Short => add_up(&lines.split(b' ').count_by_value()),
                    Spelling::Steps => add_up(
                        &lines
                            .flat_map::<Str, _>(|line, out| out.extend(line.split(' ')))
                            .map(|word: &str| (Str::from(word), 1_i64))
                            .reduce_by_key(|a, b| a + b),
                    ),
                };
                context.start()?;
                context.await_termination()?;
                Ok(counts)
            },
            |counts| Ok(rows(&counts)),
        )
    }))
}

/// W1 over TCP: the same, from two connections to [`crate::input::serve::files`], through the log.
pub(crate) fn w1_tcp(files: &Files, threads: usize) -> Option<Side<'_, String, u64>> {
    Some(Box::new(move || {
        let served = serve::files(files, threads)?;
        let ran = timed(
            || {
                let data = tempfile::tempdir()?;
                let context = StreamingContext::builder("words")
                    .data_dir(data.path())
                    .trigger(Trigger::Asap)
                    .batch_bytes(128 << 20)
                    .partitions(threads)
                    .build();
                let receivers = served
                    .addresses
                    .iter()
                    .zip(0_u64..)
                    .map(|(address, seed)| Arc::new(TcpClient::new(address.to_string(), seed)) as Arc<dyn Receiver>)
                    .collect();
                let lines = context.receiver_stream::<String>("lines", receivers, Arc::new(TextFormat::default()))?;
                let counts = add_up(&lines.split(b' ').count_by_value());
                let board = context.board();
                context.start()?;
                while board.program().records_in < files.items {
                    if context.await_for(Duration::from_millis(2))?.is_some() {
                        return Err("the program ended before it had read all lines".into());
                    }
                }
                context.stop(true)?;
                Ok(counts)
            },
            |counts| Ok(rows(&counts)),
        )?;
        served.finish()?;
        Ok(ran)
    }))
}

/// The counts of all batches.
fn add_up(counted: &DStream<(Str, i64)>) -> Counts {
    let counts = Counts::default();
    let sum = Arc::clone(&counts);
    counted.foreach_batch(move |_, counts| {
        let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (word, n) in counts {
            *sum.entry(word).or_default() += n;
        }
        Ok(())
    });
    counts
}

fn rows(counts: &Counts) -> Rows<String, u64> {
    let counts = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Rows::new(
        counts
            .iter()
            .filter(|(word, _)| !word.is_empty())
            .map(|(word, n)| (word.to_string(), u64::try_from(*n).unwrap_or(0)))
            .collect(),
    )
}
