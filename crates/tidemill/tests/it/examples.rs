//! Every example program, restarted after every batch with one, two and three
//! partitions, and stopped dead at every step: its output stays what it is.

#![expect(dead_code, reason = "an example's `main` is not what is tested here")]

use std::sync::Arc;
use tidemill::{
    Duration, Record, Timestamp, Trigger,
    engine::QueueSource,
    testing::{Setup, Trial, check_survives},
};

#[path = "../../examples/receiver.rs"]
mod receiver;
#[path = "../../examples/sessions.rs"]
mod sessions;
#[path = "../../examples/sql_program.rs"]
mod sql_program;
#[path = "../../examples/stateful.rs"]
mod stateful;
#[path = "../../examples/trending.rs"]
mod trending;
#[path = "../../examples/word_count.rs"]
mod word_count;

const SECOND: Duration = Duration::from_secs(1);

/// An example that this list does not have fails the test below it.
const EXAMPLES: [&str; 6] = ["receiver", "sessions", "sql_program", "stateful", "trending", "word_count"];

#[test]
fn every_example_stands_here() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_string())
        .collect();
    names.sort();
    assert_eq!(names, EXAMPLES);
}

#[test]
fn sessions_survives() {
    // Longer than the timeout of a visit.
    let input: Vec<_> = sessions::input().into_iter().chain(std::iter::repeat_n(Vec::new(), 6)).collect();
    let trial = Trial::new(|trial: &Setup<'_>| {
        let (told, here) = sessions::visits(&trial.input(input.clone())?, SECOND);
        trial.output("told", &told);
        trial.output("here", &here);
        Ok(())
    });
    let told = trial.run().unwrap().of::<String>("told").unwrap().concat();
    assert_eq!(told.len(), 3, "all have left: {told:?}");
    trial.restart_at_every_batch(&[1, 2, 3]);
    trial.crash_at_every_step();
    trial.step_the_clock();
}

#[test]
fn stateful_survives() {
    check_survives(&stateful::input(), |came| stateful::visits(&came));
}

#[test]
fn trending_survives() {
    check_survives(&trending::input(), |posts| trending::trending(&posts, SECOND));
}

#[test]
fn word_count_survives() {
    let lines = ["high water", "ebb", "", "high time"].map(|line| vec![line.to_string()]);
    check_survives(&lines, |lines| word_count::count(&lines));
}

#[test]
fn sql_program_survives() {
    let smaller = "rows = '20', rows_per_plan = '7', keys = '7'";
    let program = sql_program::PROGRAM.replace("rows = '10000', keys = '7'", smaller);
    assert!(program.contains(smaller));
    let trial = Trial::new(|trial: &Setup<'_>| trial.context().declare_sql(&program))
        .registry(tidemill::connectors::registry());
    trial.restart_at_every_batch(&[1, 2, 3]);
    trial.crash_at_every_step();
}

#[derive(Debug, Clone, PartialEq, Record)]
struct Post {
    id: i64,
    text: String,
    created_at: Timestamp,
}

/// The program of `tidemill demo`, over some posts of its sample.
#[test]
fn the_demo_survives() {
    let texts = ["High water #harbour", "ebb #tide again", "the #tide turns #Tide", "nothing here", "#harbour lights"];
    let posts: Vec<Vec<Post>> = (0..5_i64)
        .map(|batch| {
            let post = |i: i64| Post {
                id: batch * 4 + i,
                text: texts[usize::try_from((batch + i) % 5).unwrap()].to_string(),
                created_at: Timestamp::from_millis((batch * 4 + i) * 400),
            };
            (0..4).map(post).collect()
        })
        .collect();
    let stream = "CREATE STREAM posts (WATERMARK FOR created_at AS created_at - INTERVAL '100' MILLISECOND)
        WITH (connector = 'program');\n";
    let program = stream.to_string() + include_str!("../../data/demo.sql");
    let trial = Trial::new(|trial: &Setup<'_>| {
        trial.context().provide_source("posts", Arc::new(QueueSource::of(posts.clone())?));
        trial.context().declare_sql(&program)
    });
    trial.restart_at_every_batch(&[1, 2, 3]);
    trial.step_the_clock();
}

/// Lives of a program with the guide's receiver, each stopped while it receives: every reading is there once.
#[test]
fn receiver_survives() {
    use arrow_array::{cast::AsArray, types::Int64Type};
    let data = tempfile::tempdir().unwrap();
    let mut before = 0;
    for life in 0..5 {
        let last = life == 4;
        let readings = if last { before + 100 } else { u64::MAX };
        let context = tidemill::context("receiver").registry(receiver::registry()).data_dir(data.path());
        let context = context.trigger(if last { Trigger::Drain } else { Trigger::Asap }).build();
        context.declare_sql(&receiver::program(readings)).unwrap();
        let (board, mut events) = (context.board(), context.board().subscribe());
        context.start().unwrap();
        let counts = || {
            let Some(view) = board.view("warm") else { return [0, 0] };
            [0, 1].map(|i| view.rows.column(i).as_primitive::<Int64Type>().values().first().copied().unwrap_or(0))
        };
        if last {
            context.await_termination().unwrap();
        } else {
            while counts()[0].cast_unsigned() < before + 20 {
                drop(events.blocking_recv());
            }
            context.stop(true).unwrap();
        }
        let [n, different] = counts();
        assert_eq!(n, different, "life {life}: nothing twice");
        before = if last {
            assert_eq!(n.cast_unsigned(), readings, "nothing lost");
            readings
        } else {
            n.cast_unsigned()
        };
    }
}
