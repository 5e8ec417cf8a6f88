//! `tidemill backup`, `verify` and `restore`: a data directory copied, checked, put back.
//!
//! Invariant: as [`tidemill::store::backup`] has it; a directory that holds
//! something is never written to.

use super::{data::DataArg, out::outln};
use clap::Args;
use std::path::PathBuf;
use tidemill::{
    Error, Result,
    core::Clock,
    engine::SystemClock,
    store::backup::{self, Backup},
};

/// Copy a data directory, also while a program runs on it.
///
/// The copy is consistent at a committed batch: the log, the ledger and all
/// states. It is checked before it counts; `tidemill restore` makes a data
/// directory of it, on which the program goes on after that batch.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill backup /backups/monday
  tidemill backup /backups/monday --data tidemill-data/demo

The program's next commit waits some milliseconds, until all files have a second name; copying \
goes on beside it. A backup without BACKUP.json was interrupted: remove it.")]
pub(crate) struct BackupCommand {
    /// Where to copy to: an empty directory, or one that is not there yet.
    #[arg(value_name = "DIR")]
    to: PathBuf,

    #[command(flatten)]
    data: DataArg,
}

impl BackupCommand {
    pub(crate) fn run(self) -> Result<()> {
        let made = backup::backup(&self.data.path, &self.to, SystemClock.now())?;
        outln!("copied {} to {}: {}", self.data.path.display(), self.to.display(), what(&made));
        Ok(())
    }
}

/// Read every byte of a data directory or a backup, and say where damage is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill verify --data tidemill-data/demo     also while the program runs
  tidemill verify /backups/monday

Prints each damaged file with its place, and exits with 1. A torn end, left by a machine that \
stopped, is no damage: the next start cuts it off.")]
pub(crate) struct Verify {
    /// What to read [default: the data directory].
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    data: DataArg,
}

impl Verify {
    pub(crate) fn run(self) -> Result<()> {
        let dir = self.dir.unwrap_or(self.data.path);
        let verified = backup::verify(&dir)?;
        for finding in &verified.findings {
            outln!("{}: {finding}", if finding.damage { "damage" } else { "note" });
        }
        let damage = verified.damage().count();
        outln!("read {} files, {} bytes of {}", verified.files, verified.bytes, dir.display());
        for (program, batch) in &verified.batches {
            outln!("program {program}: committed up to batch {batch}");
        }
        if damage > 0 {
            return Err(Error::external(format!(
                "{} is damaged in {damage} {}: restore it from a backup, or mend the disk and verify again",
                dir.display(),
                if damage == 1 { "place" } else { "places" }
            )));
        }
        outln!("all is whole");
        Ok(())
    }
}

/// Make a data directory of a backup.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill restore /backups/monday --data tidemill-data/restored
  tidemill run top.sql --data tidemill-data/restored      goes on after the backup's batch")]
pub(crate) struct Restore {
    /// The backup.
    #[arg(value_name = "DIR")]
    from: PathBuf,

    #[command(flatten)]
    data: DataArg,
}

impl Restore {
    pub(crate) fn run(self) -> Result<()> {
        let made = backup::restore(&self.from, &self.data.path)?;
        outln!("restored {} to {}: {}", self.from.display(), self.data.path.display(), what(&made));
        Ok(())
    }
}

fn what(made: &Backup) -> String {
    let batches: Vec<String> =
        made.batches.iter().map(|(program, batch)| format!("program {program} up to batch {batch}")).collect();
    let programs = if batches.is_empty() { String::new() } else { format!("; {}", batches.join(", ")) };
    format!("{} files, {} bytes, of {}{programs}", made.files(), made.bytes(), made.made)
}
