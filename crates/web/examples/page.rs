//! The page with moving figures and no engine behind it:
//!
//! ```text
//! cargo run -p tidemill-web --example page [ADDRESS]
//! ```
//!
//! Open the address that it prints; Ctrl-C ends it.

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tidemill_core::{BatchId, BatchReport, Board, Error, Phase, Result, StopHandle, Timestamp, ViewSnapshot};
use tidemill_web::Server;

const TAGS: [&str; 14] = [
    "#harbour",
    "#潮汐發電",
    "#ひなまつり",
    "#мельница",
    "#مطر",
    "#שלום_עולם",
    "🌊🌊🌊",
    "#TuesdayMotivation",
    "#a_very_long_tag_that_somebody_typed_without_ever_lifting_the_finger_from_the_keyboard_of_the_telephone",
    "#news",
    "#lunch",
    "#football",
    "#コーヒー",
    "👩‍👩‍👧‍👦 family",
];

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4040".to_string());
    let address = address.parse().map_err(|e| Error::user(format!("{address} is not an address")).because(e))?;
    let board = Arc::new(Board::default());
    let server = Server::bind(address, Arc::clone(&board)).await?;
    println!("The page is at http://{}; Ctrl-C ends it.", server.address());
    let (handle, stop) = StopHandle::new();
    let fake = tokio::spawn({
        let board = Arc::clone(&board);
        async move { invent(&board).await }
    });
    let serving = tokio::spawn(server.run(stop));
    tokio::signal::ctrl_c().await.map_err(|e| Error::external("cannot hear Ctrl-C").because(e))?;
    fake.abort();
    board.update_program(|p| p.phase = Phase::Stopped);
    handle.stop();
    serving.await.map_err(|e| Error::internal("the server panicked").because(e))?
}

/// A program of half-second batches with three inputs, one of them unsteady.
async fn invent(board: &Board) {
    let mut dice = 7_u64;
    let mut roll = move |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    board.update_program(|p| {
        p.name = "trending".to_string();
        p.started = now();
    });
    let mut counts: Vec<i64> = (0..TAGS.len()).map(|_| i64::try_from(200 + roll(900)).unwrap_or(0)).collect();
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    for batch in 0.. {
        ticks.tick().await;
        if batch == 2 {
            board.update_program(|p| p.phase = Phase::Running);
        }
        let records = 4000 + roll(2500) + (batch % 40) * 60;
        inputs(board, batch, records);
        if batch < 4 {
            continue;
        }
        for (i, count) in (0..).zip(&mut counts) {
            // A few lead, and each has its hour.
            let favour = 20 + 160 / (1 + (i + batch / 24) % 14);
            *count = (*count * 94 / 100) + i64::try_from(roll(favour)).unwrap_or(0);
        }
        board.publish_batch(BatchReport {
            batch: BatchId(batch),
            time: now(),
            records_in: records,
            rows_out: 10,
            refused: u64::from(roll(9) == 0),
            late: u64::from(roll(30) == 0) * roll(12),
            scheduling_delay_us: 400 + roll(900),
            processing_us: 2500 + roll(2500) + if roll(25) == 0 { 9000 } else { 0 },
            ..BatchReport::default()
        });
        publish(board, batch, "top_hashtags", hashtags(&counts));
        publish(board, batch, "by_language", languages(&counts));
        publish(board, batch, "alerts", RecordBatch::new_empty(Arc::new(arrow_schema::Schema::empty())));
    }
}

fn inputs(board: &Board, batch: u64, records: u64) {
    for (stream, index, share, describe) in [
        ("posts", 0, 2, "tcp 127.0.0.1:9999"),
        ("posts", 1, 3, "tcp 127.0.0.1:9999"),
        ("places", 0, 90, "files ./places"),
    ] {
        board.update_input(stream, index, |input| {
            let away = index == 1 && batch % 30 > 24;
            input.describe = describe.to_string();
            input.state =
                if away { "reconnecting in 2 s: connection refused".to_string() } else { "connected".to_string() };
            if !away {
                input.records += records / share;
                input.bytes += records / share * 640;
            }
        });
    }
}

fn publish(board: &Board, batch: u64, name: &str, rows: RecordBatch) {
    board.publish_view(ViewSnapshot { name: name.to_string(), batch: BatchId(batch), time: now(), rows });
}

fn hashtags(counts: &[i64]) -> RecordBatch {
    let mut order: Vec<usize> = (0..TAGS.len()).collect();
    order.sort_by_key(|i| -counts[*i]);
    order.truncate(10);
    table(vec![
        ("hashtag", Arc::new(StringArray::from_iter_values(order.iter().map(|i| TAGS[*i])))),
        ("count", Arc::new(Int64Array::from_iter_values(order.iter().map(|i| counts[*i])))),
    ])
}

fn languages(counts: &[i64]) -> RecordBatch {
    let names = [Some("English"), Some("日本語"), Some("العربية"), Some("русский"), None];
    let of = |i: usize| counts[i] * 37;
    #[expect(clippy::cast_precision_loss, reason = "small made-up figures")]
    let shares = (0..names.len()).map(|i| of(i) as f64 / 1e5);
    table(vec![
        ("window_end", Arc::new(TimestampMicrosecondArray::from(vec![now().floor(10_000_000).0; names.len()]))),
        ("language", Arc::new(StringArray::from(names.to_vec()))),
        ("posts", Arc::new(Int64Array::from_iter_values((0..names.len()).map(of)))),
        ("share", Arc::new(Float64Array::from_iter_values(shares))),
    ])
}

fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .expect("columns of one length")
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
