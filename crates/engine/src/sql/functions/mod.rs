//! Functions that SQL has beside DataFusion's: for social text and for JSON.
//!
//! Registered by [`super::session::session`]. Each works on whole columns; a null
//! gives a null.

mod allowed;
mod bounded;
mod json;
mod text;

#[cfg(test)]
pub(super) use allowed::LEFT_OUT;
pub(super) use allowed::{keep_allowed, names};

use datafusion::{execution::SessionState, logical_expr::ScalarUDF};

/// All of them, and those of the session that are given a bound.
pub(super) fn all(session: &SessionState) -> impl Iterator<Item = ScalarUDF> + use<> {
    let bounded = bounded::all(|name| session.scalar_functions().get(name).cloned());
    text::all().chain(json::all()).chain(bounded)
}
