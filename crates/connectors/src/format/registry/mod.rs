//! A schema registry of Confluent's kind, and the frame of records that name its schemas.
//!
//! | Option | Meaning |
//! |---|---|
//! | `registry` | its address: `http://127.0.0.1:8081` |
//! | `subject` | the name of the stream's schemas there; `<topic>-value` where option `topic` names one topic |
//! | `registry_user` | a user, for HTTP's basic authentication |
//! | `registry_password_file`, `registry_password_env` | the file or the environment's variable with the password (`TIDEMILL_REGISTRY_PASSWORD`) |
//!
//! ```text
//! record   0 │ id of the schema, 4 bytes, big end first │ value       as Confluent's serializers write it
//! ```
//!
//! A schema is asked for when its id is met first, and kept for as long as the
//! stream lives: what has an id never changes. One that the registry does not know
//! makes its records dead letters; it is asked again after a minute.
//!
//! Invariant: a registry that does not answer loses nothing. The question ends after
//! [`PATIENCE`] with an error that is tried again, and the batch with it. Credentials
//! go over plain HTTP only to this machine. Called by the formats and the sinks.

mod client;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use crate::http::{Link, Request, secret::Place};
use serde_json::Value;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tidemill_core::{Error, Options, Result, Timestamp};

/// How long one question may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For how long an id that the registry does not know is not asked for again.
const UNKNOWN: Duration = Duration::from_secs(60);
/// For how long nothing is asked after a question without an answer, so that all parts of a batch fail with one.
const REST: Duration = Duration::from_secs(1);
/// Schemas that one schema may refer to, all the way down.
const REFERENCES: usize = 200;
/// The variable that holds the password, unless an option says otherwise.
const PASSWORD: &str = "TIDEMILL_REGISTRY_PASSWORD";
/// What bodies are.
const KIND: &str = "application/vnd.schemaregistry.v1+json";

/// The language of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Avro,
    #[cfg(feature = "protobuf")]
    Protobuf,
    Json,
}

impl Language {
    /// As the registry writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avro => "AVRO",
            #[cfg(feature = "protobuf")]
            Self::Protobuf => "PROTOBUF",
            Self::Json => "JSON",
        }
    }
}

/// A schema as it lies in a registry.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    /// `AVRO`, `PROTOBUF`, `JSON`.
    pub(crate) language: String,
    pub(crate) text: String,
    /// The schemas that it refers to, each after those that it refers to itself: name and text.
    pub(crate) references: Vec<(String, String)>,
}

impl Registered {
    /// The schema, if it is of a language.
    pub(crate) fn of(&self, language: Language) -> Result<&Self, String> {
        if self.language == language.name() {
            return Ok(self);
        }
        Err(format!("its schema is of the language {}, not {}", self.language, language.name()))
    }
}

/// A registry, and what is known of it.
pub(crate) struct SchemaRegistry {
    url: String,
    user: Option<(String, Place)>,
    link: Link,
    known: Mutex<Known>,
    /// Held by the one that asks.
    asking: Mutex<()>,
}

#[derive(Default)]
struct Known {
    schemas: HashMap<u32, Arc<Registered>>,
    unknown: HashMap<u32, Timestamp>,
    /// The last question that had no answer, and when.
    failed: Option<(Timestamp, String)>,
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaRegistry").field("url", &self.url).finish_non_exhaustive()
    }
}

