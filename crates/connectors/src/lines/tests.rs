//! The cutter against `split`, and its bounds.

use super::*;
use proptest::prelude::*;

/// All lines that a cutter gives for `input` in pieces, and the long ones' lengths.
fn cut(input: &[u8], pieces: &[usize], max_line: usize) -> (Vec<Vec<u8>>, Vec<u64>) {
    let (mut lines, mut long) = (Vec::new(), Vec::new());
    let mut cutter = LineCutter::new(max_line);
    let mut rest = input;
    let mut sizes = pieces.iter().cycle();
    let mut take = |cut: Cut| {
        lines.extend(cut.block.iter().flat_map(Block::records).map(<[u8]>::to_vec));
        long.extend(cut.refused.iter().map(|l| l.len));
    };
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        rest = behind;
        take(cutter.push(piece));
    }
    take(cutter.finish());
    assert!(!cutter.is_inside());
    (lines, long)
}

proptest! {
    #[test]
    fn lines_are_those_of_split_whatever_the_pieces(
        input in prop::collection::vec(prop_oneof![3 => Just(b'\n'), 2 => Just(b'\r'), 10 => b'a'..=b'f'], 0..200),
        pieces in prop::collection::vec(1_usize..40, 1..8),
        max_line in 1_usize..30,
    ) {
        let mut want: Vec<&[u8]> = input.split(|b| *b == b'\n').collect();
        let last = want.pop().unwrap_or_default();
        let mut want: Vec<&[u8]> = want.into_iter().map(|l| l.strip_suffix(b"\r").unwrap_or(l)).collect();
        if !last.is_empty() {
            want.push(last);
        }
        let (good, long): (Vec<&[u8]>, Vec<&[u8]>) = want.into_iter().partition(|l| l.len() <= max_line);
        let (got, got_long) = cut(&input, &pieces, max_line);
        prop_assert_eq!(got, good);
        prop_assert_eq!(got_long.len(), long.len());
        for (got, want) in got_long.iter().zip(long) {
            // A line that is passed over may count its carriage return.
            prop_assert!(*got == want.len() as u64 || *got == want.len() as u64 + 1);
        }
    }
}

#[test]
fn a_huge_line_is_refused_once_and_never_held() {
    let mut cutter = LineCutter::new(MAX_LINE);
    let piece = vec![b'x'; 64 << 10];
    let mut most = 0;
    for _ in 0..4096 {
        let cut = cutter.push(&piece);
        assert!(cut.block.is_none() && cut.refused.is_empty());
        most = most.max(cutter.begun.capacity());
    }
    assert!(most <= 2 * MAX_LINE + piece.len(), "{most} bytes were held");
    let cut = cutter.push(b"end\ngood\n");
    assert_eq!(cut.block.unwrap().records().collect::<Vec<_>>(), [b"good"]);
    let [line] = &cut.refused[..] else { panic!("one line was too long") };
    assert_eq!((line.len, line.head.len()), ((4096 * (64 << 10)) + 3, HEAD));
    assert!(line.reason().contains("268435459 bytes, over the bound of 1048576"), "{}", line.reason());
}

#[test]
fn what_broke_off_is_given_up_once() {
    let mut cutter = LineCutter::new(10);
    cutter.push(b"one\ntw");
    assert_eq!(cutter.abandon(), Some(b"tw".to_vec()));
    assert_eq!(cutter.abandon(), None);
    assert_eq!(cutter.push(b"three\n").block.unwrap().record(0), b"three");
    cutter.push(&[b'y'; 5000]);
    assert_eq!(cutter.abandon().map(|kept| kept.len()), Some(HEAD));
    assert!(cutter.finish().refused.is_empty());
}

#[test]
fn the_bound_is_an_option() {
    assert_eq!(max_line(&Options::new("s", [("max_line", "64KiB")])).unwrap(), 65_536);
    assert_eq!(max_line(&Options::new("s", [("a", "b")])).unwrap(), MAX_LINE);
    assert!(max_line(&Options::new("s", [("max_line", "long")])).is_err());
}
