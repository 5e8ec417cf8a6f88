//! A program's text as statements, each with its place.
//!
//! `CREATE STREAM`, `CREATE TABLE` and `CREATE SINK` are read here, `CREATE ALERT`
//! in [`super::alert`]; everything that is a query is sqlparser's. Called by [`super::declare`] and by
//! [`super::query`]. Invariant: text of any shape gives statements or an error
//! with line and column; how deep and how long a statement may be is checked on
//! its tokens, before anything recurses over them.

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::sql::sqlparser::{
    ast::{self, DateTimeField, Expr, ObjectName, Query},
    dialect::GenericDialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Token, TokenWithSpan, Tokenizer},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tidemill_core::{Error, Parameter, Result, nearest};

/// Tokens of one statement at most: far above what people write, far below what exhausts a stack.
const TOKENS: usize = 20_000;
/// Nested parentheses, brackets and braces at most.
const NESTING: usize = 64;
/// Operators in one statement at most: a chain of them is a tree as deep as it is long.
const OPERATORS: usize = 2_000;

/// A place in the text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// One statement.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) at: Place,
    pub(super) kind: Kind,
    /// Streams' own columns that the statement names: they are shown to it.
    pub(super) meta: BTreeSet<String>,
    /// Names and texts in it, for errors about them.
    pub(super) words: Vec<Word>,
}

/// A name or a text of a statement, where it stands.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) at: Place,
    /// Whether it is a name in double quotes.
    pub(super) is_quoted: bool,
}

/// What it declares.
#[derive(Debug)]
pub(super) enum Kind {
    Stream { name: String, columns: Option<SchemaRef>, watermark: Option<Mark>, options: Vec<(String, String)> },
    Table { name: String, columns: Option<SchemaRef>, options: Vec<(String, String)> },
    Sink { name: String, options: Vec<(String, String)> },
    View { name: String, query: Box<Query>, options: Vec<(String, String)> },
    Insert { target: String, query: Box<Query> },
    Alert(Box<super::alert::Alert>),
    Query(Box<Query>),
}

/// `WATERMARK FOR column AS column - INTERVAL …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) column: String,
    /// How far the watermark trails the largest time, in microseconds.
    pub(super) bound: i64,
}

/// A statement that can't be read: the error, and the name that it would have declared.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) error: Error,
    pub(super) name: Option<String>,
}

/// Reads a text in which `{{name}}` stands for the value of a parameter. `mixed` are the known column names with
/// upper-case letters: written exactly so, they need no quotes.
///
/// # Errors
/// The first one, with line and column; and when a parameter has no value.
pub(super) fn question(
    text: &str,
    mixed: &mut BTreeSet<String>,
    parameters: &BTreeMap<String, Parameter>,
) -> Result<Vec<Statement>> {
    let fill = |tokens| super::parameters::filled(tokens, parameters);
    read(text, mixed, &fill)?.into_iter().map(|statement| statement.map_err(|broken| broken.error)).collect()
}

/// As [`question`], and goes on behind a statement that can't be read.
///
/// # Errors
/// When the text has no words.
pub(super) fn statements(
    text: &str,
    mixed: &mut BTreeSet<String>,
) -> Result<Vec<std::result::Result<Statement, Broken>>> {
    read(text, mixed, &Ok)
}

/// Reads statements; `fill` may put other words into one before it is read.
fn read(
    text: &str,
    mixed: &mut BTreeSet<String>,
    fill: &dyn Fn(Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>>,
) -> Result<Vec<std::result::Result<Statement, Broken>>> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().map_err(|e| {
        let at = Place { line: e.location.line, column: e.location.column };
        Error::user(format!("{at}: {}", e.message))
    })?;
    let mut statements = Vec::new();
    for tokens in tokens.split(|t| t.token == Token::SemiColon) {
        let tokens: Vec<TokenWithSpan> =
            tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).cloned().collect();
        let Some(first) = tokens.first() else { continue };
        let at = place(first);
        let name = tokens.get(2).and_then(|t| match &t.token {
            Token::Word(word) => Some(word.value.clone()),
            _ => None,
        });
        let statement = fill(tokens).and_then(|tokens| one(tokens, at, mixed));
        statements.push(statement.map_err(|error| Broken { error, name }));
    }
    Ok(statements)
}

