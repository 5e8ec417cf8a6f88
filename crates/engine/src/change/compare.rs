//! What a program has to do with what is kept, decided from names and columns.
//!
//! Invariant: an operator is kept only when its kind, its columns and, where it
//! is known, its query are the same. Reads nothing and writes nothing.

use super::{Action, Asked, Changes, OperatorChange, migrate, moved::moved_outputs, outputs::outputs_of};
use crate::{
    batch::OutputPlan,
    emit::{Output, OutputKind},
    plan::StreamInput,
    state::StateRegistry,
};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result, nearest};
use tidemill_store::{
    Disk, Past,
    ledger::{OperatorEntry, OutputEntry, ProgramEntry},
    log::{oldest_records, topics_of},
    rewind::TopicUndo,
};

/// The program of now, as the ledger will keep it.
pub(crate) fn describe(
    states: &StateRegistry,
    outputs: &[OutputPlan],
    declared: &[Output],
    text: Option<String>,
) -> Result<ProgramEntry> {
    let mut definitions = BTreeMap::new();
    let mut seen = HashSet::new();
    for output in declared {
        output.node.walk(&mut seen, &mut |node| {
            if let Some(definition) = node.operator.definition() {
                definitions.insert(node.name.clone(), definition);
            }
        });
    }
    let operators = states
        .all()
        .iter()
        .map(|operator| {
            let entry = OperatorEntry::new(operator.name(), operator.kind(), &operator.schema(), operator.keys())?;
            Ok(OperatorEntry { definition: definitions.get(operator.name()).cloned(), ..entry })
        })
        .collect::<Result<_>>()?;
    let outputs = outputs
        .iter()
        .filter_map(|output| match &output.kind {
            OutputKind::Sink(sink) => Some(OutputEntry {
                name: output.name.clone(),
                what: sink.describe(),
                topic: sink.topic().map(str::to_string),
                undoes: Some(sink.undoes().unwrap_or_else(|| sink.stays())),
            }),
            OutputKind::View { .. } | OutputKind::Call(_) | OutputKind::Kept(_) => None,
        })
        .collect();
    Ok(ProgramEntry { operators, outputs, text })
}

/// What becomes of each operator, and of what outputs wrote.
///
/// # Errors
/// When `asked` names an operator that is not there.
pub(crate) fn compare(
    name: &str,
    past: &Past,
    now: &ProgramEntry,
    (outputs, undos): (&[OutputPlan], &BTreeMap<String, TopicUndo>),
    asked: &Asked,
    reach: &str,
) -> Result<Changes> {
    // Without a committed batch there is no state, whatever was declared.
    let before = if past.version().0 == 0 { ProgramEntry::default() } else { past.program() };
    check_asked(&before, now, asked)?;
    let mut operators = Vec::new();
    for entry in &now.operators {
        // A rename that has been done already is passed over: the same command may be given again.
        let done = before.operators.iter().any(|old| old.name == entry.name);
        let renamed = asked.rename.iter().find(|(_, to)| !done && *to == entry.name);
        let from = renamed.map_or(&entry.name, |(from, _)| from);
        let old = before.operators.iter().find(|old| old.name == *from);
        let mut change = change(old, entry, asked)?;
        if change.action == Action::Rebuild {
            change.why.push_str(&format!("\ncomputed anew {reach}"));
            change
                .why
                .push_str("\ndead letters stay out until they are run again; what the columns refuse becomes one");
        }
        operators.push(change);
    }
    for old in &before.operators {
        let renamed = asked.rename.iter().any(|(from, _)| *from == old.name);
        if renamed || now.operators.iter().any(|entry| entry.name == old.name) {
            continue;
        }
        let new: Vec<&str> = now
            .operators
            .iter()
            .map(|entry| entry.name.as_str())
            .filter(|name| before.operators.iter().all(|old| old.name != *name))
            .collect();
        let hint = match nearest(&old.name, &new) {
            Some(near) => format!("\nwas it renamed to `{near}`? then --rename {}={near} keeps its state", old.name),
            None => String::new(),
        };
        operators.push(OperatorChange {
            name: old.name.clone(),
            kind: old.kind.clone(),
            action: Action::Drop,
            from: None,
            why: format!("the program has no operator of this name{hint}"),
            free: false,
        });
    }
    Ok(Changes {
        program: name.to_string(),
        version: past.version(),
        next: BatchId(past.last().map_or(0, |last| last.batch.0) + 1),
        operators,
        outputs: [moved_outputs(past, outputs)?, outputs_of(past, outputs, undos)].concat(),
    })
}

