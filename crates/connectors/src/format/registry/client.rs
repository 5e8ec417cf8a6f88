//! Questions to a schema registry, from where nothing can wait.
//!
//! A decoder is no future, so the request runs on a thread of its own while the
//! decoder's waits for it; other work of the runtime goes on elsewhere. It happens
//! once for each schema.
//!
//! Invariant: an answer that says *not there* is one; what passes by itself (no
//! connection, 429, 5xx) is an external error, what a human has to mend (401, 403,
//! 409, 422) is the user's. Called by [`super::SchemaRegistry`].

use super::{KIND, PATIENCE, SchemaRegistry};
use crate::http::{Request, failure::Failure};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::header;
use serde_json::Value;
use tidemill_core::{Error, Result};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};

/// Bytes of an answer at most.
const MOST: usize = 16 << 20;

/// Does what waits where the runtime's other work can go on.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A part of a path.
pub(super) fn escaped(part: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    part.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl SchemaRegistry {
    /// The answer to a GET; `None` when there is no such thing.
    pub(super) fn ask(&self, place: &str) -> Result<Option<Value>> {
        let request = Request::get(&format!("{}{place}", self.url));
        let (status, body) = self.send(request.map_err(Error::user)?)?;
        match status {
            404 => Ok(None),
            200..300 => self.value(&body).map(Some),
            _ => Err(self.refused(status, &body)),
        }
    }

    /// The answer to a POST.
    #[cfg(any(feature = "kafka", test))]
    pub(super) fn tell(&self, place: &str, body: String) -> Result<Value> {
        let request = Request::get(&format!("{}{place}", self.url)).map_err(Error::user)?;
        let (status, body) = self.send(request.post(KIND, body))?;
        if (200..300).contains(&status) { self.value(&body) } else { Err(self.refused(status, &body)) }
    }

    fn value(&self, body: &[u8]) -> Result<Value> {
        serde_json::from_slice(body).map_err(|e| self.strange("an answer is no JSON").because(e))
    }

    fn refused(&self, status: u16, body: &[u8]) -> Error {
        let said: Option<Value> = serde_json::from_slice(body).ok();
        let said = said.as_ref().and_then(|said| said.get("message")).and_then(Value::as_str).unwrap_or_default();
        let said: String = said.chars().take(600).collect();
        let url = &self.url;
        match status {
            401 | 403 => Error::user(format!(
                "the schema registry {url} refuses the credentials ({status}): see options `registry_user` and `registry_password_file`"
            )),
            409 => Error::user(format!(
                "the schema registry {url} refuses the schema, as it is not compatible with those before: {said}"
            )),
            400..500 if status != 429 && status != 408 => {
                Error::user(format!("the schema registry {url} answered {status}: {said}"))
            }
            _ => Error::external(format!("the schema registry {url} answered {status}: {said}")),
        }
    }

    fn send(&self, request: Request) -> Result<(u16, Vec<u8>)> {
        let mut request = request.header(header::ACCEPT, KIND);
        if let Some((user, password)) = &self.user {
            let pair = format!("{user}:{}", password.read_one()?.expose());
            request = request.authorization(&format!("Basic {}", STANDARD.encode(pair)));
        }
        let work = async {
            let answer = async {
                let mut answer = self.link.send(&request).await?;
                let body = answer.whole(MOST).await?;
                Ok::<_, Failure>((answer.status.as_u16(), body))
            };
            self.link.within(PATIENCE, answer).await.unwrap_or_else(|why| Err(Failure::Network(why)))
        };
        let failed = |why: String| Error::external(format!("can't ask the schema registry {}: {why}", self.url));
        let answered = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("tidemill-schemas".into()).spawn_scoped(scope, || {
                let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
                Ok::<_, String>(runtime.block_on(work))
            });
            let thread = thread.map_err(|e| failed(format!("no thread: {e}")))?;
            match thread.join() {
                Ok(answered) => answered.map_err(failed),
                Err(_) => Err(Error::internal("asking a schema registry panicked")),
            }
        })?;
        answered.map_err(|failure| match failure {
            Failure::Denied(why) => Error::user(format!("the schema registry {}: {why}", self.url)),
            Failure::Fatal(error) => error,
            other => failed(other.to_string()),
        })
    }
}
