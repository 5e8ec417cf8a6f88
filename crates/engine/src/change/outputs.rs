//! What outputs do about batches that a rewind undid.
//!
//! Invariant: what was shown is taken back, or stays by somebody's consent: here,
//! or when the program was rewound. Reads what other programs have read of the
//! topics in question, and writes nothing. Called by [`super::compare()`].

use super::OutputChange;
use crate::{batch::OutputPlan, emit::OutputKind};
use std::{collections::BTreeMap, path::Path};
use tidemill_core::{Guarantee, Result, Sink};
use tidemill_store::{
    Disk, Past,
    rewind::{TopicUndo, topic_undo},
};

/// What is to be taken back from the topics that these outputs fill, by topic.
///
/// # Errors
/// When the disk refuses, or another program's ledger is damaged.
pub(crate) fn topics_undo(
    disk: &dyn Disk,
    data: &Path,
    program: &str,
    past: &Past,
    outputs: &[OutputPlan],
) -> Result<BTreeMap<String, TopicUndo>> {
    let mut undos = BTreeMap::new();
    for output in outputs {
        let OutputKind::Sink(sink) = &output.kind else { continue };
        let Some(topic) = sink.topic() else { continue };
        if let Some(undo) = topic_undo(disk, data, program, past, topic)? {
            undos.insert(topic.to_string(), undo);
        }
    }
    Ok(undos)
}

/// What outputs do about batches that were undone.
pub(super) fn outputs_of(
    past: &Past,
    outputs: &[OutputPlan],
    undos: &BTreeMap<String, TopicUndo>,
) -> Vec<OutputChange> {
    let Some(to) = past.undone().iter().map(|undone| undone.to).min() else { return Vec::new() };
    let upto = past.undone().iter().map(|undone| undone.upto).max().unwrap_or(to);
    let batches = if to.0 + 1 == upto.0 { format!("batch {upto}") } else { format!("batches {} to {upto}", to.0 + 1) };
    let mut changes = Vec::new();
    let first = past.program().outputs;
    for output in outputs {
        let OutputKind::Sink(sink) = &output.kind else { continue };
        let what = sink.describe();
        let (why, free) = match sink.topic() {
            // A copy of now, which undid nothing.
            Some(topic) if upto <= to && !undos.contains_key(topic) => continue,
            Some(topic) => of_topic(past, &batches, undos.get(topic)),
            None if past.is_forked() && first.iter().any(|other| other.what == what) => {
                ("the program that this is a copy of writes there, too: name another place".to_string(), false)
            }
            None if past.is_forked() => continue,
            None => of_others(&**sink, &batches),
        };
        changes.push(OutputChange { name: output.name.clone(), what, why, free });
    }
    for gone in first.into_iter().filter(|_| !past.is_forked()) {
        let there = outputs.iter().any(|output| output.name == gone.name);
        if !there {
            let why = "is no output of the program any more: what it wrote stays".to_string();
            changes.push(OutputChange { name: gone.name, what: gone.what, why, free: true });
        }
    }
    changes
}

/// Of a topic of the program's own log: why, and whether it needs no consent.
fn of_topic(past: &Past, batches: &str, undo: Option<&TopicUndo>) -> (String, bool) {
    let stays = "its rows stay, and what is computed anew comes after them";
    match undo {
        Some(undo) if undo.held.is_empty() => (format!("of {batches}: {undo}"), true),
        Some(undo) => (
            format!("of {batches}: can't be taken back: {undo}.\nGo back with that program, too; otherwise {stays}"),
            false,
        ),
        None if past.undone().iter().any(|undone| undone.keeps_topics) => {
            (format!("of {batches}: {stays}, as the rewind said"), true)
        }
        None => (format!("of {batches}: nothing"), true),
    }
}

fn of_others(sink: &dyn Sink, batches: &str) -> (String, bool) {
    match (sink.undoes(), sink.guarantee()) {
        (Some(how), _) => (format!("of {batches}: {how}"), true),
        (None, Guarantee::AtLeastOnce) => (format!("of {batches}: stays, as it can't be taken back"), true),
        (None, Guarantee::ExactlyOnce) => (format!("of {batches}: can't be taken back; {}", sink.stays()), false),
    }
}
