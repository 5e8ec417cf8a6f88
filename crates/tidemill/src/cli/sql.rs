//! `tidemill sql`: asks the history, and a program's views while it runs.
//!
//! Invariant: it only reads; a mistake in a query ends a script with an error
//! and leaves a person at the prompt.

use super::{
    data::DataArg,
    out::{self, out, outln},
    program,
    table::table,
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use clap::Args;
use futures::FutureExt;
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
    sync::Arc,
};
use tidemill::{Duration, Error, Result, StreamingContext, core::Event, engine::Shell};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

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
  tidemill sql -e 'SELECT reason, count(*) FROM dead GROUP BY reason'    refused records
  tidemill sql --program top.sql                  runs the program; ask its views: SELECT * FROM top;
  tidemill sql -e 'SELECT * FROM state.top'       the state of top after the last batch
  tidemill sql -e 'SELECT * FROM state.\"top@17\"'  after batch 17, while that is kept

At the prompt a query ends with `;`. \\d lists what can be asked, \\d NAME its columns, \\q leaves. \
Ctrl-C stops a query that runs, and drops what was typed.

A topic is a table with the columns _partition, _offset and _timestamp besides its own. Dead letters \
are the table `dead`, or \"NAME.dead\" where several programs have some: raw, reason, stream, partition, \
offset, batch. Posts that a network's notice deleted are left out of the topics. Another process may run \
a program on the directory meanwhile.")]
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
enum Asked {
    History(Shell),
    Program(Box<StreamingContext>),
}

/// Asks, until Ctrl-C is pressed.
struct Answers {
    asked: Asked,
    runtime: Runtime,
    interrupts: Signal,
}

impl Answers {
    fn new(asked: Asked) -> Result<Self> {
        let failed = |e| Error::external("can't wait for an answer").because(e);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let interrupts = runtime.block_on(async { signal(SignalKind::interrupt()) }).map_err(failed)?;
        Ok(Self { asked, runtime, interrupts })
    }

    /// Forgets a Ctrl-C that came while nothing was asked.
    fn calm(&mut self) {
        while self.runtime.block_on(async { self.interrupts.recv().now_or_never() }).is_some() {}
    }

    fn query(&mut self, query: &str) -> Result<()> {
        if out::is_closed() {
            return Ok(());
        }
        let (asked, interrupts) = (&self.asked, &mut self.interrupts);
        let rows = self.runtime.block_on(async {
            let answer = async {
                match asked {
                    Asked::History(shell) => shell.query_async(query).await,
                    Asked::Program(context) => context.sql_async(query).await,
                }
            };
            tokio::select! {
                rows = answer => rows,
                _ = interrupts.recv() => Err(Error::user("the query was stopped")),
            }
        })?;
        let cut = if io::stdout().is_terminal() { CELL } else { usize::MAX };
        out!("{}", table(&rows, cut)?);
        Ok(())
    }

    /// `\\d` and `\\d NAME`.
    fn describe(&self, name: &str) -> Result<()> {
        if !name.is_empty() {
            return self.columns(name);
        }
        let mut text = String::new();
        match &self.asked {
            Asked::History(shell) => {
                for topic in shell.topics()? {
                    text.push_str(&format!("topic {}\n", topic.name()));
                }
                for state in shell.states()? {
                    text.push_str(&format!("state {state}\n"));
                }
            }
            Asked::Program(context) => {
                for view in context.board().view_names() {
                    text.push_str(&format!("view {view}\n"));
                }
            }
        }
        out!("{}", if text.is_empty() { "nothing yet\n" } else { &text });
        Ok(())
    }

    fn asked_columns(&self, name: &str) -> Result<SchemaRef> {
        let query = format!("SELECT * FROM {} LIMIT 0", quoted(name));
        let rows = self.runtime.block_on(async {
            match &self.asked {
                Asked::History(shell) => shell.query_async(&query).await,
                Asked::Program(context) => context.sql_async(&query).await,
            }
        });
        let first = rows.map(|rows| rows.first().map(RecordBatch::schema));
        first.unwrap_or_default().ok_or_else(|| Error::user(format!("there is no `{name}`; \\d lists what there is")))
    }

    fn columns(&self, name: &str) -> Result<()> {
        let schema = match &self.asked {
            Asked::History(shell) => {
                shell.topics()?.iter().find(|t| t.name() == name).map(|t| Arc::clone(&t.config().schema))
            }
            Asked::Program(context) => context.board().view(name).map(|view| view.rows.schema()),
        };
        // Whatever else can be asked has the columns of its answer.
        let schema = schema.map_or_else(|| self.asked_columns(name), Ok)?;
        let rows = schema.fields().iter().map(|f| vec![f.name().clone(), f.data_type().to_string()]).collect();
        super::print_columns(&["column", "type"], &[], rows)
    }
}

