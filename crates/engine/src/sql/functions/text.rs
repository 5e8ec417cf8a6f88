//! `hashtags`, `mentions`, `urls`, `words`: a text to a list of its pieces.
//!
//! The pieces are as they are written, words excepted, which are lower-cased.
//! Written for `unnest(hashtags(text))`. Rules: [`crate::text`].

use crate::text;
use arrow_array::{Array, ArrayRef, ListArray, StringArray, builder::StringBuilder, cast::AsArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef};
use datafusion::{
    common::{Result as DfResult, exec_datafusion_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Piece {
    Hashtags,
    Mentions,
    Urls,
    Words,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Pieces {
    piece: Piece,
    signature: Signature,
}

pub(super) fn all() -> impl Iterator<Item = ScalarUDF> {
    [Piece::Hashtags, Piece::Mentions, Piece::Urls, Piece::Words].into_iter().map(|piece| {
        ScalarUDF::from(Pieces { piece, signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) })
    })
}

fn item() -> FieldRef {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

impl ScalarUDFImpl for Pieces {
    fn name(&self) -> &str {
        match self.piece {
            Piece::Hashtags => "hashtags",
            Piece::Mentions => "mentions",
            Piece::Urls => "urls",
            Piece::Words => "words",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::List(item()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let texts = ColumnarValue::values_to_arrays(&args.args)?;
        let texts =
            texts[0].as_string_opt::<i32>().ok_or_else(|| exec_datafusion_err!("{} takes a text", self.name()))?;
        let lists = match self.piece {
            Piece::Hashtags => lists(texts, |text, out| text::hashtags(text).for_each(out)),
            Piece::Mentions => lists(texts, |text, out| text::mentions(text).for_each(out)),
            Piece::Urls => lists(texts, |text, out| text::urls(text).for_each(out)),
            Piece::Words => {
                let mut lower = String::new();
                lists(texts, |text, out| {
                    for word in text::words(text) {
                        if word.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
                            out(word);
                        } else {
                            lower.clear();
                            lower.extend(word.chars().flat_map(char::to_lowercase));
                            out(&lower);
                        }
                    }
                })
            }
        }?;
        Ok(ColumnarValue::Array(lists))
    }
}

fn lists(texts: &StringArray, mut pieces: impl FnMut(&str, &mut dyn FnMut(&str))) -> DfResult<ArrayRef> {
    let mut values = StringBuilder::new();
    let mut offsets = Vec::with_capacity(texts.len() + 1);
    let (mut count, mut fits) = (0_i32, true);
    offsets.push(0);
    for row in 0..texts.len() {
        if texts.is_valid(row) {
            pieces(texts.value(row), &mut |piece| {
                values.append_value(piece);
                match count.checked_add(1) {
                    Some(next) => count = next,
                    None => fits = false,
                }
            });
        }
        offsets.push(count);
    }
    if !fits {
        return Err(exec_datafusion_err!("over two billion pieces of text in one batch"));
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let nulls: Option<NullBuffer> = texts.nulls().cloned();
    Ok(Arc::new(ListArray::try_new(item(), offsets, Arc::new(values.finish()), nulls)?))
}
