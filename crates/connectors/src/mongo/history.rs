//! Documents of a collection in the order of their times, to be played again.
//!
//! ```text
//! find {created_at: {$gte: from, $lt: to}}  sorted by created_at, through its index
//!      ─► batches of documents ─► lines, [`AHEAD`] batches ahead of who plays them
//! ```
//!
//! A reading that breaks, or rests so long that the server forgets it, goes on
//! from the time of the last document, as the server has it and compares it; those
//! of that time that were played already are known by their ids. Times that are
//! texts are in the server's order, which is that of their bytes: a span is asked
//! for by whole seconds, in which texts of any precision agree, and cut exactly here.
//!
//! Invariant: memory is bounded, whatever the collection's size: without an index
//! by the time the server would have to sort everything, so that is refused, and so
//! are more than [`IDS`] documents of one time. Each document of the span is played
//! once, of posts in the form of the format `post` those that no document deletes. Called by `tidemill replay`.

use super::{
    ids,
    json::{member, put, time_of},
    server::Server,
};
use crate::{
    backoff::Backoff,
    replay::{Line, Recording},
    social::post::stored::{Deleted, Stored},
};
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc},
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tidemill_core::{Error, Result, Timestamp};
use tokio::{sync::mpsc, task::JoinHandle};

/// Documents that are asked for together.
const BATCH: u32 = 2000;
/// Lines that are handed on together.
const PIECE: usize = 500;
/// Pieces that wait to be played; a full queue holds the reading up.
const AHEAD: usize = 16;
/// Bytes of a piece from which on it is handed on.
const PIECE_BYTES: usize = 1 << 20;
/// Before all times, in milliseconds: the year 0. Some servers know none that are much earlier.
const EARLIEST: i64 = -62_167_219_200_000;
/// Tries after which a reading that breaks is given up.
const TRIES: usize = 12;
/// Documents of one time at most; their ids are remembered.
const IDS: usize = if cfg!(test) { 1000 } else { 1_000_000 };
/// The bytes of a text's date and time to the second: `2026-01-31T15:00:00`.
const SECOND: usize = 19;

/// Times from `from` on, before `to`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// The first time inside.
    pub from: Option<Timestamp>,
    /// The first time after.
    pub to: Option<Timestamp>,
}

/// How a collection writes its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Date,
    Text,
    Millis,
}

/// Documents of a collection by their times.
#[derive(Debug)]
pub struct MongoHistory {
    server: Server,
    collection: String,
    /// The member with the time.
    time: String,
    /// The member whose text is played; the whole document without it.
    field: Option<String>,
    span: Span,
}

/// A history whose index is known.
struct Known {
    history: MongoHistory,
    kind: Kind,
    index: String,
    /// Whether it holds posts in the form of the format `post`.
    posts: bool,
}

/// Where a reading is.
#[derive(Default)]
struct Place {
    /// The time of the last document, as the server has it.
    at: Option<Bson>,
    /// Ids of documents of that time.
    ids: HashSet<Vec<u8>>,
    /// Posts that are not to be played; `None` until that is known.
    deleted: Option<Deleted>,
}

/// Whether a value is the time of a place.
fn is_same(value: RawBsonRef<'_>, at: &Bson) -> bool {
    match (value, at) {
        (RawBsonRef::String(value), Bson::String(at)) => value == at,
        (RawBsonRef::DateTime(value), Bson::DateTime(at)) => value == *at,
        (RawBsonRef::Int64(value), Bson::Int64(at)) => value == *at,
        _ => false,
    }
}

/// What a document says that is a post in the form of the format `post`.
fn stored(document: &RawDocument) -> Option<Stored> {
    let text = |name| match member(document, name) {
        Some(RawBsonRef::String(text)) => Some(text),
        _ => None,
    };
    Stored::of(text("id")?, text("kind")?, text("source")?)
}

/// A time as a place has it; none of a value that is no time.
fn owned(value: RawBsonRef<'_>) -> Option<Bson> {
    match value {
        RawBsonRef::String(text) => Some(Bson::String(text.to_string())),
        RawBsonRef::DateTime(at) => Some(Bson::DateTime(at)),
        RawBsonRef::Int64(millis) => Some(Bson::Int64(millis)),
        _ => None,
    }
}

/// The time of a place for people.
fn shown(at: &Bson) -> String {
    match at {
        Bson::String(text) => text.clone(),
        Bson::DateTime(at) => Timestamp::from_millis(at.timestamp_millis()).to_string(),
        Bson::Int64(millis) => Timestamp::from_millis(*millis).to_string(),
        other => other.to_string(),
    }
}

