//! `tidemill dead`: refused records, looked at and run again.
//!
//! Invariant: it works beside the running program and changes nothing but its
//! mailbox: a replay is a request that the program takes between two batches.

use super::{
    data::DataArg,
    out::{self, outln},
    values,
};
use clap::{Args, Subcommand};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal},
};
use tidemill::{
    Error, Result, Timestamp,
    core::Clock,
    engine::{KeptLetter, LetterFilter, Letters, SystemClock},
};

/// Characters of a record in a list.
const RAW: usize = 50;
/// Characters of a reason in a list.
const REASON: usize = 60;

/// Why a letter of a batch that was undone is not run again.
const UNDONE: &str = "its batch was undone by a rewind or never committed, and what it read is read again";

/// Look at refused records and run them again after a fix.
///
/// A record that can't be decoded is not lost and stops nothing: it is kept,
/// raw, in the topic NAME.dead with its reason, stream, partition, offset and
/// batch. SQL reads it as the table `dead` (`tidemill sql`).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill dead list                                 the newest 20
  tidemill dead list --by-reason                     how many of each kind
  tidemill dead show 17                              one of them whole
  tidemill dead replay --stream posts --dry-run      which would run again?
  tidemill dead replay --reason 'field \"n\"'          run those again
  tidemill dead replay --all                         run again all that can be

After a fix of the program: restart it, then replay. Each letter is run again once, as a record of its \
stream with its own partition and offset, by the next batch of the running program or at its next start.")]
pub(crate) struct Dead {
    #[command(flatten)]
    data: DataArg,

