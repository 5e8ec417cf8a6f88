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
