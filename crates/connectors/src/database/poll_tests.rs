//! The stream `postgres`: its rows, in order, once, over breaks and beside writers.
//! What has to do with a real server is against that of `TIDEMILL_POSTGRES`.

use super::*;
use crate::{
    contract::{Behind, Heard, Recorder},
    database::{probe, tests::postgres_server::server},
};
use tidemill_core::{Clock, ManualClock, StopHandle};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    clock: Arc<ManualClock>,
}

/// A table of its own for the test, with an index on what is read by.
async fn table(name: &str) -> Option<String> {
    let url = server(name).await?;
    let made = format!("CREATE TABLE {name} (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, word TEXT)");
    probe::postgres(&url, &made).await;
    Some(url)
}

async fn insert(url: &str, table: &str, words: &[&str]) {
    let values: Vec<String> = words.iter().map(|word| format!("('{word}')")).collect();
    probe::postgres(url, &format!("INSERT INTO {table} (word) VALUES {}", values.join(", "))).await;
}

fn receiver(options: &[(&str, &str)], clock: &Arc<ManualClock>, page: usize) -> PostgresRows {
    let options = Options::new("stream \"s\"", options.iter().copied());
    let mut rows = PostgresRows::from_options(&options).unwrap();
    options.finish().unwrap();
    rows.link.clock = Arc::clone(clock) as Arc<dyn Clock>;
    rows.page = page;
    rows
}

fn start(options: &[(&str, &str)], token: Option<String>) -> Running {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let rows = receiver(options, &clock, 3);
    let intake = Recorder::resuming(token);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { rows.run(given, stopped).await });
    Running { intake, stop, task, clock }
}

impl Running {
    /// Until something holds, while the clock goes on by `step`.
    async fn until(&self, step: Duration, holds: impl Fn(&Heard) -> bool) -> Heard {
        for _ in 0..1000 {
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(20), self.intake.until(&holds)).await {
                return heard;
            }
            self.clock.advance(step);
        }
        panic!("waited in vain; heard {:?}", self.intake.heard());
    }

    /// Some looks that begin from now on, to their ends.
    async fn rounds(&self) {
        for _ in 0..3 {
            let next = loop {
                // Nobody waits while it is looked.
                match self.clock.waited_for().filter(|next| *next > self.clock.now()) {
                    Some(next) => break next,
                    None => tokio::task::yield_now().await,
                }
            };
            self.clock.set(next);
        }
    }

    /// The error that ends it. It may wait meanwhile, as for transactions of other tests.
    async fn fails(self) -> Error {
        while !self.task.is_finished() {
            self.clock.advance(SECOND);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.task.await.unwrap().unwrap_err()
    }

    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard()
    }
}

fn texts(heard: &Heard) -> Vec<String> {
    heard.records.iter().map(|record| String::from_utf8(record.clone()).unwrap()).collect()
}

