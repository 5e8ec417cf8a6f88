//! `tidemill sql`: asks the history, and a program's views while it runs.
//!
//! Invariant: it only reads; a mistake in a query ends a script with an error
//! and leaves a person at the prompt.

use super::{data::DataArg, program, table::table};
use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
};
use tidemill::{Duration, Error, Result, StreamingContext, core::Event, engine::Shell};

/// Cells of a column on a terminal at most.
const CELL: usize = 60;
/// How long `-e` waits for a program's first batch.
const FIRST: Duration = Duration::from_secs(60);

/// Ask the history, and the views of a program while it runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill sql --data tidemill-data/demo
  tidemill sql --data tidemill-data/demo -e 'SELECT count(*) FROM posts'
  tidemill sql --program top.sql               runs the program; ask its views, as in SELECT * FROM top;
  tidemill sql --data d -e 'SELECT * FROM state.top'            the state of top after the last batch
  tidemill sql --data d -e 'SELECT * FROM state.\"top@17\"'       after batch 17, while that is kept

At the prompt a query ends with `;`. \\d lists what can be asked, \\d NAME its columns, \\q leaves.
A topic is a table with the columns _partition, _offset and _timestamp besides its own.")]
pub(crate) struct Sql {
    #[command(flatten)]
    data: DataArg,

    /// Run this program meanwhile and ask its views too.
    #[arg(long, value_name = "FILE.sql")]
    program: Option<PathBuf>,

    /// Answer this query and end.
    #[arg(short = 'e', long = "execute", value_name = "QUERY")]
    query: Option<String>,
}

/// What answers queries.
enum Answers {
    History(Shell),
    Program(Box<StreamingContext>),
}

impl Answers {
    fn query(&self, query: &str) -> Result<()> {
        let rows = match self {
            Self::History(shell) => shell.query(query)?,
            Self::Program(context) => context.sql(query)?,
        };
        let cut = if io::stdout().is_terminal() { CELL } else { usize::MAX };
        print(&table(&rows, cut)?)
    }

    /// `\\d` and `\\d NAME`.
    fn describe(&self, name: &str) -> Result<()> {
        if !name.is_empty() {
            return self.columns(name);
        }
        let mut text = String::new();
        match self {
            Self::History(shell) => {
                for topic in shell.topics() {
                    text.push_str(&format!("topic {}\n", topic.name()));
                }
                for state in shell.states()? {
                    text.push_str(&format!("state {state}\n"));
                }
            }
            Self::Program(context) => {
                for view in context.board().view_names() {
                    text.push_str(&format!("view {view}\n"));
                }
            }
        }
        print(if text.is_empty() { "nothing yet\n" } else { &text })
    }

    fn columns(&self, name: &str) -> Result<()> {
        let schema = match self {
            Self::History(shell) => {
                shell.topics().iter().find(|t| t.name() == name).map(|t| Arc::clone(&t.config().schema))
            }
            Self::Program(context) => context.board().view(name).map(|view| view.rows.schema()),
        };
        let schema = schema.ok_or_else(|| Error::user(format!("there is no `{name}`; \\d lists what there is")))?;
        let rows = schema.fields().iter().map(|f| vec![f.name().clone(), f.data_type().to_string()]).collect();
        super::print_columns(&["column", "type"], &[], rows);
        Ok(())
    }
}

impl Sql {
    pub(crate) fn run(self) -> Result<()> {
        let answers = match &self.program {
            Some(path) => Answers::Program(Box::new(self.start(path)?)),
            None => Answers::History(Shell::open_with(&self.data.path, |name, text| {
                let context = tidemill::context(name).data_dir(&self.data.path).check_only().build();
                context.declare_sql(text)?;
                Ok(context)
            })?),
        };
        let done = match &self.query {
            Some(query) => statements(query).iter().try_for_each(|query| answers.query(query)),
            None if io::stdin().is_terminal() => self.prompt(&answers),
            None => script(&answers, &mut io::stdin().lock()),
        };
        if let Answers::Program(context) = answers {
            context.stop(true)?;
        }
        done
    }

