//! The command line: parses arguments, sets up logs, runs a command, and turns
//! its error into text and an exit code.
//!
//! Invariant: 0 is success, 1 a failed command, 2 a wrong command line, 130 a
//! second Ctrl-C. Results go to standard output, everything else to standard
//! error.

#![deny(clippy::print_stdout, reason = "a closed pipe would end the process: `cli::out` writes")]

mod cli;

use clap::Parser;
use std::{
    error::Error as _,
    ffi::OsString,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};
use tidemill::Error;

/// Columns of a batch are made on one thread and dropped on another, and tables of a state grow and shrink by megabytes:
/// the system's allocator keeps what they leave behind, half as much again as they have, and clears pages anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a shell sees a wrong command line.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse_from(words(std::env::args_os().collect()));
    tidemill::logging::init(arguments.verbose);
    if let Err(error) = arguments.command.check() {
        report(&error);
        return ExitCode::from(WRONG);
    }
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// The words of the command line; `help --help` is `help`, for which it was meant.
fn words(mut words: Vec<OsString>) -> Vec<OsString> {
    let at = usize::from(words.get(1).is_some_and(|command| command == "topic" || command == "dead")) + 1;
    if words.get(at).is_some_and(|word| word == "help") {
        words.truncate(words.iter().position(|word| word == "--help" || word == "-h").unwrap_or(words.len()));
    }
    words
}

/// `error: what failed`, then its causes.
fn report(error: &Error) {
    let mut text = format!("{} {error}\n", cli::error_word(io::stderr().is_terminal()));
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!("  because: {cause}\n"));
        next = cause.source();
    }
    // Nobody is left to be told when standard error is closed.
    let _closed = io::stderr().write_all(text.as_bytes());
}
