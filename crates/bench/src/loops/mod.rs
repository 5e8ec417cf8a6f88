//! The loops: each job as a good engineer would write it by hand, for that job alone.
//!
//! No plan, no state that outlives the run, no log, no late records: what a
//! general engine is measured against. Threads share nothing until the end.
//!
//! Invariant: a loop checks what the engine checks (UTF-8, JSON) and answers
//! the same question; it never knows more about the input than its format.

mod lines;
mod table;
pub(crate) mod w1;
pub(crate) mod w1_tcp;
pub(crate) mod w2;
pub(crate) mod w3;

use crate::Result;
use std::{
    fs::File,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Runs `work` on `threads` threads and hands back what each returns.
fn on_threads<T: Send>(threads: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().map(|t| t.join().map_err(|_| "a thread of the loop panicked")?).collect()
    })
}

/// Hands each file to the next thread that is free; each thread folds its files into one `T`.
fn share_files<T: Send>(
    parts: &[PathBuf],
    threads: usize,
    begin: impl Fn() -> T + Sync,
    each: impl Fn(&mut T, File) -> Result<()> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    on_threads(threads, |_| {
        let mut mine = begin();
        while let Some(path) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
            let file = File::open(path).map_err(|e| named(&e))?;
            each(&mut mine, file).map_err(|e| named(&e))?;
        }
        Ok(mine)
    })
}
