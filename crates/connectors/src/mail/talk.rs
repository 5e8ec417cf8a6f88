//! A talk with a mail server: SMTP as in RFC 5321, with STARTTLS (3207) and AUTH PLAIN (4954).
//!
//! Invariant: nothing of a mail is said before the line is as private as was asked for; an
//! answer is bounded in length and in time. Called by the sink.

use super::Security;
use crate::http::{Link, Stream, secret::Secret};
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::pki_types::ServerName;
use std::time::Duration;
use tidemill_core::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

/// How long a server may take to connect and for each answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How long it may take for the whole mail.
const MAIL: Duration = Duration::from_secs(300);
/// Bytes of an answer at most.
const LONGEST: usize = 16 * 1024;
/// What of an answer is told.
const TOLD: usize = 200;

/// Why a mail was not taken.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may be taken later.
    Passing(String),
    /// It will not.
    Lasting(String),
    /// The error is ours: a password that can't be read.
    Ours(Error),
}

use Failure::{Lasting, Passing};

/// A connection to a server.
pub(super) struct Talk<'a> {
    link: &'a Link,
    line: Box<dyn Stream>,
    /// What came and was not read.
    rest: Vec<u8>,
    /// What the server says that it can do, in capitals.
    can: Vec<String>,
}

/// An answer: its code, and its lines.
struct Answer {
    code: u16,
    lines: Vec<String>,
}

impl Answer {
    /// The answer when its code begins as it should, else a failure; `to` says of what.
    fn expect(self, begins: u16, to: &str) -> Result<Self, Failure> {
        if self.code / 100 == begins {
            return Ok(self);
        }
        let said: String = self.lines.join(" ").chars().filter(|c| !c.is_control()).take(TOLD).collect();
        let why = format!("it answers {to} with {} {said}", self.code);
        Err(match self.code {
            500..=599 => Lasting(format!("{why}; {}", hint(self.code, to))),
            _ => Passing(why),
        })
    }
}

/// What to do about an answer that stays the same.
fn hint(code: u16, to: &str) -> &'static str {
    match (code, to) {
        (534 | 535 | 538, _) | (_, "the password") => "check option `user` and the password",
        (530, _) => "it wants options `user` and `password_env` or `password_file`",
        (_, "the sender") => "check option `from`: it must be an address that this server sends for",
        (_, "a recipient") => "check option `to`",
        (552, _) => "lower option `max_rows`",
        _ => "it will refuse this mail each time: see what it says",
    }
}

impl<'a> Talk<'a> {
    /// Connects, as privately as asked for.
    pub(super) async fn open(link: &'a Link, (host, port): (&str, u16), security: Security) -> Result<Self, Failure> {
        let line = link.within(ANSWER, link.dial(security == Security::Tls, host, port)).await;
        let line = line.and_then(|line| line).map_err(Passing)?;
        let mut talk = Self { link, line, rest: Vec::new(), can: Vec::new() };
        talk.answer(ANSWER).await?.expect(2, "the connection")?;
        talk.hello().await?;
        if security != Security::StartTls {
            return Ok(talk);
        }
        if !talk.can.iter().any(|can| can == "STARTTLS") {
            return Err(Lasting(format!(
                "it offers no STARTTLS at port {port}: take the port at which it does (587), or option `security` = 'tls' with \
                 its port for that (465)"
            )));
        }
        talk.say("STARTTLS").await?.expect(2, "STARTTLS")?;
        // What was said in the clear before TLS could have been said by anybody.
        if !talk.rest.is_empty() {
            return Err(Passing("it said something between STARTTLS and TLS".to_string()));
        }
        let name =
            ServerName::try_from(host.to_string()).map_err(|_| Lasting(format!("`{host}` is no name of a server")))?;
        let connector = TlsConnector::from(crate::jetstream::tls().map_err(Lasting)?);
        let secure = link.within(ANSWER, connector.connect(name, talk.line)).await.map_err(Passing)?;
        let line: Box<dyn Stream> = Box::new(secure.map_err(|e| Passing(format!("TLS with {host}:{port}: {e}")))?);
        let mut talk = Self { link, line, rest: Vec::new(), can: Vec::new() };
        talk.hello().await?;
        Ok(talk)
    }

