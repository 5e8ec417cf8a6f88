//! What an alert looks at in a row: its conditions, its value, its message.
//!
//! ```text
//! rows of the view ─► change(n), zscore(x), … of each key's rows ─► WHEN, CLEAR WHEN, value, message
//! ```
//!
//! `previous(x)`, `change(x)`, `rate(x)` and `zscore(x)` compare a row with those
//! of its key that came before. They are taken out of the conditions, computed
//! row by row from what the key remembers ([`super::memory`]), and stand in the
//! conditions as columns under their own text.
//!
//! Invariant: conditions read one row and nothing else. Made where an alert is declared
//! ([`super`]), called by [`super::step`].

use super::{
    memory::{Function, Tracked},
    parse::Alert,
};
use crate::sql::{
    mistakes::{of_df, spelt},
    refused,
};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, cast::AsArray, types::Float64Type};
use arrow_cast::{
    cast,
    display::{ArrayFormatter, FormatOptions},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{DFSchema, Result as DfResult, TableReference, tree_node::TreeNode},
    execution::SessionState,
    logical_expr::{Expr, ExprSchemable},
    physical_expr::PhysicalExpr,
    sql::sqlparser::ast::{
        self, ExprWithAlias, Function as Call, FunctionArg, FunctionArgExpr, FunctionArguments, Query, Visit, Visitor,
        visit_expressions, visit_expressions_mut,
    },
};
use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};
use tidemill_core::{Error, Result, nearest};

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// What a column holds.
    Column(usize),
    Key,
    Value,
}

/// The conditions of an alert, ready for rows.
#[derive(Debug)]
pub(super) struct Condition {
    /// The rows with what is tracked behind them.
    schema: SchemaRef,
    pub(super) tracked: Vec<Tracked>,
    when: Option<Arc<dyn PhysicalExpr>>,
    clear: Option<Arc<dyn PhysicalExpr>>,
    /// Place of the column that the condition looks at.
    value: Option<usize>,
    message: Vec<Piece>,
}

/// What the conditions say of some rows.
pub(super) struct Looked {
    pub(super) on: BooleanArray,
    pub(super) off: BooleanArray,
    pub(super) value: Option<Float64Array>,
    rows: RecordBatch,
}

impl Condition {
    /// The columns of a view that an alert needs.
    pub(super) fn needs(alert: &Alert, view: &SchemaRef, message: &str) -> Vec<usize> {
        let mut names: BTreeSet<String> = alert.keys.iter().cloned().collect();
        for expr in [&alert.when, &alert.clear].into_iter().flatten() {
            let _all: ControlFlow<()> = visit_expressions(expr, |expr| {
                match expr {
                    ast::Expr::Identifier(name) => drop(names.insert(crate::sql::parse::ident(name))),
                    ast::Expr::CompoundIdentifier(parts) => names.extend(parts.last().map(crate::sql::parse::ident)),
                    _ => {}
                }
                ControlFlow::Continue(())
            });
        }
        let in_message = |name: &str| message.contains(&format!("{{{name}}}"));
        let is_needed = |name: &String| names.contains(name) || in_message(name);
        let fields = view.fields();
        let needed: Vec<usize> = (0..fields.len()).filter(|at| is_needed(fields[*at].name())).collect();
        // A row is one even if nothing in it matters.
        if needed.is_empty() && !fields.is_empty() { vec![0] } else { needed }
    }

    /// Plans the conditions over `rows` of the view.
    ///
    /// # Errors
    /// When they are no conditions of one row, with the word that is wrong between backticks.
    pub(super) fn plan(state: &SessionState, alert: &Alert, rows: &SchemaRef, message: &str) -> Result<Self> {
        let table = TableReference::bare(alert.view.as_str());
        let below = DFSchema::try_from_qualified_schema(table.clone(), rows).map_err(of_df)?;
        let (mut when, mut clear) = (alert.when.clone(), alert.clear.clone());
        let mut calls: Vec<Call> = Vec::new();
        for (expr, clause) in [(&mut when, "WHEN"), (&mut clear, "CLEAR")] {
            let Some(expr) = expr else { continue };
            check(expr, state, clause)?;
            take_calls(expr, &mut calls);
        }
        let mut tracked = Vec::new();
        let mut fields = rows.fields().to_vec();
        for call in &calls {
            let found = tracked_of(state, call, &below)?;
            fields.push(Arc::new(Field::new(&found.text, DataType::Float64, true)));
            tracked.push(found);
        }
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let all = DFSchema::try_from_qualified_schema(table, &schema).map_err(of_df)?;
        let value = when.as_ref().and_then(|when| value_of(when, &schema, &alert.keys));
        let when = when.map(|expr| boolean(state, expr, &all, "WHEN")).transpose()?;
        let clear = clear.map(|expr| boolean(state, expr, &all, "CLEAR")).transpose()?;
        let message = pieces(message, rows)?;
        Ok(Self { schema, tracked, when, clear, value, message })
    }

