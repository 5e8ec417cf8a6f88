//! Rows written as messages: what ours writes prost's messages and our own reader read back.

use super::*;
use crate::format::protobuf::{target::Target, write::Writer as Rows};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, DurationMillisecondArray, Float64Array,
    Int32Array, Int64Array, LargeListArray, ListArray, MapArray, StringArray, StructArray, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt64Array,
    builder::{Int64Builder, MapBuilder, StringBuilder},
    types::{Int32Type, Int64Type},
};
use arrow_schema::{DataType, Field};

fn rows(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// The bytes of each row, or the first error.
fn put(name: &str, unit: Unit, rows: &RecordBatch) -> Result<Vec<Vec<u8>>, String> {
    let writer = Rows::new(&descriptor(name), &rows.schema(), unit)?;
    let ready = writer.rows(rows).unwrap();
    let mut all = Vec::new();
    for row in 0..rows.num_rows() {
        let mut bytes = Vec::new();
        ready.put(row, &mut bytes).map_err(|e| e.to_string())?;
        all.push(bytes);
    }
    Ok(all)
}

/// What the other implementation reads, as JSON.
fn read(name: &str, bytes: &[u8]) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    let message = DynamicMessage::decode(descriptor(name), bytes).unwrap();
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
}

fn written(name: &str, columns: Vec<(&str, ArrayRef)>) -> Vec<Value> {
    let rows = rows(columns);
    put(name, Unit::Iso, &rows).unwrap().iter().map(|bytes| read(name, bytes)).collect()
}

fn refused(name: &str, columns: Vec<(&str, ArrayRef)>) -> String {
    put(name, Unit::Iso, &rows(columns)).unwrap_err()
}

/// What they write we read, what we write of it is theirs to the byte, and both read it as the same.
#[test]
fn messages_go_there_and_back() {
    let format = shop("shop.Order");
    let of = descriptor("shop.Order");
    let seeds = tries(400);
    for seed in first_seed()..first_seed() + seeds {
        let mut random = Mutations::new(seed);
        let originals: Vec<Vec<u8>> = (0..1 + random.below(4))
            .map(|_| {
                let mut bytes = message("shop.Order", &drawn(&mut random));
                if random.below(2) == 0 {
                    bytes.extend(message("shop.Order", &drawn(&mut random)));
                }
                bytes
            })
            .collect();
        let mut refused = Vec::new();
        let rows = format.decoder(&all(&format)).decode(&Block::from_records(&originals), &mut refused).unwrap();
        assert_eq!(refused, [], "seed {seed}");
        // Columns in another order, and a part of the rows, are no other messages.
        let mut order = all(&format);
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        let from = random.below(rows.num_rows());
        let some = rows.slice(from, rows.num_rows() - from).project(&order).unwrap();
        let ours = put("shop.Order", Unit::Iso, &some).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for (ours, original) in ours.iter().zip(&originals[from..]) {
            let theirs = DynamicMessage::decode(of.clone(), &original[..]).unwrap();
            assert_eq!(DynamicMessage::decode(of.clone(), &ours[..]).unwrap(), theirs, "seed {seed}");
            let maps = ["counts", "stock"].iter().any(|name| theirs.has_field_by_name(name));
            // Entries of maps have no order, and may leave out what is a default.
            assert!(maps || *ours == theirs.encode_to_vec(), "seed {seed}: {theirs}");
        }
        let back = format.decoder(&order).decode(&Block::from_records(&ours), &mut refused).unwrap();
        assert_eq!((back, &refused[..]), (some, &[][..]), "seed {seed}");
    }
    landed(format_args!("{seeds} blocks of messages"));
}

