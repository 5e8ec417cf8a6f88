//! `tidemill` on a terminal: what it draws, and what it does with keys.
//!
//! Invariant: as in [`crate::run`]: a test waits for a text or for the end, never for a time.

use crate::run::PATIENCE;
use nix::pty::{Winsize, openpty};
use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Instant,
};

/// A `tidemill` on a terminal of its own, of 100 columns and 30 rows.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    pieces: Receiver<Vec<u8>>,
    /// All that was shown.
    shown: String,
    /// How much of it a test has looked at.
    looked: usize,
}

/// Starts `tidemill` in `dir`, with more of its environment.
pub(crate) fn open(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Terminal {
    let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let end = || pty.slave.try_clone().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("TIDEMILL_DATA")
        .env_remove("TIDEMILL_LOG")
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .envs(environment.iter().copied())
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    // Only the child has this end now: its end is the end of what is shown.
    drop(pty.slave);
    let keys = File::from(pty.master.try_clone().unwrap());
    let mut screen = File::from(pty.master);
    let (tell, pieces) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // An error is how a terminal without anybody on it ends.
        while let Ok(read) = screen.read(&mut buffer) {
            if read == 0 || tell.send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    Terminal { child, keys, pieces, shown: String::new(), looked: 0 }
}

impl Terminal {
    /// Types keys.
    pub(crate) fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, behind what was waited for before.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown[self.looked..].find(text) {
                self.looked += at + text.len();
                return;
            }
            match self.pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(gone) => panic!("{text:?} is not shown ({gone}): {:?}", &self.shown[self.looked..]),
            }
        }
    }

    /// Waits until the process has used a second of the processor from now on.
    pub(crate) fn works(&self) {
        let used = || -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            // Hundredths of seconds, at the twelfth place behind the name.
            stat.rsplit(')').next().unwrap().split_whitespace().nth(11).unwrap().parse().unwrap()
        };
        let (begun, until) = (used(), Instant::now() + PATIENCE);
        while used() < begun + 100 {
            assert!(Instant::now() < until, "it does nothing: {:?}", self.shown);
            std::thread::yield_now();
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits until it has ended by itself; gives its status and all that it showed.
    #[track_caller]
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.pieces.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(gone) => panic!("it did not end ({gone}): {:?}", self.shown),
            }
        }
        let status = self.child.wait().unwrap();
        (status, std::mem::take(&mut self.shown))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Gone already in a test that passed.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