    /// The program [default: the only one that has dead letters].
    #[arg(long, global = true, value_name = "NAME")]
    program: Option<String>,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List letters, the newest last.
    List {
        #[command(flatten)]
        which: Which,
        /// Only count them, by stream and kind of reason.
        #[arg(long)]
        by_reason: bool,
        /// List so many at most, the newest.
        #[arg(long, value_name = "N", default_value_t = 20)]
        max: usize,
    },
    /// Show letters whole: where they came from, why they were refused, their bytes.
    Show {
        /// Numbers of letters, as `list` shows them.
        #[arg(required = true, value_name = "N")]
        numbers: Vec<u64>,
        /// Print only the bytes, as they came; for one letter.
        #[arg(long)]
        raw: bool,
    },
    /// Run letters again, each once.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Run again all that can be.
        #[arg(long)]
        all: bool,
        /// Also those that were run again before.
        #[arg(long)]
        again: bool,
        /// Only say what would be run again.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which letters are meant.
#[derive(Debug, Args)]
struct Which {
    /// Only those whose reason holds this text, in whatever case.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only those of this stream.
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Only those kept at this time or later: 2026-01-31T15:00:00Z, or 1h for the last hour.
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    since: Option<Timestamp>,
    /// Only those kept before this time.
    #[arg(long, value_name = "TIME", value_parser = values::past)]
    until: Option<Timestamp>,
    /// Only these numbers.
    #[arg(long = "letter", value_name = "N", value_delimiter = ',')]
    numbers: Vec<u64>,
}

impl Which {
    fn filter(&self) -> LetterFilter {
        LetterFilter {
            reason: self.reason.clone(),
            stream: self.stream.clone(),
            since: self.since,
            until: self.until,
            numbers: self.numbers.iter().copied().collect(),
        }
    }
}

impl Dead {
    pub(crate) fn run(self) -> Result<()> {
        let open = self.data.look()?;
        let programs = Letters::programs(open.log());
        let program = match (&self.program, &programs[..]) {
            (Some(named), _) if programs.contains(named) => named,
            (Some(named), _) => {
                let hint = if programs.is_empty() {
                    "no program has run there".to_string()
                } else {
                    format!("there are {}", programs.join(", "))
                };
                return Err(Error::user(format!("{} has no program `{named}`: {hint}", open.path().display())));
            }
            (None, [only]) => only,
            (None, []) => return Err(Error::user(format!("no program has run in {}", open.path().display()))),
            (None, several) => {
                let several = several.join(", ");
                return Err(Error::user(format!("several programs have dead letters ({several}): say --program NAME")));
            }
        };
        let letters = Letters::open(open.log(), open.path(), program)?;
        match &self.action {
            Action::List { which, by_reason: true, .. } => by_reason(&letters, &which.filter()),
            Action::List { which, max, .. } => list(&letters, &which.filter(), *max),
            Action::Show { numbers, raw } => show(&letters, numbers, *raw),
            Action::Replay { which, all, again, dry_run } => {
                let filter = which.filter();
                if filter.is_everything() && !all {
                    return Err(Error::user(
                        "say which letters: --reason, --stream, --since, --until, --letter, or --all of them",
                    ));
                }
                replay(&letters, &filter, *again, *dry_run)
            }
        }
    }
}

fn by_reason(letters: &Letters, filter: &LetterFilter) -> Result<()> {
    let mut counts: BTreeMap<(String, &'static str), (u64, u64, String)> = BTreeMap::new();
    for kept in letters.all() {
        let kept = kept?;
        if filter.takes(&kept) {
            let key = (kept.letter.stream.clone(), tidemill::core::reason_kind(&kept.letter.reason));
            let entry = counts.entry(key).or_default();
            entry.0 += 1;
            entry.1 += u64::from(letters.is_replayed(kept.number));
            entry.2 = one_line(&kept.letter.reason, REASON);
        }
    }
    let rows = counts.into_iter().map(|((stream, kind), (count, replayed, last))| {
        vec![stream, kind.to_string(), count.to_string(), replayed.to_string(), last]
    });
    super::print_columns(&["stream", "kind", "letters", "replayed", "the newest says"], &[2, 3], rows.collect())
}

fn list(letters: &Letters, filter: &LetterFilter, max: usize) -> Result<()> {
    let (mut newest, mut total) = (std::collections::VecDeque::new(), 0_u64);
    for kept in letters.all() {
        let kept = kept?;
        if filter.takes(&kept) {
            total += 1;
            newest.push_back(kept);
            if newest.len() > max {
                newest.pop_front();
            }
        }
    }
    let shown = newest.len();
    let rows = newest.into_iter().map(|kept| {
        let KeptLetter { number, kept: at, letter } = &kept;
        vec![
            number.to_string(),
            at.to_string(),
            letter.stream.clone(),
            format!("{}:{}", letter.partition, letter.offset),
            letter.batch.map_or_else(String::new, |batch| batch.to_string()),
            state(letters, &kept).to_string(),
            one_line(&letter.reason, REASON),
            one_line(&String::from_utf8_lossy(&letter.raw), RAW),
        ]
    });
    let headings = ["letter", "kept", "stream", "partition:offset", "batch", "state", "reason", "record"];
    super::print_columns(&headings, &[0, 4], rows.collect())?;
    if (shown as u64) < total {
        outln!("{total} letters, the newest {shown} are shown; --max N shows more, --by-reason counts them");
    }
    Ok(())
}

fn state(letters: &Letters, kept: &KeptLetter) -> &'static str {
    match kept.number {
        _ if letters.is_undone(kept) => "undone",
        number if letters.is_asked(number) => "asked",
        number if letters.is_replayed(number) => "replayed",
        _ if kept.only_kept().is_some() => "kept only",
        _ => "",
    }
}

fn show(letters: &Letters, numbers: &[u64], raw: bool) -> Result<()> {
    if raw && numbers.len() != 1 {
        return Err(Error::user("--raw prints the bytes of one letter"));
    }
    let mut wanted: BTreeSet<u64> = numbers.iter().copied().collect();
    for kept in letters.all() {
        let kept = kept?;
        if !wanted.remove(&kept.number) {
            continue;
        }
        let letter = &kept.letter;
        if raw {
            return out::bytes(&letter.raw);
        }
        let batch = letter.batch.map_or_else(|| "none: a receiver refused it".to_string(), |batch| batch.to_string());
        let state = match (state(letters, &kept), kept.only_kept()) {
            ("undone", _) => format!("can't be run again: {UNDONE}"),
            ("kept only", Some(why)) => format!("can't be run again: {why}"),
            ("", _) => "may be run again".to_string(),
            (state, _) => state.to_string(),
        };
        let (text, note) = match std::str::from_utf8(&letter.raw) {
            Ok(text) if !io::stdout().is_terminal() => (text.to_string(), ""),
            Ok(text) => (text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect(), ""),
            Err(_) => (hex(&letter.raw), ", not UTF-8"),
        };
        outln!(
            "letter {}\n  kept       {}\n  stream     {}\n  partition  {}\n  offset     {}\n  batch      {batch}\n  reason     {}\n  state      {state}\n  record     {} bytes{note}\n{text}",
            kept.number,
            kept.kept,
            letter.stream,
            letter.partition,
            letter.offset,
            one_line(&letter.reason, usize::MAX),
            letter.raw.len(),
        );
    }
    match wanted.first() {
        Some(missing) => Err(Error::user(format!("there is no letter {missing}; `tidemill dead list` shows them"))),
        None => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    let line = |chunk: &[u8]| chunk.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(32).map(line).collect::<Vec<_>>().join("\n")
}

fn replay(letters: &Letters, filter: &LetterFilter, again: bool, dry_run: bool) -> Result<()> {
    let (mut chosen, mut before, mut cannot) = (BTreeSet::new(), 0_u64, BTreeMap::<&'static str, u64>::new());
    let mut streams: BTreeMap<String, u64> = BTreeMap::new();
    for kept in letters.all() {
        let kept = kept?;
        if !filter.takes(&kept) {
            continue;
        }
        if let Some(why) = letters.is_undone(&kept).then_some(UNDONE).or_else(|| kept.only_kept()) {
            *cannot.entry(why).or_default() += 1;
        } else if letters.is_asked(kept.number) || (letters.is_replayed(kept.number) && !again) {
            before += 1;
        } else {
            chosen.insert(kept.number);
            *streams.entry(kept.letter.stream).or_default() += 1;
        }
    }
    for (why, count) in cannot {
        outln!("{} can't be run again: {why}", letters_of(count));
    }
    if before > 0 {
        outln!("{} passed over: run again before, or asked for; --again takes those, too", letters_of(before));
    }
    let of: Vec<String> = streams.iter().map(|(stream, count)| format!("{count} of stream {stream}")).collect();
    let total = chosen.len() as u64;
    if total == 0 {
        outln!("nothing to run again");
    } else if dry_run {
        outln!("would run again {} ({}); without --dry-run it is done", letters_of(total), of.join(", "));
    } else {
        letters.ask(&chosen, again, SystemClock.now())?;
        outln!(
            "asked to run again {} ({}): by the next batch when the program runs, else at its next start",
            letters_of(total),
            of.join(", ")
        );
    }
    Ok(())
}

fn letters_of(count: u64) -> String {
    if count == 1 { "1 letter".to_string() } else { format!("{count} letters") }
}

/// Text on one line without control characters, cut to `most` characters.
fn one_line(text: &str, most: usize) -> String {
    let clean = text.chars().filter_map(|c| match c {
        '\n' | '\r' | '\t' => Some(' '),
        c if c.is_control() => None,
        c => Some(c),
    });
    let mut out: String = clean.clone().take(most).collect();
    if clean.count() > most {
        out.push('…');
    }
    out
}