fn words(heard: &Heard) -> Vec<String> {
    let word = |text: &String| {
        let row: serde_json::Value = serde_json::from_str(text).unwrap();
        row["word"].as_str().unwrap().to_string()
    };
    texts(heard).iter().map(word).collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn rows_come_in_order_and_a_restart_goes_on() {
    let Some(url) = table("polled").await else { return };
    // More than two pages.
    insert(&url, "polled", &["a", "b", "c", "d", "e", "f", "g"]).await;
    let options = [("url", url.as_str()), ("table", "polled"), ("cursor", "id")];
    let running = start(&options, None);
    let heard = running.until(SECOND, |heard| heard.records.len() >= 7).await;
    assert_eq!(words(&heard), ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(texts(&heard)[0], r#"{"id":1,"word":"a"}"#);
    insert(&url, "polled", &["h", "i"]).await;
    running.until(SECOND, |heard| heard.records.len() >= 9).await;
    let heard = running.end().await;
    assert_eq!(words(&heard)[7..], ["h", "i"]);
    insert(&url, "polled", &["j"]).await;
    let again = start(&options, heard.resume);
    again.until(SECOND, |heard| !heard.records.is_empty()).await;
    assert_eq!(words(&again.end().await), ["j"]);
}

#[tokio::test]
async fn a_query_is_read_by_several_columns_from_now_on() {
    let Some(url) = table("polled_query").await else { return };
    insert(&url, "polled_query", &["a", "b"]).await;
    let query = "SELECT id, upper(word) AS word, now() - now() AS \"at \"\"all\"\"\" FROM polled_query -- all of it;";
    let cursor = "at \"all\",id";
    let options = [("url", url.as_str()), ("query", query), ("cursor", cursor), ("start", "latest")];
    let running = start(&options, None);
    running.until(SECOND, |heard| !heard.states.is_empty()).await;
    running.rounds().await;
    insert(&url, "polled_query", &["c", "d"]).await;
    running.until(SECOND, |heard| heard.records.len() >= 2).await;
    assert_eq!(words(&running.end().await), ["C", "D"]);
}

#[tokio::test]
async fn rows_wait_for_transactions_that_may_add_some_before_them() {
    let Some(url) = table("polled_late").await else { return };
    let open = async || {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN; INSERT INTO polled_late (word) VALUES ('early')").await.unwrap();
        client
    };
    let late = open().await;
    insert(&url, "polled_late", &["late"]).await;
    let options = [("url", url.as_str()), ("table", "polled_late"), ("cursor", "id"), ("wait_for_writers", "1h")];
    let running = start(&options, None);
    running.until(SECOND, |heard| heard.states.iter().any(|state| state.contains("wait for a transaction"))).await;
    running.rounds().await;
    assert_eq!(running.intake.heard().records.len(), 0, "one may come before it");
    late.batch_execute("COMMIT").await.unwrap();
    running.until(SECOND, |heard| heard.records.len() >= 2).await;
    running.rounds().await;
    let heard = running.intake.heard();
    assert_eq!(words(&heard), ["early", "late"]);
    assert!(heard.states.last().unwrap().starts_with("connected to"), "it waits no more: {:?}", heard.states);
    // One that stays open does not hold up the stream for ever.
    let stays = open().await;
    insert(&url, "polled_late", &["next"]).await;
    running.until(Duration::from_secs(600), |heard| heard.records.len() >= 3).await;
    let heard = running.end().await;
    assert_eq!(words(&heard)[2..], ["next"]);
    assert!(heard.states.iter().any(|state| state.contains("are not seen")), "{:?}", heard.states);
    drop(stays);
}

#[tokio::test]
async fn a_connection_that_breaks_loses_nothing_and_gives_nothing_twice() {
    let Some(url) = table("polled_cut").await else { return };
    let options = [("url", url.as_str()), ("table", "polled_cut"), ("cursor", "id")];
    let running = start(&options, None);
    let mut all = Vec::new();
    for turn in 0..5 {
        let new: Vec<String> = (0..5).map(|i| format!("{turn}-{i}")).collect();
        insert(&url, "polled_cut", &new.iter().map(String::as_str).collect::<Vec<_>>()).await;
        all.extend(new);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name = 'tidemill' AND query LIKE '%polled_cut%'";
        probe::postgres(&url, cut).await;
        running.until(SECOND, |heard| heard.records.len() >= all.len()).await;
    }
    running.rounds().await;
    assert_eq!(words(&running.end().await), all);
}

#[tokio::test]
async fn rows_that_were_read_and_not_handed_on_are_read_again() {
    let Some(url) = table("polled_gap").await else { return };
    // More than lies between the server and the log while that takes nothing.
    let many = "INSERT INTO polled_gap (word) SELECT i || repeat('x', 200000) FROM generate_series(1, 200) AS i";
    probe::postgres(&url, many).await;
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let rows = receiver(&[("url", url.as_str()), ("table", "polled_gap"), ("cursor", "id")], &clock, 1000);
    let behind = Behind::new();
    let given: Arc<dyn Intake> = Arc::<Behind>::clone(&behind);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { rows.run(given, stopped).await });
    let running = Running { intake: Arc::clone(&behind.heard), stop, task, clock };
    let entered = async {
        loop {
            tokio::select! {
                () = behind.entered(1) => break,
                // For transactions of other tests.
                () = tokio::time::sleep(Duration::from_millis(20)) => running.clock.advance(SECOND),
            }
        }
    };
    entered.await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = 'tidemill' AND state = 'active' AND query LIKE '%polled_gap%'";
    assert_eq!(probe::postgres(&url, cut).await, ["t"], "it is in the middle of its rows");
    behind.let_through(1000);
    running.until(SECOND, |heard| heard.records.len() >= 200).await;
    running.rounds().await;
    let heard = running.end().await;
    let numbers: Vec<String> = words(&heard).iter().map(|word| word.trim_end_matches('x').to_string()).collect();
    assert_eq!(numbers, (1..=200).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(heard.states.iter().any(|state| state.contains("reconnecting")), "{:?}", heard.states);
    assert!(heard.states.last().unwrap().starts_with("connected to"), "{:?}", heard.states);
}

#[tokio::test]
async fn two_rows_with_one_cursor_are_told() {
    let Some(url) = table("polled_twins").await else { return };
    // The twins lie on both sides of a page's end.
    insert(&url, "polled_twins", &["a", "b", "c", "c"]).await;
    let running = start(&[("url", url.as_str()), ("table", "polled_twins"), ("cursor", "word")], None);
    let error = running.fails().await.to_string();
    assert!(error.contains("same cursor (c)") && error.contains("primary key"), "{error}");
}

#[tokio::test]
async fn a_row_that_is_too_long_is_a_dead_letter() {
    let Some(url) = table("polled_long").await else { return };
    insert(&url, "polled_long", &["a", &"x".repeat(3000), "b"]).await;
    let options = [("url", url.as_str()), ("table", "polled_long"), ("cursor", "id"), ("max_line", "2KB")];
    let running = start(&options, None);
    running.until(SECOND, |heard| heard.records.len() >= 2).await;
    let heard = running.end().await;
    assert_eq!(words(&heard), ["a", "b"]);
    let [(why, head)] = &heard.refused[..] else { panic!("{:?}", heard.refused) };
    assert!(why.contains("3018 bytes") && why.contains("max_line"), "{why}");
    assert_eq!(head.len(), HEAD);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let told = |options: &[(&str, &str)]| {
        let all = [("url", "postgres://me@127.0.0.1:1/x")].iter().chain(options).copied();
        PostgresRows::from_options(&Options::new("stream \"s\"", all)).unwrap_err().to_string()
    };
    for (options, why) in [
        (&[("cursor", "id")][..], "give `table`, or `query`"),
        (&[("cursor", "id"), ("table", "a"), ("query", "SELECT 1")], "give `table`, or `query`"),
        (&[("cursor", "id"), ("table", "a.b.c")], "is no table's name"),
        (&[("table", "a")], "option `cursor`"),
        (&[("table", "a"), ("cursor", " , ")], "option `cursor` names columns"),
        (&[("table", "a"), ("cursor", "id"), ("start", "now")], "`earliest` or `latest`"),
    ] {
        let error = told(options);
        assert!(error.contains(why), "{error}");
    }
    let Some(url) = table("polled_wrong").await else { return };
    let options = [("url", url.as_str()), ("table", "polled_wrong"), ("cursor", "number")];
    let error = start(&options, None).fails().await.chain();
    assert!(error.contains("polled_wrong") && error.contains("number"), "{error}");
    let options = [("url", url.as_str()), ("table", "polled_wrong"), ("cursor", "id")];
    let error = start(&options, Some("[\"1\",\"2\"]".to_string())).fails().await.to_string();
    assert!(error.contains("another cursor"), "{error}");
}
