//! The public timeline: tokens, limits, and what was missed.

use super::*;

fn tokens(all: &[&str]) -> Place {
    Place::Given(all.iter().map(|token| secret::Secret::new(*token)).collect())
}

fn client(server: &Server, all: &[&str]) -> Arc<dyn Receiver> {
    Arc::new(Weibo::new(&server.url, tokens(all)).every(Duration::from_secs(10)).common(server.common(30)))
}

/// Which token asked for the timeline how often.
fn asked(server: &Server, token: &str) -> usize {
    let by = format!("public_timeline.json?access_token={token}&");
    server.stage.asked().iter().filter(|request| request.contains(&by)).count()
}

#[tokio::test]
async fn tokens_take_turns_and_wait_for_the_next_hour() {
    let mut plan = plan(Network::Weibo, 200);
    plan.limit = 3;
    let theirs = Arc::new(ManualClock::at(NOW));
    plan.clock = Arc::clone(&theirs) as Arc<dyn Clock>;
    plan.tokens = ["a", "b"].map(secret::Secret::new).to_vec();
    let server = serve_with(plan, Arc::new(ManualClock::at(NOW))).await;
    let running = server.start(client(&server, &["a", "b"]), None);
    for round in 1..=6 {
        server.stage.publish(10);
        running.records(round * 10).await;
    }
    assert_eq!((asked(&server, "a"), asked(&server, "b")), (3, 3));
    server.stage.publish(10);
    let resting =
        |state: &String| state.contains("all tokens are at their limits") && state.starts_with("reconnecting in ");
    running.until(|heard| heard.states.iter().any(resting)).await;
    // Their hour is over.
    theirs.set(NOW.plus(Duration::from_secs(3601)));
    let heard = running.records(70).await;
    assert_eq!(ids(Network::Weibo, &heard), wanted(Network::Weibo, 70));
    assert!(heard.refused.is_empty());
    running.end().await;
}

#[tokio::test]
async fn a_token_that_is_no_longer_valid_is_left_out() {
    let mut plan = plan(Network::Weibo, 20);
    plan.tokens = vec![secret::Secret::new("good")];
    let server = serve(plan).await;
    let running = server.start(client(&server, &["old", "good"]), None);
    server.stage.publish(20);
    running.records(20).await;
    running.says("token 1 of 2 is not valid any more: 21332").await;
    let heard = running.end().await;
    assert!(!format!("{:?}", heard.states).contains("good"));
    assert_eq!(asked(&server, "old"), 0);
}

#[tokio::test]
async fn a_restart_knows_what_it_has() {
    let server = serve(plan(Network::Weibo, 90)).await;
    server.stage.publish(30);
    let running = server.start(client(&server, &["a"]), None);
    running.records(30).await;
    let heard = running.end().await;
    let mut got = ids(Network::Weibo, &heard);
    server.stage.publish(30);
    let running = server.start(client(&server, &["a"]), heard.resume);
    running.records(30).await;
    server.stage.publish(30);
    running.records(60).await;
    got.extend(ids(Network::Weibo, &running.end().await));
    assert_eq!(got, wanted(Network::Weibo, 90), "in order, each once");
}

#[tokio::test]
async fn a_post_that_is_listed_as_deleted_is_a_notice_once() {
    let mut plan = plan(Network::Weibo, 5);
    let gone = plan.posts[2].id.clone();
    plan.posts.push(Posted::deletion(Network::Weibo, &gone, 9));
    let server = serve(plan).await;
    server.stage.publish(5);
    let running = server.start(client(&server, &["a"]), None);
    running.records(5).await;
    server.stage.publish(1);
    let heard = running.records(6).await;
    let last = Network::Weibo.read(&heard.records[5]).unwrap();
    assert_eq!((last.id, last.kind), (gone, crate::social::post::Kind::Delete));
    // It is listed again and again.
    server.clock.advance(Duration::from_secs(60));
    running.says("0 new posts of 5").await;
    assert_eq!(running.end().await.records.len(), 6);
}

#[tokio::test]
async fn half_an_answer_is_asked_for_again_and_missed_posts_are_told() {
    let mut plan = plan(Network::Weibo, 600);
    plan.faults = vec![Fault::Half(0), Fault::Pass, Fault::Status(503, None)];
    let server = serve(plan).await;
    server.stage.publish(50);
    let running = server.start(client(&server, &["a"]), None);
    running.says("the answer is no timeline").await;
    running.records(50).await;
    // More than an answer holds.
    server.stage.publish(500);
    let heard = running.records(250).await;
    assert!(heard.states.iter().any(|state| state.contains("all were new, so some were missed")), "{:?}", heard.states);
    assert!(heard.states.iter().any(|state| state.contains(" 503")), "{:?}", heard.states);
    let all = wanted(Network::Weibo, 550);
    assert_eq!(ids(Network::Weibo, &heard), [&all[..50], &all[350..]].concat());
    running.end().await;
}

#[tokio::test]
async fn what_is_left_lasts_to_the_end_of_the_hour() {
    let mut plan = plan(Network::Weibo, 5);
    plan.limit = 40;
    let server = serve(plan).await;
    server.stage.publish(5);
    let running = server.start(client(&server, &["a"]), None);
    // An hour for the 39 requests that are left.
    let state = running.says("the next time in").await;
    assert_eq!(state, "5 new posts of 5; the next time in 92 s, 39 requests left this hour");
    running.end().await;
}

/// What was fetched is handed on also when a stop comes: no later answer has it.
#[tokio::test]
async fn a_stop_throws_nothing_away_that_was_fetched() {
    let server = serve(plan(Network::Weibo, 5)).await;
    server.stage.publish(5);
    let behind = crate::contract::Behind::new();
    let given: Arc<dyn Intake> = Arc::<crate::contract::Behind>::clone(&behind);
    let (stop, stopped) = StopHandle::new();
    let client = client(&server, &["a"]);
    let task = tokio::spawn(async move { client.run(given, stopped).await });
    behind.entered(1).await;
    stop.stop();
    tokio::task::yield_now().await;
    behind.let_through(1);
    task.await.unwrap().unwrap();
    assert_eq!(ids(Network::Weibo, &behind.heard.heard()), wanted(Network::Weibo, 5));
}