/// Whether a text is like `2026-01-31T15:00:00Z`, of any precision, in UTC: the order of such is that of their times,
/// but for fractions within a second that are written with fewer digits.
fn is_ordered(text: &str) -> bool {
    let zone =
        text.get(SECOND..).unwrap_or("none").trim_start_matches('.').trim_start_matches(|c: char| c.is_ascii_digit());
    text.as_bytes().get(10) == Some(&b'T') && matches!(zone, "" | "Z" | "+00:00" | "+0000" | "-00:00" | "-0000")
}

impl MongoHistory {
    /// Of `mongodb://host:27017/database.collection`, by the times in the member `time`.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn new(url: &str, time: &str, span: Span) -> Result<Self> {
        let (server, collection) = Server::with_collection(url)?;
        Ok(Self { server, collection, time: time.to_string(), field: None, span })
    }

    /// Plays the text of a member, such as a message as it was received, in place of the document.
    #[must_use]
    pub fn field(mut self, field: Option<String>) -> Self {
        self.field = field;
        self
    }

    /// Looks at the collection and gives its documents as a recording.
    ///
    /// # Errors
    /// When the server can't be reached, nothing has such a time, or no index begins with it.
    pub async fn recording(self) -> Result<Recording> {
        let known = Arc::new(self.look().await?);
        Ok(Arc::new(move || Documents::read(Arc::clone(&known)).lines()))
    }

    async fn documents(&self) -> Result<Collection<RawDocumentBuf>> {
        Ok(self.server.database().await?.collection(&self.collection))
    }

    async fn look(self) -> Result<Known> {
        let (server, time) = (&self.server, &self.time);
        let named =
            |why: &str| Error::user(format!("mongodb: collection `{}` of {}: {why}", self.collection, server.place));
        let documents = self.documents().await?;
        let with_time = doc! { time: { "$exists": true } };
        let one = server.within("look at a document", async { documents.find_one(with_time).await }).await?;
        let Some(one) = one else {
            return Err(named(&format!("no document has a time in `{time}`: name its member with --time")));
        };
        let kind = match member(&one, time) {
            Some(RawBsonRef::DateTime(_)) => Kind::Date,
            Some(RawBsonRef::Int64(_)) => Kind::Millis,
            Some(value @ RawBsonRef::String(text)) if time_of(value).is_some() => {
                if !is_ordered(text) {
                    return Err(named(&format!(
                        "`{time}` holds texts such as `{text}`, whose order is not that of their times: it must be like 2026-01-31T15:00:00Z, in UTC, or a date"
                    )));
                }
                Kind::Text
            }
            _ => {
                let want = "a date, a text of ISO 8601, or milliseconds since 1970 as int64";
                return Err(named(&format!("`{time}` holds no time: {want}")));
            }
        };
        if let Some(field) = &self.field
            && !matches!(member(&one, field), Some(RawBsonRef::String(_)))
        {
            return Err(named(&format!("`{field}`, which --field names, is no text in the first document")));
        }
        let indexes: Vec<_> =
            server.within("list indexes", async { documents.list_indexes().await?.try_collect().await }).await?;
        let by_time = indexes.iter().find(|index| index.keys.keys().next() == Some(time));
        let name = by_time.and_then(|index| index.options.as_ref()?.name.clone());
        let Some(index) = name else {
            return Err(named(&format!(
                "no index begins with `{time}`, and without one the server would have to sort everything in memory: make one with db.{}.createIndex({{\"{time}\": 1}})",
                self.collection
            )));
        };
        let posts = stored(&one).is_some();
        Ok(Known { history: self, kind, index, posts })
    }
}

impl Known {
    /// A time as the server compares it: the millisecond that it lies in, or of texts the second.
    fn bound(&self, at: Timestamp) -> Bson {
        match self.kind {
            Kind::Date => Bson::DateTime(DateTime::from_millis(at.millis())),
            Kind::Millis => Bson::Int64(at.millis()),
            Kind::Text => {
                let mut text = at.to_string();
                text.truncate(SECOND);
                Bson::String(text)
            }
        }
    }

    /// The first bound of [`Known::bound`] behind a time.
    fn bound_after(&self, at: Timestamp) -> Bson {
        let step = if self.kind == Kind::Text { Duration::from_secs(1) } else { Duration::from_millis(1) };
        self.bound(at.plus(step))
    }

