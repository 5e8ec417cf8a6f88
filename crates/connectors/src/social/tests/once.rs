//! Whatever breaks, each post comes once, where the network has a way to give it again.

use super::*;

/// What the connections of these tests meet, one after another.
const FAULTS: [Fault; 9] = [
    Fault::HangUp(7),
    Fault::Half(5),
    Fault::Status(503, None),
    Fault::Stall(9),
    Fault::Disconnect(4),
    Fault::Half(0),
    Fault::Status(429, Some(30)),
    Fault::HangUp(0),
    // It goes on after that, so no other comes.
    Fault::Garbage(3),
];

/// A network with all faults, in which posts are published while the client is there and while it is not.
async fn all_faults(network: Network) -> Heard {
    let told = ["nothing came for 30 s", "503", "the connection broke", "the server closed the connection"];
    all_faults_of(network, |server| server.receiver(network), &told).await
}

async fn all_faults_of(network: Network, receiver: impl FnOnce(&Server) -> Arc<dyn Receiver>, told: &[&str]) -> Heard {
    const COUNT: usize = 300;
    let mut plan = plan(network, COUNT);
    plan.faults = FAULTS.to_vec();
    let server = serve(plan).await;
    let running = server.start(receiver(&server), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.records(5).await;
    for published in (20..=COUNT).step_by(20) {
        server.stage.publish(published - server.stage.published());
        running.records(published).await;
        // So that the next ones come by the stream, and not by the pages that fill a gap.
        server.stage.rested(Duration::from_millis(30)).await;
    }
    let heard = running.end().await;
    assert_eq!(sorted(ids(network, &heard)), sorted(wanted(network, COUNT)));
    assert!(server.stage.asked().len() >= FAULTS.len(), "each fault was met");
    for what in told {
        assert!(heard.states.iter().any(|state| state.contains(what)), "{what}: {:?}", heard.states);
    }
    // Some headers count in whole seconds.
    let limited = heard.states.iter().find(|state| state.starts_with("reconnecting") && state.contains(" 429")).unwrap();
    let wait: f64 = limited.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((30.0..=31.0).contains(&wait), "{limited}");
    heard
}

#[tokio::test]
async fn mastodon() {
    let heard = all_faults(Network::Mastodon).await;
    assert_eq!(heard.refused.len(), 1, "{:?}", heard.refused);
    assert!(heard.refused[0].0.starts_with("byte "), "{:?}", heard.refused);
}

#[tokio::test]
async fn mastodon_over_a_websocket() {
    let client = |server: &Server| {
        let client = Mastodon::new(&server.url).transport(Transport::WebSocket).token("sesame".into());
        Arc::new(client.common(server.common(30))) as Arc<dyn Receiver>
    };
    let told = ["nothing came for 30 s", "503", "without closing handshake", "the server closed the connection"];
    let heard = all_faults_of(Network::Mastodon, client, &told).await;
    assert_eq!(heard.refused.len(), 1, "{:?}", heard.refused);
    assert!(heard.refused[0].0.starts_with("no message of a stream: "), "{:?}", heard.refused);
    let connected: Vec<_> = heard.states.iter().filter(|state| state.starts_with("connected to ")).collect();
    assert!(connected.iter().all(|state| state.starts_with("connected to ws://")), "{connected:?}");
    assert!(!heard.states.iter().any(|state| state.contains("sesame")), "{:?}", heard.states);
}

#[tokio::test]
async fn wikimedia() {
    let heard = all_faults(Network::Wikimedia).await;
    assert!(!heard.records.iter().any(|r| String::from_utf8_lossy(r).contains("canary")));
    assert_eq!(heard.refused.len(), 1, "{:?}", heard.refused);
}

#[tokio::test]
async fn x() {
    let heard = all_faults(Network::X).await;
    assert_eq!(heard.refused.len(), 1, "{:?}", heard.refused);
    assert!(heard.states.iter().any(|state| state.contains("operational-disconnect")), "{:?}", heard.states);
}

#[tokio::test]
async fn bluesky() {
    let network = Network::Bluesky;
    let mut plan = plan(network, 100);
    plan.faults = vec![Fault::HangUp(7), Fault::Status(503, None), Fault::Disconnect(9), Fault::Garbage(3)];
    let server = serve(plan).await;
    let running = server.start(server.receiver(network), None);
    server.stage.opened(1).await;
    for published in (5..=100).step_by(5) {
        server.stage.publish(5);
        running.intake.until(|heard| heard.records.len() >= published).await;
    }
    let heard = running.end().await;
    assert_eq!(sorted(ids(network, &heard)), sorted(wanted(network, 100)));
}

/// A network that gives nothing again: what breaks off is a letter, and so is each gap.
#[tokio::test]
async fn what_version_1_of_x_does_not_give_again_is_told() {
    let network = Network::XV1;
    let mut plan = plan(network, 60);
    plan.faults = vec![Fault::Half(5), Fault::Disconnect(10), Fault::Garbage(0)];
    let server = serve(plan).await;
    let running = server.start(server.receiver(network), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.records(5).await;
    // While nobody is there to hear it; the second connection begins behind it.
    let heard = running.until(|heard| !heard.refused.is_empty()).await;
    assert_eq!(heard.refused[0].0, "the connection broke in the middle of this line");
    running.until(|heard| heard.refused.len() == 2).await;
    server.stage.publish(15);
    running.until(|heard| heard.states.iter().any(|state| state.contains("left out posts: {\"track\":17}"))).await;
    running.until(|heard| heard.refused.len() == 4).await;
    server.stage.publish(40);
    running.records(55).await;
    let heard = running.end().await;
    let gaps: Vec<&str> =
        heard.refused.iter().map(|(reason, _)| reason.as_str()).filter(|r| r.starts_with("a gap: ")).collect();
    assert_eq!(gaps.len(), 2, "{:?}", heard.refused);
    assert!(gaps[0].contains("from 2026-05-01T00:00:01.332Z to 2026-05-01T01:"), "{gaps:?}");
    let got = ids(network, &heard);
    let all = wanted(network, 60);
    assert_eq!(got[..15], all[..15]);
    assert_eq!(got[15..], all[20..], "what was published within a gap is lost, and only that");
}

#[tokio::test]
async fn a_message_over_the_bound_is_refused_and_the_next_is_taken() {
    for network in [Network::Mastodon, Network::Wikimedia, Network::X, Network::XV1] {
        let mut plan = plan(network, 3);
        let long = format!("tea {}", "x".repeat(100_000));
        plan.posts[1] = Posted::of_text(network, &long, 1);
        let server = serve(plan).await;
        let mut common = server.common(30);
        common.max_line = 4096;
        let receiver: Arc<dyn Receiver> = match network {
            Network::Mastodon => Arc::new(Mastodon::new(&server.url).common(common)),
            Network::Wikimedia => Arc::new(Wikimedia::new(&server.url).common(common)),
            Network::X => Arc::new(XStream::sample(&server.url, "t".into()).common(common)),
            _ => Arc::new(XV1::new(&server.url, keys(), "tea").common(common)),
        };
        let running = server.start(receiver, None);
        server.stage.opened(1).await;
        server.stage.publish(3);
        let heard = running.intake.until(|heard| heard.records.len() == 2 && heard.refused.len() == 1).await;
        let all = wanted(network, 3);
        assert_eq!(ids(network, &heard), [all[0].clone(), all[2].clone()]);
        assert!(heard.refused[0].0.contains("over the bound of 4096 (option `max_line`)"), "{:?}", heard.refused[0].0);
        assert_eq!(heard.refused[0].1.len(), crate::lines::HEAD);
        running.end().await;
    }
}

/// While the log takes nothing, nothing is read: what the collector holds stays small.
#[tokio::test]
async fn nothing_is_read_while_the_log_is_behind() {
    use tidemill_core::{Ack, Block, DeadLetter};

    #[derive(Debug, Default)]
    struct Closed(tokio::sync::Notify);

    #[async_trait::async_trait]
    impl Intake for Closed {
        async fn append(&self, _: Block, _: Option<String>) -> Result<Ack> {
            self.0.notify_one();
            std::future::pending().await
        }
        async fn refuse(&self, _: DeadLetter) -> Result<()> {
            Ok(())
        }
        fn resume(&self) -> Option<String> {
            None
        }
        fn report(&self, _: &str) {}
    }

    let mut plan = plan(Network::Wikimedia, 0);
    plan.posts = (0..300).map(|n| Posted::of_text(Network::Wikimedia, &"x".repeat(20_000), n)).collect();
    let server = serve(plan).await;
    let intake = Arc::new(Closed::default());
    let receiver = server.receiver(Network::Wikimedia);
    let (_stop, stopped) = StopHandle::new();
    let given: Arc<dyn Intake> = Arc::<Closed>::clone(&intake);
    let task = tokio::spawn(async move { receiver.run(given, stopped).await });
    server.stage.opened(1).await;
    server.stage.publish(300);
    intake.0.notified().await;
    // The first block waits, and nothing is read beside it.
    let waiting = tokio::time::timeout(Duration::from_millis(300), intake.0.notified()).await;
    assert!(waiting.is_err(), "a second block was handed on");
    task.abort();
}

/// Interruptions in a row without a post between them are gaps each.
#[tokio::test]
async fn each_gap_of_version_1_of_x_is_told() {
    let mut plan = plan(Network::XV1, 20);
    plan.faults = vec![Fault::HangUp(5), Fault::HangUp(0), Fault::HangUp(0)];
    let server = serve(plan).await;
    let running = server.start(server.receiver(Network::XV1), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.records(5).await;
    running.until(|heard| heard.refused.len() == 3).await;
    let heard = running.end().await;
    let froms: BTreeSet<&str> = heard.refused.iter().filter_map(|(why, _)| why.split(" from ").nth(1)).collect();
    assert_eq!(froms.len(), 3, "each begins where the one before ended: {:?}", heard.refused);
}
