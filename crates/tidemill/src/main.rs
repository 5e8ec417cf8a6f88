//! The command line: parses arguments, sets up logs, runs a command, and turns
//! its error into text and an exit code.
//!
//! Invariant: 0 is success, 1 a failed command, 2 a wrong command line, 130 a
//! second Ctrl-C. Results go to standard output, everything else to standard
//! error.

mod cli;

use clap::Parser;
use std::{
    error::Error as _,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};
use tidemill::Error;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    tidemill::logging::init(arguments.verbose);
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
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