    /// What the conditions say of rows, with what is tracked of each.
    pub(super) fn look(&self, rows: &RecordBatch, tracked: Vec<Float64Array>) -> DfResult<Looked> {
        let mut columns = rows.columns().to_vec();
        columns.extend(tracked.into_iter().map(|values| Arc::new(values) as ArrayRef));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let holds = |expr: &Option<Arc<dyn PhysicalExpr>>| -> DfResult<Option<BooleanArray>> {
            let Some(expr) = expr else { return Ok(None) };
            let held = expr.evaluate(&rows)?.into_array(rows.num_rows())?;
            let held = cast(&held, &DataType::Boolean)?;
            // What is not known does not hold.
            Ok(Some(held.as_boolean().iter().map(|held| Some(held.unwrap_or(false))).collect()))
        };
        let on = holds(&self.when)?.unwrap_or_else(|| vec![false; rows.num_rows()].into());
        let off = match holds(&self.clear)? {
            Some(off) => off,
            None => on.iter().map(|on| on.map(|on| !on)).collect(),
        };
        let value = match self.value {
            Some(at) => Some(cast(rows.column(at), &DataType::Float64)?.as_primitive::<Float64Type>().clone()),
            None => None,
        };
        Ok(Looked { on, off, value, rows })
    }

    /// The message about a row.
    pub(super) fn message(&self, looked: &Looked, row: usize, key: &str) -> DfResult<String> {
        let options = FormatOptions::default();
        let mut text = String::new();
        for piece in &self.message {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Key => text.push_str(key),
                Piece::Value => {
                    if let Some(values) = looked.value.as_ref().filter(|values| values.is_valid(row)) {
                        text.push_str(&values.value(row).to_string());
                    }
                }
                Piece::Column(at) => {
                    let column = ArrayFormatter::try_new(looked.rows.column(*at), &options)?;
                    text.push_str(&column.value(row).to_string());
                }
            }
        }
        Ok(text)
    }

    /// Whether a message needs the key as text.
    pub(super) fn names_key(&self) -> bool {
        self.message.contains(&Piece::Key)
    }
}

/// Refuses what a condition can't ask.
fn check(expr: &ast::Expr, state: &SessionState, clause: &str) -> Result<()> {
    struct Queries;
    impl Visitor for Queries {
        type Break = ();
        fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    if expr.visit(&mut Queries).is_break() {
        return Err(Error::user(format!(
            "`{clause}` has a query in it, and looks at one row: join what it needs in the view"
        )));
    }
    refused::check_condition(expr, state)
}

/// Puts columns in the place of calls of [`Function`]s, which are gathered.
fn take_calls(expr: &mut ast::Expr, calls: &mut Vec<Call>) {
    let _all: ControlFlow<()> = visit_expressions_mut(expr, |expr| {
        if let ast::Expr::Function(call) = expr
            && Function::of(&call.name.to_string().to_lowercase()).is_some()
        {
            let text = call.to_string();
            if calls.iter().all(|known| known.to_string() != text) {
                calls.push(call.clone());
            }
            *expr = ast::Expr::Identifier(ast::Ident::with_quote('"', text));
        }
        ControlFlow::Continue(())
    });
}

/// What a call tracks.
fn tracked_of(state: &SessionState, call: &Call, below: &DFSchema) -> Result<Tracked> {
    let name = call.name.to_string();
    let function = Function::of(&name.to_lowercase()).ok_or_else(|| Error::internal("a call that is not tracked"))?;
    let form = || {
        Error::user(match function {
            Function::Zscore(_) => {
                format!("`{name}` reads: {name}(column), or {name}(column, 100) to go by about the last 100 rows")
            }
            _ => format!("`{name}` reads: {name}(column)"),
        })
    };
    let FunctionArguments::List(list) = &call.args else { return Err(form()) };
    let mut args = Vec::new();
    for arg in &list.args {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) = arg else { return Err(form()) };
        args.push(arg.clone());
    }
    let (of, function) = match (args.as_slice(), function) {
        ([of], function) => (of.clone(), function),
        ([of, rows], Function::Zscore(_)) => {
            let rows = rows.to_string().parse::<u32>().ok().filter(|rows| *rows > 1).ok_or_else(form)?;
            (of.clone(), Function::Zscore(rows))
        }
        _ => return Err(form()),
    };
    let what = of.to_string();
    let of = logical(state, of, below)?;
    let kind = of.get_type(below).map_err(of_df)?;
    if !kind.is_numeric() {
        let kind = spelt(&kind.to_string());
        return Err(Error::user(format!(
            "`{name}` needs a number, and {what} is {kind}: convert it, as in CAST(x AS DOUBLE)"
        )));
    }
    let of = of.cast_to(&DataType::Float64, below).map_err(of_df)?;
    let of = state.create_physical_expr(of, below).map_err(of_df)?;
    Ok(Tracked { text: call.to_string(), function, of })
}

