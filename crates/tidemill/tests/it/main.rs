//! What must hold of the whole: the house's rules, and the binary as its users run it.

mod demo;
mod run;
mod tidy;
mod topics;
