//! The sink against a small mail server on this machine that refuses and breaks off as it is told to.

mod faults;

use super::*;
use crate::contract::{rows, stage};
use arrow_array::{ArrayRef, StringArray};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What a server does instead of saying yes: at the word, an answer, or an end of the line.
type Otherwise = (&'static str, Option<&'static str>);

/// A mail server.
#[derive(Debug, Default)]
struct Post {
    /// Every line that was said to it, but for those of mails.
    said: Mutex<Vec<String>>,
    /// The mails that came whole.
    mails: Mutex<Vec<String>>,
    otherwise: Mutex<VecDeque<Otherwise>>,
    /// What it can do, beside the usual.
    can: Mutex<&'static str>,
}

impl Post {
    fn otherwise(&self, otherwise: &[Otherwise]) {
        self.otherwise.lock().unwrap().extend(otherwise);
    }

    fn mails(&self) -> Vec<String> {
        self.mails.lock().unwrap().clone()
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// The answer to a line; `None` ends the talk.
    fn answer(&self, line: &str) -> Option<String> {
        let mut otherwise = self.otherwise.lock().unwrap();
        if otherwise.front().is_some_and(|(word, _)| line.starts_with(word)) {
            return otherwise.pop_front().and_then(|(_, answer)| answer.map(|answer| format!("{answer}\r\n")));
        }
        Some(match line {
            _ if line.starts_with("EHLO") => format!("250-here\r\n{}250 8BITMIME\r\n", self.can.lock().unwrap()),
            "DATA" => "354 go on\r\n".to_string(),
            "QUIT" => "221 bye\r\n".to_string(),
            _ => "250 yes\r\n".to_string(),
        })
    }

    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 here\r\n").await.ok()?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
            let line = line.trim_end().to_string();
            self.said.lock().unwrap().push(line.clone());
            stream.write_all(self.answer(&line)?.as_bytes()).await.ok()?;
            if line == "DATA" {
                let mut mail = String::new();
                while !mail.ends_with("\r\n.\r\n") {
                    stream.read_line(&mut mail).await.ok().filter(|count| *count > 0)?;
                }
                self.mails.lock().unwrap().push(mail);
                stream.write_all(self.answer(".")?.as_bytes()).await.ok()?;
            }
        }
    }
}

async fn post() -> (Arc<Post>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let post = Arc::new(Post::default());
    let served = Arc::clone(&post);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let post = Arc::clone(&served);
            tokio::spawn(async move { post.serve(stream).await });
        }
    });
    (post, address)
}

/// The time, with all waits over at once but those for answers.
#[derive(Debug, Default)]
struct Skipping(Mutex<Duration>);

impl Clock for Skipping {
    fn now(&self) -> Timestamp {
        WallClock.now().plus(*self.0.lock().unwrap())
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        let wait = deadline.since(self.now());
        *self.0.lock().unwrap() += wait;
        Box::pin(async {})
    }
}

fn sink(server: &str, more: &[(&str, &str)], place: &Path) -> Mail {
    let mut all = vec![("server", server), ("from", "tide@example.org"), ("to", "ops@example.org, night@example.org")];
    all.extend(more);
    let options = Options::new("sink \"out\"", all);
    let mut sink = Mail::from_options(&options).unwrap();
    options.finish().unwrap();
    sink.clock = Arc::new(Skipping::default());
    sink.place("p/out", place);
    sink
}

const PLAIN: (&str, &str) = ("security", "none");

/// A mail's headers and its text.
fn opened(mail: &str) -> (String, String) {
    let (head, body) = mail.split_once("\r\n\r\n").unwrap();
    let body = body.strip_suffix(".\r\n").unwrap().replace("\r\n", "");
    (head.to_string(), String::from_utf8(BASE64_STANDARD.decode(body).unwrap()).unwrap())
}

