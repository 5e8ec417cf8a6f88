//! Trending hashtags, typed: posts, their tags, counts of a sliding window.
//!
//! ```text
//! cargo run --example trending
//! ```
//!
//! Ends by itself: the posts are queued in memory. A stream from a socket or a
//! file takes the place of `queue_stream` and nothing else changes.

use tidemill::prelude::*;

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Record)]
pub(crate) struct Post {
    text: String,
    lang: String,
}

fn post(text: &str, lang: &str) -> Post {
    Post { text: text.to_string(), lang: lang.to_string() }
}

/// Posts, batch by batch.
pub(crate) fn input() -> [Vec<Post>; 3] {
    [
        vec![post("High water #harbour #tide", "en"), post("Flut im #hafen", "de")],
        vec![post("Ebb #tide", "en")],
        vec![post("#tide mills turn", "en"), post("to the #harbour", "en")],
    ]
}

/// How often each tag stood in English posts of the last five batches.
pub(crate) fn trending(posts: &DStream<Post>, interval: Duration) -> DStream<(Str, i64)> {
    posts
        .filter(|post| post.lang == "en")
        .flat_map::<Str, _>(|post, out| out.extend(post.text.split_whitespace().filter(|word| word.starts_with('#'))))
        .map(|tag| (Str::from(tag.to_lowercase()), 1_i64))
        .reduce_by_key_and_window(|a, b| a + b, interval * 5, interval)
}

fn main() -> Result<()> {
    let interval = Duration::from_millis(200);
    let context = tidemill::context("trending").interval(interval).build();
    trending(&context.queue_stream(input())?, interval).foreach_batch(|batch, mut top| {
        top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let shown: Vec<String> = top.iter().take(10).map(|(tag, count)| format!("{tag} {count}")).collect();
        println!("batch {}: {}", batch.id, shown.join(", "));
        Ok(())
    });

    Assembly::new(context).show(Show::Nothing).run_for(Some(Duration::from_secs(2))).run()?;
    Ok(())
}
