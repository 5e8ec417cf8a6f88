//! A program as a graph that people can look at.
//!
//! Invariant: a node's inputs are named by nodes that come before it, and names
//! are unique. The program's text is not in it: options of its streams and sinks
//! may hold what is nobody's business. Made once by the engine when a program is opened; the board
//! hands it to pages.

use serde::Serialize;

/// What a node of the graph is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// An input stream.
    Input,
    /// An operator.
    Operator,
    /// A view, a sink or a callback.
    Output,
}

/// A column of a node's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GraphColumn {
    /// Its name.
    pub name: String,
    /// Its type: `Int64`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// An input, an operator or an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GraphNode {
    /// Unique in the graph: `input posts`, `operator top`, `output top`.
    pub id: String,
    /// As the program calls it.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// What it does, in a word or a line: `reduce_by_key`, `tcp 127.0.0.1:9`, `view`.
    pub what: String,
    /// Nodes whose rows it reads, by `id`.
    pub inputs: Vec<String>,
    /// Whether it keeps state from batch to batch.
    pub stateful: bool,
    /// What it computes, as text, where that is known: its query.
    pub definition: Option<String>,
    /// Columns of its rows.
    pub columns: Vec<GraphColumn>,
    /// Of an output: its physical plan as indented text.
    pub plan: Option<String>,
}

/// A program's inputs, operators and outputs, and who reads whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// Inputs first, then operators, then outputs.
    pub nodes: Vec<GraphNode>,
}
