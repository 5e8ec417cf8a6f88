//! Files of Avro: codecs, cuts anywhere, and files that are damaged.

use super::*;
use crate::{
    backoff::splitmix64,
    format::avro::wire::{put_bytes, put_long},
};
use flate2::{Compression, write::DeflateEncoder};
use std::{collections::BTreeMap, io::Write};

const TEST_MARK: [u8; MARK] = *b"0123456789abcdef";

/// A file of blocks of records.
pub(crate) fn container(schema: &str, codec: &str, blocks: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut file = b"Obj\x01".to_vec();
    put_long(2, &mut file);
    for (key, value) in [("avro.schema", schema), ("avro.codec", codec)] {
        put_bytes(key.as_bytes(), &mut file);
        put_bytes(value.as_bytes(), &mut file);
    }
    put_long(0, &mut file);
    file.extend_from_slice(&TEST_MARK);
    for records in blocks {
        let data = records.concat();
        let packed = match codec {
            "null" => data,
            "deflate" => {
                let mut packed = DeflateEncoder::new(Vec::new(), Compression::fast());
                packed.write_all(&data).unwrap();
                packed.finish().unwrap()
            }
            "zstandard" => zstd::encode_all(data.as_slice(), 1).unwrap(),
            "snappy" => {
                let mut crc = Crc::new();
                crc.update(&data);
                let packed = snap::raw::Encoder::new().compress_vec(&data).unwrap();
                [packed, crc.sum().to_be_bytes().to_vec()].concat()
            }
            other => panic!("{other}"),
        };
        put_long(i64::try_from(records.len()).unwrap(), &mut file);
        put_bytes(&packed, &mut file);
        file.extend_from_slice(&TEST_MARK);
    }
    file
}

/// Records and reasons of refusals by offset; `cuts` are bytes.
fn cut(file: &[u8], cuts: &[u64], piece: usize) -> BTreeMap<u64, String> {
    let header = Arc::new(Header::read(file).unwrap().unwrap());
    let mut all = BTreeMap::new();
    for range in cuts.windows(2) {
        let mut cutter = BlockRange::new(Arc::clone(&header), range[0], range[1], file.len() as u64);
        let mut at = usize::try_from(cutter.begins()).unwrap();
        loop {
            let (offset, text) = match cutter.next() {
                Step::Done => break,
                Step::More if at >= file.len() => {
                    cutter.end();
                    continue;
                }
                Step::More => {
                    let to = (at + piece).min(file.len());
                    cutter.push(&file[at..to]);
                    at = to;
                    continue;
                }
                Step::Chunk(Chunk::Raw(block)) => {
                    for (row, record) in block.records().enumerate() {
                        let (_, value) = unframe(record).unwrap();
                        let before = all.insert(
                            block.offset(row).0,
                            String::from_utf8_lossy(value.get(1..).unwrap_or_default()).into(),
                        );
                        assert_eq!(before, None, "an offset has one record");
                    }
                    continue;
                }
                Step::Chunk(Chunk::Refused { offset, reason, .. }) => (offset.0, reason),
                Step::Chunk(other) => panic!("{other:?}"),
            };
            let place = offset >> SHIFT;
            assert!(place >= range[0] && place < range[1], "{place} lies outside of {range:?}");
            assert_eq!(all.insert(offset, text), None, "an offset has one record");
        }
    }
    all
}

fn records(seed: u64) -> Vec<Vec<Vec<u8>>> {
    let below = |n: u64, most: u64| splitmix64(seed * 997 + n) % most;
    let record = |n: u64| {
        let mut bytes = Vec::new();
        put_bytes(format!("{n}{}", "x".repeat(usize::try_from(below(n, 30)).unwrap())).as_bytes(), &mut bytes);
        bytes
    };
    (0..below(1, 6)).map(|block| (0..below(block + 2, 7)).map(|i| record(100 + block * 10 + i)).collect()).collect()
}

fn texts(blocks: &[Vec<Vec<u8>>]) -> Vec<String> {
    blocks.iter().flatten().map(|record| String::from_utf8_lossy(&record[1..]).into()).collect()
}

#[test]
fn each_record_comes_once_wherever_a_file_is_cut() {
    for seed in 0..200 {
        let codec = ["null", "deflate", "snappy", "zstandard"][usize::try_from(seed % 4).unwrap()];
        let blocks = records(seed);
        let file = container("\"string\"", codec, &blocks);
        let size = file.len() as u64;
        for round in 0..20 {
            let mut cuts = vec![0, size];
            cuts.extend((0..round % 5).map(|n| splitmix64(seed * 1000 + round * 10 + n) % (size + 1)));
            cuts.sort_unstable();
            let got = cut(&file, &cuts, 1 + usize::try_from(round * 7).unwrap());
            assert_eq!(got.into_values().collect::<Vec<_>>(), texts(&blocks), "{codec}, seed {seed}, {cuts:?}");
        }
    }
}