#[test]
fn well_known_types_trees_and_bytes_go_there_and_back() {
    let format = shop("shop.Beside");
    let value = json!({
        "raw": "AP8=", "at": "1969-12-31T23:59:58.750001Z", "took": "-1.500001s", "any": {"a": [1.0, null]},
        "tree": {"name": "oak", "below": [{"name": "twig", "below": [{}]}]},
        "times": ["2026-05-25T14:00:00Z", "1970-01-01T00:00:00Z"]
    });
    let originals = [message("shop.Beside", &value), Vec::new(), message("shop.Beside", &json!({"tree": {}}))];
    let mut refused = Vec::new();
    let rows = format.decoder(&all(&format)).decode(&Block::from_records(&originals), &mut refused).unwrap();
    assert_eq!(refused, []);
    assert_eq!(put("shop.Beside", Unit::Iso, &rows).unwrap(), originals);
}

#[test]
fn any_whole_number_goes_where_it_fits() {
    let names = ["small", "big", "huge", "zig", "zag", "f32", "s64", "f64", "s32"];
    for (value, fits) in [
        (0, [true; 9]),
        (7, [true; 9]),
        (-1, [true, true, false, true, true, false, true, false, true]),
        (i64::from(u32::MAX), [false, true, true, false, true, true, true, true, false]),
        (i64::from(i32::MIN), [true, true, false, true, true, false, true, false, true]),
        (i64::MAX, [false, true, true, false, true, false, true, true, false]),
        (i64::MIN, [false, true, false, false, true, false, true, false, false]),
    ] {
        for (name, fits) in names.iter().zip(fits) {
            let rows = rows(vec![(name, Arc::new(Int64Array::from(vec![value])))]);
            match put("shop.Order", Unit::Iso, &rows) {
                Ok(bytes) => {
                    assert!(fits, "{value} in {name}");
                    let back = read("shop.Order", &bytes[0]);
                    let back = back.get(name).cloned().unwrap_or(json!(0));
                    assert_eq!(back, json!(value), "{name}");
                }
                Err(why) => {
                    assert!(!fits, "{value} in {name}: {why}");
                    assert!(why.contains(&format!("column `{name}`: {value} does not fit its field")), "{why}");
                }
            }
        }
    }
    let huge = Arc::new(UInt64Array::from(vec![u64::MAX])) as ArrayRef;
    assert_eq!(written("shop.Order", vec![("huge", Arc::clone(&huge))]), [json!({"huge": u64::MAX})]);
    assert!(refused("shop.Order", vec![("big", huge)]).contains("18446744073709551615 does not fit"));
}

#[test]
fn null_leaves_a_field_unset_and_a_default_that_can_be_told_is_there() {
    let none = |ty: &DataType| arrow_array::new_null_array(ty, 1);
    let item = Arc::new(Field::new("item", DataType::Utf8, true));
    let columns = vec![
        ("maybe", none(&DataType::Int64)),
        ("word", none(&DataType::Utf8)),
        ("tags", none(&DataType::List(item))),
        ("first", none(&DataType::Struct(vec![Field::new("item", DataType::Utf8, true)].into()))),
        ("wrapped", none(&DataType::Int32)),
    ];
    assert_eq!(put("shop.Order", Unit::Iso, &rows(columns)).unwrap(), [Vec::<u8>::new()]);
    let columns = vec![
        ("maybe", Arc::new(Int64Array::from(vec![0])) as ArrayRef),
        ("small", Arc::new(Int64Array::from(vec![0]))),
        ("post", Arc::new(StringArray::from(vec![""]))),
        ("wrapped", Arc::new(Int64Array::from(vec![0]))),
        ("ok", Arc::new(BooleanArray::from(vec![false]))),
    ];
    assert_eq!(written("shop.Order", columns), [json!({"maybe": 0, "post": "", "wrapped": 0})]);
    // Minus zero is another number.
    let zeros = rows(vec![("twice", Arc::new(Float64Array::from(vec![0.0, -0.0])))]);
    let minus = [&[0x51][..], &(-0.0_f64).to_le_bytes()].concat();
    assert_eq!(put("shop.Order", Unit::Iso, &zeros).unwrap(), [Vec::new(), minus]);
}

