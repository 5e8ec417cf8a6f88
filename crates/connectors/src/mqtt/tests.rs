//! Against a real server (Mosquitto), which `TIDEMILL_MQTT` names: skipped without, unless `TIDEMILL_SERVICES=required`.
//!
//! `TIDEMILL_MQTT_CLOSED` names a second port of it that lets nobody in.

mod faults;

use super::*;
use crate::contract::{Heard, Recorder};
use rumqttc::v5::{AsyncClient, Event, MqttOptions, mqttbytes::v5::Packet};
use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};
use tidemill_core::{Ack, Block, DeadLetter, StopHandle};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};

fn server(variable: &str) -> Option<SocketAddr> {
    match std::env::var(variable) {
        Ok(place) => Some(place.parse().unwrap()),
        Err(_) if std::env::var("TIDEMILL_SERVICES").is_ok_and(|v| v == "required") => {
            panic!("{variable} is not set; ci/services up starts a server")
        }
        Err(_) => None,
    }
}

/// A name that no other test has, nor an earlier run against the same server.
fn name(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A log whose blocks are durable when the test says so.
struct Log {
    kept: Arc<Recorder>,
    slow: watch::Sender<bool>,
    acks: Mutex<Vec<oneshot::Sender<Result<()>>>>,
}

#[async_trait]
impl Intake for Log {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        let kept = self.kept.append(block, resume).await?;
        if !*self.slow.borrow() {
            return Ok(kept);
        }
        let (done, ack) = Ack::pair();
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        Ok(ack)
    }

    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.kept.refuse(letter).await
    }

    fn resume(&self) -> Option<String> {
        None
    }

    fn report(&self, state: &str) {
        self.kept.report(state);
    }
}

struct Running {
    log: Arc<Log>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

impl Running {
    async fn until(&self, holds: impl Fn(&Heard) -> bool) -> Heard {
        self.log.kept.until(holds).await
    }

    async fn records(&self, count: usize) -> Vec<String> {
        let heard = self.until(|heard| heard.records.len() >= count).await;
        heard.records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect()
    }

    /// Makes durable what waits, and what comes from now on.
    fn sync(&self) {
        self.log.slow.send_replace(false);
        for ack in std::mem::take(&mut *self.log.acks.lock().unwrap_or_else(PoisonError::into_inner)) {
            drop(ack.send(Ok(())));
        }
    }

    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.log.kept.heard()
    }

