//! A restart goes on with the token of the last durable block.

use super::*;

/// Three lives; posts are published while nobody is there.
async fn three_lives(network: Network) {
    let server = serve(plan(network, 120)).await;
    let mut token = None;
    let mut got = Vec::new();
    let mut published = 0;
    for life in 0..3 {
        let running = server.start(server.receiver(network), token.clone());
        server.stage.opened(life + 1).await;
        server.stage.publish(25);
        published += 25;
        running.records(published - got.len()).await;
        let heard = running.end().await;
        got.extend(ids(network, &heard));
        token = heard.resume;
        assert!(token.as_ref().unwrap().len() < 3000, "{}", token.unwrap().len());
        assert!(heard.refused.is_empty(), "{:?}", heard.refused);
        // Between the lives.
        server.stage.publish(15);
        published += 15;
    }
    got.sort();
    assert_eq!(got, sorted(wanted(network, 105)), "nothing lost, nothing twice");
}

#[tokio::test]
async fn mastodon_goes_on() {
    three_lives(Network::Mastodon).await;
}

#[tokio::test]
async fn wikimedia_goes_on() {
    three_lives(Network::Wikimedia).await;
}

#[tokio::test]
async fn x_goes_on() {
    three_lives(Network::X).await;
}

#[tokio::test]
async fn bluesky_goes_on() {
    three_lives(Network::Bluesky).await;
}

/// A gap of many pages: it is fetched in order, page by page, and a crash in the middle goes on there.
#[tokio::test]
async fn a_long_gap_is_fetched_page_by_page() {
    let network = Network::Mastodon;
    let server = serve(plan(network, 400)).await;
    let running = server.start(server.receiver(network), None);
    server.stage.opened(1).await;
    server.stage.publish(3);
    running.records(3).await;
    let mut heard = running.end().await;
    let mut got = ids(network, &heard);
    server.stage.publish(397);
    // Each life is ended somewhere within the pages, by the server's refusal of a page.
    let mut lives = 1;
    while got.len() < 400 {
        lives += 1;
        let running = server.start(server.receiver(network), heard.resume.clone());
        let goal = (got.len() + 90).min(400);
        heard = {
            running.records(goal - got.len()).await;
            running.end().await
        };
        got.extend(ids(network, &heard));
    }
    assert!(lives > 2);
    assert_eq!(got, wanted(network, 400), "in order, each once");
}

/// On a server where each page brings new posts, fetching ends where the stream takes over.
#[tokio::test]
async fn fetching_does_not_run_after_a_busy_server() {
    let network = Network::Mastodon;
    let mut plan = plan(network, 400);
    // Post 95 is written 31 s after the first, when the stream is opened anew.
    let theirs = Arc::new(ManualClock::at(plan.posts[95].at));
    plan.clock = theirs;
    let server = serve_with(plan, Arc::new(ManualClock::at(NOW))).await;
    let running = server.start(server.receiver(network), None);
    server.stage.opened(1).await;
    server.stage.publish(3);
    running.records(3).await;
    let token = running.end().await.resume;
    server.stage.publish(397);
    let running = server.start(server.receiver(network), token);
    server.stage.opened(2).await;
    server.stage.rested(Duration::from_millis(300)).await;
    // Ten seconds more, to the end of a page: 95 + 30 posts, and what is left of 40.
    let pages = server.stage.asked().iter().filter(|request| request.contains("min_id")).count();
    assert_eq!(pages, 4, "{:?}", server.stage.asked());
    assert_eq!(ids(network, &running.end().await), wanted(network, 160)[3..]);
}

#[tokio::test]
async fn a_gap_that_is_too_long_is_told() {
    let network = Network::Mastodon;
    let server = serve(plan(network, 500)).await;
    let client = || Arc::new(Mastodon::new(&server.url).gap_posts(100).common(server.common(30)));
    let running = server.start(client(), None);
    server.stage.opened(1).await;
    server.stage.publish(3);
    running.records(3).await;
    let token = running.end().await.resume;
    server.stage.publish(400);
    let running = server.start(client(), token);
    let heard = running.until(|heard| heard.refused.len() == 1).await;
    let last = ids(network, &heard).pop().unwrap();
    assert!(
        heard.refused[0].0.starts_with(&format!("a gap: posts after {last} were not fetched")),
        "{:?}",
        heard.refused
    );
    // What is posted now comes.
    let before = heard.records.len();
    server.stage.publish(1);
    running.records(before + 1).await;
    running.end().await;
}

#[tokio::test]
async fn edits_and_deletions_are_records() {
    let network = Network::Mastodon;
    let mut plan = plan(network, 2);
    let first = plan.posts[0].id.clone();
    let edited = plan.posts[1].record.replace("\"edited_at\":null", "\"edited_at\":\"2026-05-01T00:10:00.000Z\"");
    plan.posts.push(Posted::from_line(network, &edited, 2));
    plan.posts.push(Posted::deletion(network, &first, 3));
    let server = serve(plan).await;
    let running = server.start(server.receiver(network), None);
    server.stage.opened(1).await;
    server.stage.publish(4);
    let heard = running.records(4).await;
    let kinds: Vec<_> =
        heard.records.iter().map(|record| network.read(record).unwrap()).map(|p| (p.id, p.kind)).collect();
    let all = wanted(network, 2);
    use crate::social::post::Kind;
    assert_eq!(
        kinds,
        [
            (all[0].clone(), Kind::Post),
            (all[1].clone(), Kind::Post),
            (all[1].clone(), Kind::Edit),
            (all[0].clone(), Kind::Delete)
        ]
    );
    running.end().await;
}