    /// What is still to be played, and perhaps a little around the span.
    fn filter(&self, place: &Place) -> Document {
        let Span { from, to } = self.history.span;
        let mut bounds = Document::new();
        match (place.at.clone().or(from.map(|from| self.bound(from))), self.kind) {
            (Some(at), _) => drop(bounds.insert("$gte", at)),
            // Leaves out documents whose time is missing or of another kind.
            (None, Kind::Date) => drop(bounds.insert("$gte", Bson::DateTime(DateTime::from_millis(EARLIEST)))),
            (None, Kind::Millis) => drop(bounds.insert("$gte", Bson::Int64(EARLIEST))),
            (None, Kind::Text) => drop(bounds.insert("$gte", "")),
        }
        if let Some(to) = to {
            bounds.insert("$lt", self.bound_after(to));
        }
        doc! { &self.history.time: bounds }
    }

    /// The posts that were deleted, whenever that was.
    async fn deleted(&self) -> Result<Deleted> {
        let mut deleted = Deleted::default();
        if !self.posts {
            return Ok(deleted);
        }
        let (server, documents) = (&self.history.server, self.history.documents().await?);
        let members = doc! { "_id": 0, "id": 1, "kind": 1, "source": 1 };
        let find = async { documents.find(doc! { "kind": "delete" }).projection(members).batch_size(BATCH).await };
        let mut cursor = server.within("find deleted posts", find).await?;
        while server.within("find deleted posts", async { cursor.advance().await }).await? {
            stored(cursor.current()).into_iter().for_each(|row| deleted.note(row));
        }
        Ok(deleted)
    }

    /// Reads on from a place until the end, or until nobody listens.
    async fn read(&self, place: &mut Place, lines: &mpsc::Sender<Vec<Result<Line>>>) -> Result<()> {
        let MongoHistory { server, time, .. } = &self.history;
        if place.deleted.is_none() {
            place.deleted = Some(self.deleted().await?);
        }
        let documents = self.history.documents().await?;
        let find = async {
            let find = documents.find(self.filter(place)).sort(doc! { time: 1 });
            find.hint(mongodb::options::Hint::Name(self.index.clone())).batch_size(BATCH).await
        };
        let mut cursor = server.within("read documents", find).await?;
        let resumed = place.at.clone();
        let (mut piece, mut bytes) = (Vec::with_capacity(PIECE), 0);
        loop {
            let read = match server.within("read documents", async { cursor.advance().await }).await {
                Ok(true) => self.line(cursor.current(), resumed.as_ref(), place),
                Ok(false) => break,
                Err(error) => Err(error),
            };
            match read {
                Ok(line) => {
                    bytes += line.as_ref().map_or(0, |line| line.bytes.len());
                    piece.extend(line.map(Ok));
                }
                Err(error) => {
                    // What was read before is noted in the place, and would not be read again.
                    let _unheard = lines.send(piece).await;
                    return Err(error);
                }
            }
            if piece.len() == PIECE || bytes >= PIECE_BYTES {
                bytes = 0;
                if lines.send(std::mem::replace(&mut piece, Vec::with_capacity(PIECE))).await.is_err() {
                    return Ok(());
                }
            }
        }
        // Nobody may listen any more.
        let _unheard = lines.send(piece).await;
        Ok(())
    }