    /// As `kill -9` does.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// Starts a client and waits until its subscription is there.
async fn start(mqtt: &Mqtt, slow: bool) -> Running {
    let log =
        Arc::new(Log { kept: Arc::new(Recorder::default()), slow: watch::channel(slow).0, acks: Mutex::default() });
    let (stop, stopped) = StopHandle::new();
    let (given, mqtt): (Arc<dyn Intake>, Mqtt) = (Arc::<Log>::clone(&log), mqtt.clone());
    let task = tokio::spawn(async move { mqtt.run(given, stopped).await });
    let running = Running { log, stop, task };
    running.until(|heard| heard.states.iter().any(|s| s.starts_with("connected to "))).await;
    running
}

fn client(at: SocketAddr, id: &str, topics: &str) -> Mqtt {
    let mut mqtt = Mqtt::new(at.ip().to_string(), at.port(), id, topics);
    mqtt.backoff = Backoff::between(Duration::from_millis(5), Duration::from_millis(50), 1);
    mqtt
}

/// Publishes with QoS 1, and waits until the server has all.
async fn publish(at: SocketAddr, messages: &[(String, String)], retain: bool) {
    let (client, mut events) =
        AsyncClient::new(MqttOptions::new(name("publisher"), at.ip().to_string(), at.port()), 10_000);
    for (topic, payload) in messages {
        client.try_publish(topic, QoS::AtLeastOnce, retain, payload.clone()).unwrap();
    }
    let mut left = messages.len();
    while left > 0 {
        if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.unwrap() {
            left -= 1;
        }
    }
}

fn numbers(topic: &str, numbers: std::ops::Range<u32>) -> Vec<(String, String)> {
    numbers.map(|n| (topic.to_string(), n.to_string())).collect()
}

fn texts(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

/// A client whose subscription stands: a message that was retained has come, once.
async fn subscribed(at: SocketAddr, mqtt: &Mqtt, topic: &str) -> Running {
    publish(at, &[(topic.to_string(), "first".to_string())], true).await;
    let running = start(mqtt, false).await;
    assert_eq!(running.records(1).await, ["first"]);
    running
}

#[tokio::test]
async fn filters_are_followed_and_topics_told() {
    let Some(at) = server("TIDEMILL_MQTT") else { return };
    let root = name("filters");
    publish(at, &[(format!("{root}/a/t"), "7".to_string())], true).await;
    let mut mqtt = client(at, &name("client"), &format!("{root}/+/t, {root}/deep/#"));
    (mqtt.shape, mqtt.max_line) = (Shape::Message, 200);
    let running = start(&mqtt, false).await;
    // What was retained comes when the subscription is there.
    running.records(1).await;
    let long = "x".repeat(300);
    let messages: Vec<_> =
        [("a/t", "21.5"), ("a/u", "no"), ("b/t", "{\"c\":1}"), ("deep/er/still", "on"), ("a/t", &long)]
            .map(|(topic, payload)| (format!("{root}/{topic}"), payload.to_string()))
            .to_vec();
    publish(at, &messages, false).await;
    running.until(|heard| heard.refused.len() == 1).await;
    let record = |topic: &str, retain: bool, payload: &str| {
        format!("{{\"qos\":1,\"retain\":{retain},\"topic\":\"{root}/{topic}\",\"payload\":{payload}}}")
    };
    let wanted = [
        record("a/t", true, "7"),
        record("a/t", false, "21.5"),
        record("b/t", false, "{\"c\":1}"),
        record("deep/er/still", false, "\"on\""),
    ];
    assert_eq!(running.records(4).await, wanted);
    let heard = running.end().await;
    assert!(heard.refused[0].0.contains("over the bound of 200"), "{:?}", heard.refused);
}

#[tokio::test]
async fn what_comes_between_two_lives_is_there_and_nothing_twice() {
    let Some(at) = server("TIDEMILL_MQTT") else { return };
    let topic = name("lives");
    let mqtt = client(at, &topic, &topic);
    let (running, first) = (subscribed(at, &mqtt, &topic).await, 1);
    publish(at, &numbers(&topic, 0..50), false).await;
    assert_eq!(running.records(first + 50).await[first..], texts(0..50));
    running.end().await;
    publish(at, &numbers(&topic, 50..700), false).await;
    let running = start(&mqtt, false).await;
    publish(at, &numbers(&topic, 700..720), false).await;
    assert_eq!(running.records(670).await, texts(50..720), "more than `in_flight` of them, in order");
    running.end().await;
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let Some(at) = server("TIDEMILL_MQTT") else { return };
    let topic = name("durable");
    let mut mqtt = client(at, &topic, &topic);
    mqtt.in_flight = 10;
    let (running, first) = (subscribed(at, &mqtt, &topic).await, 1);
    running.log.slow.send_replace(true);
    publish(at, &numbers(&topic, 0..100), false).await;
    let heard = running.records(first + 10).await;
    assert_eq!(heard[first..], texts(0..10), "the server sends no more before the first is acknowledged");
    running.kill().await;
    // The next life has all of them again, as none was durable.
    let running = start(&mqtt, true).await;
    assert_eq!(running.records(10).await, texts(0..10));
    running.sync();
    assert_eq!(running.records(100).await, texts(0..100));
    running.end().await;
    let running = start(&mqtt, false).await;
    publish(at, &numbers(&topic, 100..101), false).await;
    assert_eq!(running.records(1).await, ["100"], "all was acknowledged");
    running.end().await;
}

/// A way to the server that can be cut, for a while.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

async fn way(to: SocketAddr) -> Way {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (open, opened) = watch::channel(true);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut opened = opened.clone();
            if !*opened.borrow() {
                continue;
            }
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ended = copy_bidirectional(&mut near, &mut far) => {}
                    _cut = opened.wait_for(|open| !open) => {}
                }
            });
        }
    });
    Way { address, open }
}

#[tokio::test]
async fn a_server_that_was_gone_is_found_again_and_nothing_is_lost_or_twice() {
    let Some(at) = server("TIDEMILL_MQTT") else { return };
    let topic = name("gone");
    let way = way(at).await;
    let mut mqtt = client(way.address, &topic, &topic);
    mqtt.in_flight = 20;
    let (running, first) = (subscribed(at, &mqtt, &topic).await, 1);
    // An acknowledgement that was on its way when the connection was cut may be lost, and its message comes twice.
    let different = |heard: &Heard| heard.records.iter().collect::<std::collections::BTreeSet<_>>().len();
    let mut sent = 0;
    for round in 0..8 {
        let tries = |heard: &Heard| heard.states.iter().filter(|s| s.starts_with("reconnecting")).count();
        // In the middle of messages that are in the log and not acknowledged, and of those that are.
        running.log.slow.send_replace(round % 2 == 0);
        publish(at, &numbers(&topic, sent..sent + 30), false).await;
        let there = first + sent as usize + if round % 2 == 0 { 20 } else { 7 };
        running.until(|heard| different(heard) >= there).await;
        let before = tries(&running.log.kept.heard());
        way.open.send_replace(false);
        publish(at, &numbers(&topic, sent + 30..sent + 60), false).await;
        running.until(|heard| tries(heard) >= before + 3).await;
        running.sync();
        way.open.send_replace(true);
        sent += 60;
        running.until(|heard| different(heard) == first + sent as usize).await;
    }
    let heard = running.log.kept.heard();
    let twice = heard.records.len() - different(&heard);
    // What was under way when a connection was cut: at most what the server sends ahead, each time.
    assert!(twice <= 8 * 20, "{twice} came twice");
    let mut got: Vec<u32> =
        heard.records[first..].iter().map(|n| std::str::from_utf8(n).unwrap().parse().unwrap()).collect();
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, (0..sent).collect::<Vec<_>>(), "nothing lost");
    running.end().await;
}

