//! Bad input: each piece is told, counted and set aside with its place, the
//! next good record is delivered, and the process lives.

use crate::run::{PATIENCE, Running, run, start};
use rustix::process::Signal;
use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, mpsc},
    time::Instant,
};
use tidemill::{Board, StreamingContext, Trigger, store::disk::SimDisk};

/// What `top.dead` and its like hold.
fn letters(dir: &Path, topic: &str) -> Vec<serde_json::Value> {
    let consumed = run(dir, &["consume", topic, "--from-beginning", "--data", "d"], "");
    consumed.code(0).out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const QUIET: [&str; 4] = ["--headless", "--no-web", "--data", "d"];

#[test]
fn every_bad_record_of_a_file_is_a_dead_letter_and_the_next_good_one_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let number = format!("{{\"id\":5,\"n\":{}}}", "7".repeat(10 << 20));
    let nested = format!("{{\"id\":5,\"n\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let bad: [(&[u8], &str); 13] = [
        (b"{\"id\":5,\"s\":\"\xff\xfe\"}", "byte 13: not UTF-8"),
        (b"{\"id\":5", "byte 7: the record ends too early"),
        (b"plain text", "byte 0: expected an object"),
        (b"{\"id\":\"five\",\"n\":1}", "field \"id\": expected an integer, found \"five\""),
        (b"{\"id\":5,\"n\":true}", "field \"n\": expected an integer, found true"),
        (b"{\"n\":1}", "field \"id\": missing, and declared NOT NULL"),
        (b"{\"id\":null}", "field \"id\": missing, and declared NOT NULL"),
        (b"{\"id\":004,\"n\":1}", "byte 7: a number with a leading zero"),
        (b"{\"id\":5,\"n\":99999999999999999999}", "field \"n\": expected an integer between"),
        (b"\0\0\0", "byte 0: expected an object"),
        (b"", "byte 0: the record is empty"),
        (nested.as_bytes(), "nested deeper than 127 levels"),
        (number.as_bytes(), "a line of 10485773 bytes, over the bound of 1048576 (option `max_line`)"),
    ];
    let (mut input, mut places) = (Vec::new(), Vec::new());
    for (i, (record, _)) in bad.iter().enumerate() {
        places.push(input.len());
        input.extend_from_slice(record);
        input.extend_from_slice(format!("\n{{\"id\":{i},\"n\":1,\"s\":\"good\"}}\n").as_bytes());
    }
    fs::write(dir.path().join("in.json"), input).unwrap();
    let program = "CREATE STREAM numbers (id BIGINT NOT NULL, n BIGINT, s TEXT) WITH (connector = 'files', path = 'in.json', format = 'json');\n\
                   CREATE VIEW good AS SELECT s, count(id) AS ids, sum(n) AS n FROM numbers GROUP BY s;\n";
    fs::write(dir.path().join("p.sql"), program).unwrap();
    let ended = run(dir.path(), &[["run", "p.sql", "--trigger", "drain"].as_slice(), &QUIET].concat(), "");
    let out = &ended.code(0).out;
    assert!(out.contains(" good: good · 13 13 |") && out.contains("26 records") && out.contains("13 refused"), "{out}");

    let letters = letters(dir.path(), "p.dead");
    assert_eq!(letters.len(), bad.len());
    assert_eq!(letters[0]["raw"], "\\x7b226964223a352c2273223a22fffe227d", "no text");
    assert_eq!(letters[1]["raw"], "{\"id\":5");
    for ((letter, (_, why)), place) in letters.iter().zip(bad).zip(places) {
        assert_eq!(letter["offset"], place, "{letter}");
        assert_eq!(letter["stream"], "numbers");
        let reason = letter["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{why:?} is missing: {reason:?}");
    }
}

#[test]
fn a_line_that_is_no_text_is_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("in.txt"), b"ebb\nfl\xffow\nebb\n").unwrap();
    let program = "CREATE STREAM lines WITH (connector = 'files', path = 'in.txt', format = 'text');\n\
                   CREATE VIEW said AS SELECT value, count(*) AS n FROM lines GROUP BY value;\n";
    fs::write(dir.path().join("p.sql"), program).unwrap();
    let ended = run(dir.path(), &[["run", "p.sql", "--trigger", "drain"].as_slice(), &QUIET].concat(), "");
    assert!(ended.code(0).out.contains(" said: ebb 2 |") && ended.out.contains("1 refused"), "{}", ended.out);
    let letters = letters(dir.path(), "p.dead");
    assert_eq!((&letters[0]["offset"], &letters[0]["raw"]), (&4.into(), &"\\x666cff6f77".into()));
    assert!(letters[0]["reason"].as_str().unwrap().contains("UTF-8"), "{letters:?}");
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn connect(port: u16) -> TcpStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "nobody listens: {error}"),
        }
        std::thread::yield_now();
    }
}

