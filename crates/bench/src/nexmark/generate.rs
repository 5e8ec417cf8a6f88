//! People, auctions and bids, as Nexmark has them, from a seed.
//!
//! Of fifty events one is a person, three are auctions and the rest bids; event
//! `n` happens at `n / 10,000` seconds. Half of the bids go to one hot auction of a
//! hundred, three of four to one hot bidder; an auction is open for some hundred
//! of the auctions after it. Each field is a function of the seed, the event's
//! number and the field, so that a query pays for the columns that it reads.
//!
//! Invariant: an offset is an event's number in all three sources, so that
//! batches cut all three at the same time.

use crate::input::random::Random;
use arrow_array::{
    Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::sync::Arc;
use tidemill_core::{
    Budget, Chunk, ChunkStream, Error, Offset, OffsetRange, PartitionId, Position, Result, Shape, Source, Timestamp,
};

/// 15 July 2015, in microseconds.
const BASE: i64 = 1_436_918_400_000_000;
/// Microseconds from one event to the next.
const STEP: i64 = 100;
/// Events of a round: one person, then auctions, then bids.
const ROUND: u64 = 1 + AUCTIONS + BIDS;
const AUCTIONS: u64 = 3;
const BIDS: u64 = 46;
const FIRST_PERSON: u64 = 1_000;
const FIRST_AUCTION: u64 = 1_000;
const FIRST_CATEGORY: i64 = 10;
/// Auctions and people that are active at a time.
const OPEN: u64 = 100;
const ACTIVE: u64 = 1_000;
/// Events of a piece.
const CHUNK: u64 = 8_192;

/// What a source gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Person,
    Auction,
    Bid,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Person, Self::Auction, Self::Bid];

    /// The stream's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Auction => "auction",
            Self::Bid => "bid",
        }
    }

    fn has(self, event: u64) -> bool {
        match (event % ROUND, self) {
            (0, kind) => kind == Self::Person,
            (1..=AUCTIONS, kind) => kind == Self::Auction,
            (_, kind) => kind == Self::Bid,
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Person => &["id", "name", "email", "credit_card", "city", "state", "date_time", "extra"],
            Self::Auction => &[
                "id",
                "item_name",
                "description",
                "initial_bid",
                "reserve",
                "date_time",
                "expires",
                "seller",
                "category",
                "extra",
            ],
            Self::Bid => &["auction", "bidder", "price", "channel", "url", "date_time", "extra"],
        }
    }
}

/// Events `0..events` of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    kind: Kind,
    seed: u64,
    events: u64,
    schema: SchemaRef,
}