    async fn hello(&mut self) -> Result<(), Failure> {
        // An address literal: the name of this machine is nobody's business.
        let answer = self.say("EHLO [127.0.0.1]").await?.expect(2, "EHLO")?;
        self.can = answer.lines.iter().skip(1).map(|line| line.trim().to_uppercase()).collect();
        Ok(())
    }

    /// Says who sends.
    pub(super) async fn login(&mut self, user: &str, password: &Secret) -> Result<(), Failure> {
        let ways = self.can.iter().find_map(|can| can.strip_prefix("AUTH ")).unwrap_or_default().to_string();
        let has = |way: &str| ways.split_whitespace().any(|found| found == way);
        if has("PLAIN") {
            let both = BASE64_STANDARD.encode(format!("\0{user}\0{}", password.expose()));
            self.say(&format!("AUTH PLAIN {both}")).await?.expect(2, "the password")?;
        } else if has("LOGIN") {
            self.say("AUTH LOGIN").await?.expect(3, "the password")?;
            self.say(&BASE64_STANDARD.encode(user)).await?.expect(3, "the password")?;
            self.say(&BASE64_STANDARD.encode(password.expose())).await?.expect(2, "the password")?;
        } else {
            return Err(Lasting("it takes no password by AUTH PLAIN or LOGIN".to_string()));
        }
        Ok(())
    }

    /// Hands over a mail, whose lines end as they should and never begin with a dot.
    pub(super) async fn send(&mut self, from: &str, to: &[String], letter: &str) -> Result<(), Failure> {
        self.say(&format!("MAIL FROM:<{from}>")).await?.expect(2, "the sender")?;
        for to in to {
            self.say(&format!("RCPT TO:<{to}>")).await?.expect(2, "a recipient")?;
        }
        self.say("DATA").await?.expect(3, "DATA")?;
        self.write(&format!("{letter}.\r\n")).await?;
        self.answer(MAIL).await?.expect(2, "the mail").map(drop)
    }

    /// Takes leave.
    pub(super) async fn quit(mut self) {
        // The mail was taken, whatever comes now.
        let _whatever = self.say("QUIT").await;
    }

    async fn say(&mut self, words: &str) -> Result<Answer, Failure> {
        self.write(&format!("{words}\r\n")).await?;
        self.answer(ANSWER).await
    }

    async fn write(&mut self, text: &str) -> Result<(), Failure> {
        let line = &mut self.line;
        let write = async {
            line.write_all(text.as_bytes()).await?;
            line.flush().await
        };
        let written = self.link.within(MAIL, write).await.map_err(Passing)?;
        written.map_err(|e| Passing(format!("the line broke: {e}")))
    }

    /// The next answer: lines `250-…` and a last one `250 …`.
    async fn answer(&mut self, span: Duration) -> Result<Answer, Failure> {
        let link = self.link;
        link.within(span, self.read()).await.map_err(Passing)?
    }

    async fn read(&mut self) -> Result<Answer, Failure> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        loop {
            let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
                let mut more = [0; 1024];
                let count = self.line.read(&mut more).await.map_err(|e| Passing(format!("the line broke: {e}")))?;
                if count == 0 {
                    return Err(Passing("it closed the line".to_string()));
                }
                self.rest.extend_from_slice(&more[..count]);
                if self.rest.len() > LONGEST {
                    return Err(Passing(format!("it answers with over {LONGEST} bytes")));
                }
                continue;
            };
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            bytes += line.len();
            if bytes > LONGEST {
                return Err(Passing(format!("it answers with over {LONGEST} bytes")));
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_string();
            let code = line.get(..3).and_then(|code| code.parse::<u16>().ok()).filter(|code| (200..600).contains(code));
            let Some(code) = code else { return Err(Passing("what it says is no SMTP".to_string())) };
            lines.push(line.get(4..).unwrap_or_default().to_string());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Answer { code, lines });
            }
        }
    }
}
