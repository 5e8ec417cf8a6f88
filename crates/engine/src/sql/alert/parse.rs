//! `CREATE ALERT`, read from its words. Called by the parser of statements.
//!
//! Invariant: the clauses behind `WHEN` may stand in any order, each once.

use crate::sql::parse::{self, Kind, Place};
use datafusion::sql::sqlparser::{
    ast::Expr,
    parser::Parser,
    tokenizer::{Token, TokenWithSpan},
};
use tidemill_core::{Duration, Error, Result, nearest};

/// An alert as it stands in the program.
#[derive(Debug)]
pub(in crate::sql) struct Alert {
    pub(in crate::sql) name: String,
    /// The view, or the stream, that it looks at.
    pub(in crate::sql) view: String,
    pub(in crate::sql) keys: Vec<String>,
    pub(in crate::sql) when: Option<Expr>,
    pub(in crate::sql) clear: Option<Expr>,
    /// For how long the condition has to hold.
    pub(in crate::sql) hold: Duration,
    /// For how long nothing may come.
    pub(in crate::sql) missing: Option<Duration>,
    pub(in crate::sql) options: Vec<(String, String)>,
}

const FORM: &str = "CREATE ALERT name ON view [KEY (column, …)] WHEN condition [CLEAR WHEN condition] [FOR '30s'] \
                    [MISSING '5m'] [WITH (severity = 'page', message = '…')]";
const CLAUSES: [&str; 5] = ["WHEN", "CLEAR", "FOR", "MISSING", "WITH"];

fn is(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

fn take(parser: &mut Parser<'_>, word: &str) -> bool {
    let found = is(&parser.peek_token(), word);
    if found {
        parser.next_token();
    }
    found
}

/// The statement behind `CREATE ALERT`.
///
/// # Errors
/// With line and column, and how an alert reads.
pub(in crate::sql) fn alert(parser: &mut Parser<'_>, at: Place) -> Result<Kind> {
    let name = parse::name(parser, at)?;
    if !take(parser, "ON") {
        let here = parser.peek_token();
        return Err(Error::user(format!(
            "{}: expected ON and the view that the alert looks at, found `{}`; an alert reads: {FORM}",
            parse::place_or(&here, at),
            here.token
        )));
    }
    let view = parse::name(parser, at)?;
    let keys = if take(parser, "KEY") { keys(parser, at)? } else { Vec::new() };
    let (mut when, mut clear, mut hold, mut missing, mut options) = (None, None, None, None, None);
    let expr = |parser: &mut Parser<'_>| parser.parse_expr().map_err(|e| parse::syntax(&e, at));
    loop {
        let next = parser.peek_token();
        let here = parse::place_or(&next, at);
        let Some(clause) = CLAUSES.into_iter().find(|clause| is(&next, clause)) else { break };
        let twice = match clause {
            "WITH" => {
                let given = parse::options(parser, at)?;
                options.replace(given).is_some()
            }
            _ => {
                parser.next_token();
                match clause {
                    "WHEN" => when.replace(expr(parser)?).is_some(),
                    "CLEAR" => {
                        if !take(parser, "WHEN") {
                            return Err(Error::user(format!("{here}: expected CLEAR WHEN and a condition")));
                        }
                        clear.replace(expr(parser)?).is_some()
                    }
                    "FOR" => hold.replace(span(parser, at, "FOR")?).is_some(),
                    _ => missing.replace(span(parser, at, "MISSING")?).is_some(),
                }
            }
        };
        if twice {
            return Err(Error::user(format!("{here}: {clause} is there twice")));
        }
    }
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        let found = rest.token.to_string();
        let hint =
            nearest(&found.to_uppercase(), &CLAUSES).map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Err(Error::user(format!(
            "{}: expected {} or the end of the alert, found `{found}`{hint}",
            parse::place_or(&rest, at),
            CLAUSES.join(", ")
        )));
    }
    if when.is_none() && missing.is_none() {
        return Err(Error::user(format!(
            "{at}: the alert `{name}` has neither WHEN nor MISSING; an alert reads: {FORM}"
        )));
    }
    if when.is_none() && (clear.is_some() || hold.is_some()) {
        return Err(Error::user(format!(
            "{at}: CLEAR WHEN and FOR of the alert `{name}` go with WHEN, and there is none; an alert reads: {FORM}"
        )));
    }
    let (hold, options) = (hold.unwrap_or_default(), options.unwrap_or_default());
    Ok(Kind::Alert(Box::new(Alert { name, view, keys, when, clear, hold, missing, options })))
}

/// `(column, …)`
fn keys(parser: &mut Parser<'_>, at: Place) -> Result<Vec<String>> {
    let fail = |e| parse::syntax(&e, at);
    parser.expect_token(&Token::LParen).map_err(fail)?;
    let names = parser.parse_comma_separated(Parser::parse_identifier).map_err(fail)?;
    parser.expect_token(&Token::RParen).map_err(fail)?;
    let names: Vec<String> = names.iter().map(parse::ident).collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(Error::user(format!("{at}: KEY has `{name}` twice")));
        }
    }
    Ok(names)
}

/// A duration in quotes.
fn span(parser: &mut Parser<'_>, at: Place, clause: &str) -> Result<Duration> {
    let token = parser.next_token();
    let span = match &token.token {
        Token::SingleQuotedString(text) => tidemill_core::parse_duration(text),
        _ => None,
    };
    span.filter(|span| clause == "FOR" || !span.is_zero()).ok_or_else(|| {
        Error::user(format!(
            "{}: {clause} takes a duration with its unit (ms, s, m, h, d) in quotes, such as {clause} '30s', and not `{}`",
            parse::place_or(&token, at),
            token.token
        ))
    })
}