impl Events {
    pub(crate) fn new(kind: Kind, seed: u64, events: u64) -> Self {
        let fields = kind.columns().iter().map(|name| {
            let of = match *name {
                "date_time" | "expires" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
                "id" | "initial_bid" | "reserve" | "seller" | "category" | "auction" | "bidder" | "price" => {
                    DataType::Int64
                }
                _ => DataType::Utf8,
            };
            Field::new(*name, of, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Self { kind, seed, events, schema }
    }

    /// All rows.
    ///
    /// # Errors
    /// When columns do not fit, which is a bug.
    pub(crate) fn all(&self) -> Result<RecordBatch> {
        self.make(0, self.events, &(0..self.schema.fields().len()).collect::<Vec<_>>())
    }

    /// When the rows of events `start..end` came: those of eight thousand events at once, with the last of them.
    fn arrivals(&self, start: u64, end: u64) -> Vec<(u32, Timestamp)> {
        let firsts = (start / CHUNK..end.div_ceil(CHUNK)).map(|piece| piece * CHUNK);
        let runs = firsts.map(|first| {
            let events = first.max(start)..(first + CHUNK).min(end);
            let rows = events.filter(|event| self.kind.has(*event)).count();
            (u32::try_from(rows).unwrap_or(u32::MAX), Timestamp(time(first + CHUNK - 1)))
        });
        runs.collect()
    }

    /// All rows, with the column `_timestamp` of their arrival.
    ///
    /// # Errors
    /// As [`Events::all`].
    pub(crate) fn all_with_arrival(&self) -> Result<RecordBatch> {
        let rows = self.all()?;
        let arrivals = self.arrivals(0, self.events).into_iter();
        let arrivals = times(arrivals.flat_map(|(rows, at)| std::iter::repeat_n(at.0, rows as usize)));
        let mut fields = self.schema.fields().to_vec();
        fields.push(Arc::new(Field::new("_timestamp", arrivals.data_type().clone(), true)));
        let columns = rows.columns().iter().cloned().chain([arrivals]).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
            .map_err(|e| Error::internal("generated columns fit their schema").because(e))
    }

    fn make(&self, start: u64, end: u64, projection: &[usize]) -> Result<RecordBatch> {
        let events: Vec<u64> = (start..end).filter(|event| self.kind.has(*event)).collect();
        let columns = projection.iter().map(|column| self.column(self.kind.columns()[*column], &events)).collect();
        self.schema
            .project(projection)
            .and_then(|schema| {
                let options = RecordBatchOptions::new().with_row_count(Some(events.len()));
                RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)
            })
            .map_err(|e| Error::internal("generated columns fit their schema").because(e))
    }

    fn column(&self, name: &'static str, events: &[u64]) -> ArrayRef {
        // A field of its own is a sequence of its own.
        let salt = name.bytes().fold(self.seed, |salt, byte| salt.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let rolls = events.iter().map(|event| (*event, Random::new(salt, *event)));
        let whole = |value: &dyn Fn(u64, &mut Random) -> u64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(
                rolls.clone().map(|(event, mut roll)| value(event, &mut roll).cast_signed()),
            ))
        };
        let text = |value: &dyn Fn(u64, &mut Random) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rolls.clone().map(|(event, mut roll)| value(event, &mut roll))))
        };
        match name {
            "date_time" => times(events.iter().map(|event| time(*event))),
            "expires" => times(rolls.clone().map(|(event, mut roll)| {
                // Open while some hundred more auctions begin, give or take.
                let events = OPEN * ROUND / AUCTIONS;
                time(event + 1 + roll.next() % (events * 2))
            })),
            "id" if self.kind == Kind::Person => whole(&|event, _| person(event)),
            "id" => whole(&|event, _| auction(event)),
            "auction" => whole(&|event, roll| bid_on(event, roll)),
            "bidder" => whole(&|event, roll| actor(event, roll, 1)),
            "seller" => whole(&|event, roll| actor(event, roll, 0)),
            "category" => whole(&|_, roll| FIRST_CATEGORY.unsigned_abs() + roll.next() % 5),
            "price" | "initial_bid" | "reserve" => whole(&|_, roll| price(roll)),
            "name" => text(&|_, roll| format!("{} {}", roll.pick(&NAMES), roll.pick(&SURNAMES))),
            "email" => text(&|_, roll| format!("{}@{}.com", word(roll, 7), word(roll, 5))),
            "credit_card" => text(&|_, roll| {
                let four = |roll: &mut Random| format!("{:04}", roll.below(10_000));
                format!("{} {} {} {}", four(roll), four(roll), four(roll), four(roll))
            }),
            "city" => text(&|_, roll| roll.pick(&CITIES).to_string()),
            "state" => text(&|_, roll| roll.pick(&STATES).to_string()),
            "item_name" => text(&|_, roll| word(roll, 20)),
            "description" => text(&|_, roll| word(roll, 100)),
            "channel" => text(&|_, roll| match channel(roll) {
                hot if hot < HOT_CHANNELS.len() => HOT_CHANNELS[hot].to_string(),
                other => format!("channel-{other}"),
            }),
            "url" => text(&|_, roll| {
                let (a, b, c) = (word(roll, 5), word(roll, 5), word(roll, 5));
                format!("https://www.nexmark.com/{a}/{b}/{c}/item.htm?query=1&channel_id={}", roll.below(10_000))
            }),
            _ => text(&|_, roll| word(roll, 100)),
        }
    }
}

const NAMES: [&str; 11] =
    ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
const SURNAMES: [&str; 9] = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
const CITIES: [&str; 10] =
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];

fn times(of: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(of).with_timezone("UTC"))
}

fn time(event: u64) -> i64 {
    BASE + event.cast_signed() * STEP
}

/// The last person that there is at an event.
fn person(event: u64) -> u64 {
    FIRST_PERSON + event / ROUND
}

/// The last auction that there is at an event; the first one before it began.
fn auction(event: u64) -> u64 {
    let begun = (event / ROUND) * AUCTIONS + (event % ROUND).min(AUCTIONS);
    FIRST_AUCTION + begun.saturating_sub(1)
}

fn bid_on(event: u64, roll: &mut Random) -> u64 {
    let last = auction(event);
    if roll.chance(50) {
        // The hot one of a hundred.
        return (last / OPEN * OPEN).max(FIRST_AUCTION);
    }
    last.saturating_sub(roll.next() % OPEN).max(FIRST_AUCTION)
}

