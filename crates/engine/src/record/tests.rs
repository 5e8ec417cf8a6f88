//! Each kind of record survives the way into a column and back.

use super::*;
use proptest::prelude::*;
use std::fmt::Debug;

fn round_trip<T: Record + PartialEq + Debug>(records: &[T]) {
    let batch = batch_of(records.to_vec()).unwrap();
    assert_eq!(batch.num_rows(), records.len());
    assert_eq!(records_of::<T>(&batch).unwrap(), records);
    // A slice with an offset reads the same rows.
    if records.len() > 1 {
        assert_eq!(records_of::<T>(&batch.slice(1, records.len() - 1)).unwrap(), &records[1..]);
    }
}

proptest! {
    #[test]
    fn records_survive_a_column(
        numbers in prop::collection::vec(any::<i64>(), 0..20),
        words in prop::collection::vec("\\PC{0,30}", 0..20),
        nested in prop::collection::vec((any::<Option<u8>>(), prop::collection::vec("[a-c]{0,3}", 0..4), any::<bool>()), 0..20),
        options in prop::collection::vec(prop::option::of((any::<f64>().prop_filter("comparable", |f| !f.is_nan()), "[a-z]{0,4}")), 0..20),
        lists in prop::collection::vec(prop::option::of(prop::collection::vec(any::<Option<i32>>(), 0..4)), 0..20),
    ) {
        round_trip(&numbers);
        round_trip(&words);
        round_trip(&words.iter().map(|w| Str::from(w.as_str())).collect::<Vec<_>>());
        round_trip(&nested);
        round_trip(&options);
        round_trip(&lists);
    }

    #[test]
    fn equal_keys_hash_alike(a in "[ab]{0,3}", b in "[ab]{0,3}", n in 0_i64..3, m in 0_i64..3) {
        let (x, y) = ((a, Some(n)), (b, Some(m)));
        let same = <(String, Option<i64>)>::same(x.borrow(), y.borrow());
        prop_assert_eq!(same, x == y);
        if same {
            prop_assert_eq!(hash_key::<(String, Option<i64>)>(x.borrow()), hash_key::<(String, Option<i64>)>(y.borrow()));
        }
    }
}

#[test]
fn a_wrong_type_is_refused_by_name() {
    let batch = batch_of(vec![1_i64, 2]).unwrap();
    let error = read_batch::<String>(&batch).unwrap_err().to_string();
    assert!(error.contains("Utf8") && error.contains("Int64"), "{error}");
}

#[test]
fn nulls_are_refused_where_none_may_be() {
    let batch = batch_of(vec![Some(1_i64), None]).unwrap();
    assert!(read_batch::<i64>(&batch).is_err());
}

#[test]
fn partitions_cover_all_and_stay_in_range() {
    let mut seen = [0; 3];
    for n in 0..3000_i64 {
        seen[partition_of(hash_key::<i64>(n), 3)] += 1;
    }
    assert!(seen.iter().all(|n| *n > 800), "{seen:?}");
}

mod derived {
    //! Structs through the derive.

    use super::*;
    use crate::testing::check_unordered;
    use arrow_array::{Int32Array, Int64Array, StringArray};

    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, crate::Record, crate::Key)]
    #[record(crate = "crate")]
    struct Place {
        #[record(rename = "country code")]
        country: String,
        r#type: Option<u8>,
    }

    #[derive(Debug, Clone, PartialEq, crate::Record)]
    #[record(crate = "crate")]
    pub(crate) struct Post {
        pub(crate) text: String,
        pub(crate) likes: i64,
        tags: Vec<String>,
        lang: Option<String>,
        at: Place,
        seen: Vec<Option<Place>>,
        from: Option<Place>,
    }

    fn place() -> impl Strategy<Value = Place> {
        ("[a-c]{0,2}", any::<Option<u8>>()).prop_map(|(country, r#type)| Place { country, r#type })
    }

    fn post() -> impl Strategy<Value = Post> {
        let seen = prop::collection::vec(prop::option::of(place()), 0..3);
        let parts =
            ("\\PC{0,9}", any::<i64>(), prop::collection::vec("[a-c]{0,3}", 0..4), prop::option::of("[a-z]{2}"));
        (parts, place(), seen, prop::option::of(place())).prop_map(|((text, likes, tags, lang), at, seen, from)| Post {
            text,
            likes,
            tags,
            lang,
            at,
            seen,
            from,
        })
    }

    proptest! {
        #[test]
        fn structs_survive_a_column(posts in prop::collection::vec(post(), 0..12)) {
            round_trip(&posts);
            round_trip(&posts.iter().cloned().map(|post| (1_i64, Some(post))).collect::<Vec<_>>());
            round_trip(&posts.into_iter().map(|post| vec![post]).collect::<Vec<_>>());
        }

        #[test]
        fn equal_structs_are_one_key(a in place(), b in place()) {
            prop_assert_eq!(Place::same(a.borrow(), b.borrow()), a == b);
            if a == b {
                prop_assert_eq!(hash_key::<Place>(a.borrow()), hash_key::<Place>(b.borrow()));
            }
        }
    }

    #[test]
    fn the_schema_has_the_fields_and_their_columns_names() {
        let schema = schema_of::<Place>();
        let fields: Vec<_> = schema.fields().iter().map(|f| (f.name().as_str(), f.is_nullable())).collect();
        assert_eq!(fields, [("country code", false), ("type", true)]);
        assert_eq!(schema_of::<Post>().field(2).data_type(), &Vec::<String>::data_type());
    }

    #[test]
    fn functions_receive_borrowed_fields() {
        let place = |country: &str| Place { country: country.into(), r#type: None };
        check_unordered(
            [vec![place("de"), place("fr"), place("de")]],
            |s| {
                s.filter(|place| !place.country.is_empty())
                    .map(|place| (Place::own(place), 1))
                    .reduce_by_key(|a, b| a + b)
            },
            [vec![(place("de"), 2), (place("fr"), 1)]],
        );
    }

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn texts(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }

    #[derive(Debug, Clone, PartialEq, crate::Record)]
    #[record(crate = "crate")]
    struct Pair {
        a: String,
        b: String,
    }

    #[test]
    fn columns_are_read_by_name_or_else_by_place() {
        let pair = |a: &str, b: &str| vec![Pair { a: a.into(), b: b.into() }];
        let (x, y) = (texts(&["x"]), texts(&["y"]));
        let swapped = batch(vec![("b", Arc::clone(&x)), ("more", Arc::clone(&x)), ("a", Arc::clone(&y))]);
        assert_eq!(records_of::<Pair>(&swapped).unwrap(), pair("y", "x"));
        let unnamed = batch(vec![("_1", Arc::clone(&x)), ("_2", Arc::clone(&y))]);
        assert_eq!(records_of::<Pair>(&unnamed).unwrap(), pair("x", "y"));
        let half = batch(vec![("b", x), ("c", y)]);
        let error = records_of::<Pair>(&half).unwrap_err().to_string();
        assert_eq!(error, "Pair: there is no column a; the columns are b, c");
    }

    #[test]
    fn a_wrong_type_names_its_column() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let other: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let error = records_of::<Pair>(&batch(vec![("a", numbers), ("b", other)])).unwrap_err().to_string();
        assert!(error.contains("column `a`") && error.contains("Utf8") && error.contains("Int32"), "{error}");
    }
}
