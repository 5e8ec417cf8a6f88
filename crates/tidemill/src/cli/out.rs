//! Standard output, as all commands write to it.
//!
//! Invariant: a reader that goes away (`tidemill dead list | head -3`) is no
//! fault: what would follow is dropped, and the command does what it has to do
//! and ends as it would have. Any other fault of standard output is an error.
//! All commands write through [`out!`] and [`outln!`].

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};
use tidemill::{Error, Result};

/// Set once nobody reads any more.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes to standard output as `print!` does, and returns from the function when that fails.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::cli::out::write(format_args!($($text)*))?
    };
}

/// A line to standard output as `println!` writes it, and returns from the function when that fails.
macro_rules! outln {
    () => {
        $crate::cli::out::write(format_args!("\n"))?
    };
    ($($text:tt)*) => {
        $crate::cli::out::write(format_args!("{}\n", format_args!($($text)*)))?
    };
}

pub(crate) use {out, outln};

/// Whether the reader of standard output has gone away: what only writes may end.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Writes text, unless nobody reads it.
///
/// # Errors
/// When standard output fails in another way than that its reader has gone.
pub(crate) fn write(text: fmt::Arguments<'_>) -> Result<()> {
    bytes(text.to_string().as_bytes())
}

/// Writes bytes as they are, unless nobody reads them.
///
/// # Errors
/// As [`write`].
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    onto(&mut io::stdout().lock(), bytes, &CLOSED)
}

fn onto(out: &mut dyn io::Write, bytes: &[u8], closed: &AtomicBool) -> Result<()> {
    if closed.load(Ordering::Relaxed) {
        return Ok(());
    }
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            closed.store(true, Ordering::Relaxed);
            Ok(())
        }
        done => done.map_err(|e| Error::external("can't write to standard output").because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then fails.
    struct Pipe(usize, io::ErrorKind, usize);

    impl io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.2 += 1;
            if self.0 == 0 {
                return Err(self.1.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_no_fault_and_a_full_disk_is_one() {
        let (mut pipe, closed) = (Pipe(3, io::ErrorKind::BrokenPipe, 0), AtomicBool::new(false));
        onto(&mut pipe, b"ebb and flow", &closed).unwrap();
        assert!(closed.load(Ordering::Relaxed));
        let tried = pipe.2;
        onto(&mut pipe, b"more", &closed).unwrap();
        assert_eq!(pipe.2, tried, "nothing more is written");

        let (mut full, closed) = (Pipe(3, io::ErrorKind::StorageFull, 0), AtomicBool::new(false));
        let error = onto(&mut full, b"ebb and flow", &closed).unwrap_err();
        assert!(error.to_string().contains("standard output") && !closed.load(Ordering::Relaxed), "{error}");
    }
}
