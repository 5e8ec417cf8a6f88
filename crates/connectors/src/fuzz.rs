//! Records that nobody meant to send: every format, and the cutting of lines.
//!
//! Never a panic; rows and refusals add up to the records; what is decoded is
//! sound; and the record behind a bad one is decoded.

use crate::{
    format::{CsvFormat, JsonFormat, TextFormat},
    lines::LineCutter,
    mutations::Mutations,
    tries::{first_seed, landed, tries},
};
use arrow_array::Array;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Block, Format, Options, parse_bytes, parse_duration};

fn seeds(everyday: u64) -> std::ops::Range<u64> {
    first_seed()..first_seed() + tries(everyday)
}

fn columns() -> SchemaRef {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let fields = [
        ("id", DataType::Int64),
        ("x", DataType::Float64),
        ("ok", DataType::Boolean),
        ("text", DataType::Utf8),
        ("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ("tags", list),
        ("user.name", DataType::Utf8),
    ];
    Arc::new(Schema::new(fields.map(|(name, of)| Field::new(name, of, true)).to_vec()))
}

fn flat() -> SchemaRef {
    let columns = columns();
    Arc::new(columns.project(&[0, 1, 2, 3, 4]).unwrap())
}

const JSON: [&[u8]; 4] = [
    br#"{"id":12,"x":-1.5e3,"ok":true,"text":"a\"\u00e9\ud83d\ude00\n","at":"2026-05-25T14:00:00.25Z","tags":["a",null,"b\\"]}"#,
    br#"{"user":{"name":"Ada","followers":5},"else":{"n":[[],{"deep":[1,2,{"er":null}]}]},"id":-9223372036854775808}"#,
    br#" { "at" : "Wed Oct 10 20:19:24 +0000 2018" , "id" : 0, "x": 0.1, "text":"" } "#,
    "{\"text\":\"潮汐 🌊\",\"tags\":[],\"ok\":false,\"at\":null}".as_bytes(),
];
const CSV: [&[u8]; 3] = [
    b"12,-1.5e3,true,\"a \"\"quoted\"\" text\",2026-05-25 14:00:00",
    b",,,,",
    "7,0.25,false,潮汐,2026-05-25T14:00:00Z".as_bytes(),
];

/// Decodes a changed record with a good one behind it.
pub(crate) fn hold(format: &dyn Format, changed: &[u8], good: &[u8], what: &str) -> bool {
    let all: Vec<usize> = (0..format.schema().fields().len()).collect();
    let fewer = if changed.len().is_multiple_of(2) { all.iter().copied().step_by(2).collect() } else { Vec::new() };
    let mut taken = false;
    for projection in [all, fewer] {
        let mut refused = Vec::new();
        let block = Block::from_records([changed, good]);
        let rows = format.decoder(&projection).decode(&block, &mut refused).unwrap();
        assert_eq!(rows.num_rows() + refused.len(), 2, "{what}");
        assert!(refused.iter().all(|refusal| refusal.row == 0), "{what}: the good record was refused: {refused:?}");
        assert!(refused.iter().all(|refusal| refusal.reason.len() < 4096), "{what}: a reason of great length");
        for column in rows.columns() {
            column.to_data().validate_full().unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        taken |= refused.is_empty();
    }
    taken
}

#[test]
fn fuzz_formats() {
    let json = JsonFormat::new(columns()).unwrap();
    let csv = CsvFormat::new(flat()).unwrap();
    let text = TextFormat::from_options(&Options::new("s", [("format", "text")]), None).unwrap();
    let mut taken = [0_u64; 3];
    for seed in seeds(600) {
        let mut mutations = Mutations::new(seed);
        let changed = mutations.of(&JSON);
        let what = format!("seed {seed}: {:?}", String::from_utf8_lossy(&changed));
        taken[0] += u64::from(hold(&json, &changed, JSON[0], &what));
        let changed: Vec<u8> = mutations.of(&CSV).into_iter().filter(|b| *b != b'\n').collect();
        taken[1] += u64::from(hold(&csv, &changed, CSV[0], &format!("csv, seed {seed}")));
        taken[2] += u64::from(hold(&text, &mutations.of(&JSON), b"good", &format!("text, seed {seed}")));
    }
    landed(format_args!("{} records a format, taken of JSON, CSV, text: {taken:?}", tries(600)));
}

#[test]
fn fuzz_lines() {
    let whole = [&JSON[..], &CSV[..]].concat().join(&b"\n"[..]);
    let (mut lines, mut long) = (0, 0);
    for seed in seeds(6_000) {
        let mut mutations = Mutations::new(seed);
        let bytes = mutations.of(&[&whole]);
        let bound = 1 + mutations.below(200);
        let mut cutter = LineCutter::new(bound);
        let mut rest = bytes.as_slice();
        let mut counted = 0;
        let mut take = |cut: crate::lines::Cut| {
            for record in cut.block.iter().flat_map(Block::records) {
                assert!(record.len() <= bound && !record.contains(&b'\n'), "seed {seed}");
                counted += 1;
                lines += 1;
            }
            counted += cut.refused.len();
            long += cut.refused.len();
        };
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + mutations.below(rest.len().min(64)));
            take(cutter.push(piece));
            rest = behind;
        }
        take(cutter.finish());
        let wanted = bytes.split(|b| *b == b'\n').count() - usize::from(bytes.is_empty() || bytes.ends_with(b"\n"));
        assert_eq!(counted, wanted, "seed {seed}: each line is given or refused");
    }
    landed(format_args!("{} inputs, {lines} lines, {long} too long", tries(6_000)));
}

#[test]
fn fuzz_options() {
    let texts: [&[u8]; 6] = [b"10s", b"1h 30m", b"512MB", b"64KiB", b"18446744073709551615", b"1.5d"];
    let registry = crate::registry();
    for seed in seeds(2_000) {
        let mut mutations = Mutations::new(seed);
        let mut word = || String::from_utf8_lossy(&mutations.of(&texts)).into_owned();
        let (a, b, c) = (word(), word(), word());
        let _parsed_or_not = (parse_duration(&a), parse_bytes(&b));
        for connector in ["files", "generator", "tcp", "tcp-listen", "tail", "stdin", "bluesky"] {
            let given = [
                ("connector", connector.to_string()),
                ("path", a.clone()),
                ("address", b.clone()),
                ("rows", c.clone()),
                ("keys", b.clone()),
                ("max_line", c.clone()),
                ("receivers", a.clone()),
                ("url", c.clone()),
            ];
            // Options are taken or refused; nothing is opened before the program starts.
            let _opened_or_not = registry.input(&Options::new("stream \"s\"", given));
        }
        for format in ["json", "csv", "text"] {
            let given = [("format", format.to_string()), ("delimiter", a.clone()), ("timestamp", b.clone())];
            let _made_or_not = registry.format(&Options::new("stream \"s\"", given), Some(flat()));
        }
    }
    landed(format_args!("{} sets of options a connector", tries(2_000)));
}
