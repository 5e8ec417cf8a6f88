//! Stored posts, played without those that were deleted.
//!
//! Rows that the format `post` made say themselves which post was deleted. Where
//! the first line of a recording is such a row, the recording is read twice: for
//! its deletions, wherever they stand in it, and then to be played.
//!
//! Invariant: other recordings are played as they are. Called by `recordings.rs`
//! for files; collections and topics find what was deleted by themselves.

use futures::stream::{self, StreamExt};
use std::{future::ready, sync::Arc};
use tidemill::{
    Result,
    connectors::{
        replay::{Line, Recording},
        social::post::stored::{Deleted, MemberPaths, Stored},
    },
};

/// Lines that are looked through before other tasks have their turn.
const TURN: usize = 1000;

/// The recording without posts that it says were deleted.
pub(super) async fn without_deleted(recording: Recording) -> Recording {
    let paths = Arc::new(MemberPaths::default());
    let is_row = match recording().next().await {
        Some(Ok(line)) => Stored::of_line(&line.bytes, &paths).is_some(),
        // Who plays it will be told.
        Some(Err(_)) | None => false,
    };
    if !is_row {
        return recording;
    }
    Arc::new(move || {
        let (recording, paths) = (Arc::clone(&recording), Arc::clone(&paths));
        let standing = async move {
            let deleted = match deleted(&recording, &paths).await {
                Ok(deleted) => deleted,
                Err(error) => return stream::iter([Err(error)]).boxed(),
            };
            if deleted.is_empty() {
                return recording();
            }
            let stands = move |line: &Result<Line>| {
                let row = line.as_ref().ok().and_then(|line| Stored::of_line(&line.bytes, &paths));
                ready(row.is_none_or(|row| deleted.leaves(&row)))
            };
            recording().filter(stands).boxed()
        };
        stream::once(standing).flatten().boxed()
    })
}

/// The deletions in a recording.
async fn deleted(recording: &Recording, paths: &MemberPaths) -> Result<Deleted> {
    let (mut deleted, mut lines, mut turn) = (Deleted::default(), recording(), 0);
    while let Some(line) = lines.next().await {
        deleted.note_line(&line?.bytes, paths);
        turn += 1;
        if turn % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tidemill::connectors::replay::recording;

    async fn played(lines: &[&'static str]) -> Vec<String> {
        let lines: Arc<[Bytes]> = lines.iter().map(|line| Bytes::from_static(line.as_bytes())).collect();
        let played = without_deleted(recording(lines)).await;
        // As in a loop: each round the same.
        let rounds = [played(), played()].map(|round| {
            round.map(|line| String::from_utf8(line.unwrap().bytes.to_vec()).unwrap()).collect::<Vec<_>>()
        });
        let [one, two] = rounds;
        let (one, two) = (one.await, two.await);
        assert_eq!(one, two);
        one
    }

    #[tokio::test]
    async fn posts_that_a_row_deletes_are_left_out_wherever_it_stands() {
        let one = r#"{"id":"1","kind":"post","source":"x-v1","text":"a"}"#;
        let two = r#"{"id":"2","kind":"post","source":"x-v1","text":"to delete"}"#;
        let gone = r#"{"id":"1","kind":"delete","source":"x-v1"}"#;
        let other = r#"{"id":"1","kind":"post","source":"mastodon","text":"b"}"#;
        assert_eq!(played(&[one, two, gone, other]).await, [two, gone, other]);
        assert_eq!(played(&[gone, one, "no row"]).await, [gone, "no row"]);
        assert_eq!(played(&[one, two]).await, [one, two]);
        let raw = r#"{"event":"delete","payload":"1"}"#;
        assert_eq!(played(&[raw, one, gone]).await, [raw, one, gone], "it begins with something else");
        assert_eq!(played(&[]).await, [""; 0]);
    }
}
