//! What the log no longer has to keep, removed beside the batches.
//!
//! Every few seconds, after a commit, the positions that the program has
//! committed are pinned and every topic of the log gives up what its retention
//! says. A fault is logged and shown on the board, and tried again; it never
//! ends the program.
//!
//! Invariant: nothing at or after a committed position of the program is
//! removed, so the batch that runs, and one that runs again, find their
//! records. Called by [`super::pipeline`].

use super::pipeline::Pipeline;
use std::sync::Arc;
use tidemill_core::{Duration, Timestamp};
use tokio::task::JoinHandle;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// When it was looked last, and the look that goes on.
#[derive(Debug, Default)]
pub(crate) struct Retaining {
    last: Option<Timestamp>,
    task: Option<JoinHandle<()>>,
    /// The fault that the board shows.
    shown: Option<String>,
    /// The program has ended: nothing begins any more.
    ended: bool,
}

impl Pipeline {
    /// Begins a look when one is due and none goes on; it runs where it delays nobody.
    pub(crate) fn retain_when_due(self: &Arc<Self>) {
        if let Some(now) = self.retention_is_due() {
            let this = Arc::clone(self);
            let task = tokio::task::spawn_blocking(move || this.retain(now));
            self.retaining.lock().task = Some(task);
        }
    }

