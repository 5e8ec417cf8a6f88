//! A batch run again within the process that runs the program.

use super::*;
use tidemill_core::{Inspect, Kept, ProgramThen, Rerun, Sample};

const LOUD: &str = "CREATE SINK loud WITH (connector = 'topic', topic = 'loud');
                    INSERT INTO loud SELECT upper(value) AS value FROM lines;";

/// The rows of a sample as texts, sorted.
fn rows(of: &Sample) -> Vec<String> {
    if of.rows.is_empty() {
        return Vec::new();
    }
    let text = text(&of.rows);
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(1)
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join(" ").trim().to_string())
        .collect();
    lines.sort();
    lines
}

/// All files of the program, with what is in them.
fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let (mut all, mut dirs) = (Vec::new(), vec![dir.join("programs"), dir.join("log")]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(std::result::Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                all.push((entry.path(), std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    all.sort();
    all
}

fn output<'a>(rerun: &'a Rerun, name: &str) -> &'a tidemill_core::RerunOutput {
    rerun.outputs.iter().find(|output| output.now.name == name).unwrap()
}

#[test]
fn a_batch_of_a_running_program_gives_the_same_again_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), &format!("{COUNT}{LOUD}")).unwrap();
    feed(&program, &["a b", "a c", "a d d"]);
    let written = files(dir.path());
    let again = program.context().run_again(BatchId(2)).unwrap();
    assert_eq!((again.batch, again.program), (BatchId(2), ProgramThen::Same));
    assert_eq!((again.inputs[0].name.as_str(), again.inputs[0].total), ("lines", 2));
    assert_eq!(rows(&output(&again, "top").now), ["a 2", "b 1", "c 1"]);
    assert!(output(&again, "top").then.is_none(), "what a view showed is the page's to know");
    let loud = output(&again, "insert-loud");
    let (kept, then) = loud.then.as_ref().unwrap();
    assert_eq!((*kept, rows(then)), (Kept::Topic, vec!["A".to_string(), "C".to_string()]));
    assert_eq!(rows(&loud.now), rows(then));
    let state = &again.states[0];
    assert_eq!((rows(&state.before), rows(&state.after)), (vec!["a 1".into()], vec!["a 2".to_string(), "c 1".into()]));
    let (then, now) = state.differ.as_ref().unwrap();
    assert_eq!((then.total, now.total), (0, 0), "the state is as it was kept");
    let counted = again.operators.iter().find(|operator| operator.name == "top").unwrap();
    assert_eq!(counted.rows, 3);
    let plan = again.plans.iter().find(|plan| plan.output == "top").unwrap();
    assert!(plan.nodes.iter().any(|node| node.name == "lines" && node.rows == Some(2)), "{plan:#?}");
    let ids: Vec<&str> = plan.nodes.iter().map(|node| node.id.as_str()).collect();
    for (at, node) in plan.nodes.iter().enumerate() {
        assert!(node.inputs.iter().all(|input| ids[..at].contains(&input.as_str())), "{node:?}");
    }
    assert!(plan.nodes.iter().any(|node| node.name.contains("Aggregate") && node.rows.is_some()), "{plan:#?}");
    let first = program.context().state("top").unwrap().unwrap();
    assert_eq!((rows(&first), first.total), (vec!["a 3".into(), "b 1".into(), "c 1".into(), "d 2".to_string()], 4));
    assert!(program.context().state("tap").unwrap().is_none());
    assert_eq!(files(dir.path()), written);
    // The program goes on as if nobody had looked.
    feed(&program, &["a"]);
    assert_eq!(rows(&program.context().state("top").unwrap().unwrap())[0], "a 4");
}