    /// The line of a document, and the place behind it; none of one that was played before, or is not of the span.
    fn line(&self, document: &RawDocument, resumed: Option<&Bson>, place: &mut Place) -> Result<Option<Line>> {
        let value = member(document, &self.history.time);
        let at = value.and_then(time_of);
        let Span { from, to } = self.history.span;
        if at.is_some_and(|at| from.is_some_and(|from| at < from) || to.is_some_and(|to| at >= to)) {
            return Ok(None);
        }
        if let Some(deleted) = place.deleted.as_ref().filter(|deleted| !deleted.is_empty())
            && stored(document).is_some_and(|row| !deleted.leaves(&row))
        {
            return Ok(None);
        }
        let id = document.get("_id").ok().flatten().map(ids::mark).unwrap_or_default();
        // Of a value that is no time the place is that of the time before it.
        let is_again = |resumed| at.is_none() || value.is_some_and(|value| is_same(value, resumed));
        if resumed.is_some_and(is_again) && place.ids.contains(&id) {
            return Ok(None);
        }
        if let Some(value) = value.filter(|_| at.is_some())
            && !place.at.as_ref().is_some_and(|at| is_same(value, at))
        {
            place.at = owned(value);
            place.ids.clear();
        }
        if place.ids.len() >= IDS {
            let (time, at) = (&self.history.time, place.at.as_ref().map(shown).unwrap_or_default());
            return Err(Error::user(format!(
                "mongodb: over {IDS} documents of collection `{}` have the time {at} in `{time}`: a reading that breaks could not go on among them; name a member with finer times in --time",
                self.history.collection
            )));
        }
        let bytes = match &self.history.field {
            None => {
                let mut line = Vec::with_capacity(document.as_bytes().len() + 64);
                put(document, &mut line)?;
                Bytes::from(line)
            }
            Some(field) => match member(document, field) {
                // A text with line ends would be several lines.
                Some(RawBsonRef::String(text)) => Bytes::from(text.replace(['\n', '\r'], " ")),
                _ => {
                    tracing::warn!(?at, "left out a document whose `{field}` is no text");
                    return Ok(None);
                }
            },
        };
        place.ids.insert(id);
        Ok(Some(Line { bytes, at }))
    }
}

/// Lines as they are read, by one task for each who plays them.
struct Documents {
    pieces: mpsc::Receiver<Vec<Result<Line>>>,
    reading: JoinHandle<()>,
}

impl Drop for Documents {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Documents {
    fn read(known: Arc<Known>) -> Self {
        let (lines, pieces) = mpsc::channel(AHEAD);
        let reading = tokio::spawn(async move {
            let mut place = Place::default();
            let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(10), 1);
            let mut tries = 0;
            loop {
                let before = (place.at.clone(), place.ids.len());
                let Err(error) = known.read(&mut place, &lines).await else { return };
                // A reading that came further is a success.
                if (place.at.as_ref(), place.ids.len()) != (before.0.as_ref(), before.1) {
                    tries = 0;
                    backoff.reset();
                }
                tries += 1;
                if !error.is_retryable() || tries == TRIES {
                    let at = place.at.as_ref().map_or_else(|| "its start".to_string(), shown);
                    let what = format!("the history can't be read on from {at}");
                    // Nobody may listen any more.
                    let _unheard = lines.send(vec![Err(Error::external(what).because(error))]).await;
                    return;
                }
                tracing::warn!(error = error.chain(), "the history will be read on");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        });
        Self { pieces, reading }
    }

    fn lines(self) -> BoxStream<'static, Result<Line>> {
        let next = async |mut this: Self| Some((stream::iter(this.pieces.recv().await?), this));
        stream::unfold(self, next).flatten().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(kind: Kind, span: Span) -> Known {
        let history = MongoHistory::new("mongodb://localhost/db.posts", "at", span).unwrap();
        Known { history, kind, index: "at_1".to_string(), posts: false }
    }

    /// Plays documents of these ids and times as the server would give them after a break; the ids of the lines.
    fn play(known: &Known, all: &[(i32, Bson)], place: &mut Place) -> Vec<i32> {
        let resumed = place.at.clone();
        let mut played = Vec::new();
        for (id, at) in all {
            let document = RawDocumentBuf::try_from(&doc! { "_id": *id, "at": at.clone() }).unwrap();
            played.extend(known.line(&document, resumed.as_ref(), place).unwrap().map(|_| *id));
        }
        played
    }

    #[test]
    fn a_reading_that_broke_goes_on_where_it_was() {
        let span = Span { from: Some(Timestamp(1_000)), to: Some(Timestamp(9_000_500)) };
        let known = known(Kind::Text, span);
        let text = |micros: i64| Bson::String(format!("1970-01-01T00:00:01.{micros:06}Z"));
        let of = |all: &[(i32, i64)]| all.iter().map(|(id, at)| (*id, text(*at))).collect::<Vec<_>>();
        let mut place = Place::default();
        // By seconds: whatever their precision, texts of a second begin with it.
        let first = doc! { "at": { "$gte": "1970-01-01T00:00:00", "$lt": "1970-01-01T00:00:10" } };
        assert_eq!(known.filter(&place), first);
        let all = of(&[(1, 100), (2, 500_100), (3, 500_200), (4, 500_200)]);
        assert_eq!(play(&known, &all, &mut place), [1, 2, 3, 4]);
        // Nothing that follows is less than what is asked for.
        let filter = known.filter(&place);
        let asked = filter.get_document("at").unwrap().get_str("$gte").unwrap();
        for follows in [text(500_200), text(500_201), text(500_300), text(501_000)] {
            assert!(asked <= follows.as_str().unwrap(), "{asked} <= {follows}");
        }
        let again = of(&[(4, 500_200), (5, 500_200), (3, 500_200), (6, 500_300), (7, 500_300)]);
        assert_eq!(play(&known, &again, &mut place), [5, 6, 7]);
        assert_eq!(play(&known, &of(&[(7, 500_300), (6, 500_300)]), &mut place), Vec::<i32>::new());
        assert_eq!(play(&known, &of(&[(7, 500_300), (8, 600_000)]), &mut place), [8]);
    }