/// A name as it stands in FROM: of a state, what is behind `state.` is one name, dots, slashes and all.
fn quoted(name: &str) -> String {
    if name.contains('"') {
        return name.to_string();
    }
    match name.strip_prefix("state.") {
        Some(state) => format!("state.\"{state}\""),
        None => format!("\"{name}\""),
    }
}

impl Sql {
    pub(crate) fn run(self) -> Result<()> {
        let mut answers = Answers::new(match &self.program {
            Some(path) => Asked::Program(Box::new(self.start(path)?)),
            None => Asked::History(
                Shell::open_with(&self.data.path, |name, text| {
                    let context = tidemill::context(name).data_dir(&self.data.path).check_only().build();
                    context.declare_sql(text)?;
                    Ok(context)
                })?
                .registry(tidemill::connectors::registry()),
            ),
        })?;
        let done = match &self.query {
            Some(query) => statements(query).iter().try_for_each(|query| answers.query(query)),
            None if io::stdin().is_terminal() => self.prompt(&mut answers),
            None => script(&mut answers, &mut io::stdin().lock()),
        };
        if let Asked::Program(context) = answers.asked {
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
            let first = async { while !matches!(events.recv().await, Ok(Event::Batch(_)) | Err(_)) {} };
            let runtime = Builder::new_current_thread()
                .enable_time()
                .build()
                .map_err(|e| Error::external("can't start a timer").because(e))?;
            runtime
                .block_on(async { tokio::time::timeout(FIRST, first).await })
                .map_err(|e| Error::external("the program has run no batch yet").because(e))?;
        }
        Ok(context)
    }

    fn prompt(&self, answers: &mut Answers) -> Result<()> {
        let broken = |e: ReadlineError| Error::external("the prompt failed").because(e);
        let mut editor = DefaultEditor::new().map_err(broken)?;
        let history = self.data.path.join("sql-history");
        // There is none at the first start.
        let _none = editor.load_history(&history);
        outln!("A query ends with `;`. \\d lists what can be asked, \\q leaves.");
        let mut pending = String::new();
        loop {
            let prompt = if pending.trim().is_empty() { "tidemill> " } else { "     ...> " };
            answers.calm();
            match editor.readline(prompt) {
                Ok(line) => {
                    let begun = pending.clone();
                    if let Err(error) = take(answers, &mut pending, &line) {
                        outln!("{} {}", super::error_word(io::stdout().is_terminal()), error.chain());
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
fn script(answers: &mut Answers, input: &mut dyn BufRead) -> Result<()> {
    let mut pending = String::new();
    for line in input.lines() {
        let mut line = line.map_err(|e| Error::external("can't read standard input").because(e))?;
        if pending.is_empty() {
            line = program::without_mark(line);
        }
        if line.trim() == "\\q" {
            return Ok(());
        }
        take(answers, &mut pending, &line)?;
    }
    statements(&pending).iter().try_for_each(|query| answers.query(query))
}

/// One more line: answers the queries that it completes.
fn take(answers: &mut Answers, pending: &mut String, line: &str) -> Result<()> {
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

/// The characters, comments as spaces, and which of them divide.
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
            (None, '/') if chars.peek() == Some(&'*') => {
                pieces.extend(comment(&mut chars).into_iter().map(|c| (c, false)));
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

/// The comment that the `/` before these characters begins, as spaces: errors keep their line and column. One that
/// is not closed is given as it stands, and so nothing is complete before its end.
fn comment(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Vec<char> {
    let (mut text, mut depth, mut last) = (vec!['/'], 1, None);
    chars.next();
    text.push('*');
    while depth > 0 {
        let Some(c) = chars.next() else { return text };
        text.push(c);
        match (last, c) {
            (Some('/'), '*') => (depth, last) = (depth + 1, None),
            (Some('*'), '/') => (depth, last) = (depth - 1, None),
            _ => last = Some(c),
        }
    }
    text.into_iter().map(|c| if c == '\n' { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_divided_outside_of_quotes_and_comments() {
        assert_eq!(statements("a; b ;; c"), ["a", " b ", " c"]);
        assert_eq!(statements("select 'x;y' -- ; no\n, \";\";"), ["select 'x;y' \n, \";\""]);
        assert!(statements(" ; -- nothing").is_empty());
        assert_eq!(statements("a /* ; /* ; */ ; */ + b; c"), ["a                   + b", " c"]);
        assert_eq!(statements("'/*' ; /* '\n ; */ d"), ["'/*' ", "     \n      d"]);
        assert!(statements("/* ; */ ; /**/").is_empty());
        for (text, complete) in [("a; /* ; */", true), ("a /* ; */", false), ("a; /* b", false), ("a /* ;\n*/ ;", true)]
        {
            assert_eq!(is_complete(text), complete, "{text}");
        }
        for (text, complete) in
            [("a;", true), ("a; \n", true), ("a; b", false), ("'a;", false), ("-- a;", false), ("a -- b\n;", true)]
        {
            assert_eq!(is_complete(text), complete, "{text}");
        }
    }
}