/// The statement of these words, of which there is one at least.
fn one(mut tokens: Vec<TokenWithSpan>, at: Place, mixed: &mut BTreeSet<String>) -> Result<Statement> {
    bounded(&tokens)?;
    let mut meta: BTreeSet<String> = tokens
        .iter()
        .filter_map(|t| match &t.token {
            Token::Word(word) if crate::plan::META.contains(&word.value.as_str()) => Some(word.value.clone()),
            _ => None,
        })
        .collect();
    // A window needs to know where a row that comes too late lay in its stream.
    let windows = |t: &[TokenWithSpan]| match &t[0].token {
        Token::Word(word) if t[1].token == Token::LParen => super::window::is_function(&word.value),
        _ => false,
    };
    if tokens.windows(2).any(windows) {
        meta.extend(crate::plan::META[..2].iter().map(|name| (*name).to_string()));
    }
    let words = tokens
        .iter()
        .filter_map(|t| match &t.token {
            Token::Word(word) => {
                Some(Word { text: word.value.clone(), at: place(t), is_quoted: word.quote_style.is_some() })
            }
            Token::SingleQuotedString(text) => Some(Word { text: text.clone(), at: place(t), is_quoted: false }),
            _ => None,
        })
        .collect();
    drop_table_keyword(&mut tokens);
    quote_mixed(&mut tokens, mixed);
    let end = tokens.last().map_or(at, place);
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).with_recursion_limit(256).with_tokens_with_locations(tokens);
    let kind = statement(&mut parser, at)?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(Error::user(format!(
            "{}: expected the end of the statement, found `{}`; statements are divided by `;`",
            place_or(&rest, end),
            rest.token
        )));
    }
    if let Kind::Stream { columns: Some(columns), .. } | Kind::Table { columns: Some(columns), .. } = &kind {
        mixed.extend(columns.fields().iter().map(|f| f.name().clone()).filter(|n| is_mixed(n)));
    }
    Ok(Statement { at, kind, meta, words })
}

/// Whether SQL would fold the name to another one if it stood without quotes.
pub(super) fn is_mixed(name: &str) -> bool {
    name.chars().any(char::is_uppercase)
}

fn place(token: &TokenWithSpan) -> Place {
    Place { line: token.span.start.line, column: token.span.start.column }
}

/// The place of a token; the end of the statement has none of its own.
pub(super) fn place_or(token: &TokenWithSpan, end: Place) -> Place {
    let at = place(token);
    if at.line == 0 { end } else { at }
}

fn bounded(tokens: &[TokenWithSpan]) -> Result<()> {
    let (mut depth, mut operators) = (0_usize, 0_usize);
    for (count, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::UNION | Keyword::JOIN => operators += 1,
                Keyword::CASE => depth += 1,
                Keyword::END => depth = depth.saturating_sub(1),
                _ => {}
            },
            Token::Comma | Token::Period | Token::Number(..) | Token::SingleQuotedString(_) => {}
            _ => operators += 1,
        }
        let what = if depth > NESTING {
            format!("nested over {NESTING} deep: name inner parts with WITH or CREATE VIEW")
        } else if operators > OPERATORS {
            format!("over {OPERATORS} operators in one statement: use IN (…) for long lists, or several statements")
        } else if count > TOKENS {
            format!("over {TOKENS} words in one statement: keep long lists in a table and join it")
        } else {
            continue;
        };
        return Err(Error::user(format!("{}: {what}", place(token))));
    }
    Ok(())
}

