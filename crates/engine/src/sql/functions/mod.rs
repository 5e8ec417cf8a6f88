//! Functions that SQL has beside DataFusion's: for social text and for JSON.
//!
//! Registered by [`super::catalog::session`]. Each works on whole columns; a null
//! gives a null.

mod json;
mod text;

use datafusion::logical_expr::ScalarUDF;

/// All of them.
pub(super) fn all() -> impl Iterator<Item = ScalarUDF> {
    text::all().chain(json::all())
}
