//! Who may do what.
//!
//! Invariant: a role may all that the roles before it may. Named by the table
//! of routes, and checked by [`crate::gate`] before a handler runs.

use std::{fmt, sync::Arc};

/// What somebody may do with a program through its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks at everything and changes nothing.
    Viewer,
    /// Does what belongs to keeping a program running, and can be undone or repeated.
    Operator,
    /// Does everything.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As files and answers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who asks. Handlers of routes that change something take it as an
/// `Extension<Caller>`, for what they log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The name that stands beside the token, for people; `anybody` where there are no tokens.
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
}
