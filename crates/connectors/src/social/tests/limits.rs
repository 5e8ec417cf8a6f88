//! Wrong credentials, wrong clocks, limits: what heals is waited for, what does not is told.

use super::*;

#[tokio::test]
async fn wrong_credentials_are_for_a_human_and_never_shown() {
    for network in [Network::Mastodon, Network::X, Network::XV1, Network::Weibo] {
        let mut plan = plan(network, 3);
        plan.tokens = vec![secret::Secret::new("another")];
        plan.keys =
            Some(oauth::Keys::from_secrets(["ck", "cs", "at", "other"].map(secret::Secret::new).to_vec()).unwrap());
        let server = serve(plan).await;
        let running = server.start(server.receiver(network), None);
        let intake = Arc::clone(&running.intake);
        let error = running.failed().await;
        let all = format!("{} {:?}", error.chain(), intake.heard().states);
        assert!(!error.is_retryable(), "{all}");
        assert!(all.contains(" 401 ") || all.contains("21332"), "{all}");
        assert!(!all.contains("sesame") && !all.contains("oauth_signature"), "{all}");
    }
}

#[tokio::test]
async fn missing_credentials_name_their_place() {
    let server = serve(plan(Network::X, 0)).await;
    let nowhere = Place::Env("TIDEMILL_NEVER_SET".to_string());
    let client = XStream::sample(&server.url, nowhere).common(server.common(30));
    let error = server.start(Arc::new(client), None).failed().await;
    assert!(error.chain().contains("TIDEMILL_NEVER_SET"), "{}", error.chain());
    assert!(server.stage.asked().is_empty());
}

#[tokio::test]
async fn a_wrong_clock_is_named_and_waited_for() {
    let mut plan = plan(Network::XV1, 3);
    plan.keys = Some(oauth::Keys::from_secrets(["ck", "cs", "at", "as"].map(secret::Secret::new).to_vec()).unwrap());
    let theirs = Arc::new(ManualClock::at(NOW.plus(Duration::from_secs(3600))));
    plan.clock = Arc::clone(&theirs) as Arc<dyn Clock>;
    let server = serve_with(plan, Arc::new(ManualClock::at(NOW))).await;
    let running = server.start(server.receiver(Network::XV1), None);
    let state = running.says("clock").await;
    assert!(state.contains("this machine's clock is 3600 s behind the server's (2026-05-01T02:00:00.000Z)"), "{state}");
    assert!(state.starts_with("reconnecting in 5.0 s"), "{state}");
    // The clock is set right.
    server.clock.set(theirs.now());
    running.says("connected to").await;
    server.stage.publish(3);
    running.intake.until(|heard| heard.records.len() == 3).await;
    running.end().await;
}

#[tokio::test]
async fn limits_are_waited_out_as_the_server_says() {
    for (network, fault, wait) in [
        (Network::X, Fault::Status(429, None), "60.0"),
        (Network::X, Fault::Status(429, Some(100)), "101.0"),
        (Network::XV1, Fault::Status(420, None), "60.0"),
        (Network::XV1, Fault::Status(503, None), "5.0"),
        (Network::Mastodon, Fault::Status(429, Some(100)), "101.0"),
        (Network::Wikimedia, Fault::Status(429, Some(7)), "8.0"),
        (Network::Wikimedia, Fault::Status(503, Some(20)), "21.0"),
        (Network::Weibo, Fault::Status(503, None), "5.0"),
    ] {
        let mut plan = plan(network, 3);
        plan.faults = vec![fault];
        let server = serve(plan).await;
        let running = server.start(server.receiver(network), None);
        let state = running.says("reconnecting in").await;
        assert!(state.starts_with(&format!("reconnecting in {wait} s: ")), "{network:?} {state}");
        let seconds: f64 = wait.parse().unwrap();
        // Not a moment before.
        server.clock.advance(Duration::from_secs_f64(seconds - 0.25));
        assert!(tokio::time::timeout(Duration::from_millis(50), server.stage.opened(2)).await.is_err(), "too early");
        server.clock.advance(Duration::from_millis(250));
        server.stage.opened(2).await;
        running.end().await;
    }
}

#[tokio::test]
async fn credentials_that_worked_are_tried_again_a_few_times() {
    let mut plan = plan(Network::Mastodon, 3);
    plan.faults = vec![Fault::HangUp(3)];
    plan.faults.extend([Fault::Status(401, None); 3]);
    let server = serve(plan).await;
    let running = server.start(server.receiver(Network::Mastodon), None);
    server.stage.opened(1).await;
    server.stage.publish(3);
    running.records(3).await;
    running.until(|heard| heard.states.iter().filter(|s| s.starts_with("connected")).count() == 2).await;
    let heard = running.end().await;
    let waits: Vec<&str> =
        heard.states.iter().filter(|s| s.contains(" 401 ")).filter_map(|s| s.split(' ').nth(2)).collect();
    assert_eq!(waits, ["5.0", "10.0", "20.0"]);
}

