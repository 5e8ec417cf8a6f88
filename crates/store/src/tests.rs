//! What tests of several rooms, and of other crates, share; and what they all are tried with: bytes nobody wrote.

mod fuzz;
pub(crate) mod mutations;
pub(crate) mod tries;