/// The largest amount of memory that the process ever had, in bytes.
fn peak(running: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Eight connections send a line of `bytes` each, with other records in between.
fn flood(bytes: usize) {
    const FLOODS: usize = 8;
    const PIECE: usize = 256 << 10;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let program = format!(
        "CREATE STREAM lines WITH (connector = 'tcp-listen', address = '127.0.0.1:{port}', format = 'text');\n\
         CREATE VIEW total AS SELECT count(*) AS n FROM lines;\n"
    );
    fs::write(dir.path().join("p.sql"), program).unwrap();
    let mut running = start(dir.path(), &[["run", "p.sql", "--interval", "50ms"].as_slice(), &QUIET].concat(), "");
    let mut other = connect(port);
    other.write_all(b"before\n").unwrap();
    running.wait_for("total: 1 |");
    let before = peak(&running);

    let (begun, begins) = mpsc::channel();
    let floods: Vec<_> = (0..FLOODS)
        .map(|_| {
            let (begun, (go_on, goes_on)) = (begun.clone(), mpsc::channel::<()>());
            let sending = std::thread::spawn(move || {
                let (piece, mut stream) = (vec![b'x'; PIECE], connect(port));
                for i in 0..bytes / PIECE {
                    if i == bytes / PIECE / 2 {
                        begun.send(()).unwrap();
                        goes_on.recv().unwrap();
                    }
                    stream.write_all(&piece).unwrap();
                }
                stream.write_all(b"\ngood\n").unwrap();
            });
            (go_on, sending)
        })
        .collect();
    for _ in 0..FLOODS {
        begins.recv_timeout(PATIENCE).unwrap();
    }
    // All are in the middle of their lines, and what others send is delivered.
    for n in 2..5 {
        other.write_all(b"meanwhile\n").unwrap();
        running.wait_for(&format!("total: {n} |"));
    }
    for (go_on, _) in &floods {
        go_on.send(()).unwrap();
    }
    for (_, sending) in floods {
        sending.join().unwrap();
    }
    running.wait_for(&format!("total: {} |", 4 + FLOODS));
    other.write_all(b"after\n").unwrap();
    running.wait_for(&format!("total: {} |", 5 + FLOODS));
    let grown = peak(&running) - before;
    assert!(grown <= 64 << 20, "memory grew by {} MiB", grown >> 20);
    running.signal(Signal::INT);
    let ended = running.end();
    assert!(ended.code(0).out.contains("8 refused"), "{}", ended.out);

    let letters = letters(dir.path(), "p.dead");
    assert_eq!(letters.len(), FLOODS);
    let reason = format!("a line of {} bytes, over the bound of 1048576 (option `max_line`)", bytes / PIECE * PIECE);
    for letter in letters {
        assert_eq!(letter["reason"], reason);
        assert!(letter["offset"].is_u64() && letter["raw"].as_str().unwrap().len() == 1024, "{letter}");
    }
}

#[test]
fn long_lines_on_eight_connections_take_no_memory() {
    flood(24 << 20);
}

#[test]
#[ignore = "8 GiB through sockets take both cores for half a minute; ci/reliability runs it"]
fn lines_of_a_gibibyte_on_eight_connections_take_no_memory() {
    flood(1 << 30);
}

#[test]
fn an_input_that_can_not_begin_ends_the_program_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken_port, port) = (taken.local_addr().unwrap().port(), free_port());
    fs::create_dir(dir.path().join("logs")).unwrap();
    let listens = format!("can't listen at 127.0.0.1:{taken_port}; choose another address or port");
    for (with, told) in [
        (format!("connector = 'tcp-listen', address = '127.0.0.1:{taken_port}'"), listens.as_str()),
        ("connector = 'tail', path = 'logs'".to_string(), "tail: can't read logs"),
    ] {
        let program = format!(
            "CREATE STREAM deaf WITH ({with}, format = 'text');\n\
             CREATE STREAM lines WITH (connector = 'tcp-listen', address = '127.0.0.1:{port}', format = 'text');\n\
             CREATE VIEW nothing AS SELECT count(*) AS n FROM deaf;\n\
             CREATE VIEW total AS SELECT count(*) AS n FROM lines;\n"
        );
        fs::write(dir.path().join("p.sql"), program).unwrap();
        for trigger in [["--interval", "50ms"], ["--interval", "1h"], ["--trigger", "asap"], ["--trigger", "drain"]] {
            let ended = run(dir.path(), &[["run", "p.sql"].as_slice(), &trigger, &QUIET].concat(), "");
            ended.code(1).says(&["error: stream `deaf` can't be", told]);
        }
    }
}

