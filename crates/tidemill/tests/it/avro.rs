//! A program over records of Avro, from a request to a file: nested columns in SQL, a bad record set aside.

use crate::{
    bad::free_port,
    run::{run, start},
};
use rustix::process::Signal;
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

const SCHEMA: &str = r#"{"type":"record","name":"Order","fields":[
    {"name":"id","type":"long"},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
    {"name":"buyer","type":{"type":"record","name":"Buyer","fields":[{"name":"name","type":["null","string"]}]}},
    {"name":"tags","type":{"type":"array","items":"string"}},
    {"name":"counts","type":{"type":"map","values":"long"}}]}"#;

/// A record: small numbers only, each in one byte.
fn order(id: u8, cents: u8, name: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len() * 2).unwrap()], text.as_bytes()].concat();
    [&[id * 2, 2, cents, 2][..], &text(name), &[2], &text("new"), &[0, 2], &text("n"), &[2, 0]].concat()
}

fn post(port: u16, body: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!(
        "POST /in HTTP/1.1\r\nhost: mill\r\ncontent-type: avro/binary\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn records_of_avro_go_through_sql_into_a_file_of_avro() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    fs::write(dir.path().join("order.avsc"), SCHEMA).unwrap();
    let program = format!(
        "CREATE STREAM orders WITH (connector = 'http', address = '127.0.0.1:{port}', path = '/in', format = 'avro', schema_file = 'order.avsc');\n\
         CREATE VIEW total AS SELECT count(*) AS n, sum(price) AS paid, max(buyer['name']) AS last FROM orders;\n\
         CREATE SINK out WITH (connector = 'files', path = 'out', format = 'avro');\n\
         INSERT INTO out SELECT id, price, buyer, tags, counts FROM orders WHERE counts['n'] = 1 AND tags[1] = 'new';\n"
    );
    fs::write(dir.path().join("p.sql"), program).unwrap();
    run(dir.path(), &["check", "p.sql"], "").code(0);
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d", "--interval", "10ms"];
    let mut running = start(dir.path(), &arguments, "");
    running.wait_for("total: 0 ");
    post(port, &order(1, 100, "Ada"));
    post(port, b"no order");
    post(port, &order(2, 25, "Bob"));
    running.wait_for("total: 2 · Bob 1.25");
    running.signal(Signal::INT);
    running.end().code(0);
    let files = fs::read_dir(dir.path().join("out")).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    let files: Vec<Vec<u8>> = files.collect();
    assert!(!files.is_empty() && files.iter().all(|file| file.starts_with(b"Obj\x01")));
    let letters = run(dir.path(), &["consume", "p.dead", "--data", "d"], "");
    assert!(letters.code(0).out.contains("a length below zero"), "{}", letters.out);
}
