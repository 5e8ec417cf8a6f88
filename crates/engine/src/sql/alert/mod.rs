//! `CREATE ALERT`: a condition over a view that holds for a while, and is told when it begins and ends.
//!
//! ```sql
//! CREATE ALERT hot ON load KEY (host) WHEN busy > 0.9 CLEAR WHEN busy < 0.7 FOR '30s' MISSING '5m'
//!   WITH (severity = 'page', message = '{host} is {busy} busy');
//! INSERT INTO pager SELECT * FROM hot WHERE state <> 'pending' AND NOT silenced;
//! ```
//!
//! An alert is an operator with a state of its own, a key of which is one of the
//! alert's keys:
//!
//! ```text
//!            WHEN holds           it has for FOR            CLEAR WHEN holds, or no WHEN
//!     ok ──────────────► pending ───────────────► firing ──────────────────────────────► ok
//!      any ──── no row for MISSING ────► missing ──── a row comes ────► ok or pending
//! ```
//!
//! All times are batch times, so an alert goes the same way when a batch runs again,
//! and when the program is started anew or goes back to an earlier batch. Its rows are the
//! changes, once each; a view of its name shows the last ones, and sinks take them as of any
//! view. The board has where each key stands ([`tidemill_core::AlertReport`]).
//!
//! When a key has no row in a batch depends on what the view gives. Of a whole result it is
//! gone from the view, and its condition holds no longer; of windows it is gone when others
//! have closed and it was in none; of new rows, and of those that changed, the last row stays
//! what is known of it.
//!
//! Where things are: [`mod@parse`] reads the statement, [`condition`] plans what it looks at,
//! [`memory`] compares rows of a key, [`plan`] says how a key turns, [`keys`] keeps them,
//! [`step`] runs a batch, [`history`] has the last changes and the silences, [`rows`] lays out rows.
//!
//! Invariant: what an alert gives in a batch follows from its state before it, the batch's rows
//! and time, and what was asked of it meanwhile (silence, test). Called by [`super::catalog`].

mod condition;
mod history;
mod keys;
mod memory;
mod parse;
mod plan;
mod rows;
mod step;

pub(super) use parse::{Alert, alert as parse};

use self::{
    condition::Condition,
    keys::Alerting,
    plan::{Plan, Reading},
};
use super::{
    catalog::Catalog,
    checks::claim_parts,
    lower::{self, Shape},
    mistakes::of_df,
    parts::Planning,
    provider::Table,
    shape::Changes,
    tables::NodeTable,
    times::ViewOptions,
};
use crate::{
    StreamingContext,
    emit::{Output, OutputKind},
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_once},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    execution::SessionState,
    physical_plan::ExecutionPlan,
    sql::{
        parser::Statement as DfStatement,
        sqlparser::{
            ast::{Query, Statement as AstStatement},
            dialect::GenericDialect,
            parser::Parser,
        },
    },
};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};
use tidemill_core::{AlertReport, Board, Duration, Error, Options, Result, nearest};

/// How urgent an alert is that does not say.
const SEVERITY: &str = "warning";

/// Options of an alert.
struct Given {
    severity: String,
    /// The message as it stands there.
    message: String,
    /// After which time without a row a key is let go.
    forget: Option<Duration>,
}

impl Given {
    fn of(alert: &Alert, condition: &str) -> Result<Self> {
        let options = Options::new(format!("alert \"{}\"", alert.name), alert.options.iter().cloned());
        let severity = options.get("severity").unwrap_or(SEVERITY).to_string();
        let message = match options.get("message") {
            Some(message) => message.to_string(),
            None => {
                let condition = condition.replace('{', "{{").replace('}', "}}");
                if alert.keys.is_empty() { condition } else { format!("{{key}}: {condition}") }
            }
        };
        let forget = match options.get("forget") {
            Some(_) => Some(options.duration("forget", Duration::ZERO)?),
            None => None,
        };
        options.finish()?;
        match (forget, alert.missing) {
            (Some(forget), _) if forget.is_zero() => {
                Err(Error::user("option `forget` must be longer than nothing; leave it out to keep every key"))
            }
            (Some(forget), Some(missing)) if forget <= missing => {
                Err(Error::user("option `forget` must be longer than MISSING, or no key would ever be missing"))
            }
            _ => Ok(Self { severity, message, forget }),
        }
    }
}

/// The condition as people read it.
fn told(alert: &Alert) -> String {
    let mut told = alert.when.as_ref().map_or(String::new(), ToString::to_string);
    if let Some(clear) = &alert.clear {
        told.push_str(&format!(", until {clear}"));
    }
    if !alert.hold.is_zero() {
        told.push_str(&format!(", for {:?}", alert.hold));
    }
    if let Some(missing) = alert.missing {
        let or = if told.is_empty() { "" } else { "; or " };
        told.push_str(&format!("{or}no row for {missing:?}"));
    }
    told
}

impl Catalog {
    /// Whether a query reads rows of windows that closed.
    pub(super) fn reads_windows(&self, state: &SessionState, query: &Query) -> Result<bool> {
        let statement = DfStatement::Statement(Box::new(AstStatement::Query(Box::new(query.clone()))));
        let references = state.resolve_table_references(&statement).map_err(of_df)?;
        Ok(references.iter().any(|reference| self.windowed.contains(reference.table())))
    }