impl SchemaRegistry {
    /// The registry that option `registry` names, if it is given. Nothing is asked yet.
    ///
    /// # Errors
    /// When an option is wrong.
    pub(crate) fn from_options(options: &Options) -> Result<Option<Arc<Self>>> {
        let owner = options.owner();
        let user = options.get("registry_user").map(str::to_string);
        let Some(url) = options.get("registry") else {
            return match user {
                Some(_) => Err(Error::user(format!("{owner}: option `registry_user` goes with `registry`"))),
                None => Ok(None),
            };
        };
        let wrong = |why: String| Error::user(format!("{owner}: option `registry`: {why}"));
        match &user {
            // A password must not go over a network in the clear.
            Some(_) => Request::to_server(url),
            None => Request::get(url),
        }
        .map_err(wrong)?;
        let password = Place::from_options(options, "registry_password", PASSWORD)?;
        let named = ["registry_password_file", "registry_password_env"].iter().any(|o| options.get(o).is_some());
        if user.is_none() && named {
            return Err(Error::user(format!("{owner}: name the user of the password in option `registry_user`")));
        }
        Ok(Some(Arc::new(Self::new(url, user.map(|user| (user, password)), Link::default()))))
    }

    /// The registry at `url`.
    pub(crate) fn new(url: &str, user: Option<(String, Place)>, link: Link) -> Self {
        let url = url.trim_end_matches('/').to_string();
        Self { url, user, link, known: Mutex::default(), asking: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schema with an id; inside, why there is none.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) fn schema(&self, id: u32) -> Result<Result<Arc<Registered>, String>> {
        if let Some(known) = self.lookup(id)? {
            return Ok(known);
        }
        client::aside(|| {
            let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            // Another may have asked meanwhile.
            if let Some(known) = self.lookup(id)? {
                return Ok(known);
            }
            let asked = self.ask(&format!("/schemas/ids/{id}"));
            let mut seen = Vec::new();
            let found = asked.and_then(|answer| answer.map(|body| self.registered(&body, &mut seen)).transpose());
            let mut known = self.known();
            match found {
                Ok(Some(found)) => {
                    known.unknown.remove(&id);
                    Ok(Ok(Arc::clone(known.schemas.entry(id).or_insert(Arc::new(found)))))
                }
                Ok(None) => {
                    known.unknown.insert(id, self.link.clock.now());
                    Ok(Err(self.unknown(id)))
                }
                Err(error) => {
                    if error.is_retryable() {
                        known.failed = Some((self.link.clock.now(), error.chain()));
                    }
                    Err(error)
                }
            }
        })
    }

    /// What is known of an id without asking.
    fn lookup(&self, id: u32) -> Result<Option<Result<Arc<Registered>, String>>> {
        let known = self.known();
        if let Some(schema) = known.schemas.get(&id) {
            return Ok(Some(Ok(Arc::clone(schema))));
        }
        let now = self.link.clock.now();
        if known.unknown.get(&id).is_some_and(|at| now.since(*at) < UNKNOWN) {
            return Ok(Some(Err(self.unknown(id))));
        }
        match &known.failed {
            Some((at, why)) if now.since(*at) < REST => Err(Error::external(why.clone())),
            _ => Ok(None),
        }
    }

    fn unknown(&self, id: u32) -> String {
        format!("the schema registry {} has no schema {id}", self.url)
    }

    /// The newest schema of a subject.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    pub(crate) fn newest(&self, subject: &str) -> Result<Registered> {
        self.latest(subject, "declare the columns").map(|(_, newest)| newest)
    }

    /// The newest schema of a subject, and its id.
    ///
    /// # Errors
    /// When there is none, or the registry does not answer.
    #[cfg(all(feature = "kafka", feature = "protobuf"))]
    pub(crate) fn newest_to_write(&self, subject: &str) -> Result<(u32, Registered)> {
        let (id, newest) = self.latest(subject, "give the schema in `schema_file`, to be registered")?;
        Ok((id.ok_or_else(|| self.strange("it gave no id for a schema"))?, newest))
    }

    fn latest(&self, subject: &str, otherwise: &str) -> Result<(Option<u32>, Registered)> {
        let place = format!("/subjects/{}/versions/latest", client::escaped(subject));
        client::aside(|| match self.ask(&place)? {
            Some(body) => Ok((id_of(&body), self.registered(&body, &mut Vec::new())?)),
            None => Err(Error::user(format!(
                "the schema registry {} has no subject `{subject}`: name another in option `subject`, or {otherwise}",
                self.url
            ))),
        })
    }