#[test]
fn columns_go_where_their_values_have_a_meaning() {
    let time = |at: i64| Arc::new(TimestampNanosecondArray::from(vec![at]).with_timezone("UTC")) as ArrayRef;
    let at = -1_500_000_001;
    // A number counts what the option says, rounded down; a text is ISO 8601.
    for (unit, want) in [(Unit::Seconds, -2_i64), (Unit::Millis, -1501), (Unit::Micros, -1_500_001)] {
        let rows = rows(vec![("big", time(at)), ("word", time(at)), ("store", time(0))]);
        let bytes = put("shop.Order", unit, &rows).unwrap();
        let text = "1969-12-31T23:59:58.499999999Z";
        assert_eq!(read("shop.Order", &bytes[0]), json!({"big": want, "word": text, "store": 0}));
    }
    assert!(refused("shop.Order", vec![("big", time(at))]).contains("set option `timestamp`"));
    assert_eq!(written("shop.Beside", vec![("at", time(at))]), [json!({"at": "1969-12-31T23:59:58.499999999Z"})]);
    let plain = Arc::new(TimestampMillisecondArray::from(vec![1_500]));
    assert_eq!(written("shop.Beside", vec![("at", plain)]), [json!({"at": "1970-01-01T00:00:01.500Z"})]);
    let took = Arc::new(DurationMillisecondArray::from(vec![-1_500]));
    assert_eq!(written("shop.Beside", vec![("took", took)]), [json!({"took": "-1.500s"})]);
    let cents = Decimal128Array::from(vec![-1205]).with_precision_and_scale(9, 2).unwrap();
    let suits: DictionaryArray<Int32Type> = vec!["HEARTS"].into_iter().collect();
    let columns = vec![
        ("word", Arc::new(cents) as ArrayRef),
        ("suit", Arc::new(suits)),
        ("suits", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), Some(0)])]))),
        ("marks", Arc::new(LargeListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(-5)])]))),
    ];
    let want = json!({"word": "-12.05", "suit": "HEARTS", "suits": ["HEARTS", "CLUBS"], "marks": [-5]});
    assert_eq!(written("shop.Order", columns), [want]);
    let numbers = ["1", "-7", "CLUBS"].map(|text| Arc::new(StringArray::from(vec![text])) as ArrayRef);
    let suits = numbers.map(|suit| written("shop.Order", vec![("suit", suit)]).remove(0));
    assert_eq!(suits, [json!({"suit": "HEARTS"}), json!({"suit": -7}), json!({})]);
}

fn counts(entries: &[(&str, Option<i64>)]) -> MapArray {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    for (key, value) in entries {
        builder.keys().append_value(key);
        builder.values().append_option(*value);
    }
    builder.append(true).unwrap();
    builder.finish()
}

#[test]
fn maps_have_keys_of_their_kind() {
    let entries = Arc::new(counts(&[("a", Some(1)), ("", Some(0))])) as ArrayRef;
    assert_eq!(written("shop.Order", vec![("counts", entries)]), [json!({"counts": {"a": 1, "": 0}})]);
    let lines = StructArray::from(vec![(
        Arc::new(Field::new("count", DataType::Int64, true)),
        Arc::new(Int64Array::from(vec![3, 4])) as ArrayRef,
    )]);
    let stock = |keys: [&str; 2]| {
        let parts = vec![
            Arc::new(Field::new("keys", DataType::Utf8, false)),
            Arc::new(Field::new("values", lines.data_type().clone(), true)),
        ];
        let keys = Arc::new(StringArray::from(keys.to_vec()));
        let entries = StructArray::new(parts.into(), vec![keys, Arc::new(lines.clone())], None);
        let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        let offsets = arrow_buffer::OffsetBuffer::from_lengths([2]);
        Arc::new(MapArray::new(field, offsets, entries, None, false)) as ArrayRef
    };
    let want = json!({"stock": {"-1": {"count": 3}, "7": {"count": 4}}});
    assert_eq!(written("shop.Order", vec![("stock", stock(["-1", "7"]))]), [want]);
    let why = refused("shop.Order", vec![("stock", stock(["1", "x"]))]);
    assert!(why.contains("column `stock`: x does not fit"), "{why}");
}

