//! Rules, the recent search, and what can't be fetched.

use super::*;

fn client(server: &Server, rules: &[&str]) -> Arc<dyn Receiver> {
    Arc::new(XStream::filtered(&server.url, "sesame".into(), rules.iter().copied()).common(server.common(30)))
}

#[tokio::test]
async fn rules_are_kept_in_step() {
    let server = serve(plan(Network::X, 30)).await;
    server.stage.rule("1", "coffee", "tidemill");
    server.stage.rule("2", "#n7", "tidemill");
    server.stage.rule("3", "number", "another");
    let running = server.start(client(&server, &["#n7", "#n9"]), None);
    server.stage.opened(1).await;
    assert_eq!(server.stage.rules(), ["#n7", "number", "#n9"]);
    server.stage.publish(30);
    let heard = running.records(2).await;
    // What only the other program's rule matches is passed over.
    let all = wanted(Network::X, 30);
    assert_eq!(ids(Network::X, &heard), [all[7].clone(), all[9].clone()]);
    running.says("1 rules of other programs").await;
    assert_eq!(running.end().await.records.len(), 2);
}

#[tokio::test]
async fn a_rule_that_can_not_be_is_for_a_human() {
    let server = serve(plan(Network::X, 0)).await;
    let error = server.start(client(&server, &["tea ("]), None).failed().await;
    assert!(error.chain().contains("rule `tea (`: UnprocessableEntity missing EOF"), "{}", error.chain());
}

/// A round that is longer than what is remembered.
#[tokio::test]
async fn a_long_round_repeats_nothing_of_its_overlap() {
    let network = Network::X;
    let server = serve(plan(network, 1_520)).await;
    let search = || Arc::new(XSearch::new(&server.url, "sesame".into(), "tea").common(server.common(30)));
    server.stage.publish(20);
    let running = server.start(search(), None);
    running.records(20).await;
    let heard = running.end().await;
    let mut got = ids(network, &heard);
    server.stage.publish(1_500);
    let running = server.start(search(), heard.resume);
    running.says("searched ").await;
    got.extend(ids(network, &running.end().await));
    assert_eq!(sorted(got), sorted(wanted(network, 1_520)), "each once");
}

#[tokio::test]
async fn the_search_is_a_backfill_and_goes_on() {
    let network = Network::X;
    let server = serve(plan(network, 700)).await;
    server.stage.publish(450);
    let search = || Arc::new(XSearch::new(&server.url, "sesame".into(), "tea").common(server.common(30)));
    // The first life ends within the first round.
    let running = server.start(search(), None);
    let heard = running.intake.until(|heard| heard.records.len() >= 200).await;
    assert!(heard.records.len() < 450);
    let heard = running.end().await;
    let mut got = ids(network, &heard);
    server.stage.publish(50);
    let running = server.start(search(), heard.resume);
    running.records(500 - got.len()).await;
    server.stage.publish(200);
    running.records(700 - got.len()).await;
    let heard = running.end().await;
    got.extend(ids(network, &heard));
    got.sort();
    assert_eq!(got, sorted(wanted(network, 700)));
    // A searched post has its author, as a streamed one.
    let post = network.read(&heard.records[0]).unwrap();
    assert!(post.author.name.is_some() && post.author.followers.is_some(), "{post:?}");
}

#[tokio::test]
async fn what_the_search_may_not_or_can_not_give_is_a_letter() {
    let network = Network::X;
    let mut plan = plan(network, 40);
    plan.faults = vec![Fault::HangUp(10)];
    let server = serve(plan).await;
    let running = server.start(client(&server, &["tea"]), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.records(5).await;
    server.stage.refuse(403, 1);
    server.stage.publish(5);
    let heard = running.until(|heard| !heard.refused.is_empty()).await;
    assert!(
        heard.refused[0].0.starts_with("a gap: what was posted from 2026-05-01T00:00:02.997Z to "),
        "{:?}",
        heard.refused
    );
    assert!(heard.refused[0].0.contains("403"), "{:?}", heard.refused);
    let letter: serde_json::Value = serde_json::from_slice(&heard.refused[0].1).unwrap();
    assert_eq!(letter["gap"]["after"], "2026-05-01T00:00:02.997Z");
    // The stream goes on all the same.
    server.stage.publish(30);
    running.records(40).await;
    running.end().await;

    // After eight days the search does not reach back to the last post.
    let server = serve(super::plan(network, 40)).await;
    let running = server.start(client(&server, &["tea"]), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.records(5).await;
    let token = running.end().await.resume;
    server.clock.advance(Duration::from_secs(8 * 86_400));
    let running = server.start(client(&server, &["tea"]), token);
    let heard = running.until(|heard| !heard.refused.is_empty()).await;
    assert!(
        heard.refused[0].0.starts_with("a gap: the search knows nothing before 2026-05-02T"),
        "{:?}",
        heard.refused
    );
    running.end().await;
}

#[tokio::test]
async fn the_sample_stream_says_that_it_fetches_nothing() {
    let mut plan = plan(Network::X, 20);
    plan.faults = vec![Fault::HangUp(5)];
    let server = serve(plan).await;
    let sample = XStream::sample(&server.url, "sesame".into()).common(server.common(30));
    let running = server.start(Arc::new(sample), None);
    server.stage.opened(1).await;
    server.stage.publish(5);
    running.until(|heard| heard.states.iter().any(|s| s.contains("not to be had of the sample stream"))).await;
    server.stage.publish(15);
    let heard = running.records(20).await;
    assert_eq!(ids(Network::X, &heard), wanted(Network::X, 20));
    running.end().await;
}
