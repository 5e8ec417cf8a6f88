//! Appending, rotating, truncating, and going on after a restart.

use super::*;
use crate::contract::Recorder;
use std::io::Write;
use tempfile::TempDir;
use tidemill_core::StopHandle;
use tokio::task::JoinHandle;

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

fn start(tail: Tail, token: Option<String>) -> Running {
    let intake = Recorder::resuming(token);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { tail.poll(Duration::from_millis(1)).run(given, stopped).await });
    Running { intake, stop, task }
}

impl Running {
    async fn reading(self) -> Self {
        self.intake.until(|h| h.states.iter().any(|s| s == "reading")).await;
        self
    }

    async fn records(&self, count: usize) -> Vec<String> {
        let heard = self.intake.until(|h| h.records.len() >= count).await;
        heard.records.into_iter().map(|r| String::from_utf8(r).unwrap()).collect()
    }

    async fn end(self) -> Option<String> {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard().resume
    }
}

fn write(path: &Path, text: &str) {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn appended_lines_come_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    write(&path, "before\n");
    let running = start(Tail::new(&path), None).reading().await;
    write(&path, "one\ntw");
    assert_eq!(running.records(1).await, ["one"]);
    write(&path, "o\n");
    assert_eq!(running.records(2).await, ["one", "two"]);
    running.end().await;
}

#[tokio::test]
async fn a_file_that_appears_is_read_from_its_beginning() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    let running = start(Tail::new(&path), None);
    running.intake.until(|h| h.states.iter().any(|s| s.starts_with("waiting"))).await;
    write(&path, "first\n");
    assert_eq!(running.records(1).await, ["first"]);
    running.end().await;
}

#[tokio::test]
async fn a_rotated_file_is_read_to_its_end_before_the_new_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    write(&path, "1\n");
    let running = start(Tail::new(&path).from_the_beginning(), None);
    running.records(1).await;
    write(&path, "2\n");
    fs::rename(&path, dir.path().join("log.1")).unwrap();
    write(&dir.path().join("log.1"), "3\n4 without end");
    write(&path, "5\n");
    assert_eq!(running.records(5).await, ["1", "2", "3", "4 without end", "5"]);
    running.end().await;
}

#[tokio::test]
async fn a_truncated_file_is_read_anew_and_said_to_be() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    write(&path, "1\n2\n3\n");
    let running = start(Tail::new(&path).from_the_beginning(), None);
    running.records(3).await;
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    running.intake.until(|h| h.states.iter().any(|s| s.contains("truncated"))).await;
    write(&path, "4\n");
    assert_eq!(running.records(4).await, ["1", "2", "3", "4"]);
    running.end().await;
}

#[tokio::test]
async fn a_restart_goes_on_behind_the_last_whole_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    write(&path, "1\n2\nbeg");
    let running = start(Tail::new(&path).from_the_beginning(), None);
    running.records(2).await;
    let token = running.end().await;
    write(&path, "un\n3\n");
    let running = start(Tail::new(&path), token);
    assert_eq!(running.records(2).await, ["begun", "3"]);
    let token = running.end().await;
    // Rotated while nobody was reading: the old one first, under its new name.
    write(&path, "4\n");
    fs::rename(&path, dir.path().join("log.1")).unwrap();
    write(&path, "5\n");
    let running = start(Tail::new(&path), token);
    assert_eq!(running.records(2).await, ["4", "5"]);
    let token = running.end().await;
    // Gone altogether.
    fs::rename(&path, dir.path().join("log.2")).unwrap();
    write(&path, "7\n");
    fs::remove_file(dir.path().join("log.2")).unwrap();
    let running = start(Tail::new(&path), token);
    assert_eq!(running.records(1).await, ["7"]);
    assert!(running.intake.heard().states.iter().any(|s| s.contains("is gone")));
    running.end().await;
}
