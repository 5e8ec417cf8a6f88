//! W1 over TCP by hand: one connection a thread, counted as [`super::w1`] does.

use super::{lines::pieces, on_threads, w1::Counts};
use crate::{Result, input::serve::Served};
use std::net::TcpStream;

/// Counts the words that the servers send, until each closes its connection.
///
/// # Errors
/// When a connection breaks or what comes is not UTF-8.
pub(crate) fn run(served: &Served) -> Result<Counts> {
    let counts = on_threads(served.addresses.len(), |i| {
        let mut mine = Counts::default();
        pieces(TcpStream::connect(served.addresses[i])?, |piece| {
            mine.piece(piece);
            Ok(())
        })?;
        Ok(mine)
    })?;
    Ok(Counts::merge(counts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::{files::Files, serve, words::Words},
        loops::w1,
    };

    #[test]
    fn what_comes_over_tcp_counts_as_what_lies_in_files() {
        let base = tempfile::tempdir().unwrap();
        let words = Words::new(5);
        let files = Files::find_or_write(base.path(), "w1", 5, 20_000, 1, |i, into| words.line(i, into)).unwrap();
        let served = serve::files(&files, 2).unwrap();
        let counts = run(&served).unwrap();
        served.finish().unwrap();
        assert_eq!(counts.rows().difference_from(&w1::run(&files, 1).unwrap().rows()), None);
    }
}