    /// Registers a schema under a subject; its id, the same again for the same schema.
    ///
    /// # Errors
    /// When the registry refuses it, or does not answer.
    #[cfg(any(feature = "kafka", test))]
    pub(crate) fn register(&self, subject: &str, language: Language, text: &str) -> Result<u32> {
        let mut body = serde_json::json!({ "schema": text });
        if language != Language::Avro {
            body["schemaType"] = language.name().into();
        }
        let place = format!("/subjects/{}/versions", client::escaped(subject));
        let answer = client::aside(|| self.tell(&place, body.to_string()))?;
        id_of(&answer).ok_or_else(|| self.strange("it gave no id for a schema"))
    }

    /// The schema of an answer, with those that it refers to.
    fn registered(&self, body: &Value, seen: &mut Vec<(String, String)>) -> Result<Registered> {
        let text = body.get("schema").and_then(Value::as_str).ok_or_else(|| self.strange("an answer has no schema"))?;
        let language = body.get("schemaType").and_then(Value::as_str).unwrap_or("AVRO");
        self.refer(body, seen, &mut Vec::new())?;
        Ok(Registered { language: language.to_string(), text: text.to_string(), references: std::mem::take(seen) })
    }

    fn refer(&self, body: &Value, seen: &mut Vec<(String, String)>, above: &mut Vec<String>) -> Result<()> {
        for reference in body.get("references").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or_default();
            let (name, subject) = (text("name"), text("subject"));
            let version = reference.get("version").and_then(Value::as_i64).unwrap_or(-1);
            if seen.iter().any(|(other, _)| other == name) || above.iter().any(|other| other == name) {
                continue;
            }
            if seen.len() + above.len() >= REFERENCES {
                return Err(Error::user(format!("a schema refers to more than {REFERENCES} others")));
            }
            let version = if version < 0 { "latest".to_string() } else { version.to_string() };
            let place = format!("/subjects/{}/versions/{version}", client::escaped(subject));
            let body = self.ask(&place)?.ok_or_else(|| {
                Error::user(format!(
                    "the schema registry {} has no version {version} of `{subject}`, which a schema refers to",
                    self.url
                ))
            })?;
            above.push(name.to_string());
            self.refer(&body, seen, above)?;
            above.pop();
            let text = body.get("schema").and_then(Value::as_str);
            let text = text.ok_or_else(|| self.strange("an answer has no schema"))?;
            seen.push((name.to_string(), text.to_string()));
        }
        Ok(())
    }

    fn strange(&self, what: &str) -> Error {
        Error::external(format!("the schema registry {}: {what}: is it one?", self.url))
    }
}

/// The id that an answer gives.
fn id_of(answer: &Value) -> Option<u32> {
    answer.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// The subject that options name.
///
/// # Errors
/// When they name none.
pub(crate) fn subject(options: &Options) -> Result<String> {
    if let Some(subject) = options.get("subject") {
        return Ok(subject.to_string());
    }
    match options.get("topic") {
        Some(topic) if !topic.contains([',', '*']) => Ok(format!("{}-value", topic.trim())),
        _ => Err(Error::user(format!(
            "{}: name the schemas of the registry in option `subject`, or declare the columns",
            options.owner()
        ))),
    }
}

/// The id and the value of a framed record.
///
/// # Errors
/// When it has no frame.
pub(crate) fn unframe(record: &[u8]) -> Result<(u32, &[u8]), &'static str> {
    match record.split_first_chunk::<5>() {
        Some(([0, a, b, c, d], value)) => Ok((u32::from_be_bytes([*a, *b, *c, *d]), value)),
        _ => Err("no record of a schema registry: it does not begin with 0 and the id of a schema"),
    }
}

/// Appends the frame of a schema's records.
#[cfg(any(feature = "kafka", test))]
pub(crate) fn frame(id: u32, bytes: &mut Vec<u8>) {
    bytes.push(0);
    bytes.extend_from_slice(&id.to_be_bytes());
}