    /// Declares an alert.
    pub(super) async fn alert(
        &mut self,
        context: &StreamingContext,
        alert: Alert,
        meta: &BTreeSet<String>,
    ) -> Result<()> {
        let state = self.state(context, meta)?;
        let table = self.tables.lock().get(&alert.view).cloned();
        let view = table.ok_or_else(|| self.no_table(&alert.view))?.schema();
        check_keys(&alert, &view)?;
        let condition = told(&alert);
        let given = Given::of(&alert, &condition)?;
        let columns = Condition::needs(&alert, &view, &given.message);
        let query = reading(&alert.view, &view, &columns)?;
        let logical = self.logical(&state, query).await?;
        let (declare, partitions) = (&context.declare, self.partitions);
        // Under a name of their own: what is shown of a view is cut, and an alert sees all rows.
        let rows_name = format!("{}.rows", alert.name);
        let planned = {
            let (name, text, parts) = (&alert.name, &condition, Mutex::default());
            let planning = Planning { state: &state, declare, partitions, name, text, parts };
            lower::plan_as(&planning, logical, &rows_name, true, &ViewOptions::default()).await.map_err(of_df)?
        };
        let reading = match planned.kind {
            Shape::Whole => Reading::Whole,
            _ if self.windowed.contains(&alert.view) => Reading::Windows,
            _ => Reading::Rows,
        };
        let rows = planned.select.schema();
        let looked = Condition::plan(&state, &alert, &rows, &given.message)?;
        let plan = Arc::new(Plan::new(&alert, &rows, looked, reading, given.forget)?);
        claim_parts(context, &planned.parts)?;
        let name = alert.name;
        self.take_name(context, "alert", &name)?;
        declare.claim("part", &rows_name)?;
        declare.claim("part", &plan.history_name())?;
        let report = AlertReport {
            name: name.clone(),
            view: alert.view,
            severity: given.severity,
            condition,
            ..AlertReport::default()
        };
        context.board().publish_alert(report.clone());
        let rows = declare.named_node(rows_name, planned.inputs, planned.select);
        let operator = AlertOperator { plan, board: context.board(), report, state: OnceLock::new() };
        let node = declare.named_node(name.clone(), vec![rows], operator);
        let gives = Changes::New;
        let table = NodeTable { node: Arc::clone(&node), gives, partitions, times: Vec::new() };
        self.register(&name, Arc::new(Table(table)))?;
        self.queryable.insert(name.clone(), super::query::rows_table(&RecordBatch::new_empty(node.schema()))?);
        declare.output(Output { name, node, kind: OutputKind::View { sticky: true } });
        Ok(())
    }
}

/// Keys are columns of the view, and none is called like a column of the alert's state.
fn check_keys(alert: &Alert, view: &SchemaRef) -> Result<()> {
    let names: Vec<&str> = view.fields().iter().map(|field| field.name().as_str()).collect();
    for key in &alert.keys {
        if !names.contains(&key.as_str()) {
            let hint = nearest(key, &names)
                .map_or_else(|| format!("there are {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            return Err(Error::user(format!("KEY: there is no column `{key}` in {}; {hint}", alert.view)));
        }
        if keys::COLUMNS.contains(&key.as_str()) {
            return Err(Error::user(format!(
                "KEY: the alert's own state has a column `{key}`: give it another name in the view, with AS"
            )));
        }
    }
    Ok(())
}

/// The query that reads some columns of a view.
fn reading(view: &str, schema: &SchemaRef, columns: &[usize]) -> Result<Box<Query>> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = columns.iter().map(|at| quoted(schema.field(*at).name())).collect();
    let text = format!("SELECT {} FROM {}", columns.join(", "), quoted(view));
    let query = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query());
    query.map_err(|e| Error::internal(format!("reading `{view}`")).because(e))
}

/// An alert as an operator over the rows that it looks at.
#[derive(Debug)]
struct AlertOperator {
    plan: Arc<Plan>,
    board: Arc<Board>,
    /// What does not change of its reports.
    report: AlertReport,
    state: OnceLock<Arc<Alerting>>,
}

impl Operator for AlertOperator {
    fn kind(&self) -> &'static str {
        "alert"
    }

    fn schema(&self) -> SchemaRef {
        rows::schema()
    }

    fn gives(&self) -> &'static str {
        "each change of a key's state once, which stays (append)"
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let made = || Arc::new(Alerting::new(Arc::clone(&self.plan), &self.board, &self.report));
        let state = self.state.get_or_init(made);
        cx.states.register(Arc::clone(state) as _);
        cx.states.register(Arc::clone(&state.history) as _);
        let step = format!("{} of {}", self.report.condition, self.report.view);
        Ok(cx.node(&step, AlertKernel(Arc::clone(state)), inputs, self.schema(), 1))
    }
}

#[derive(Debug)]
struct AlertKernel(Arc<Alerting>);

impl Kernel for AlertKernel {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.collect(0)?;
        let state = Arc::clone(&self.0);
        let rows = async move {
            let came = rows.await?;
            state.step(&came, &run)
        };
        Ok(rows_once(rows::schema(), rows))
    }
}
