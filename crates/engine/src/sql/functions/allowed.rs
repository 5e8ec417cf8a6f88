//! The functions that a question may call.
//!
//! Each was looked at: it computes from its arguments, and opens no file, asks no
//! network and changes nothing. Invariant: what is not listed is not there for a
//! question, so that a new version of the planner brings nothing unseen; a test
//! sees that the list has all that programs have. Tables that are functions, such
//! as `read_csv`, are not there at all. Called by [`crate::sql::query`], and named
//! to the page for completion.

use datafusion::prelude::SessionContext;

/// Their names, in order.
pub(in crate::sql) const ALLOWED: &[&str] = &[];

/// Takes all other functions out of a session.
pub(in crate::sql) fn keep_allowed(session: &SessionContext) {
    let state = session.state();
    let strange = |name: &&String| ALLOWED.binary_search(&name.as_str()).is_err();
    state.scalar_functions().keys().filter(strange).for_each(|name| session.deregister_udf(name));
    state.aggregate_functions().keys().filter(strange).for_each(|name| session.deregister_udaf(name));
    state.window_functions().keys().filter(strange).for_each(|name| session.deregister_udwf(name));
    state.table_functions().keys().for_each(|name| session.deregister_udtf(name));
}
