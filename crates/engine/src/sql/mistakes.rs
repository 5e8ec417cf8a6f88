//! What the planner says about a wrong query, in the words of someone who wrote it.
//!
//! DataFusion's errors name its own types and parts. The usual ones are told
//! anew: what is wrong, the name between backticks, and the way out; all others
//! keep their text without its wrapping. [`placed`] finds the name in the statement.
//! Called wherever a planner's error becomes ours.
//!
//! Invariant: no error is lost: what is not known here is passed on as it is.

use super::parse::{Place, Word};
use datafusion::common::{DataFusionError as Df, SchemaError};
use tidemill_core::{Error, nearest};

/// Names of columns that an error lists at most.
const LISTED: usize = 12;
/// Functions that people mean when they mistype one.
const FUNCTIONS: [&str; 44] = [
    "abs",
    "array_length",
    "avg",
    "cast",
    "ceil",
    "char_length",
    "coalesce",
    "concat",
    "contains",
    "count",
    "date_trunc",
    "extract",
    "first_value",
    "floor",
    "hashtags",
    "json_get",
    "json_get_float",
    "json_get_int",
    "json_get_str",
    "last_value",
    "left",
    "length",
    "lower",
    "max",
    "median",
    "mentions",
    "min",
    "now",
    "nullif",
    "regexp_like",
    "regexp_replace",
    "replace",
    "right",
    "round",
    "split_part",
    "starts_with",
    "stddev",
    "substr",
    "sum",
    "to_timestamp",
    "trim",
    "unnest",
    "upper",
    "urls",
];

/// A DataFusion error as ours, without its wrapping.
pub(super) fn of_df(error: Df) -> Error {
    match error {
        Df::External(inner) => match inner.downcast::<Error>() {
            Ok(ours) => *ours,
            Err(other) => Error::user(other.to_string()),
        },
        Df::Context(_, inner) | Df::Diagnostic(_, inner) => of_df(*inner),
        Df::Plan(text) | Df::NotImplemented(text) | Df::Execution(text) => Error::user(plainly(&text)),
        Df::SchemaError(error, _) => Error::user(of_columns(&error)),
        other => Error::user(plainly(&other.strip_backtrace())),
    }
}

/// Errors about names of columns.
fn of_columns(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let name = field.name.as_str();
            let mut names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
            names.dedup();
            let hint = match nearest(name, &names) {
                _ if name == super::window::START || name == super::window::END => {
                    "it comes from TUMBLE, HOP, SESSION or COUNT_WINDOW in FROM".to_string()
                }
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "there is none here".to_string(),
                None if names.len() > LISTED => format!("there are {}, and more", names[..LISTED].join(", ")),
                None => format!("there are {}", names.join(", ")),
            };
            format!("there is no column `{name}`; {hint}")
        }
        SchemaError::AmbiguousReference { field } => {
            format!(
                "column `{}` is in several tables: write `table.column`, or give one another name with AS",
                field.name
            )
        }
        other => format!(
            "{}: two columns have one name; write `table.column`, or give one another name with AS",
            other.to_string().trim_end_matches('.')
        ),
    }
}

/// The planner's text, told anew when it is a usual mistake.
fn plainly(text: &str) -> String {
    let grouping = |part: &str| {
        let column = between(text, "column \"", "\"")?;
        let column = column.rsplit('.').next().unwrap_or(column);
        Some(format!(
            "column `{column}` stands beside an aggregate in {part}: add it to GROUP BY, or take one of its values, as in min({column})"
        ))
    };
    let told = if text.contains("in SELECT must be in GROUP BY") {
        grouping("SELECT")
    } else if text.contains("in HAVING must be in GROUP BY") {
        grouping("HAVING")
    } else if text.contains("in ORDER BY must be in GROUP BY") {
        grouping("ORDER BY")
    } else if let Some(function) = between(text, "Invalid function '", "'") {
        let meant = nearest(function, &FUNCTIONS).or_else(|| between(text, "Did you mean '", "'"));
        let hint = meant.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        Some(format!("there is no function `{function}`{hint}"))
    } else if let Some(call) = between(text, "given name and argument types '", "'")
        && let Some((function, types)) = call.split_once('(')
    {
        let types = types.strip_suffix(')').unwrap_or(types);
        if let Some(told) = arity(text, function, arguments(types)) {
            return told;
        }
        let types = if types.is_empty() { "no argument".to_string() } else { spelt(types) };
        Some(format!(
            "function `{function}` can't take {types}: convert it, as in CAST(x AS BIGINT), or take another column"
        ))
    } else if let Some(sum) = between(text, "Cannot coerce arithmetic expression ", " to valid types") {
        Some(format!("there is no {}: convert one side, as in CAST(x AS BIGINT)", spelt(sum)))
    } else if let Some(kind) = text.split_once("Unsupported SQL type ").map(|(_, kind)| kind) {
        let kind = kind.split_whitespace().next().unwrap_or(kind);
        Some(format!("there is no type `{kind}` here; use TEXT, BIGINT, INT, DOUBLE, BOOLEAN, TIMESTAMP"))
    } else if text.contains("Substring without for/from") {
        Some("`substr` needs a start, counted from 1: substr(text, start) or substr(text, start, length)".to_string())
    } else if text.contains("require unique expression names") {
        Some("two columns have one name: give one another name with AS".to_string())
    } else if let Some(column) = between(text, "non-boolean predicate '", "'") {
        let column = column.rsplit('.').next().unwrap_or(column);
        Some(format!("`{column}` is no condition: compare it with something, as in {column} = 'x'"))
    } else if text.contains("different number of columns") && text.contains("UNION") {
        Some("the parts of a UNION have different numbers of columns: give each the same".to_string())
    } else if let Some(time) = between(text, "Error parsing timestamp from '", "'") {
        Some(format!("`{time}` is no time: write it as '2026-05-25 14:00:00'"))
    } else {
        between(text, "Cannot cast string '", "'").map(|value| {
            let to = between(text, "to value of ", " type").map_or("that".to_string(), spelt);
            format!("`{value}` is no {to}: a number stands without quotes, a text is compared with text")
        })
    };
    told.unwrap_or_else(|| {
        let mut rest = text;
        for wrapping in ["Error during planning: ", "Arrow error: ", "Parser error: ", "Execution error: "] {
            rest = rest.strip_prefix(wrapping).unwrap_or(rest);
        }
        rest.split("\nThis issue was likely caused by a bug").next().unwrap_or(rest).trim_end().to_string()
    })
}