/// `TUMBLE(TABLE t, …)` reads as `TUMBLE(t, …)`.
fn drop_table_keyword(tokens: &mut Vec<TokenWithSpan>) {
    let word = |t: &Token, is: &str| matches!(t, Token::Word(w) if w.value.eq_ignore_ascii_case(is));
    let mut at = 2;
    while at < tokens.len() {
        let windows = super::window::FUNCTIONS.iter().any(|name| word(&tokens[at - 2].token, name));
        if windows && tokens[at - 1].token == Token::LParen && word(&tokens[at].token, "table") {
            tokens.remove(at);
        }
        at += 1;
    }
}

/// Names that were declared with upper-case letters are found without quotes, too.
fn quote_mixed(tokens: &mut [TokenWithSpan], mixed: &BTreeSet<String>) {
    for at in 0..tokens.len() {
        let call = tokens.get(at + 1).is_some_and(|next| next.token == Token::LParen);
        if let Token::Word(word) = &mut tokens[at].token
            && word.quote_style.is_none()
            && !call
            && mixed.contains(&word.value)
        {
            word.quote_style = Some('"');
            word.keyword = Keyword::NoKeyword;
        }
    }
}

fn statement(parser: &mut Parser<'_>, at: Place) -> Result<Kind> {
    let first = parser.peek_token();
    let keyword = |token: &Token| match token {
        Token::Word(word) => word.value.to_uppercase(),
        other => other.to_string(),
    };
    match keyword(&first.token).as_str() {
        "CREATE" => {
            parser.next_token();
            let second = parser.next_token();
            match keyword(&second.token).as_str() {
                "STREAM" => stream(parser, at),
                "TABLE" => table(parser, at),
                "EXTERNAL" => {
                    parser.expect_keyword(Keyword::TABLE).map_err(|e| syntax(&e, at))?;
                    table(parser, at)
                }
                "SINK" => {
                    let name = name(parser, at)?;
                    Ok(Kind::Sink { name, options: options(parser, at)? })
                }
                "VIEW" => {
                    let name = name(parser, at)?;
                    let has_options =
                        matches!(&parser.peek_token().token, Token::Word(word) if word.keyword == Keyword::WITH);
                    let options = if has_options { options(parser, at)? } else { Vec::new() };
                    parser.expect_keyword(Keyword::AS).map_err(|e| syntax(&e, at))?;
                    Ok(Kind::View { name, query: parser.parse_query().map_err(|e| syntax(&e, at))?, options })
                }
                "ALERT" => super::alert::parse(parser, at),
                other => {
                    let known = ["STREAM", "TABLE", "VIEW", "SINK", "ALERT"];
                    Err(unknown(place_or(&second, at), "after CREATE", other, &known))
                }
            }
        }
        "INSERT" => {
            parser.next_token();
            parser.expect_keyword(Keyword::INTO).map_err(|e| syntax(&e, at))?;
            let target = name(parser, at)?;
            Ok(Kind::Insert { target, query: parser.parse_query().map_err(|e| syntax(&e, at))? })
        }
        "SELECT" | "WITH" | "VALUES" | "(" => Ok(Kind::Query(parser.parse_query().map_err(|e| syntax(&e, at))?)),
        other => Err(unknown(at, "at the beginning of a statement", other, &["CREATE", "INSERT", "SELECT", "WITH"])),
    }
}

fn unknown(at: Place, whereabouts: &str, found: &str, known: &[&str]) -> Error {
    let hint = nearest(found, known).map_or(String::new(), |near| format!("; did you mean {near}?"));
    Error::user(format!("{at}: expected {} {whereabouts}, found `{found}`{hint}", known.join(", ")))
}

/// sqlparser's error with its place in front.
pub(super) fn syntax(error: &ParserError, at: Place) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.clone(),
        ParserError::RecursionLimitExceeded => "nested too deep: name inner parts with WITH or CREATE VIEW".to_string(),
    };
    // `Expected: a, found: b at Line: 1, Column: 7`
    if let Some((what, place)) = text.rsplit_once(" at Line: ")
        && let Some((line, column)) = place.split_once(", Column: ")
    {
        let mut what = what.replacen("Expected: ", "expected ", 1);
        if let Some(cut) = what.rfind(", found: ") {
            what.replace_range(cut..cut + ", found: ".len(), ", found ");
        }
        return Error::user(format!("line {line}, column {column}: {what}"));
    }
    let text = text.replacen("Expected: ", "expected ", 1).replacen(", found: EOF", ", found its end", 1);
    Error::user(format!("{at}: in this statement: {text}"))
}