/// An expression over one row.
fn logical(state: &SessionState, expr: ast::Expr, schema: &DFSchema) -> Result<Expr> {
    state.create_logical_expr_from_sql_expr(ExprWithAlias { expr, alias: None }, schema).map_err(of_df)
}

/// A condition over one row.
fn boolean(state: &SessionState, expr: ast::Expr, schema: &DFSchema, clause: &str) -> Result<Arc<dyn PhysicalExpr>> {
    let text = expr.to_string();
    let expr = logical(state, expr, schema)?;
    let compares_rows = |expr: &Expr| matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_));
    if expr.exists(|expr| Ok(compares_rows(expr))).map_err(of_df)? {
        return Err(Error::user(format!(
            "`{clause}` looks at one row, and {text} needs several: aggregate in the view, and compare its column here"
        )));
    }
    let kind = expr.get_type(schema).map_err(of_df)?;
    if kind != DataType::Boolean {
        return Err(Error::user(format!(
            "`{clause}` is no condition: {text} gives {}; compare it with something, as in {text} > 100",
            spelt(&kind.to_string())
        )));
    }
    state.create_physical_expr(expr, schema).map_err(of_df)
}

/// The first column of numbers that a condition names, and that is no key.
fn value_of(when: &ast::Expr, schema: &SchemaRef, keys: &[String]) -> Option<usize> {
    let found = visit_expressions(when, |expr| {
        let name = match expr {
            ast::Expr::Identifier(name) => crate::sql::parse::ident(name),
            ast::Expr::CompoundIdentifier(parts) => match parts.last() {
                Some(name) => crate::sql::parse::ident(name),
                None => return ControlFlow::Continue(()),
            },
            _ => return ControlFlow::Continue(()),
        };
        match schema.index_of(&name) {
            Ok(at) if schema.field(at).data_type().is_numeric() && !keys.contains(&name) => ControlFlow::Break(at),
            _ => ControlFlow::Continue(()),
        }
    });
    match found {
        ControlFlow::Break(at) => Some(at),
        ControlFlow::Continue(()) => None,
    }
}

/// A message in pieces: `{column}`, `{key}`, `{value}`; `{{` is a brace.
fn pieces(message: &str, rows: &SchemaRef) -> Result<Vec<Piece>> {
    let (mut pieces, mut text, mut rest) = (Vec::new(), String::new(), message);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        let Some((name, after)) = rest.split_once('}').filter(|_| brace == "{") else {
            return Err(Error::user(format!("option `message`: a {brace} alone; {{{{ and }}}} stand for braces")));
        };
        let piece = match (rows.index_of(name), name) {
            (Ok(at), _) => Piece::Column(at),
            (Err(_), "key") => Piece::Key,
            (Err(_), "value") => Piece::Value,
            (Err(_), _) => {
                let names: Vec<&str> =
                    rows.fields().iter().map(|field| field.name().as_str()).chain(["key", "value"]).collect();
                let hint = nearest(name, &names).map_or_else(
                    || format!("; there are {}", names.join(", ")),
                    |near| format!("; did you mean {{{near}}}?"),
                );
                return Err(Error::user(format!("option `message`: there is no column {{{name}}}{hint}")));
            }
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(piece);
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_at_its_columns() {
        let rows: SchemaRef = Arc::new(Schema::new(vec![Field::new("host", DataType::Utf8, true)]));
        let text = |text: &str| Piece::Text(text.to_string());
        let of = |message: &str| pieces(message, &rows);
        assert_eq!(of("{host}: {value} {{x}}").unwrap(), [Piece::Column(0), text(": "), Piece::Value, text(" {x}")]);
        assert_eq!(of("").unwrap(), []);
        assert_eq!(of("{key}").unwrap(), [Piece::Key]);
        assert!(of("{hots}").unwrap_err().to_string().contains("did you mean {host}?"));
        assert!(of("{host").unwrap_err().to_string().contains("alone"));
        assert!(of("a } b").unwrap_err().to_string().contains("alone"));
    }
}