/// A person that acts; `place` keeps the hot bidder and the hot seller apart.
fn actor(event: u64, roll: &mut Random, place: u64) -> u64 {
    let last = person(event);
    if roll.chance(75) {
        return (last / OPEN * OPEN + place).clamp(FIRST_PERSON, last);
    }
    last.saturating_sub(roll.next() % ACTIVE).max(FIRST_PERSON)
}

/// From a hundred to a hundred million, each power of ten as likely.
fn price(roll: &mut Random) -> u64 {
    let power = u32::try_from(roll.below(6)).unwrap_or(0);
    (100 + roll.next() % 900) * 10_u64.pow(power)
}

/// Half of the bids come through four channels.
fn channel(roll: &mut Random) -> usize {
    if roll.chance(50) { roll.below(HOT_CHANNELS.len()) } else { HOT_CHANNELS.len() + roll.below(10_000) }
}

fn word(roll: &mut Random, length: usize) -> String {
    let (mut text, mut bits) = (String::with_capacity(length), 0);
    for at in 0..length {
        if at % 12 == 0 {
            bits = roll.next();
        }
        text.push(char::from(b'a' + u8::try_from(bits % 26).unwrap_or(0)));
        bits /= 26;
    }
    text
}

#[async_trait]
impl Source for Events {
    fn describe(&self) -> String {
        format!("Nexmark's {}s among {} events", self.kind.name(), self.events)
    }

    fn shape(&self) -> Shape {
        Shape::Columns(Arc::clone(&self.schema))
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let partition = PartitionId::new("0");
        let start = position.get(&partition).map_or(0, |at| at.0);
        let end = start.saturating_add(budget.records.max(1)).min(self.events).max(start);
        let pieces = (budget.parallelism as u64).min((end - start) / CHUNK).max(1);
        let cut = |piece: u64| Offset(start + (end - start) * piece / pieces);
        let cuts = (0..pieces).filter(|piece| cut(*piece) < cut(piece + 1));
        Ok(cuts
            .map(|piece| OffsetRange { partition: partition.clone(), start: cut(piece), end: cut(piece + 1) })
            .collect())
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        self.read_columns(range, &(0..self.schema.fields().len()).collect::<Vec<_>>())
    }

    fn read_columns(&self, range: &OffsetRange, projection: &[usize]) -> ChunkStream {
        let (events, end, projection) = (self.clone(), range.end.0, projection.to_vec());
        let starts = (range.start.0..end).step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX));
        let chunk = move |start: u64| {
            let rows = events.make(start, end.min(start + CHUNK), &projection)?;
            Ok(Chunk::Columns { rows, base: Offset(start), times: events.arrivals(start, end.min(start + CHUNK)) })
        };
        stream::iter(starts.map(chunk)).boxed()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        Ok(position.get(&PartitionId::new("0")).is_some_and(|at| at.0 >= self.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{cast::AsArray, types::Int64Type};

    #[test]
    fn kinds_come_in_nexmarks_proportions() {
        let counts = Kind::ALL.map(|kind| Events::new(kind, 1, 5_000).all().unwrap().num_rows());
        assert_eq!(counts, [100, 300, 4_600]);
    }

    #[test]
    fn what_is_referred_to_has_begun_and_ids_are_dense() {
        let auctions = Events::new(Kind::Auction, 1, 100_000).all().unwrap();
        let ids = auctions.column(0).as_primitive::<Int64Type>().values();
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1) && ids[0] == 1_000);
        for event in (50..100_000).filter(|event| Kind::Bid.has(*event)) {
            let on = bid_on(event, &mut Random::new(7, event));
            assert!((FIRST_AUCTION..=auction(event)).contains(&on), "{on} at {event}");
            let by = actor(event, &mut Random::new(7, event), 1);
            assert!((FIRST_PERSON..=person(event)).contains(&by), "{by} at {event}");
        }
    }

    #[test]
    fn a_column_is_the_same_however_it_is_cut() {
        let events = Events::new(Kind::Bid, 3, 20_000);
        let all = events.all().unwrap();
        let part = events.make(10_000, 12_000, &[4, 2]).unwrap();
        let before = events.make(0, 10_000, &[]).unwrap().num_rows();
        assert_eq!(part.column(0), &all.column(4).slice(before, part.num_rows()));
        assert_eq!(part.column(1), &all.column(2).slice(before, part.num_rows()));
    }
}
