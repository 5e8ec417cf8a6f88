//! Connectors `x`, `x-sample` and `x-search`: X, by version 2 of its API.
//!
//! `x` is the filtered stream: what the rules match. `x-sample` is a sample of
//! all posts. `x-search` asks the recent search now and then, and first for what
//! the last days have: a backfill.
//!
//! | Option | Of | Meaning |
//! |---|---|---|
//! | `token_file`, `token_env` | all | where the bearer token is: a file, or a variable (`X_BEARER_TOKEN`) |
//! | `rules` | `x` | what is wanted, rules apart by `;` or line ends, each as X writes them: `cat has:images; #tea lang:en` |
//! | `tag` | `x` | marks our rules among those of the credential (`tidemill`) |
//! | `gaps` | `x` | `search` (default): what an interruption missed is asked of the recent search; `skip` |
//! | `query` | `x-search` | what is searched |
//! | `every` | `x-search` | how often (60s) |
//! | `since` | `x-search` | where a first start begins: a time, at most seven days ago, which it is unless said |
//! | `url` | all | the server (`https://api.x.com`) |
//! | `proxy`, `user_agent`, `max_line`, `idle_timeout` (30s) | all | as all collectors have them |
//!
//! A record is what the stream sends for a post, `{"data":…,"includes":…,"matching_rules":…}`;
//! posts that were searched are put into the same form. X sends no notices of
//! deletions on these streams.
//!
//! **Rules** are kept in step with the program's text: before it connects, `x`
//! removes rules with its tag that are no longer there and adds those that are
//! missing. Rules of other tags are left alone, and posts that only they match
//! are passed over. Without `rules` all that the credential's rules match is taken.
//!
//! **Nothing lost, nothing twice.** The streams have no place to go on from. So
//! after an interruption `x` opens the stream, then asks the recent search for
//! what its rules match since ten seconds before the newest known post, and
//! tells known posts apart by their ids. All rules together are one query, which
//! X allows 512 characters for, or 1,024. What can't be had is a dead letter that
//! says which time is missing. `x-sample` can't fetch what it missed, and reports it.

mod rules;
mod search;
mod stream;

pub use search::XSearch;
pub use stream::XStream;

use super::{failure::Failure, http::Request, secret::Place};
use std::time::Duration;
use tidemill_core::{Error, Timestamp};

pub(super) const PUBLIC: &str = "https://api.x.com";
/// The usual variable of the token.
const TOKEN: &str = "X_BEARER_TOKEN";
/// A living server sends at least an empty line every 20 seconds.
const QUIET: Duration = Duration::from_secs(30);
/// Posts told apart at most: those of the overlap.
const MARKS: usize = 1024;
/// The parts of a post that are asked for.
const FIELDS: &str = "tweet.fields=author_id,created_at,edit_history_tweet_ids,entities,geo,lang,public_metrics\
&expansions=author_id,geo.place_id&user.fields=name,public_metrics,username&place.fields=full_name";
/// Ids hold milliseconds since this time, in their upper 42 bits.
const EPOCH_MS: u64 = 1_288_834_974_657;
/// Searching goes back this much before the newest known post.
const OVERLAP_MS: u64 = 10_000;

/// When a post of this id was written.
fn time_of(id: &str) -> Option<Timestamp> {
    let ms = (id.parse::<u64>().ok()? >> 22).checked_add(EPOCH_MS)?;
    i64::try_from(ms).ok().map(Timestamp::from_millis)
}

/// The id that begins ten seconds before that of a post.
fn before(id: &str) -> String {
    id.parse::<u64>().map_or_else(|_| id.to_string(), |id| ((id >> 22).saturating_sub(OVERLAP_MS) << 22).to_string())
}

/// A request with the token.
fn request(url: &str, path: &str, token: &Place) -> Result<Request, Failure> {
    let request = Request::get(&format!("{url}{path}")).map_err(|e| Failure::Fatal(Error::user(e)))?;
    Ok(request.authorization(&format!("Bearer {}", token.read_one()?.expose())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_their_time() {
        // The id and time of the example of the reference for post lookup.
        let at = time_of("1460323737035677698").unwrap();
        assert_eq!(at.to_string()[..19], *"2021-11-15T19:08:05");
        let earlier = before("1460323737035677698");
        assert_eq!(at.since(time_of(&earlier).unwrap()), Duration::from_secs(10));
        assert_eq!(before("strange"), "strange");
    }
}