pub(super) fn name(parser: &mut Parser<'_>, at: Place) -> Result<String> {
    let name = parser.parse_object_name(false).map_err(|e| syntax(&e, at))?;
    plain_name(&name).ok_or_else(|| Error::user(format!("{at}: `{name}`: names here have one part, without dots")))
}

/// A name of one part, folded to lower case unless it is quoted.
pub(super) fn plain_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(ident),
        _ => None,
    }
}

pub(super) fn ident(ident: &ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn stream(parser: &mut Parser<'_>, at: Place) -> Result<Kind> {
    let name = name(parser, at)?;
    let (columns, watermark) = columns(parser, at, true)?;
    Ok(Kind::Stream { name, columns, watermark, options: options(parser, at)? })
}

fn table(parser: &mut Parser<'_>, at: Place) -> Result<Kind> {
    let name = name(parser, at)?;
    let (columns, _) = columns(parser, at, false)?;
    let fail = |e: ParserError| syntax(&e, at);
    if parser.parse_keyword(Keyword::STORED) {
        parser.expect_keyword(Keyword::AS).map_err(fail)?;
        let format = parser.parse_identifier().map_err(fail)?.value.to_lowercase();
        parser.expect_keyword(Keyword::LOCATION).map_err(fail)?;
        let path = parser.parse_literal_string().map_err(fail)?;
        let options = vec![("connector".to_string(), format), ("path".to_string(), path)];
        return Ok(Kind::Table { name, columns, options });
    }
    Ok(Kind::Table { name, columns, options: options(parser, at)? })
}

/// `(column TYPE [NOT NULL], …, WATERMARK FOR column AS …)`, if there.
fn columns(parser: &mut Parser<'_>, at: Place, streaming: bool) -> Result<(Option<SchemaRef>, Option<Mark>)> {
    if !parser.consume_token(&Token::LParen) {
        return Ok((None, None));
    }
    let fail = |e: ParserError| syntax(&e, at);
    let (mut fields, mut mark) = (Vec::<Field>::new(), None);
    loop {
        let here = place_or(&parser.peek_token(), at);
        let is_mark = matches!(&parser.peek_token().token, Token::Word(w) if w.value.eq_ignore_ascii_case("watermark"))
            && matches!(&parser.peek_nth_token(1).token, Token::Word(w) if w.keyword == Keyword::FOR);
        if is_mark && streaming {
            if mark.is_some() {
                return Err(Error::user(format!("{here}: a stream has one watermark")));
            }
            mark = Some((here, watermark(parser, at)?));
        } else {
            let ident = parser.parse_identifier().map_err(fail)?;
            // The name is the record's field: its case is kept.
            let name = ident.value;
            let kind = parser.parse_data_type().map_err(fail)?;
            let kind = arrow_type(&kind).map_err(|e| Error::user(format!("{here}: column `{name}`: {e}")))?;
            let nullable = if parser.parse_keywords(&[Keyword::NOT, Keyword::NULL]) {
                false
            } else {
                let _nullable_said = parser.parse_keyword(Keyword::NULL);
                true
            };
            if fields.iter().any(|f| *f.name() == name) {
                return Err(Error::user(format!("{here}: column `{name}` is there twice")));
            }
            if crate::plan::META.contains(&name.as_str()) {
                return Err(Error::user(format!("{here}: every stream has a column `{name}` already")));
            }
            fields.push(Field::new(name, kind, nullable));
        }
        if parser.consume_token(&Token::RParen) {
            break;
        }
        parser.expect_token(&Token::Comma).map_err(fail)?;
    }
    let mark = match mark {
        None => None,
        Some((_, mark)) if fields.is_empty() => Some(mark),
        Some((here, mark)) => {
            let names: Vec<&str> = fields.iter().map(|f| f.name().as_str()).chain(crate::plan::META).collect();
            // An unquoted name may be written in any case.
            let Some(found) = names.iter().find(|n| **n == mark.column || n.to_lowercase() == mark.column) else {
                let hint = nearest(&mark.column, &names).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                return Err(Error::user(format!(
                    "{here}: WATERMARK FOR `{}`: there is no such column{hint}",
                    mark.column
                )));
            };
            Some(Mark { column: (*found).to_string(), bound: mark.bound })
        }
    };
    Ok(((!fields.is_empty()).then(|| Arc::new(Schema::new(fields))), mark))
}

fn watermark(parser: &mut Parser<'_>, at: Place) -> Result<Mark> {
    let fail = |e: ParserError| syntax(&e, at);
    parser.next_token();
    parser.expect_keyword(Keyword::FOR).map_err(fail)?;
    let here = place_or(&parser.peek_token(), at);
    let column = parser.parse_identifier().map_err(fail)?;
    parser.expect_keyword(Keyword::AS).map_err(fail)?;
    let same = parser.parse_identifier().map_err(fail)?;
    let form =
        || Error::user(format!("{here}: a watermark reads: WATERMARK FOR {column} AS {column} - INTERVAL '5' SECOND"));
    if same.value != column.value {
        return Err(form());
    }
    let bound = if parser.consume_token(&Token::Minus) {
        let interval = parser.parse_expr().map_err(fail)?;
        interval_micros(&interval).map_err(|e| Error::user(format!("{here}: {e}")))?
    } else {
        0
    };
    if bound < 0 {
        return Err(form());
    }
    Ok(Mark { column: ident(&column), bound })
}

/// `WITH (key = value, …)`, which must be there.
pub(super) fn options(parser: &mut Parser<'_>, at: Place) -> Result<Vec<(String, String)>> {
    let fail = |e: ParserError| syntax(&e, at);
    parser.expect_keyword(Keyword::WITH).map_err(fail)?;
    parser.expect_token(&Token::LParen).map_err(fail)?;
    let mut pairs: Vec<(String, String)> = Vec::new();
    loop {
        let token = parser.next_token();
        let here = place_or(&token, at);
        let mut key = match &token.token {
            Token::Word(word) => word.value.clone(),
            Token::SingleQuotedString(text) => text.clone(),
            other => return Err(Error::user(format!("{here}: expected the name of an option, found `{other}`"))),
        };
        while parser.consume_token(&Token::Period) {
            key.push('.');
            key.push_str(&parser.parse_identifier().map_err(fail)?.value);
        }
        let key = key.to_lowercase();
        parser.expect_token(&Token::Eq).map_err(fail)?;
        let token = parser.next_token();
        let value = match token.token {
            Token::SingleQuotedString(text) => text,
            Token::Number(number, _) => number,
            Token::Minus => match parser.next_token().token {
                Token::Number(number, _) => format!("-{number}"),
                other => {
                    return Err(Error::user(format!(
                        "{here}: option `{key}`: expected a number after `-`, found `{other}`"
                    )));
                }
            },
            Token::Word(word) if matches!(word.keyword, Keyword::TRUE | Keyword::FALSE) => word.value.to_lowercase(),
            other => {
                return Err(Error::user(format!(
                    "{}: option `{key}`: expected a value such as 'text', 5 or true, found `{other}`",
                    Place { line: token.span.start.line, column: token.span.start.column }
                )));
            }
        };
        if pairs.iter().any(|(k, _)| *k == key) {
            return Err(Error::user(format!("{here}: option `{key}` is there twice")));
        }
        pairs.push((key, value));
        if parser.consume_token(&Token::RParen) {
            return Ok(pairs);
        }
        parser.expect_token(&Token::Comma).map_err(fail)?;
    }
}

fn arrow_type(kind: &ast::DataType) -> Result<DataType> {
    use ast::{ArrayElemTypeDef, DataType as Sql, StructBracketKind, TimezoneInfo};
    Ok(match kind {
        Sql::Text | Sql::Varchar(_) | Sql::CharVarying(_) | Sql::Char(_) | Sql::String(_) => DataType::Utf8,
        Sql::TinyInt(_) => DataType::Int8,
        Sql::SmallInt(_) | Sql::Int2(_) => DataType::Int16,
        Sql::Int(_) | Sql::Integer(_) | Sql::Int4(_) => DataType::Int32,
        Sql::BigInt(_) | Sql::Int8(_) => DataType::Int64,
        Sql::Real | Sql::Float4 => DataType::Float32,
        Sql::Double(_) | Sql::DoublePrecision | Sql::Float(_) | Sql::Float8 => DataType::Float64,
        Sql::Bool | Sql::Boolean => DataType::Boolean,
        Sql::Timestamp(
            _,
            TimezoneInfo::None | TimezoneInfo::WithTimeZone | TimezoneInfo::Tz | TimezoneInfo::WithoutTimeZone,
        )
        | Sql::Datetime(_) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Sql::Array(
            ArrayElemTypeDef::SquareBracket(item, _)
            | ArrayElemTypeDef::AngleBracket(item)
            | ArrayElemTypeDef::Parenthesis(item),
        ) => DataType::List(Arc::new(Field::new("item", arrow_type(item)?, true))),
        Sql::Struct(fields, StructBracketKind::AngleBrackets | StructBracketKind::Parentheses) => {
            let fields = fields
                .iter()
                .map(|f| {
                    let name = f.field_name.as_ref().ok_or_else(|| Error::user("fields of a STRUCT have names"))?;
                    Ok(Field::new(&name.value, arrow_type(&f.field_type)?, true))
                })
                .collect::<Result<Vec<_>>>()?;
            DataType::Struct(fields.into())
        }
        other => {
            return Err(Error::user(format!(
                "there is no type {other} here; use TEXT, BIGINT, INT, DOUBLE, BOOLEAN, TIMESTAMP, an array such as TEXT[], or STRUCT<…>"
            )));
        }
    })
}

/// Microseconds of `INTERVAL '5' SECOND` or `INTERVAL '5 seconds'`.
///
/// # Errors
/// When it is something else, or has no fixed length.
pub(super) fn interval_micros(expr: &Expr) -> Result<i64> {
    let form = || Error::user(format!("expected an interval such as INTERVAL '10' SECOND, found `{expr}`"));
    let Expr::Interval(interval) = expr else { return Err(form()) };
    let text = match interval.value.as_ref() {
        Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => text.clone(),
            ast::Value::Number(number, _) => number.to_string(),
            _ => return Err(form()),
        },
        _ => return Err(form()),
    };
    let unit = match &interval.leading_field {
        None => "",
        Some(DateTimeField::Microsecond | DateTimeField::Microseconds) => "us",
        Some(DateTimeField::Millisecond | DateTimeField::Milliseconds) => "ms",
        Some(DateTimeField::Second | DateTimeField::Seconds) => "s",
        Some(DateTimeField::Minute | DateTimeField::Minutes) => "m",
        Some(DateTimeField::Hour | DateTimeField::Hours) => "h",
        Some(DateTimeField::Day | DateTimeField::Days) => "d",
        Some(other) => {
            return Err(Error::user(format!(
                "an interval in {other} has no fixed length; use DAY, HOUR, MINUTE or SECOND"
            )));
        }
    };
    if unit.is_empty() && !text.trim_end().ends_with(|c: char| c.is_alphabetic()) {
        return Err(form());
    }
    let span = tidemill_core::parse_duration(&format!("{text}{unit}")).ok_or_else(form)?;
    i64::try_from(span.as_micros()).map_err(|_| form())
}
