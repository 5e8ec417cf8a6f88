//! Sink `mail`: rows as e-mail over SMTP, at least once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `server` | `host:port` of the server that takes mail; without a port 587, with `security = 'tls'` 465 |
//! | `security` | `starttls` (the default), `tls`, or `none`, for a server on this machine alone |
//! | `from`, `to` | addresses; several in `to` with commas |
//! | `user`, `password_file`, `password_env` | who sends, and the file or the environment's variable with the password (`TIDEMILL_MAIL_PASSWORD`) |
//! | `subject` | of a mail, with `{column}` for what its first row has; for rows of alerts `{alert} {key}: {state}` unless it says |
//! | `max_rows` | of a mail at most (50) |
//! | `retry_for` | how long a mail is tried again before the batch is reported as stuck, and tried from there on (30s) |
//!
//! A batch's rows are sent only after the ledger has the batch, as one mail or several of
//! `max_rows`: a line `column: value` for each column that has one, and an empty line
//! between rows. A mail that is sent again, because the answer was lost or the program was
//! killed before it was noted, has the same `Message-ID` and the same text, so that a
//! mailbox which knows it shows it once.
//!
//! An answer of 4xx and a line that breaks are tried again with growing waits. One of 5xx
//! is an error that stops the program and says what to change.
//!
//! Invariant: nothing is sent of a batch that was not committed; a password goes over TLS
//! or to this machine alone, and stands in no program, log or error; no row can add a
//! header or a recipient.

mod letter;
mod talk;
#[cfg(test)]
mod tests;

use crate::{
    aside::{Aside, Part},
    backoff::Backoff,
    http::{Link, clock::WallClock, secret::Place},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use letter::{Letter, Subject};
use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use talk::{Failure, Talk};
use tidemill_core::{BatchId, Clock, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp, nearest};

/// Waits between tries grow from here …
const FIRST: Duration = Duration::from_millis(250);
/// … to here.
const MOST: Duration = Duration::from_secs(30);
/// Recipients at most.
const RECIPIENTS: usize = 50;

/// How the line to the server is kept private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    StartTls,
    Tls,
    /// Not at all.
    None,
}

/// Rows as e-mail.
#[derive(Debug)]
pub struct Mail {
    host: String,
    port: u16,
    security: Security,
    from: String,
    to: Vec<String>,
    user: Option<(String, Place)>,
    subject: Subject,
    max_rows: usize,
    retry_for: Duration,
    link: Link,
    clock: Arc<dyn Clock>,
    aside: Aside,
    /// Who writes, where that is not known: mails of other lives and of other outputs differ.
    life: String,
    /// The batch under way, and how many of its mails were taken: a commit that is repeated goes on there.
    sent: Mutex<(BatchId, usize)>,
}

fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `host:port`, `host`, `[::1]:25`.
fn server(text: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    let port = port.map_or(Some(usual), |port| port.parse().ok().filter(|port| *port > 0))?;
    (!host.is_empty() && host.chars().all(is_name)).then(|| (host.to_string(), port))
}