    /// Starts the program; for a single query, waits for its first batch.
    fn start(&self, path: &std::path::Path) -> Result<StreamingContext> {
        let text = program::read(path)?;
        let context = tidemill::context(program::name_of(path)?).data_dir(&self.data.path).build();
        program::declare(&context, Some(path), &text)?;
        let mut events = context.board().subscribe();
        context.start()?;
        if self.query.is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .map_err(|e| Error::external("can't start a timer").because(e))?;
            let first = async { while !matches!(events.recv().await, Ok(Event::Batch(_)) | Err(_)) {} };
            runtime
                .block_on(async { tokio::time::timeout(FIRST, first).await })
                .map_err(|e| Error::external("the program has run no batch yet").because(e))?;
        }
        Ok(context)
    }

    fn prompt(&self, answers: &Answers) -> Result<()> {
        let broken = |e: ReadlineError| Error::external("the prompt failed").because(e);
        let mut editor = DefaultEditor::new().map_err(broken)?;
        let history = self.data.path.join("sql-history");
        // There is none at the first start.
        let _none = editor.load_history(&history);
        println!("A query ends with `;`. \\d lists what can be asked, \\q leaves.");
        let mut pending = String::new();
        loop {
            let prompt = if pending.trim().is_empty() { "tidemill> " } else { "     ...> " };
            match editor.readline(prompt) {
                Ok(line) => {
                    let begun = pending.clone();
                    if let Err(error) = take(answers, &mut pending, &line) {
                        println!("{} {}", super::error_word(io::stdout().is_terminal()), error.chain());
                    }
                    if pending.is_empty() {
                        // A statement is kept whole. A history that can't grow is no reason to stop.
                        let _full = editor.add_history_entry((begun + &line).trim());
                    }
                    if line.trim() == "\\q" {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => pending.clear(),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(broken(error)),
            }
        }
        if let Err(error) = editor.save_history(&history) {
            tracing::warn!(path = %history.display(), %error, "the history was not saved");
        }
        Ok(())
    }
}

/// Queries from a pipe; what is left at its end needs no `;`.
fn script(answers: &Answers, input: &mut dyn BufRead) -> Result<()> {
    let mut pending = String::new();
    for line in input.lines() {
        let line = line.map_err(|e| Error::external("can't read standard input").because(e))?;
        if line.trim() == "\\q" {
            return Ok(());
        }
        take(answers, &mut pending, &line)?;
    }
    statements(&pending).iter().try_for_each(|query| answers.query(query))
}

/// One more line: answers the queries that it completes.
fn take(answers: &Answers, pending: &mut String, line: &str) -> Result<()> {
    if let (true, Some(name)) = (pending.trim().is_empty(), line.trim().strip_prefix("\\d")) {
        return answers.describe(name.trim().trim_end_matches(';'));
    }
    pending.push_str(line);
    pending.push('\n');
    if !is_complete(pending) {
        return Ok(());
    }
    let text = std::mem::take(pending);
    statements(&text).iter().try_for_each(|query| answers.query(query))
}

/// The queries in a text, divided by `;` outside of quotes and comments.
fn statements(text: &str) -> Vec<String> {
    let (mut all, mut one) = (Vec::new(), String::new());
    for (piece, divides) in pieces(text) {
        if divides {
            all.push(std::mem::take(&mut one));
        } else {
            one.push(piece);
        }
    }
    all.push(one);
    all.retain(|query| !query.trim().is_empty());
    all
}

/// Whether nothing but space follows the last `;`.
fn is_complete(text: &str) -> bool {
    let pieces = pieces(text);
    let last = pieces.iter().rposition(|(_, divides)| *divides);
    last.is_some_and(|last| pieces[last + 1..].iter().all(|(c, _)| c.is_whitespace()))
}

/// The characters without comments to the end of a line, and which of them divide.
fn pieces(text: &str) -> Vec<(char, bool)> {
    let mut pieces = Vec::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '-') if chars.peek() == Some(&'-') => {
                while chars.next_if(|c| *c != '\n').is_some() {}
                continue;
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        pieces.push((c, quote.is_none() && c == ';'));
    }
    pieces
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::external("can't write to standard output").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_divided_outside_of_quotes_and_comments() {
        assert_eq!(statements("a; b ;; c"), ["a", " b ", " c"]);
        assert_eq!(statements("select 'x;y' -- ; no\n, \";\";"), ["select 'x;y' \n, \";\""]);
        assert!(statements(" ; -- nothing").is_empty());
        for (text, complete) in
            [("a;", true), ("a; \n", true), ("a; b", false), ("'a;", false), ("-- a;", false), ("a -- b\n;", true)]
        {
            assert_eq!(is_complete(text), complete, "{text}");
        }
    }
}
