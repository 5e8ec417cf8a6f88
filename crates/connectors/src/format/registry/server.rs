//! A schema registry for tests, on this machine: the requests that ours makes, and no more.
//!
//! It runs on a thread of its own, so that it answers whatever runtime a test has. Invariant: each request is noted
//! before it is answered.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// What it has and does.
#[derive(Debug, Default)]
struct State {
    /// Language, text, references; the id is the place, from 1 on.
    schemas: Vec<(String, String, Value)>,
    subjects: BTreeMap<String, Vec<usize>>,
    asked: Vec<String>,
    /// The status that everything is answered with; 0 to hang up.
    answer: Option<u16>,
    credentials: Option<String>,
}

/// A registry.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// One without a schema.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is its own affair.
                let _served = serve(&shared, stream);
            }
        });
        Self { url, state }
    }

    /// Adds a schema to a subject; its id.
    pub(crate) fn add(&self, subject: &str, language: &str, text: &str, references: Value) -> u32 {
        self.state.lock().unwrap().add(subject, language, text, references)
    }

    /// Answers all with a status from now on, or as it should; 0 hangs up.
    pub(crate) fn answer(&self, status: Option<u16>) {
        self.state.lock().unwrap().answer = status;
    }

    /// Wants these credentials: `user:password`, in base64.
    pub(crate) fn want(&self, credentials: &str) {
        self.state.lock().unwrap().credentials = Some(credentials.to_string());
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    /// The newest schema of a subject.
    #[cfg(feature = "kafka")]
    pub(crate) fn newest(&self, subject: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let id = *state.subjects.get(subject)?.last()?;
        Some(state.schemas[id - 1].1.clone())
    }
}

impl State {
    fn add(&mut self, subject: &str, language: &str, text: &str, references: Value) -> u32 {
        let same =
            self.schemas.iter().position(|(l, t, r)| (l.as_str(), t.as_str(), r) == (language, text, &references));
        let id = same.unwrap_or_else(|| {
            self.schemas.push((language.to_string(), text.to_string(), references));
            self.schemas.len() - 1
        }) + 1;
        let versions = self.subjects.entry(subject.to_string()).or_default();
        if !versions.contains(&id) {
            versions.push(id);
        }
        u32::try_from(id).unwrap()
    }

    fn shown(&self, id: usize) -> Option<Value> {
        let (language, text, references) = self.schemas.get(id.checked_sub(1)?)?;
        let mut shown = json!({ "schema": text });
        // As the real one does: Avro goes without saying.
        if language != "AVRO" {
            shown["schemaType"] = json!(language);
        }
        if references.as_array().is_some_and(|references| !references.is_empty()) {
            shown["references"] = references.clone();
        }
        Some(shown)
    }

    fn reply(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let nothing = || (404, json!({"error_code": 40403, "message": "Schema not found"}));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (method, &parts[..]) {
            ("GET", ["schemas", "ids", id]) => {
                id.parse().ok().and_then(|id| self.shown(id)).map_or_else(nothing, |shown| (200, shown))
            }
            ("GET", ["subjects", subject, "versions", version]) => {
                let versions = self.subjects.get(*subject).cloned().unwrap_or_default();
                let at = match *version {
                    "latest" => versions.len(),
                    number => number.parse().unwrap_or(0),
                };
                let id = at.checked_sub(1).and_then(|at| versions.get(at).copied());
                let found = id.and_then(|id| Some((id, self.shown(id)?)));
                found.map_or_else(nothing, |(id, mut shown)| {
                    shown["subject"] = json!(subject);
                    shown["version"] = json!(at);
                    shown["id"] = json!(id);
                    (200, shown)
                })
            }
            ("POST", ["subjects", subject, "versions"]) => {
                let body: Value = serde_json::from_str(body).unwrap();
                let text = body["schema"].as_str().unwrap();
                let language = body["schemaType"].as_str().unwrap_or("AVRO");
                if text.contains("incompatible") {
                    return (409, json!({"error_code": 409, "message": "READER_FIELD_MISSING_DEFAULT_VALUE"}));
                }
                (200, json!({"id": self.add(subject, language, text, json!([]))}))
            }
            _ => nothing(),
        }
    }
}

fn serve(state: &Mutex<State>, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut credentials) = (String::new(), 0, None);
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => credentials = Some(value.to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, answer) = {
        let mut state = state.lock().unwrap();
        state.asked.push(format!("{method} {path}"));
        let wanted = state.credentials.as_ref().map(|wanted| format!("Basic {wanted}"));
        match state.answer {
            Some(0) => return Ok(()),
            Some(status) => (status, json!({"message": "not now"})),
            None if wanted.is_some() && wanted != credentials => (401, json!({"message": "Unauthorized"})),
            None => state.reply(method, path, &String::from_utf8(body).unwrap()),
        }
    };
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        answer.len()
    );
    reader.get_mut().write_all(format!("{head}{answer}").as_bytes())
}
