//! Notebooks: kept beside the program, read and written whole.
//!
//! The text is the page's affair; here it is Markdown and no more. Invariant: a
//! name that does not consist of `[A-Za-z0-9._-]` reaches no shelf; and a text
//! is kept only over the one that its writer has seen, so that two browsers do
//! not overwrite each other. Called by the router.

use crate::{
    api::{self, Named, problem},
    server::Shared,
};
use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tidemill_core::{Error, Result, Shelf, Shelved};

/// Bytes of a notebook at most.
const TEXT: usize = 1 << 20;
/// Bytes of a request with one: JSON writes some characters as six.
pub(crate) const BODY: usize = 6 * TEXT + 4096;
/// Characters of a name at most.
const NAME: usize = 64;
/// The same as [`is_name`], for those who read the description.
pub(crate) const NAMES: &str = "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$";

/// A text to be kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
    /// What the writer has seen; null for a notebook that is new.
    revision: Option<String>,
}

fn is_name(name: &str) -> bool {
    (1..=NAME).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What the shelf gives, or the answer that says why not.
async fn of_shelf<T: Send + 'static>(
    shared: &Shared,
    name: &str,
    act: impl FnOnce(&dyn Shelf) -> Result<T> + Send + 'static,
) -> Result<T, Box<Response>> {
    if !is_name(name) {
        let why = "a notebook's name has 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_` and `-`, and begins with no dot";
        return Err(Box::new(problem(StatusCode::BAD_REQUEST, why)));
    }
    let Some(shelf) = shared.shelf.clone() else {
        let why = "this program has no place for notebooks: download them instead";
        return Err(Box::new(problem(StatusCode::NOT_FOUND, why)));
    };
    let done = tokio::task::spawn_blocking(move || act(&*shelf)).await;
    let done = done.unwrap_or_else(|e| Err(Error::internal("a notebook could not be reached").because(e)));
    done.map_err(|e| Box::new(problem(StatusCode::INTERNAL_SERVER_ERROR, &e.chain())))
}

/// `GET /api/v1/notebooks`
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let Some(shelf) = shared.shelf.clone() else {
        return Json(json!({ "kept": false, "names": [] })).into_response();
    };
    match tokio::task::spawn_blocking(move || shelf.names()).await {
        Ok(Ok(mut names)) => {
            names.retain(|name| is_name(name));
            Json(json!({ "kept": true, "names": names })).into_response()
        }
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.chain()),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the notebooks could not be listed"),
    }
}

/// `GET /api/v1/notebooks/{name}`
pub(crate) async fn read(State(shared): State<Arc<Shared>>, Named(name): Named) -> Response {
    let asked = name.clone();
    match of_shelf(&shared, &name, move |shelf| shelf.read(&asked)).await {
        Ok(Some(notebook)) => Json(notebook).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "there is no notebook of this name; /api/v1/notebooks lists them"),
        Err(refusal) => *refusal,
    }
}

/// `POST /api/v1/notebooks/{name}`
pub(crate) async fn keep(State(shared): State<Arc<Shared>>, Named(name): Named, body: Bytes) -> Response {
    let text: Text = match api::taken(&body) {
        Ok(text) => text,
        Err(refusal) => return *refusal,
    };
    if text.text.len() > TEXT {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "a notebook has 1 MiB at most");
    }
    let asked = name.clone();
    match of_shelf(&shared, &name, move |shelf| shelf.keep(&asked, &text.text, text.revision.as_deref())).await {
        Ok(Shelved::As(revision)) => Json(json!({ "revision": revision })).into_response(),
        Ok(Shelved::Refused(Some(_))) => problem(
            StatusCode::CONFLICT,
            "the notebook was changed meanwhile, by another browser or an editor, and stays as it is: \
             save this one under another name, or load that one",
        ),
        Ok(Shelved::Refused(None)) => {
            problem(StatusCode::CONFLICT, "the notebook was removed meanwhile: save this one as a new one")
        }
        Err(refusal) => *refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths() {
        for name in ["top", "Top-10.v2_b", "a"] {
            assert!(is_name(name), "{name}");
        }
        let long = "a".repeat(65);
        for name in ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a b", "ä", "a\0", "a\n", "%2e", &long] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
