//! SQL programs in files, and how `run`, `check` and `plan` take them.
//!
//! Invariant: an error in a program names the file before its line and column.

use clap::Args;
use std::path::{Path, PathBuf};
use tidemill::{ContextBuilder, Duration, Error, Result, StreamingContext, Trigger, core::Blame};

/// Bytes of a program at most.
const PROGRAM: u64 = 1 << 20;

/// The text of a program.
pub(crate) fn read(path: &Path) -> Result<String> {
    let failed = |why: &str| Error::user(format!("can't read the program {}: {why}", path.display()));
    let about = std::fs::metadata(path).map_err(|e| failed("is the path right?").because(e))?;
    if !about.is_file() {
        return Err(failed("it is no file"));
    }
    if about.len() > PROGRAM {
        return Err(failed("it is larger than 1 MiB"));
    }
    let bytes = std::fs::read(path).map_err(|e| failed("is the path right?").because(e))?;
    let text = String::from_utf8(bytes).map_err(|e| failed("it is not UTF-8").because(e))?;
    Ok(without_mark(text))
}

/// Text without the byte order mark that some editors put before it.
pub(crate) fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    text
}

/// Declares a program; its errors name the file.
pub(crate) fn declare(context: &StreamingContext, path: Option<&Path>, text: &str) -> Result<()> {
    context.declare_sql(text).map_err(|error| match path {
        Some(path) => {
            // A line for each error, all with their place.
            let path = path.display();
            let text = format!("{path}: {}", error.chain().replace("\nline ", &format!("\n{path}: line ")));
            match error.blame() {
                Blame::User => Error::user(text),
                Blame::External => Error::external(text),
                Blame::Internal => Error::internal(text),
            }
        }
        None => error,
    })
}

/// A program's name from its file's: `top tags.sql` is `top-tags`.
pub(crate) fn name_of(path: &Path) -> Result<String> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect();
    let name = name.trim_matches(['.', '-']).to_string();
    if name.is_empty() {
        return Err(Error::user(format!("{} gives the program no name: say it with --name", path.display())));
    }
    Ok(name)
}

/// A program and how it is to run.
#[derive(Debug, Args)]
pub(crate) struct ProgramArgs {
    /// The program: CREATE STREAM, CREATE VIEW, CREATE SINK, INSERT INTO.
    #[arg(value_name = "PROGRAM.sql")]
    pub(crate) path: PathBuf,

    /// Name of the program, under which its batches and state are kept [default: the file's name].
    #[arg(long, value_parser = super::values::program_name)]
    pub(crate) name: Option<String>,

    #[command(flatten)]
    pub(crate) data: super::data::DataArg,

    #[command(flatten)]
    pub(crate) change: super::change::ChangeArgs,

    /// Begin a batch each such time, such as 250ms [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = super::values::duration, conflicts_with = "trigger")]
    interval: Option<Duration>,

    /// Begin a batch: as soon as there is input (asap), once over what is there, or until the input is exhausted (drain), whose last windows then close.
    #[arg(long, value_name = "WHEN")]
    trigger: Option<When>,
}

/// When batches begin, other than by the clock.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum When {
    Asap,
    Once,
    Drain,
}

impl ProgramArgs {
    /// A context with the program declared, ready to start once `build` has set what else there is to set.
    pub(crate) fn context(&self, build: impl FnOnce(ContextBuilder) -> ContextBuilder) -> Result<StreamingContext> {
        self.declared(|builder| build(builder.data_dir(&self.data.path)))
    }

    /// The command that runs it.
    pub(crate) fn run_command(&self) -> String {
        let mut command = format!("tidemill run {}", self.path.display());
        if let Some(name) = &self.name {
            command.push_str(&format!(" --name {name}"));
        }
        if self.data.path != Path::new(super::DATA) {
            command.push_str(&format!(" --data {}", self.data.path.display()));
        }
        command
    }

    /// A context with the program declared, only to be looked at.
    pub(crate) fn checked(&self) -> Result<StreamingContext> {
        self.declared(|builder| builder.data_dir(&self.data.path).check_only())
    }

    fn declared(&self, build: impl FnOnce(ContextBuilder) -> ContextBuilder) -> Result<StreamingContext> {
        let text = read(&self.path)?;
        let name = self.name.clone().map_or_else(|| name_of(&self.path), Ok)?;
        let trigger = match self.trigger {
            Some(When::Asap) => Trigger::Asap,
            Some(When::Once) => Trigger::Once,
            Some(When::Drain) => Trigger::Drain,
            None => Trigger::Every(self.interval.unwrap_or(Duration::from_secs(1))),
        };
        let context = build(self.change.ask(tidemill::context(name).trigger(trigger))).build();
        declare(&context, Some(&self.path), &text)?;
        Ok(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_its_program() {
        assert_eq!(name_of(Path::new("a/top tags.sql")).unwrap(), "top-tags");
        assert_eq!(name_of(Path::new("潮.v2.sql")).unwrap(), "v2");
        assert!(name_of(Path::new("潮.sql")).is_err());
    }

    #[test]
    fn what_is_no_program_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sql");
        assert!(read(&path).unwrap_err().to_string().contains("p.sql"));
        assert!(read(dir.path()).unwrap_err().to_string().contains("no file"));
        std::fs::write(&path, "\u{feff}SELECT '\u{feff}'").unwrap();
        assert_eq!(read(&path).unwrap(), "SELECT '\u{feff}'", "a mark is no part of the program");
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("UTF-8"));
    }
}
