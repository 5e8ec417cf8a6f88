//! Logs on standard error, and where they go while a screen is drawn.
//!
//! Invariant: a log line never tears the screen. While one is up, lines are
//! held back (the newest is shown on the screen); when it is taken down they
//! are written after it. Called by `main` and by examples.

use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Lines held back while a screen is up; beyond it the oldest is dropped and the number of dropped ones told.
const HELD: usize = 200;

/// Lines held back for the screen that is up; `None` when there is none.
static HOLD: Mutex<Option<Held>> = Mutex::new(None);

#[derive(Debug, Default)]
struct Held {
    lines: VecDeque<String>,
    dropped: usize,
}

/// Sends logs to standard error: for people on a terminal, else as JSON lines.
///
/// `verbosity` 0 logs warnings, 1 what happens, 2 details, 3 everything; the
/// variable `TIDEMILL_LOG` overrules it (`tidemill_engine=debug,warn`). Does
/// nothing when logs go somewhere already.
pub fn init(verbosity: u8) {
    let default = match verbosity {
        0 => "warn",
        1 => {
            "warn,tidemill=info,tidemill_engine=info,tidemill_store=info,tidemill_agent=info,tidemill_connectors=info,tidemill_web=info"
        }
        2 => {
            "info,tidemill=debug,tidemill_engine=debug,tidemill_store=debug,tidemill_agent=debug,tidemill_connectors=debug,tidemill_web=debug"
        }
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("TIDEMILL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(ToStderr);
    // An error says that a subscriber is set, which is the caller's choice.
    let _set_already = if io::stderr().is_terminal() {
        logs.with_ansi(crate::terminal::may_colour(io::stderr().is_terminal())).with_target(false).try_init()
    } else {
        logs.json().try_init()
    };
}

/// Holds log lines back until [`release`].
pub(crate) fn hold() {
    *HOLD.lock() = Some(Held::default());
}

/// The newest line held back.
pub(crate) fn newest() -> Option<String> {
    HOLD.lock().as_ref().and_then(|held| held.lines.back().cloned())
}

/// Writes what was held back and holds no more.
pub(crate) fn release() {
    let Some(held) = HOLD.lock().take() else { return };
    let mut err = io::stderr().lock();
    if held.dropped > 0 {
        // Nobody is left to be told when standard error is closed.
        let _closed = writeln!(err, "({} older log lines were dropped)", held.dropped);
    }
    for line in held.lines {
        let _closed = writeln!(err, "{line}");
    }
}

#[derive(Debug, Clone, Copy)]
struct ToStderr;

impl Write for ToStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *HOLD.lock() {
            Some(held) => {
                for line in String::from_utf8_lossy(bytes).lines() {
                    if held.lines.len() == HELD {
                        held.lines.pop_front();
                        held.dropped += 1;
                    }
                    held.lines.push_back(line.to_string());
                }
                Ok(bytes.len())
            }
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for ToStderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_held_up_to_the_bound_while_a_screen_is_up() {
        hold();
        for line in 0..HELD + 5 {
            ToStderr.write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        assert_eq!(newest(), Some(format!("line {}", HELD + 4)));
        {
            let hold = HOLD.lock();
            let held = hold.as_ref().unwrap();
            assert_eq!((held.lines.len(), held.dropped), (HELD, 5));
            assert_eq!(held.lines[0], "line 5");
        }
        release();
        assert_eq!(newest(), None);
    }
}