#[tokio::test]
async fn a_server_that_is_gone_is_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let clock = Arc::new(ManualClock::at(NOW));
    let (stop, _) = StopHandle::new();
    let gone = Server {
        stage: serve(plan(Network::Wikimedia, 1)).await.stage,
        url: format!("http://{address}"),
        clock,
        _stop: stop,
    };
    let running = gone.start(gone.receiver(Network::Wikimedia), None);
    running.until(|heard| heard.states.iter().filter(|s| s.starts_with("reconnecting")).count() >= 4).await;
    let waits: Vec<String> =
        running.intake.heard().states.iter().filter_map(|s| s.split(' ').nth(2).map(str::to_string)).collect();
    assert_eq!(waits[..4], ["0.2", "0.5", "0.8", "1.0"], "a quarter of a second more each time");
    let simulator = Simulator::bind(&address.to_string(), plan(Network::Wikimedia, 3)).await.unwrap();
    let stage = simulator.stage();
    let (_handle, stopped) = StopHandle::new();
    tokio::spawn(simulator.run(stopped));
    running.until(|heard| heard.states.iter().any(|s| s.starts_with("connected"))).await;
    stage.publish(3);
    running.records(3).await;
    running.end().await;
}

#[test]
fn options_are_checked() {
    use tidemill_core::Options;
    let open = |name: &str, pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().copied().chain([("connector", name)]);
        let options = Options::new("stream \"s\"", pairs);
        crate::registry().input(&options).and_then(|input| options.finish().map(|()| input)).map(drop)
    };
    for (name, pairs) in [
        ("mastodon", &[("url", "https://m.example"), ("timeline", "local"), ("proxy", "socks5://p:1")][..]),
        ("mastodon", &[("url", "https://m.example"), ("tag", "#tea"), ("token_file", "t")]),
        ("mastodon", &[("url", "https://m.example"), ("transport", "websocket")]),
        (
            "wikimedia",
            &[("wikis", "enwiki, dewiki"), ("since", "2026-05-01T00:00:00Z"), ("user_agent", "a (b@c.example)")],
        ),
        ("x", &[("rules", "tea; cake has:images"), ("tag", "t"), ("gaps", "skip"), ("token_env", "T")]),
        ("x-sample", &[("idle_timeout", "20s")]),
        ("x-search", &[("query", "#tea"), ("every", "1m")]),
        (
            "x-v1",
            &[
                ("track", "tea,green tea"),
                ("locations", "-122.75,36.8,-121.75,37.8"),
                ("languages", "en"),
                ("keys_file", "k"),
            ],
        ),
        ("weibo", &[("tokens_file", "t"), ("every", "5s"), ("count", "50")]),
    ] {
        open(name, pairs).unwrap();
    }
    for (name, pairs, why) in [
        ("mastodon", &[][..], "`url` is missing"),
        ("mastodon", &[("url", "http://m.example")], "write https://"),
        ("mastodon", &[("url", "https://m.example"), ("timeline", "home")], "`timeline`"),
        ("mastodon", &[("url", "https://m.example"), ("timeline", "hashtag")], "`tag` is missing"),
        ("mastodon", &[("url", "https://m.example"), ("transport", "ws")], "`sse` or `websocket`"),
        ("mastodon", &[("url", "https://m.example"), ("token", "t")], "does not stand in a program"),
        ("mastodon", &[("url", "https://m.example"), ("tokenfile", "t")], "did you mean `token_file`"),
        ("wikimedia", &[("since", "soon")], "`since`"),
        ("x", &[("gaps", "mind")], "`gaps`"),
        ("x-search", &[], "`query` is missing"),
        ("x-v1", &[("languages", "en")], "`track`, `follow` and `locations`"),
        ("x-v1", &[("track", "")], "`track`"),
        ("x-v1", &[("follow", "ada")], "numbers"),
        ("x-v1", &[("locations", "1,2,3")], "boxes"),
        ("x-v1", &[("locations", "10,0,-10,5")], "boxes"),
        ("weibo", &[("count", "500")], "`count`"),
    ] {
        let error = open(name, pairs).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("stream \"s\""), "{name} {pairs:?}: {error}");
    }
}
