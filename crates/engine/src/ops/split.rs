//! `split`: the pieces of each text, without a copy.
//!
//! As `flat_map(|line, out| out.extend(line.split(…)))`, but the pieces are
//! handed on as they lie in the line, and found many bytes at a time. Empty
//! pieces, between two separators, are left out. No state.
//!
//! ```
//! # use tidemill_engine::{testing::check, Str};
//! check([vec!["to be  or".to_string()]], |lines| lines.split(b' '), [vec!["to", "be", "or"].into_iter().map(Str::from).collect()]);
//! ```

use crate::{
    record::{Record, Str},
    stream::{Chain, DStream, chain::Input},
};
use arrow_array::RecordBatch;
use tidemill_core::Result;

/// A chain of texts cut at a separator.
#[derive(Debug, Clone)]
pub struct Split<C> {
    chain: C,
    separator: u8,
}

impl<C> Chain for Split<C>
where
    C: Chain,
    C::Out: for<'a> Record<Ref<'a> = &'a str>,
{
    type Out = Str;

    #[inline]
    fn drive<E>(&self, rows: &RecordBatch, mut each: E) -> Result<()>
    where
        E: FnMut(&str),
    {
        let separator = self.separator;
        self.chain.drive(rows, |text| {
            let mut start = 0;
            let ends = memchr::memchr_iter(separator, text.as_bytes()).chain(std::iter::once(text.len()));
            for end in ends {
                // A separator is one byte of ASCII, so pieces begin and end between characters.
                if let Some(piece) = text.get(start..end)
                    && !piece.is_empty()
                {
                    each(piece);
                }
                start = end + 1;
            }
        })
    }

    fn input(&self) -> &Input {
        self.chain.input()
    }
}

impl<T, C> DStream<T, C>
where
    T: for<'a> Record<Ref<'a> = &'a str>,
    C: Chain<Out = T>,
{
    /// The pieces of each text between separators, which must be ASCII; a
    /// larger byte is an error at the start of the program.
    pub fn split(&self, separator: u8) -> DStream<Str, Split<C>> {
        if !separator.is_ascii() {
            self.declare.fail(tidemill_core::Error::user(format!("split: the separator {separator} is not ASCII")));
        }
        self.with(Split { chain: self.chain.clone(), separator })
    }
}
