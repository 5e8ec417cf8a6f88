//! `{{name}}` in a question: a value that is bound, and not text that is pasted.
//!
//! ```sql
//! SELECT * FROM top WHERE word = {{word}} AND n > {{least}} LIMIT 10
//! ```
//!
//! Invariant: what a parameter gives is one literal, whatever is in it: its value
//! is put among the statement's tokens, behind the tokenizer, so that quotes and
//! comments in it mean nothing. Within quotes and comments `{{name}}` is text as
//! any other. Called by [`super::parse`] for questions; programs have no parameters.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use std::collections::BTreeMap;
use tidemill_core::{Error, Parameter, Result};

/// The tokens with the values of their parameters.
///
/// # Errors
/// When there is no value for one; with its place.
pub(super) fn filled(
    tokens: Vec<TokenWithSpan>,
    parameters: &BTreeMap<String, Parameter>,
) -> Result<Vec<TokenWithSpan>> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut rest = tokens.into_iter().peekable();
    let mut ahead: Vec<TokenWithSpan> = Vec::with_capacity(5);
    loop {
        while ahead.len() < 5
            && let Some(token) = rest.next()
        {
            ahead.push(token);
        }
        if let Some(name) = parameter(&ahead) {
            let at = ahead[0].span;
            let Some(value) = parameters.get(name) else {
                let start = at.start;
                return Err(Error::user(format!(
                    "line {}, column {}: the parameter `{name}` has no value",
                    start.line, start.column
                )));
            };
            out.extend(literal(value).into_iter().map(|token| TokenWithSpan { token, span: at }));
            ahead.clear();
        } else if ahead.is_empty() {
            return Ok(out);
        } else {
            out.push(ahead.remove(0));
        }
    }
}

/// The name in `{{name}}`, which these tokens begin with.
fn parameter(tokens: &[TokenWithSpan]) -> Option<&str> {
    let [a, b, name, y, z] = tokens else { return None };
    let braces = a.token == Token::LBrace && b.token == Token::LBrace;
    match &name.token {
        Token::Word(word)
            if braces && word.quote_style.is_none() && y.token == Token::RBrace && z.token == Token::RBrace =>
        {
            Some(&word.value)
        }
        _ => None,
    }
}

/// A value as tokens; what has a sign stands in parentheses, so that nothing before it takes the sign for its own.
fn literal(value: &Parameter) -> Vec<Token> {
    let number = |negative: bool, digits: String| match negative {
        false => vec![Token::Number(digits, false)],
        true => vec![Token::LParen, Token::Minus, Token::Number(digits, false), Token::RParen],
    };
    match value {
        Parameter::Null => vec![Token::make_keyword("NULL")],
        Parameter::Truth(true) => vec![Token::make_keyword("TRUE")],
        Parameter::Truth(false) => vec![Token::make_keyword("FALSE")],
        Parameter::Whole(whole) => number(*whole < 0, whole.unsigned_abs().to_string()),
        Parameter::Number(any) => number(*any < 0.0, format!("{:?}", any.abs())),
        Parameter::Text(text) => vec![Token::SingleQuotedString(text.clone())],
    }
}
