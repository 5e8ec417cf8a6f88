//! What tests see of a directory of HDFS: its files, and a hand in it.
//!
//! Invariant: it goes past the source's and the sink's store, over the plain client, so that the two can't share a
//! fault. Called by tests here and above.

use hdfs_native::{Client, ClientBuilder, HdfsError, WriteOptions, file::FileWriter};
use std::collections::BTreeMap;

/// The server that tests talk to, `TIDEMILL_HDFS` such as `hdfs://127.0.0.1:26900`, without this directory of an
/// earlier run. `None`, and said, when there is none.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub async fn server(dir: &str) -> Option<String> {
    let Ok(address) = std::env::var("TIDEMILL_HDFS") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_HDFS is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_HDFS is not set; ci/services up starts a server");
        return None;
    };
    client(&address).delete(&format!("/{dir}"), true).await.expect("an answer");
    Some(address)
}

/// A client of the runtime that calls.
///
/// # Panics
/// When the address is none.
pub fn client(address: &str) -> Client {
    ClientBuilder::new().with_url(address).build().expect("a client")
}

/// Puts a file there, as one that is not ours does: under its own name from the first byte on.
///
/// # Panics
/// When that fails.
pub async fn put(address: &str, path: &str, bytes: impl Into<bytes::Bytes>) {
    let mut file = open(address, path, bytes).await;
    file.close().await.expect("it is closed");
}

/// Begins a file and leaves it open. Blocks are of a MiB.
///
/// # Panics
/// When that fails.
pub async fn open(address: &str, path: &str, bytes: impl Into<bytes::Bytes>) -> FileWriter {
    let options = WriteOptions::default().overwrite(true).block_size(1 << 20);
    let mut file = client(address).create(path, options).await.expect("a file");
    file.write_bytes(bytes.into()).await.expect("it is written");
    file
}

/// The paths of all files below a directory; none where it is not there.
///
/// # Panics
/// When the server does not answer.
pub async fn names(address: &str, dir: &str) -> Vec<String> {
    match client(address).list_status(dir, true).await {
        Err(HdfsError::FileNotFound(_)) => Vec::new(),
        listed => {
            let listed = listed.expect("a list").into_iter();
            listed.filter(|status| !status.isdir).map(|status| status.path).collect()
        }
    }
}

/// All files below a directory, by what follows it; of one that is open, what is known of it.
///
/// # Panics
/// When the server does not answer.
pub async fn files(address: &str, dir: &str) -> BTreeMap<String, Vec<u8>> {
    let client = client(address);
    let mut all = BTreeMap::new();
    for path in names(address, dir).await {
        let file = client.read(&path).await.expect("a file");
        let bytes = file.read_range(0, file.file_length()).await.expect("bytes");
        all.insert(path[dir.len()..].trim_start_matches('/').to_string(), bytes.to_vec());
    }
    all
}