#[tokio::test]
async fn what_is_in_the_log_and_comes_again_is_not_taken_twice() {
    let Some(at) = server("TIDEMILL_MQTT") else { return };
    let topic = name("again");
    let way = way(at).await;
    let (running, first) = (subscribed(at, &client(way.address, &topic, &topic), &topic).await, 1);
    running.log.slow.send_replace(true);
    publish(at, &numbers(&topic, 0..40), false).await;
    running.records(first + 40).await;
    // None of the forty was acknowledged: the server sends all of them again.
    let connections = |heard: &Heard| heard.states.iter().filter(|s| s.starts_with("connected")).count();
    let before = connections(&running.log.kept.heard());
    way.open.send_replace(false);
    running.until(|heard| heard.states.last().is_some_and(|s| s.starts_with("reconnecting"))).await;
    way.open.send_replace(true);
    running.until(|heard| connections(heard) > before).await;
    running.sync();
    publish(at, &numbers(&topic, 40..41), false).await;
    assert_eq!(running.records(first + 41).await[first..], texts(0..41));
    running.end().await;
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_needs_a_human() {
    let Some(at) = server("TIDEMILL_MQTT_CLOSED") else { return };
    let mut mqtt = client(at, &name("stranger"), "a/#");
    mqtt.login = Some(("stranger".to_string(), Place::from("hunter2")));
    let (_stop, stopped) = StopHandle::new();
    let error = mqtt.run(Arc::new(Recorder::default()), stopped).await.unwrap_err().chain();
    assert!(error.contains("check `username`") && !error.contains("hunter2"), "{error}");
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let usual = [("url", "mqtt://127.0.0.1"), ("topics", "a/+, b/#, $share/g/c"), ("client_id", "me")];
        let options = Options::new("stream \"s\"", usual.iter().chain(pairs).copied());
        Mqtt::input(&options).and_then(|input| options.finish().map(|()| input))
    };
    let Input::Receivers(all) = open(&[("record", "message")]).unwrap() else { panic!("a receiver") };
    assert_eq!(all[0].describe(), "mqtt 127.0.0.1:1883 a/+, b/#, $share/g/c");
    assert!(open(&[("url", "mqtts://a.example"), ("username", "u"), ("password_env", "P")]).is_ok());
    for (pairs, wanted) in [
        (vec![("url", "http://a")], "must begin with mqtt://"),
        (vec![("url", "mqtt://user:hunter2@a")], "`username` and `password_file`"),
        (vec![("url", "mqtt://:1883")], "names no host"),
        (vec![("url", "mqtt://a:x")], "a port is a number"),
        (vec![("topics", "a/#/b")], "`a/#/b` is no filter"),
        (vec![("topics", "$share/g")], "`$share/g` is no filter"),
        (vec![("topics", " , ")], "has no filter"),
        (vec![("client_id", "")], "option `client_id`"),
        (vec![("qos", "2")], "option `qos` is 1 at most"),
        (vec![("session_expiry", "0s")], "option `session_expiry`"),
        (vec![("record", "both")], "`payload` or `message`, not `both`"),
        (vec![("password", "hunter2")], "`password_file`"),
        (vec![("password_env", "P")], "option `username` is missing"),
        (vec![("url", "mqtt://a.example"), ("username", "u")], "by mqtts:// only"),
        (vec![("in_flight", "0")], "option `in_flight`"),
        (vec![("keep_alive", "1s")], "option `keep_alive`"),
        (vec![("topic", "a")], "did you mean `topics`?"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains("hunter2"), "{pairs:?}: {error}");
    }
    let missing = Mqtt::input(&Options::new("s", [("url", "mqtt://a"), ("topics", "a")])).unwrap_err().to_string();
    assert!(missing.contains("`client_id` is missing"), "{missing}");
}