    #[test]
    fn other_spellings_of_times_lose_nothing() {
        let span = Span { from: Some(Timestamp(500_000)), to: Some(Timestamp(2_250_000)) };
        let known = known(Kind::Text, span);
        // In the order of their bytes, as the server gives them; the first and the last two are not of the span.
        let texts = [
            "1970-01-01T00:00:00.4Z",
            "1970-01-01T00:00:00.5Z",
            "1970-01-01T00:00:01+00:00",
            "1970-01-01T00:00:01.7300Z",
            "1970-01-01T00:00:01Z",
            "1970-01-01T00:00:02",
            "1970-01-01T00:00:02.25+00:00",
            "1970-01-01T00:00:02.3Z",
        ];
        assert!(texts.is_sorted());
        let all: Vec<(i32, Bson)> = (0..).zip(texts.map(|text| Bson::String(text.to_string()))).collect();
        let inside = |filter: Document| {
            let (from, to) = (filter.get_str("$gte").unwrap().to_string(), filter.get_str("$lt").unwrap().to_string());
            all.iter()
                .filter(move |(_, at)| (&*from..&*to).contains(&at.as_str().unwrap()))
                .cloned()
                .collect::<Vec<_>>()
        };
        // It may break behind each.
        for cut in 0..texts.len() {
            let mut place = Place::default();
            let bounds = |place: &Place| known.filter(place).get_document("at").unwrap().clone();
            let asked = inside(bounds(&place));
            assert_eq!(asked.len(), texts.len());
            let mut played = play(&known, &asked[..cut], &mut place);
            played.extend(play(&known, &inside(bounds(&place)), &mut place));
            assert_eq!(played, [1, 2, 3, 4, 5], "cut behind {cut}");
        }
        for text in ["2026-01-31T15:00:00Z", "2026-01-31T15:00:00.1234567+00:00", "2026-01-31T15:00:00"] {
            assert!(is_ordered(text), "{text}");
        }
        for text in
            ["2026-01-31", "2026-01-31 15:00:00Z", "2026-01-31T15:00:00+09:00", "Wed Oct 10 20:19:24 +0000 2018"]
        {
            assert!(!is_ordered(text), "{text}");
        }
    }

    #[test]
    fn a_span_is_cut_exactly_and_ids_of_one_time_are_bounded() {
        let span = Span { from: Some(Timestamp(1_500)), to: Some(Timestamp(3_500)) };
        for kind in [Kind::Date, Kind::Millis] {
            let known = known(kind, span);
            let at = |millis| match kind {
                Kind::Date => Bson::DateTime(DateTime::from_millis(millis)),
                _ => Bson::Int64(millis),
            };
            let mut place = Place::default();
            assert_eq!(known.filter(&place), doc! { "at": { "$gte": at(1), "$lt": at(4) } });
            let all: Vec<(i32, Bson)> = (1..4).map(|n| (n, at(i64::from(n)))).collect();
            assert_eq!(play(&known, &all, &mut place), [2, 3]);
            assert_eq!(known.filter(&place), doc! { "at": { "$gte": at(3), "$lt": at(4) } });
            assert_eq!(play(&known, &[(3, at(3)), (4, at(3))], &mut place), [4]);
        }
        let known = known(Kind::Date, Span::default());
        let mut place = Place::default();
        let document = |id: i32| RawDocumentBuf::try_from(&doc! { "_id": id, "at": DateTime::from_millis(0) }).unwrap();
        let ids = i32::try_from(IDS).unwrap();
        (0..ids).for_each(|id| drop(known.line(&document(id), None, &mut place).unwrap().unwrap()));
        let error = known.line(&document(ids), None, &mut place).unwrap_err().to_string();
        assert!(error.contains("have the time 1970-01-01T00:00:00.000Z in `at`"), "{error}");
    }
}
