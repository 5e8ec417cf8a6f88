//! `#[derive(Record)]` and `#[derive(Key)]`: structs on typed streams.
//!
//! ```ignore
//! use tidemill::Record;
//!
//! #[derive(Debug, Clone, PartialEq, Record)]
//! struct Post {
//!     text: String,
//!     likes: i64,
//!     #[record(rename = "langs")]
//!     languages: Vec<String>,
//! }
//! ```
//!
//! A function on a stream of posts receives a `PostRef<'_>`, whose fields are
//! the borrowed forms of the struct's (`text: &str`). As a table, the stream has
//! the columns `text`, `likes` and `langs`. Columns are read by name where all
//! names are there, and by place where none is; a mix is an error that names
//! what is missing.
//!
//! | Attribute | On | Meaning |
//! |---|---|---|
//! | `#[record(rename = "…")]` | a field | name of its column |
//! | `#[record(crate = "…")]` | the struct | path of the crate with the trait; `::tidemill` by default |
//!
//! Invariant: the expansion names only items of `<crate>::record_support`.

mod expand;
mod input;

use input::Input;
use proc_macro::TokenStream;

/// Implements `Record` for a struct with named fields, whose types are records
/// themselves, and makes its borrowed form, `<Name>Ref`.
#[proc_macro_derive(Record, attributes(record))]
pub fn derive_record(item: TokenStream) -> TokenStream {
    expanded(item, "Record", expand::record)
}

/// Implements `Key` for a struct that derives `Record`: it is hashed and
/// compared by all its fields, whose types must be keys.
#[proc_macro_derive(Key, attributes(record))]
pub fn derive_key(item: TokenStream) -> TokenStream {
    expanded(item, "Key", expand::key)
}

fn expanded(item: TokenStream, what: &str, expand: fn(&Input) -> proc_macro2::TokenStream) -> TokenStream {
    let parsed = syn::parse(item).and_then(|item| Input::of(&item, what));
    match parsed {
        Ok(input) => expand(&input),
        Err(error) => error.into_compile_error(),
    }
    .into()
}
