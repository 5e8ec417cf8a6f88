//! The binary as its users run it: started, watched line by line, stopped.
//!
//! Invariant: nothing here sleeps. A test waits for a line or for the end of the
//! process, at most [`PATIENCE`], and every process is gone when its test ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Far more than any step takes on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running `tidemill`.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    seen: Vec<String>,
}

/// What a `tidemill` that has ended has said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Starts `tidemill` in `dir` with `input` on its standard input.
pub(crate) fn start(dir: &Path, arguments: &[&str], input: &str) -> Running {
    start_by(dir, &[], arguments, input)
}

/// As [`start`], by way of another program, which becomes it: `["env", "--ignore-signal=XFSZ"]`.
pub(crate) fn start_by(dir: &Path, by: &[&str], arguments: &[&str], input: &str) -> Running {
    let words: Vec<&str> = by.iter().copied().chain([env!("CARGO_BIN_EXE_tidemill")]).collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .args(arguments)
        .current_dir(dir)
        .env_remove("TIDEMILL_DATA")
        .env_remove("TIDEMILL_LOG")
        .env_remove("TIDEMILL_TOKEN")
        .env_remove("TIDEMILL_TRACES")
        .env_remove("TIDEMILL_WEB_TOKEN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_string();
    // Written beside the test: a command that reads nothing must not block it.
    std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let (tell, lines) = channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut stderr = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _closed = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    Running { child, lines, errors: Some(errors), seen: Vec::new() }
}

/// Runs `tidemill` to its end.
pub(crate) fn run(dir: &Path, arguments: &[&str], input: &str) -> Ended {
    start(dir, arguments, input).end()
}

impl Running {
    /// Waits for a line that holds `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(gone) => {
                    let errors = self.give_up();
                    panic!("no line with {text:?} ({gone}); lines: {:#?}; {errors}", self.seen)
                }
            }
        }
    }

    /// Its number in the system.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn end(self) -> Ended {
        self.end_within(PATIENCE)
    }

    /// The same for one that has much to do.
    pub(crate) fn end_within(mut self, patience: Duration) -> Ended {
        let until = Instant::now() + patience;
        // The end of its output is the end of the process.
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(gone) => {
                    let errors = self.give_up();
                    panic!("it did not end ({gone}); lines: {:#?}; {errors}", self.seen)
                }
            }
        }
        let status = self.child.wait().unwrap();
        let err = self.errors.take().unwrap().join().unwrap();
        Ended { status, out: self.seen.join("\n"), err }
    }

    fn give_up(&mut self) -> String {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        self.errors.take().map_or_else(String::new, |errors| errors.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already in a test that passed.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Ended {
    /// It ended with this code; fails with all that it said.
    #[track_caller]
    pub(crate) fn code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    /// It has printed all of this.
    #[track_caller]
    pub(crate) fn prints(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.out.contains(text), "{text:?} is missing: {self:#?}");
        }
        self
    }

    /// Its error says all of this.
    #[track_caller]
    pub(crate) fn says(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is missing: {self:#?}");
        }
        self
    }
}
