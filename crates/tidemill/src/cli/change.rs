//! Arguments about a program that has changed, and how its plan is printed.
//!
//! Invariant: nothing is decided here: the engine says what changes, and only
//! what was asked for here happens. Called by `run` and `plan`.

use clap::Args;
use tidemill::{ContextBuilder, engine::Changes};

/// Where `--help` lists them.
pub(super) const HEADING: &str = "A changed program";

/// What is to become of the state of a program that has changed.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// Compute the state of this operator anew from what the log has kept; may be given again.
    #[arg(long, value_name = "OPERATOR", help_heading = HEADING)]
    rebuild: Vec<String>,

    /// This operator had another name: it takes over the state; may be given again.
    #[arg(long, value_name = "OLD=NEW", value_parser = pair, help_heading = HEADING)]
    rename: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_string(), new.to_string())),
        _ => Err("write OLD=NEW, such as top=top_words".to_string()),
    }
}

impl ChangeArgs {
    pub(crate) fn ask(&self, mut builder: ContextBuilder) -> ContextBuilder {
        for name in &self.rebuild {
            builder = builder.rebuild(name);
        }
        for (from, to) in &self.rename {
            builder = builder.rename(from, to);
        }
        builder
    }

    /// These arguments again, as they are typed.
    fn typed(&self) -> String {
        let rebuild = self.rebuild.iter().map(|name| format!(" --rebuild {name}"));
        let rename = self.rename.iter().map(|(from, to)| format!(" --rename {from}={to}"));
        rebuild.chain(rename).collect()
    }

    /// The plan with what to type; `run` is the command without these arguments.
    pub(crate) fn text(&self, changes: &Changes, run: &str) -> String {
        let mut text = if changes.version.0 == 0 {
            "No state is kept yet.\n".to_string()
        } else {
            format!("What becomes of the state of batch {}:\n", changes.version)
        };
        let table = changes.to_string();
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table);
        }
        text.push('\n');
        text.push_str(&if changes.are_free() {
            format!("`{run}{}` goes on with batch {}.\n", self.typed(), changes.next)
        } else {
            format!(
                "Nothing happens unless it is asked for. To let it happen, and go on with batch {}:\n  {run}{} --accept-changes\n",
                changes.next,
                self.typed()
            )
        });
        text
    }
}