/// What is wrong with the number of arguments, where none of the forms that the function has takes so many.
fn arity(text: &str, function: &str, given: usize) -> Option<String> {
    let (_, forms) = text.split_once("Candidate functions:\n")?;
    let own = format!("\t{function}(");
    let mut counts: Vec<usize> = Vec::new();
    for form in forms.lines().filter_map(|line| line.strip_prefix(&own)) {
        let form = form.strip_suffix(')').unwrap_or(form);
        let number = ["String(", "Numeric(", "Comparable("].iter().find_map(|kind| form.strip_prefix(kind));
        counts.push(match number.and_then(|number| number.strip_suffix(')')?.parse().ok()) {
            Some(number) => number,
            None if form == "NullAry()" => 0,
            // It looks at its arguments itself, and says how many it wants, or takes any number.
            None if form == "UserDefined" => {
                let (_, wanted) = text.split_once(" requires ").or_else(|| text.split_once(" expects "))?;
                wanted.split_whitespace().next()?.parse().ok()?
            }
            None if form.contains("..") => return None,
            None => arguments(form),
        });
    }
    counts.sort_unstable();
    counts.dedup();
    let most = *counts.last()?;
    if counts.contains(&given) {
        return None;
    }
    let takes: Vec<String> =
        counts.iter().map(|count| if *count == 0 { "no".into() } else { count.to_string() }).collect();
    let noun = if most == 1 { "argument" } else { "arguments" };
    let got = if given == 0 { "none".to_string() } else { given.to_string() };
    Some(format!("function `{function}` takes {} {noun}, not {got}", takes.join(" or ")))
}

/// How many arguments a list of types stands for.
fn arguments(types: &str) -> usize {
    let (mut depth, mut commas) = (0_i32, 0);
    for c in types.chars() {
        match c {
            '(' | '[' | '<' | '{' => depth += 1,
            ')' | ']' | '>' | '}' => depth -= 1,
            ',' if depth == 0 => commas += 1,
            _ => {}
        }
    }
    if types.trim().is_empty() { 0 } else { commas + 1 }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(found, _)| found)
}

/// Arrow's names of types as SQL's.
pub(super) fn spelt(types: &str) -> String {
    [
        ("LargeUtf8", "TEXT"),
        ("Utf8View", "TEXT"),
        ("Utf8", "TEXT"),
        ("Int64", "BIGINT"),
        ("Int32", "INT"),
        ("Float64", "DOUBLE"),
        ("Boolean", "BOOLEAN"),
    ]
    .into_iter()
    .fold(types.to_string(), |text, (arrow, sql)| text.replace(arrow, sql))
}

/// Where the name stands that an error is about, the first one between
/// backticks, and the error; `start` when it stands nowhere.
pub(super) fn placed(mut error: String, words: &[Word], start: Place) -> (Place, String) {
    let name = between(&error, "`", "`");
    let found = name.and_then(|name| words.iter().find(|word| word.text.eq_ignore_ascii_case(name)));
    let Some(word) = found else { return (start, error) };
    if word.is_quoted && error.starts_with("there is no column") {
        error.push_str(&format!("; a text stands in single quotes: '{}'", word.text));
    }
    (word.at, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_where_it_stands_first() {
        let at = |line, column| Place { line, column };
        let word = |text: &str, at, is_quoted| Word { text: text.to_string(), at, is_quoted };
        let words = [word("CREATE", at(1, 1), false), word("Wrod", at(2, 8), false), word("wrod", at(3, 1), true)];
        let place = |error: &str| placed(error.to_string(), &words, at(7, 7)).0;
        assert_eq!(place("there is no column `wrod`; did you mean `create`?"), at(2, 8));
        assert_eq!(place("option `path` is missing"), at(7, 7));
        assert_eq!(place("no name at all"), at(7, 7));
        let (_, error) = placed("there is no column `wrod`".to_string(), &words[2..], at(7, 7));
        assert_eq!(error, "there is no column `wrod`; a text stands in single quotes: 'wrod'");
    }

    #[test]
    fn what_is_not_known_keeps_its_text() {
        assert_eq!(plainly("Error during planning: the moon"), "the moon");
        assert_eq!(plainly("odd\nThis issue was likely caused by a bug in X"), "odd");
        assert_eq!(of_df(Df::Plan("a window".into())).to_string(), "a window");
    }

    #[test]
    fn the_functions_are_in_order_and_once() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a < b));
    }
}