#[test]
fn a_damaged_block_is_refused_with_its_place_and_the_next_one_is_read() {
    let record = |text: &str| {
        let mut bytes = Vec::new();
        put_bytes(text.as_bytes(), &mut bytes);
        bytes
    };
    let blocks: Vec<Vec<Vec<u8>>> =
        ["one", "two", "three"].iter().map(|text| vec![record(text), record(&format!("{text}!"))]).collect();
    let good = container("\"string\"", "deflate", &blocks);
    let size = good.len() as u64;
    let starts: Vec<usize> = memmem::find_iter(&good, &TEST_MARK).map(|at| at + MARK).collect();
    let second = starts[1];
    type Harm = fn(&mut Vec<u8>, usize);
    let harms: [(Harm, &str); 6] = [
        (|file, at| file[at] = 0x03, "its number of records or bytes is below zero"),
        (|file, at| file[at..at + 11].fill(0xff), "can't be read"),
        (|file, at| file[at + 1] += 2, "don't end with the file's mark"),
        (|file, at| file[at + 1] = 0xfe, "block"),
        (|file, at| file[at + 2] = 0x07, "it can't be unpacked"),
        (|file, at| file[at] = 0x06, "the record ends too early"),
    ];
    for (harm, told) in harms {
        let mut file = good.clone();
        harm(&mut file, second);
        let whole = cut(&file, &[0, size], 1000);
        let values: Vec<&str> = whole.values().map(String::as_str).collect();
        assert!(values.starts_with(&["one", "one!"]) && values.ends_with(&["three", "three!"]), "{values:?}");
        let refused = values[2..values.len() - 2].last().unwrap();
        assert!(refused.contains(told) && refused.contains(&format!("byte {second}")), "{told}: {refused}");
        // As soon as a range is cut elsewhere the same is told.
        for at in 0..size {
            assert_eq!(cut(&file, &[0, at, size], 50), whole, "{told}, cut at {at}");
        }
    }
    // The end is missing, and then a mark in the middle.
    let cut_off = &good[..good.len() - 20];
    let values: Vec<String> = cut(cut_off, &[0, cut_off.len() as u64], 9).into_values().collect();
    assert_eq!(values[..4], ["one", "one!", "two", "two!"]);
    assert!(values[4].contains("the file ends within it") && values.len() == 5, "{values:?}");
    let mut unmarked = good.clone();
    unmarked[second - 1] ^= 1;
    let values: Vec<String> = cut(&unmarked, &[0, size], 9).into_values().collect();
    assert!(values[0].contains("mark") && values[1..] == ["three", "three!"], "{values:?}");
}

#[test]
fn numbers_that_a_file_says_are_not_believed() {
    let header = container("\"null\"", "null", &[]);
    let with = |rows: i64, bytes: i64, data: &[u8]| {
        let mut file = header.clone();
        put_long(rows, &mut file);
        put_long(bytes, &mut file);
        file.extend_from_slice(data);
        file.extend_from_slice(&TEST_MARK);
        let size = file.len() as u64;
        cut(&file, &[0, size], 64).into_values().collect::<Vec<_>>()
    };
    assert!(with(i64::MAX, 0, b"")[0].contains("records can't be in 0 bytes"));
    assert!(with(1, i64::MAX, b"")[0].contains("over the bound"));
    assert!(with(1, 1 << 20, b"")[0].contains("the file ends within it"));
    assert!(with(1, 3, b"abc")[1].contains("3 bytes are left behind the 1 records"));
    // A bomb: a megabyte of packed zeros is a gigabyte.
    let bomb = zstd::encode_all(std::io::repeat(0).take(MOST as u64 + 1), 1).unwrap();
    assert!(bomb.len() < 1 << 20 && unpack(Codec::Zstandard, &bomb).unwrap_err().contains("unpacked"));
    let mut claim = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    claim.extend([0; 8]);
    assert!(unpack(Codec::Snappy, &claim).unwrap_err().contains("over the bound"));
    let mut wrong = snap::raw::Encoder::new().compress_vec(b"text").unwrap();
    wrong.extend([0; 4]);
    assert_eq!(unpack(Codec::Snappy, &wrong).unwrap_err(), "its checksum is another");
}

#[test]
fn beginnings_that_are_none_are_told() {
    let good = container("\"string\"", "null", &[]);
    for end in 0..good.len() {
        assert!(Header::read(&good[..end]).unwrap().is_none(), "{end} bytes are too few");
    }
    let told = |file: &[u8]| Header::read(file).unwrap_err();
    assert!(told(b"PAR1").contains("is no file of Avro"));
    assert!(
        told(&container("\"string\"", "null", &[]).iter().map(|b| b ^ u8::from(*b == b'O')).collect::<Vec<_>>())
            .contains("Avro")
    );
    assert!(told(&container("{", "null", &[])).contains("schema that can't be read"));
    let bzip = String::from_utf8_lossy(&good).replace("null", "bzip");
    assert!(told(bzip.as_bytes()).contains("packed with `bzip`"));
}

#[test]
fn a_file_of_our_own_sink_and_of_another_writer_are_read() {
    let rows = crate::contract::rows([1, 2, 3]);
    let mut ours = Vec::new();
    let mut container = crate::format::avro::container::Container::new("row", &rows.schema()).unwrap();
    container.rows(&rows, &mut ours).unwrap();
    container.flush(&mut ours).unwrap();
    let schema = apache_avro::Schema::parse_str("\"string\"").unwrap();
    let mut writer = apache_avro::Writer::new(&schema, Vec::new()).unwrap();
    for text in ["a", "b", "c"] {
        writer.append_value(apache_avro::types::Value::String(text.into())).unwrap();
    }
    let theirs = writer.into_inner().unwrap();
    for file in [ours, theirs] {
        assert_eq!(cut(&file, &[0, file.len() as u64], 100).len(), 3);
    }
}