#[test]
fn values_that_no_message_has_are_told() {
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])]);
    let number = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    for (message, columns, says) in [
        ("shop.Order", vec![("suit", text("SPADES"))], "column `suit`: its enum has no `SPADES`"),
        ("shop.Order", vec![("marks", Arc::new(list) as ArrayRef)], "column `marks`: NULL in a list"),
        ("shop.Order", vec![("counts", Arc::new(counts(&[("a", None)])))], "column `counts`: NULL in a map"),
        (
            "shop.Order",
            vec![("store", number), ("post", text(""))],
            "columns `post` and `store`: of `oneof way` only one",
        ),
        ("shop.Beside", vec![("tree", text("{\"name\":1}"))], "is no shop.Tree as JSON"),
        ("shop.Beside", vec![("tree", text("{} {}"))], "is no shop.Tree as JSON"),
    ] {
        let why = refused(message, columns);
        assert!(why.contains(says) && why.contains("WHERE"), "{why}");
    }
    // Those that a null row hides, or that lie outside of the rows, are nobody's.
    let hidden = ListArray::new(
        Arc::new(Field::new("item", DataType::Utf8, true)),
        arrow_buffer::OffsetBuffer::from_lengths([1, 1, 1]),
        Arc::new(StringArray::from(vec!["SPADES", "HEARTS", "?"])),
        Some(vec![false, true, true].into()),
    );
    let hidden = rows(vec![("suits", Arc::new(hidden))]).slice(0, 2);
    assert_eq!(put("shop.Order", Unit::Iso, &hidden).unwrap(), [Vec::<u8>::new(), vec![0xc2, 1, 1, 1]]);
}

#[test]
fn columns_that_make_no_message_are_told_at_the_start() {
    let text = || Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    let number = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let part = |name: &str| {
        Arc::new(StructArray::from(vec![(Arc::new(Field::new(name, DataType::Int64, true)), number())])) as ArrayRef
    };
    for (columns, says) in [
        (vec![("smal", number())], "the message shop.Order has no field `smal`; did you mean `small`?"),
        (vec![("count(*)", number())], "AS total"),
        (vec![("small", text())], "column `small`: Utf8 can't become the schema's int32"),
        (vec![("word", number())], "column `word`: Int64 can't become the schema's string"),
        (vec![("twice", number())], "can't become the schema's double"),
        (vec![("tags", text())], "column `tags`: Utf8 can't become the schema's repeated string"),
        (vec![("first", part("cont"))], "shop.Order.Line has no field `cont`; did you mean `count`?"),
        (vec![("wrapped", text())], "column `wrapped`"),
        (vec![("counts", part("a"))], "column `counts`"),
        (vec![("s64", number()), ("s64", number())], "the field `s64` has another column already"),
    ] {
        let why = refused("shop.Order", columns);
        assert!(why.contains(says), "{why}");
    }
    let old = "syntax = \"proto2\"; message M { required int32 a = 1; optional int32 b = 2; repeated int32 c = 3; }";
    let options = Options::new("sink \"s\"", [("schema", old), ("message", "M")]);
    let target = Target::from_options(&options).unwrap();
    let error = target.writer(&rows(vec![("b", number())]).schema()).unwrap_err().to_string();
    assert!(error.contains("the message M needs its field `a`"), "{error}");
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(0), Some(300)]), None]);
    let two = rows(vec![("a", Arc::new(Int32Array::from(vec![Some(0), None]))), ("c", Arc::new(list))]);
    let writer = target.writer(&two.schema()).unwrap();
    let (ready, mut bytes) = (writer.rows(&two).unwrap(), Vec::new());
    ready.put_delimited(0, &mut bytes).unwrap();
    // Not packed before proto3; a default that must be there is.
    assert_eq!(bytes, [7, 0x08, 0, 0x18, 0, 0x18, 0xac, 2]);
    let error = ready.put(1, &mut bytes).unwrap_err().to_string();
    assert!(error.contains("column `a`: NULL, and its field must be there"), "{error}");
}