/// Waits until the board shows it.
#[track_caller]
fn until(board: &Board, what: &str, is: impl Fn(&Board) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is(board) {
        assert!(Instant::now() < end, "never seen: {what}; {:?} {:?}", board.program(), board.inputs());
        std::thread::yield_now();
    }
}

/// The port at which the only input listens.
fn port_of(board: &Board) -> u16 {
    until(board, "a port", |board| board.inputs().iter().any(|input| input.state.starts_with("listening on")));
    let state = board.inputs()[0].state.clone();
    state.split(':').nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}

fn total(board: &Board) -> i64 {
    use arrow_array::{cast::AsArray, types::Int64Type};
    board
        .view("total")
        .filter(|v| v.rows.num_rows() > 0)
        .map_or(0, |v| v.rows.column(0).as_primitive::<Int64Type>().value(0))
}

/// A program that counts lines, on a disk, and a client of it.
fn counting(dir: &Path, disk: &Arc<SimDisk>) -> (StreamingContext, Arc<Board>, TcpStream) {
    let context = tidemill::context("p").trigger(Trigger::Asap).data_dir(dir).disk(Arc::<SimDisk>::clone(disk)).build();
    context
        .declare_sql(
            "CREATE STREAM lines WITH (connector = 'tcp-listen', address = '127.0.0.1:0', format = 'text');
             CREATE VIEW total AS SELECT count(*) AS n FROM lines;",
        )
        .unwrap();
    context.start().unwrap();
    let board = context.board();
    let client = connect(port_of(&board));
    (context, board, client)
}

#[test]
fn a_full_disk_is_told_and_the_program_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(SimDisk::new());
    let (context, board, mut client) = counting(dir.path(), &disk);
    client.write_all(b"one\n").unwrap();
    until(&board, "the first record", |board| total(board) == 1);

    disk.set_space(Some(0));
    client.write_all(b"two\nthree\n").unwrap();
    until(&board, "the error", |board| board.program().error.is_some_and(|e| e.contains("no space left: free some")));
    assert!(board.program().error.unwrap().contains(&dir.path().display().to_string()), "it names the path");
    assert_eq!(total(&board), 1);
    disk.set_space(None);
    until(&board, "what came meanwhile", |board| total(board) == 3);
    until(&board, "no error any more", |board| board.program().error.is_none());

    // Full at the commit: what was received is kept already.
    client.write_all(b"four\n").unwrap();
    until(&board, "the fourth record", |board| total(board) == 4);
    context.stop(true).unwrap();
    drop(context);
    // It also starts on a full disk, and waits there.
    disk.set_space(Some(0));
    let (context, board, mut client) = counting(dir.path(), &disk);
    client.write_all(b"five\n").unwrap();
    until(&board, "the error", |board| board.program().error.is_some_and(|e| e.contains("no space left: free some")));
    disk.set_space(None);
    until(&board, "the count goes on", |board| total(board) == 5);
    context.stop(true).unwrap();
}

#[test]
fn a_disk_that_fills_up_anywhere_loses_and_doubles_nothing() {
    // So little room that each step of a batch meets its end once: appends, plans, states, commits.
    for room in (0..6_000).step_by(150) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(SimDisk::new());
        let (context, board, mut client) = counting(dir.path(), &disk);
        disk.set_space(Some(room));
        for _ in 0..8 {
            client.write_all(b"a record\n").unwrap();
        }
        let full = |board: &Board| board.program().error.is_some_and(|e| e.contains("no space left"));
        until(&board, "an error or the end", |board| full(board) || total(board) == 8);
        disk.set_space(None);
        until(&board, "all records", |board| total(board) == 8 && board.program().error.is_none());
        context.stop(true).unwrap();
        assert_eq!(total(&board), 8, "{room} bytes of room");
    }
}

#[test]
fn what_a_receiver_refused_is_kept_when_nothing_else_comes_before_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let context = tidemill::context("p").trigger(Trigger::Asap).data_dir(dir.path().join("d")).build();
    context
        .declare_sql(
            "CREATE STREAM lines WITH (connector = 'tcp-listen', address = '127.0.0.1:0', format = 'text', max_line = '16B');
             CREATE VIEW total AS SELECT count(*) AS n FROM lines;",
        )
        .unwrap();
    context.start().unwrap();
    let board = context.board();
    connect(port_of(&board)).write_all(b"a line that is too long\n").unwrap();
    until(&board, "the refusal", |board| board.program().refused == 1);
    context.stop(true).unwrap();
    let kept = letters(dir.path(), "p.dead");
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0]["raw"], "a line that is too long");
}