#[tokio::test]
async fn committed_rows_are_sent_and_staged_ones_are_not() {
    let (post, server) = post().await;
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&server, &[PLAIN, ("max_rows", "2"), ("subject", "{word} in {n}")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    let parts = [
        stage(&sink, 7, 0, vec![rows([1]), rows([2])]).await.unwrap(),
        stage(&sink, 7, 1, vec![rows([3])]).await.unwrap(),
    ];
    assert!(post.said().is_empty(), "what is staged is not sent");
    sink.commit(BatchId(7), &parts).await.unwrap();
    let mails = post.mails();
    let (head, body) = opened(&mails[0]);
    for line in [
        "From: <tide@example.org>",
        "To: <ops@example.org>,\r\n <night@example.org>",
        "Subject: word-1 in 1 (and 1 more)",
        "Date: Thu, 01 Jan 1970 00:00:01 GMT",
        "Message-ID: <p/out-7-1000-0+2@example.org>",
    ] {
        assert!(head.contains(line), "{line}\n{head}");
    }
    assert_eq!(body, "n: 1\r\nword: word-1\r\n\r\nn: 2\r\nword: word-2\r\n");
    assert_eq!((mails.len(), opened(&mails[1]).1.as_str()), (2, "n: 3\r\nword: word-3\r\n"));
    let said = post.said();
    let talk = [
        "EHLO [127.0.0.1]",
        "MAIL FROM:<tide@example.org>",
        "RCPT TO:<ops@example.org>",
        "RCPT TO:<night@example.org>",
        "DATA",
        "QUIT",
    ];
    assert_eq!(said[..6], talk);
    // A repeated commit finds nothing left, and what was never committed is never sent.
    sink.commit(BatchId(7), &parts).await.unwrap();
    stage(&sink, 8, 0, vec![rows([4])]).await.unwrap();
    sink.recover(Some(BatchId(7))).await.unwrap();
    assert_eq!(post.mails().len(), 2);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left aside");
}

#[tokio::test]
async fn a_mail_whose_answer_was_lost_comes_again_as_it_was_and_the_next_life_goes_on() {
    let (post, server) = post().await;
    let dir = tempfile::tempdir().unwrap();
    let options = [PLAIN, ("max_rows", "1"), ("retry_for", "5m")];
    let first = sink(&server, &options, dir.path());
    first.open(rows([]).schema()).await.unwrap();
    let part = stage(&first, 3, 0, vec![rows([1, 2])]).await.unwrap();
    // Lost after it was taken; then busy; then well.
    post.otherwise(&[(".", None), ("MAIL", Some("451 busy")), ("RCPT", None)]);
    first.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap();
    let mails = post.mails();
    assert_eq!(mails.len(), 3);
    assert_eq!(mails[0], mails[1]);
    assert_ne!(mails[1], mails[2]);
    drop(first);
    let second = sink(&server, &[PLAIN, ("retry_for", "0s")], dir.path());
    second.open(rows([]).schema()).await.unwrap();
    let part = stage(&second, 4, 0, vec![rows([5])]).await.unwrap();
    post.otherwise(&[("MAIL", Some("421 not now"))]);
    let error = second.commit(BatchId(4), std::slice::from_ref(&part)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("421 not now"), "{}", error.chain());
    second.commit(BatchId(4), &[part]).await.unwrap();
    assert_eq!(post.mails().len(), 4);
}

#[tokio::test]
async fn a_row_stays_in_its_mail_whatever_stands_in_it() {
    let (post, server) = post().await;
    let dir = tempfile::tempdir().unwrap();
    let hostile = "a\r\nBcc: x@example.org\r\n\r\n.\r\nMAIL FROM:<x@example.org>\r\n潮".repeat(9);
    let column = |text: &str| Arc::new(StringArray::from(vec![Some(text)])) as ArrayRef;
    let alert = RecordBatch::try_from_iter([
        ("alert", column("hot")),
        ("key", column(&hostile)),
        ("state", column("firing")),
        ("gone", Arc::new(StringArray::from(vec![None::<&str>])) as ArrayRef),
    ])
    .unwrap();
    let sink = sink(&server, &[PLAIN], dir.path());
    sink.open(alert.schema()).await.unwrap();
    let part = stage(&sink, 1, 0, vec![alert]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let mails = post.mails();
    let (head, body) = opened(&mails[0]);
    assert!(!head.contains("Bcc") && !head.contains("\n.") && mails.len() == 1, "{head}");
    assert!(mails[0].lines().all(|line| line.len() <= 78 || line.starts_with("Message-ID")), "{head}");
    assert_eq!(body, format!("alert: hot\r\nkey: {hostile}\r\nstate: firing\r\n"));
    let subject: String =
        head.split("Subject: ").nth(1).unwrap().split("\r\nDate").next().unwrap().replace("\r\n ", " ");
    let words = subject.split(' ').map(|word| {
        let word = word.strip_prefix("=?utf-8?B?").and_then(|word| word.strip_suffix("?=")).unwrap();
        String::from_utf8(BASE64_STANDARD.decode(word).unwrap()).unwrap()
    });
    let subject: String = words.collect();
    assert!(subject.starts_with("hot a  Bcc: x@example.org    .  MAIL FROM:<x@example.org>  潮a"), "{subject}");
    assert_eq!(post.said().iter().filter(|said| said.starts_with("MAIL")).count(), 1);
}

#[tokio::test]
async fn nothing_is_said_before_the_line_is_private_and_no_password_is_shown() {
    let (post, server) = post().await;
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "hunter2\n").unwrap();
    let login = [("user", "tide"), ("password_file", password.to_str().unwrap())];
    let send = async |more: &[(&str, &str)]| {
        let sink = sink(&server, &[more, &login].concat(), &dir.path().join("aside"));
        sink.open(rows([]).schema()).await.unwrap();
        let part = stage(&sink, 1, 0, vec![rows([1])]).await.unwrap();
        let sent = sink.commit(BatchId(1), &[part]).await;
        sink.recover(None).await.unwrap();
        sent.map_err(|error| {
            assert!(!error.is_retryable() && !error.chain().contains("hunter2"), "{}", error.chain());
            error.to_string()
        })
    };
    let error = send(&[]).await.unwrap_err();
    assert!(error.contains("it offers no STARTTLS"), "{error}");
    assert_eq!(post.said(), ["EHLO [127.0.0.1]"]);
    let error = send(&[PLAIN]).await.unwrap_err();
    assert!(error.contains("it takes no password by AUTH PLAIN or LOGIN"), "{error}");
    *post.can.lock().unwrap() = "250-AUTH LOGIN PLAIN\r\n";
    post.otherwise(&[("AUTH", Some("535 5.7.8 no"))]);
    let error = send(&[PLAIN]).await.unwrap_err();
    assert!(
        error.contains("it answers the password with 535 5.7.8 no; check option `user` and the password"),
        "{error}"
    );
    post.otherwise(&[("RCPT", Some("550 nobody"))]);
    let error = send(&[PLAIN]).await.unwrap_err();
    assert!(error.contains("550 nobody; check option `to`"), "{error}");
    assert!(post.mails().is_empty());
    send(&[PLAIN]).await.unwrap();
    let plain = BASE64_STANDARD.encode("\0tide\0hunter2");
    assert!(post.said().contains(&format!("AUTH PLAIN {plain}")));
    assert_eq!(post.mails().len(), 1);
}

#[test]
fn options_are_checked() {
    let of = |more: &[(&str, &str)]| {
        let mut all =
            std::collections::BTreeMap::from([("server", "mail.example.org"), ("from", "a@b.c"), ("to", "d@e.f")]);
        all.extend(more.iter().copied());
        Mail::from_options(&Options::new("sink \"out\"", all))
    };
    let sink = of(&[("to", "d@e.f,g@h.i")]).unwrap();
    assert_eq!((sink.port, sink.describe().as_str()), (587, "mail to d@e.f, g@h.i by mail.example.org"));
    assert_eq!(of(&[("security", "tls")]).unwrap().port, 465);
    assert_eq!(of(&[("server", "[::1]:25"), ("security", "none")]).unwrap().port, 25);
    for (more, expected) in [
        (("security", "none"), "may be none for a server on this machine alone"),
        (("security", "startls"), "did you mean `starttls`?"),
        (("server", "smtp://x"), "must be host:port"),
        (("server", "x:0"), "must be host:port"),
        (("from", "ops"), "option `from` has `ops`, which has no @"),
        (("to", "a@b.c>\r\nRCPT TO:<x@y.z"), "has signs that no address has here"),
        (("to", "a@b.c,"), "has no @"),
        (("password_env", "X"), "option `user` is missing"),
        (("max_rows", "0"), "must be at least 1"),
        (("subject", "{n"), "has a { without its }"),
    ] {
        let error = of(&[more]).unwrap_err().to_string();
        assert!(error.contains(expected), "{more:?}: {error}");
    }
    let error = of(&[("user", "u"), ("password", "hunter2")]).unwrap_err().to_string();
    assert!(error.contains("`password_file`") && !error.contains("hunter2"), "{error}");
    let error = of(&[("subject", "{wrod}")]).unwrap().takes(&rows([]).schema()).unwrap_err().to_string();
    assert!(error.contains("there is no column {wrod}; did you mean {word}?"), "{error}");
}