impl Mail {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        static LIVES: AtomicU64 = AtomicU64::new(0);
        let owner = options.owner();
        let wrong = |key: &str, why: &str| Error::user(format!("{owner}: option `{key}` {why}"));
        let security = match options.get("security").unwrap_or("starttls") {
            "starttls" => Security::StartTls,
            "tls" => Security::Tls,
            "none" => Security::None,
            other => {
                let known = ["starttls", "tls", "none"];
                let hint = nearest(other, &known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Err(wrong("security", &format!("must be starttls, tls or none, not `{other}`{hint}")));
            }
        };
        let usual = if security == Security::Tls { 465 } else { 587 };
        let given = options.require("server", "it names the server that takes mail, such as smtp.example.org:587")?;
        let (host, port) = server(given, usual).ok_or_else(|| {
            wrong("server", &format!("must be host:port, such as smtp.example.org:587, not `{given}`"))
        })?;
        if security == Security::None && !is_here(&host) {
            return Err(wrong(
                "security",
                "may be none for a server on this machine alone: mail to others goes over starttls or tls",
            ));
        }
        let address = |key: &str, text: &str| {
            letter::address(text).map_err(|why| wrong(key, &format!("has `{}`, which {why}", text.trim())))
        };
        let from = address("from", options.require("from", "it is the address that mails come from")?)?;
        let to = options.require("to", "it has the addresses that mails go to, with commas between them")?;
        let to = to.split(',').map(|one| address("to", one)).collect::<Result<Vec<_>>>()?;
        if to.len() > RECIPIENTS {
            return Err(wrong("to", &format!("has over {RECIPIENTS} addresses: take that of a mailing list")));
        }
        let given = ["password", "password_file", "password_env"].map(|key| options.get(key).is_some()).contains(&true);
        let user = match options.get("user").map(str::to_string) {
            None if given => return Err(wrong("user", "is missing, and there is a password: give both or none")),
            None => None,
            Some(user) if user.contains('\0') => return Err(wrong("user", "has a sign that no name has")),
            Some(user) => Some((user, Place::from_options(options, "password", "TIDEMILL_MAIL_PASSWORD")?)),
        };
        let max_rows = options.parse("max_rows", 50_usize)?;
        if max_rows == 0 {
            return Err(wrong("max_rows", "must be at least 1"));
        }
        let (process, number) = (std::process::id(), LIVES.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            host,
            port,
            security,
            from,
            to,
            user,
            subject: Subject::new(options.get("subject")).map_err(|why| wrong("subject", &why))?,
            max_rows,
            retry_for: options.duration("retry_for", Duration::from_secs(30))?,
            link: Link::default(),
            clock: Arc::new(WallClock),
            aside: Aside::default(),
            life: format!("tidemill-{process}-{}-{number}", WallClock.now().0),
            sent: Mutex::default(),
        })
    }

    fn sent<T>(&self, act: impl FnOnce(&mut (BatchId, usize)) -> T) -> T {
        act(&mut self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends one mail over a line of its own.
    async fn try_send(&self, letter: &str) -> Result<(), Failure> {
        let login = match &self.user {
            None => None,
            Some((user, place)) => Some((user.as_str(), place.read_one().map_err(Failure::Ours)?)),
        };
        let mut talk = Talk::open(&self.link, (&self.host, self.port), self.security).await?;
        if let Some((user, password)) = &login {
            talk.login(user, password).await?;
        }
        talk.send(&self.from, &self.to, letter).await?;
        // It was taken; what is said of the end changes nothing.
        talk.quit().await;
        Ok(())
    }

    /// Sends one mail until it is taken.
    async fn send(&self, letter: &str, batch: BatchId) -> Result<()> {
        let begun = self.clock.now();
        let mut backoff = Backoff::between(FIRST, MOST, batch.0);
        loop {
            let why = match self.try_send(letter).await {
                Ok(()) => return Ok(()),
                Err(Failure::Ours(error)) => return Err(error),
                Err(Failure::Lasting(why)) => return Err(Error::user(format!("mail {}: {why}", self.host))),
                Err(Failure::Passing(why)) => why,
            };
            let now = self.clock.now();
            let wait = backoff.next_wait();
            if now.plus(wait).since(begun) > self.retry_for {
                return Err(Error::external(format!("mail {}: {why}", self.host)));
            }
            tracing::warn!(server = self.host, batch = batch.0, ?wait, "mail: {why}; will try again");
            self.clock.sleep_until(now.plus(wait)).await;
        }
    }
}

#[async_trait]
impl Sink for Mail {
    fn describe(&self) -> String {
        format!("mail to {} by {}", self.to.join(", "), self.host)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn place(&self, owner: &str, aside: &Path) {
        self.aside.place(owner, aside);
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        self.subject.check(schema)
    }

    fn stays(&self) -> String {
        "what was sent stays sent, and what is computed anew is sent after it".to_string()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        // A password that is not there is told at the start.
        self.user.as_ref().map(|(_, place)| place.read_one()).transpose()?;
        self.subject.check(&schema)?;
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        self.aside.stage(batch, time, part, rows).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let parts = Part::parse(parts)?;
        let Some(time) = parts.first().map(|part| part.time) else { return Ok(()) };
        // Rows are let go only when all of them were sent.
        if !self.aside.has(&parts)? {
            return self.aside.remove(&parts).await;
        }
        let owner = self.aside.owner().unwrap_or(&self.life).to_string();
        let done = self.sent(|sent| {
            if sent.0 != batch {
                *sent = (batch, 0);
            }
            sent.1
        });
        let mut rows = Vec::new();
        for part in &parts {
            rows.extend(self.aside.read(batch, part).await?);
        }
        let Some(schema) = rows.first().map(RecordBatch::schema) else { return self.aside.remove(&parts).await };
        let all = arrow_select::concat::concat_batches(&schema, &rows)
            .map_err(|e| Error::internal("rows that were kept aside").because(e))?;
        for (number, first) in (0..all.num_rows()).step_by(self.max_rows).enumerate().skip(done) {
            let rows = all.slice(first, self.max_rows.min(all.num_rows() - first));
            let id = format!("{owner}-{batch}-{}-{first}+{}", time.millis(), rows.num_rows());
            let letter = Letter { from: &self.from, to: &self.to, id: &id, time, rows: &rows };
            self.send(&letter.text(&self.subject)?, batch).await?;
            self.sent(|sent| sent.1 = number + 1);
        }
        self.aside.remove(&parts).await
    }

    async fn recover(&self, _last_committed: Option<BatchId>) -> Result<()> {
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