fn check_asked(before: &ProgramEntry, now: &ProgramEntry, asked: &Asked) -> Result<()> {
    let names = |program: &ProgramEntry| -> Vec<String> { program.operators.iter().map(|o| o.name.clone()).collect() };
    let known = |what: &str, name: &String, names: &[String]| {
        if names.contains(name) {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hint = match nearest(name, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "there is none".to_string(),
            None => format!("there are {}", names.join(", ")),
        };
        Err(Error::user(format!("{what} `{name}`; {hint}")))
    };
    for name in &asked.rebuild {
        known("nothing can be rebuilt: the program has no operator with state named", name, &names(now))?;
    }
    for (from, to) in &asked.rename {
        known("nothing can be renamed: the program has no operator with state named", to, &names(now))?;
        let had = |name: &String| before.operators.iter().any(|old| old.name == *name);
        if had(from) && had(to) {
            return Err(Error::user(format!("`{from}` can't be renamed to `{to}`, which has kept state of its own")));
        }
        // A rename that has been done already is fine: the same command may be given again.
        if !had(to) {
            known("no state is kept under", from, &names(before))?;
        }
    }
    Ok(())
}

fn change(old: Option<&OperatorEntry>, new: &OperatorEntry, asked: &Asked) -> Result<OperatorChange> {
    let is = |action, why: String, free| OperatorChange {
        name: new.name.clone(),
        kind: new.kind.clone(),
        action,
        from: old.filter(|old| old.name != new.name).map(|old| old.name.clone()),
        why,
        free,
    };
    if asked.rebuild.contains(&new.name) {
        return Ok(is(Action::Rebuild, "asked for".to_string(), false));
    }
    let Some(old) = old else {
        return Ok(is(Action::New, format!("begins empty; --rebuild {} fills it from the log", new.name), true));
    };
    if old.kind != new.kind {
        return Ok(is(Action::Rebuild, format!("it was {} and is {} now", old.kind, new.kind), false));
    }
    let mut why = Vec::new();
    let renamed = old.name != new.name;
    if renamed {
        why.push(format!("renamed from `{}`", old.name));
    }
    let requeried = match (&old.definition, &new.definition) {
        (Some(old), Some(new)) => old != new,
        _ => false,
    };
    if requeried {
        why.push(format!(
            "its query reads other rows now: those so far stay in it as they were;\n--rebuild {} computes them by the new query, as does `tidemill rewind`",
            new.name
        ));
    }
    if old.fingerprint == new.fingerprint {
        let action = if renamed { Action::Migrate } else { Action::Keep };
        return Ok(is(action, why.join("\n"), !requeried && !renamed));
    }
    let steps = match (old.columns()?, new.columns()?) {
        (Some(from), Some(to)) => {
            let keys = new.keys.unwrap_or(0);
            migrate::steps(&from, old.keys.unwrap_or(keys), &to, keys)
        }
        // Version 1 kept the columns as text: enough to see that they differ, and the files have them.
        _ => Err(format!("its columns were {} and are {}", old.fingerprint, new.fingerprint)),
    };
    match steps {
        Ok(steps) => {
            why.splice(0..0, steps);
            Ok(is(Action::Migrate, why.join("\n"), false))
        }
        Err(reason) => Ok(is(Action::Rebuild, reason, false)),
    }
}

/// From where a state can be computed anew: the oldest records that inputs have.
pub(crate) fn reach(disk: &dyn Disk, data: &Path, program: &str, inputs: &[Arc<StreamInput>]) -> Result<String> {
    let log = data.join("log");
    let topics = topics_of(disk, &log, program)?;
    let mut words = Vec::new();
    for input in inputs {
        let Some((topic, _)) = topics.iter().find(|(_, stream)| *stream == input.name) else {
            words.push(format!("`{}` from its beginning", input.name));
            continue;
        };
        let oldest = oldest_records(disk, &log, topic)?;
        let cut: Vec<String> = oldest
            .iter()
            .filter(|(_, (offset, _))| offset.0 > 0)
            .map(|(partition, (offset, time))| format!("offset {offset} of partition {partition} ({time})"))
            .collect();
        words.push(if cut.is_empty() {
            format!("`{}` from its first record", input.name)
        } else {
            format!("`{}` from {}: retention removed what was before", input.name, cut.join(", "))
        });
    }
    Ok(if words.is_empty() {
        "from nothing: there is no input".to_string()
    } else {
        format!("from {}", words.join(", "))
    })
}