#[test]
fn a_changed_program_gives_a_difference_and_shows_what_the_one_of_then_gave() {
    let dir = tempfile::tempdir().unwrap();
    drop({
        let program = start(builder(dir.path()), &format!("{COUNT}{LOUD}")).unwrap();
        feed(&program, &["a b", "a c"]);
        program
    });
    let mended = format!("{COUNT}{LOUD}").replace("FROM lines", "FROM lines WHERE value <> 'a'");
    let program = start(builder(dir.path()).accept_changes(), &mended).unwrap();
    let again = program.context().run_again(BatchId(2)).unwrap();
    assert_eq!(again.program, ProgramThen::Other);
    let top = output(&again, "top");
    let (kept, then) = top.then.as_ref().unwrap();
    assert_eq!((*kept, rows(then)), (Kept::Program, vec!["a 2".into(), "b 1".into(), "c 1".to_string()]));
    assert_eq!(rows(&top.now), ["a 1", "b 1", "c 1"]);
    let loud = output(&again, "insert-loud");
    assert_eq!(rows(&loud.then.as_ref().unwrap().1), ["A", "C"]);
    assert_eq!(rows(&loud.now), ["C"]);
    let (then, now) = again.states[0].differ.as_ref().unwrap();
    assert_eq!((rows(then), rows(now)), (vec!["a 2".to_string()], vec!["a 1".to_string()]));
}

#[test]
fn what_is_not_kept_or_can_not_be_declared_again_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &["a", "b", "c", "d"]);
    let error = program.context().run_again(BatchId(9)).unwrap_err();
    assert_eq!(error.blame(), tidemill_core::Blame::User);
    assert_eq!(error.to_string(), "batch 9 is not kept: batches 1 to 4 are");
    assert_eq!(rows(&output(&program.context().run_again(BatchId(4)).unwrap(), "top").now).len(), 4);
    let nowhere = StreamingContext::builder("p").build();
    assert!(nowhere.run_again(BatchId(1)).unwrap_err().to_string().contains("this program has none"));
    let rust = builder(dir.path()).build();
    rust.queue_stream([vec![1_i64]]).unwrap().view("v", &["n"]);
    assert!(rust.run_again(BatchId(4)).unwrap_err().to_string().contains("declared in Rust"));
    // A view that only Rust declared is missing in the text.
    let other = tempfile::tempdir().unwrap();
    let mut both = SqlProgram::over(builder(other.path()).build());
    both.context().queue_stream([vec![1_i64]]).unwrap().view("v", &["n"]);
    both.start(&format!("{STREAM}{COUNT}")).unwrap();
    let error = both.context().run_again(BatchId(1)).unwrap_err().to_string();
    assert!(error.contains("declared in Rust"), "{error}");
}

#[test]
fn a_batch_whose_records_retention_has_removed_is_refused_with_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp(2_000_000_000)));
    let program = start(builder(dir.path()).clock(Arc::clone(&clock) as Arc<dyn Clock>), COUNT).unwrap();
    let topic = topic(&program);
    topic.set_retention(Retention { max_age: Some(Duration::from_secs(60)), max_bytes: None }).unwrap();
    for _ in 0..20 {
        feed(&program, &["x y z"]);
        clock.advance(Duration::from_secs(30));
        topic.apply_retention(clock.now()).unwrap();
    }
    let first = topic.start(0);
    assert!(first > Offset(6) && first.0.is_multiple_of(3), "{first}");
    // What the batch before the gap's end read is gone, the next has all of its records.
    let batch = first.0 / 3;
    let error = program.context().run_again(BatchId(batch)).unwrap_err();
    assert_eq!(error.blame(), tidemill_core::Blame::User);
    let gap = format!("topic `lines` partition 0: offsets [{}, {first})", first.0 - 3);
    let told = format!("batch {batch} can't be run again: retention has removed records that it read ({gap})");
    assert!(error.to_string().starts_with(&told), "{error}");
    assert!(error.to_string().contains("`retention_age`"), "{error}");
    let again = program.context().run_again(BatchId(batch + 1)).unwrap();
    assert_eq!((again.inputs[0].total, rows(&again.inputs[0]).len()), (3, 3));
    // The first batch has no state before it that could be missing: it is its records, too.
    let error = program.context().run_again(BatchId(1)).unwrap_err().to_string();
    assert!(error.contains("offsets [0, 3)"), "{error}");
}
