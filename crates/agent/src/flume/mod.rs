//! `tidemill import flume`: a file of Flume's becomes one of ours.
//!
//! Invariant: every key of the agent is either in the result or among the notes, with its line; what is written is a
//! file that `tidemill agent` reads, unless a note says that a part has no equal at all. Nothing is opened or started.

mod parts;
mod properties;
mod replace;
mod stores;
#[cfg(test)]
mod tests;

use properties::Properties;
use tidemill_core::{Error, Result};

/// What a file became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The agent's name.
    pub name: String,
    /// The file, in TOML.
    pub toml: String,
    /// What has no equal, or needs a look.
    pub notes: Vec<Note>,
}

/// Something to know about a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// Line of Flume's file, from 1.
    pub line: usize,
    /// Whether something that the line asks for is not in the result.
    pub lost: bool,
    /// What to know.
    pub text: String,
}

/// Turns a file of Flume's into one of ours.
///
/// # Errors
/// When it has no agent, or several and `name` is none of them.
pub fn import(text: &str, name: Option<&str>) -> Result<Imported> {
    let properties = Properties::read(text);
    let agents: Vec<String> = properties
        .agents()
        .into_iter()
        .filter(|agent| !properties.below(&format!("{agent}.sources")).is_empty())
        .collect();
    let name = match (name, agents.as_slice()) {
        (Some(name), agents) if agents.iter().any(|agent| agent == name) => name.to_owned(),
        (None, [only]) => only.clone(),
        (_, []) => {
            return Err(Error::user(
                "this is no file of Flume's: it has no line such as `a1.sources = r1`, which names an agent's sources",
            ));
        }
        (Some(name), agents) => {
            return Err(Error::user(format!("there is no agent `{name}` in it; there are {}", agents.join(", "))));
        }
        (None, agents) => {
            return Err(Error::user(format!("there are the agents {}: name one with --name", agents.join(", "))));
        }
    };
    let mut writer = parts::Writer::new(&properties, &name);
    writer.all();
    let (toml, mut notes) = writer.finish();
    for (other, value) in
        agents.iter().filter(|other| **other != name).flat_map(|a| properties.below(&format!("{a}.sources")))
    {
        if other.is_empty() {
            notes.push(Note { line: value.line, lost: false, text: "another agent: import it with --name".to_owned() });
        }
    }
    notes.sort();
    Ok(Imported { name, toml, notes })
}