    /// The time of the look that is due. A clock that stepped back makes one due, too.
    pub(crate) fn retention_is_due(&self) -> Option<Timestamp> {
        self.keep.as_ref()?;
        let now = self.now();
        let mut retaining = self.retaining.lock();
        let recent = retaining.last.is_some_and(|last| now >= last && now.since(last) < EVERY);
        if recent || retaining.ended || retaining.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return None;
        }
        retaining.last = Some(now);
        Some(now)
    }

    /// Looks once. Waits for the disk.
    pub(crate) fn retain(&self, now: Timestamp) {
        let Some(keep) = &self.keep else { return };
        let failed = keep.retain(now).err().map(|error| error.chain());
        let mut retaining = self.retaining.lock();
        if let Some(error) = &failed {
            tracing::warn!(error, "old records could not be removed; it will be tried again");
        }
        let before = std::mem::replace(&mut retaining.shown, failed.clone());
        drop(retaining);
        if before != failed {
            self.board.update_program(|program| {
                // Another fault that is shown is not ours to hide.
                if program.error.is_none() || program.error == before {
                    program.error = failed;
                }
            });
        }
    }

    /// Looks when it is due, before something outside is tried again: where a
    /// disk is full, nothing is committed until there is room.
    pub(crate) fn retain_to_make_room(&self) {
        if let Some(now) = self.retention_is_due() {
            tokio::task::block_in_place(|| self.retain(now));
        }
    }

    /// Waits for the look that goes on, the last one: the directory is given free after it.
    pub(crate) async fn retention_ended(&self) {
        let task = {
            let mut retaining = self.retaining.lock();
            retaining.ended = true;
            retaining.task.take()
        };
        if let Some(task) = task {
            // A look that panicked has said so itself.
            let _panicked = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StreamingContext, Trigger, ingest::tests, testing::SqlProgram};
    use arrow_array::{cast::AsArray, types::Int64Type};
    use std::path::Path;
    use tidemill_core::{Clock, ManualClock, Offset};
    use tidemill_store::log::{Retention, Topic};

    const PROGRAM: &str = "
        CREATE STREAM lines WITH (connector = 'idle', retention_age = '1m', retention_bytes = '1GB');
        CREATE VIEW total AS SELECT count(*) AS n FROM lines";

    fn program(dir: &Path, clock: &Arc<ManualClock>, text: &str) -> SqlProgram {
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir).clock(clock);
        let mut program = SqlProgram::over(builder.registry(tests::registry()).build());
        program.start(text).unwrap();
        program
    }

    fn topic(program: &SqlProgram) -> Arc<Topic> {
        program.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap()
    }

    fn total(program: &SqlProgram) -> i64 {
        program.view("total").unwrap().column(0).as_primitive::<Int64Type>().value(0)
    }

    fn kept(topic: &Topic) -> u64 {
        topic.end(0).0 - topic.start(0).0
    }

    #[test]
    fn a_topic_keeps_what_it_must_and_no_more() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        let topic = topic(&running);
        for batch in 0..100 {
            topic.append(0, &tests::lines((0..10).map(|i| format!("{batch} {i}"))), None).unwrap();
            running.step().unwrap();
            // A minute is six batches; a quarter of it may be in the segment that is written.
            assert!(kept(&topic) <= 90, "batch {batch}: {} rows are kept", kept(&topic));
            clock.advance(Duration::from_secs(10));
        }
        assert!(topic.start(0).0 >= 900 && kept(&topic) >= 60, "{} rows are kept", kept(&topic));
        assert_eq!(total(&running), 1000);

        // What no batch has read is kept, however old it is, also after a restart.
        for i in 0..40 {
            topic.append(0, &tests::lines([format!("unread {i}")]), None).unwrap();
            clock.advance(Duration::from_secs(60));
            running.pipeline().retain(clock.now());
        }
        assert!(topic.start(0).0 <= 1000 && topic.end(0).0 == 1040);
        drop((topic, running));
        let running = program(dir.path(), &clock, PROGRAM);
        clock.advance(Duration::from_secs(3600));
        running.pipeline().retain(clock.now());
        running.step().unwrap();
        assert_eq!(total(&running), 1040);
        clock.advance(Duration::from_secs(10));
        running.step().unwrap();
        assert_eq!(self::topic(&running).start(0), Offset(1040), "what was read an hour late has gone");
        assert_eq!(running.context().board().program().error, None);
    }

    #[test]
    fn another_programs_position_holds_and_a_stream_that_is_gone_does_not() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        let topic = topic(&running);
        topic.append(0, &tests::lines(["a", "b", "c"]), None).unwrap();
        topic.pin("other/lines", &[(0, Offset(1))].into()).unwrap();
        topic.pin("p/before", &[(0, Offset(0))].into()).unwrap();
        topic.set_retention(Retention { max_age: Some(Duration::from_secs(1)), max_bytes: None }).unwrap();
        running.step().unwrap();
        clock.advance(Duration::from_secs(60));
        running.pipeline().retain(clock.now());
        assert_eq!(kept(&topic), 3);
        drop((topic, running));
        let running = program(dir.path(), &clock, PROGRAM);
        let topic = self::topic(&running);
        assert_eq!(topic.pins().into_keys().collect::<Vec<_>>(), ["other/lines", "p/lines"]);
        assert_eq!(topic.retention().max_age, Some(Duration::from_secs(60)), "the program says what is kept");
        topic.unpin("other/lines").unwrap();
        clock.advance(Duration::from_secs(60));
        running.pipeline().retain(clock.now());
        assert_eq!(kept(&topic), 0);
    }

    #[test]
    fn what_is_gone_before_it_was_read_stops_the_start_with_the_exact_gap() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        topic(&running).append(0, &tests::lines((0..10).map(|i| i.to_string())), None).unwrap();
        running.step().unwrap();
        topic(&running).append(0, &tests::lines((10..25).map(|i| i.to_string())), None).unwrap();
        drop(running);
        {
            // Somebody takes away what holds the log back.
            let disk = Arc::new(tidemill_store::RealDisk);
            let log = tidemill_store::Log::open(disk, &dir.path().join("log"), Arc::clone(&clock) as _).unwrap();
            let topic = log.topic("lines").unwrap();
            topic.unpin("p/lines").unwrap();
            topic.set_retention(Retention { max_age: Some(Duration::from_secs(1)), max_bytes: None }).unwrap();
            topic.apply_retention(clock.now().plus(Duration::from_secs(60))).unwrap();
            assert_eq!(topic.start(0), Offset(25));
        }
        let context = StreamingContext::builder("p").trigger(Trigger::Drain).data_dir(dir.path());
        let mut program = SqlProgram::over(context.registry(tests::registry()).build());
        let error = program.start(PROGRAM).unwrap_err().chain();
        assert!(error.contains("lines") && error.contains("[10, 25)"), "{error}");
    }

    #[test]
    fn a_topic_that_was_made_anew_is_refused_whatever_retention_has_left_of_it() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        topic(&running).append(0, &tests::lines((0..10).map(|i| i.to_string())), None).unwrap();
        running.step().unwrap();
        drop(running);
        let disk: Arc<dyn tidemill_store::Disk> = Arc::new(tidemill_store::RealDisk);
        let log = tidemill_store::Log::open(disk, &dir.path().join("log"), Arc::clone(&clock) as _).unwrap();
        let config = log.topic("lines").unwrap().config().clone();
        log.delete_topic("lines").unwrap();
        let topic = log.create_topic("lines", &config).unwrap();
        let started = |log: tidemill_store::Log| {
            drop(log);
            let context = StreamingContext::builder("p").trigger(Trigger::Drain).data_dir(dir.path());
            let mut program = SqlProgram::over(context.registry(tests::registry()).build());
            program.start(PROGRAM).unwrap_err().chain()
        };
        topic.append(0, &tests::lines((0..40).map(|i| i.to_string())), None).unwrap();
        topic.set_retention(Retention { max_age: Some(Duration::from_secs(1)), max_bytes: None }).unwrap();
        topic.apply_retention(clock.now().plus(Duration::from_secs(60))).unwrap();
        assert_eq!(topic.start(0), Offset(40));
        drop(topic);
        let error = started(log);
        assert!(error.contains("`lines` is not the one that stream `lines` has read up to offset 10"), "{error}");
        assert!(error.contains("[10, 40), which is gone") && error.contains("tidemill rewind --to 0"), "{error}");
    }

    #[test]
    fn a_fault_is_shown_and_the_program_goes_on() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        let topic = topic(&running);
        topic.append(0, &tests::lines(["a"]), None).unwrap();
        running.step().unwrap();
        let segment = dir.path().join("log/lines/0/00000000000000000000.seg");
        std::fs::rename(&segment, dir.path().join("aside")).unwrap();
        clock.advance(Duration::from_secs(120));
        topic.append(0, &tests::lines(["b"]), None).unwrap();
        clock.advance(Duration::from_secs(120));
        running.step().unwrap();
        let error = running.context().board().program().error.unwrap();
        assert!(error.contains("old records of topic `lines` can't be removed"), "{error}");
        std::fs::rename(dir.path().join("aside"), &segment).unwrap();
        clock.advance(Duration::from_secs(10));
        running.step().unwrap();
        assert_eq!((running.context().board().program().error, kept(&topic), total(&running)), (None, 0, 2));
    }

    #[test]
    fn room_is_made_while_a_commit_waits_for_it() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
        let running = program(dir.path(), &clock, PROGRAM);
        let topic = topic(&running);
        topic.append(0, &tests::lines(["a", "b"]), None).unwrap();
        running.step().unwrap();
        clock.advance(Duration::from_secs(3600));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        // It fails as a full disk does, until what is old has gone.
        let commit = || async {
            let full = kept(&topic) > 0;
            if full { Err(tidemill_core::Error::external("no storage space")) } else { Ok(()) }
        };
        let time = async {
            loop {
                clock.advance(Duration::from_millis(50));
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                done = running.pipeline().persist(commit) => done.unwrap(),
                () = time => {}
            }
        });
        assert_eq!((kept(&topic), running.context().board().program().error), (0, None));
    }

    #[test]
    fn a_source_that_the_log_does_not_keep_takes_no_retention() {
        let context = StreamingContext::builder("p").registry(tests::registry()).check_only().build();
        let source = crate::QueueSource::of([vec![1_i64]]).unwrap();
        context.provide_source("numbers", Arc::new(source));
        let error = context
            .declare_sql("CREATE STREAM numbers WITH (connector = 'program', retention_age = '1h')")
            .unwrap_err()
            .to_string();
        assert!(error.contains("leave out `retention_age`"), "{error}");
        let retention = Retention { max_age: None, max_bytes: Some(1) };
        assert!(context.retain("numbers", retention).unwrap_err().to_string().contains("the log keeps no stream"));
        context.declare_sql("CREATE STREAM lines WITH (connector = 'idle')").unwrap();
        context.retain("lines", retention).unwrap();
        context.declare_sql("CREATE VIEW v AS SELECT * FROM lines").unwrap();
        let plan = context.explain().unwrap();
        assert!(
            plan.contains("lines: reads idle through topic lines, which keeps 1 bytes a partition at most\n"),
            "{plan}"
        );
    }
}
