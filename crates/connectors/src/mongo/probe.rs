//! What tests see of a MongoDB: its documents as lines of JSON, in the order of their ids.
//!
//! Invariant: each call has a connection of its own. Called by tests here and above.

use super::{json::put, server::Server};
use futures::TryStreamExt;
use mongodb::{
    Collection,
    bson::{Document, RawDocumentBuf, doc},
};
use tidemill_core::Options;

/// The server that tests talk to, with a database of their own: `TIDEMILL_MONGODB`, such as
/// `mongodb://127.0.0.1:27018`. `None`, and said, when there is none.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub fn server(database: &str) -> Option<String> {
    server_of("TIDEMILL_MONGODB", database)
}

/// As [`server`], of another variable.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub fn server_of(variable: &str, database: &str) -> Option<String> {
    let Ok(url) = std::env::var(variable) else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "{variable} is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: {variable} is not set; ci/services up starts a server");
        return None;
    };
    Some(format!("{}/{database}", url.trim_end_matches('/')))
}

async fn collection<T: Send + Sync>(url: &str, collection: &str) -> Collection<T> {
    let server = Server::from_options(&Options::new("probe", [("url", url)])).expect("an address");
    server.database().await.expect("a database").collection(collection)
}

/// The documents of a collection; none when it is not there.
///
/// # Panics
/// When they can't be read.
pub async fn documents(url: &str, name: &str) -> Vec<String> {
    let all = collection::<RawDocumentBuf>(url, name).await;
    let found = all.find(doc! {}).sort(doc! { "_id": 1 }).await.expect("an answer");
    let found: Vec<RawDocumentBuf> = found.try_collect().await.expect("documents");
    let line = |document: &RawDocumentBuf| {
        let mut line = Vec::new();
        put(document, &mut line).expect("a document");
        String::from_utf8(line).expect("text")
    };
    found.iter().map(line).collect()
}

/// Reads all documents in an order, by the driver alone; how many there were.
///
/// # Panics
/// When they can't be read.
pub async fn scan(url: &str, name: &str, order: Document) -> usize {
    let all = collection::<RawDocumentBuf>(url, name).await;
    let mut found = all.find(doc! {}).sort(order).batch_size(2000).await.expect("an answer");
    let mut count = 0;
    while found.advance().await.expect("documents") {
        count += usize::from(!found.current().is_empty());
    }
    count
}

/// How many documents a collection has.
///
/// # Panics
/// When they can't be counted.
pub async fn count(url: &str, name: &str) -> u64 {
    collection::<Document>(url, name).await.count_documents(doc! {}).await.expect("a count")
}

/// Removes collections, and their marks.
///
/// # Panics
/// When they can't be removed.
pub async fn forget(url: &str, names: &[&str]) {
    for name in names {
        collection::<Document>(url, name).await.drop().await.expect("dropped");
        let marks = collection::<Document>(url, "tidemill_batches").await;
        marks.delete_one(doc! { "_id": name }).await.expect("forgotten");
    }
}

/// Adds documents.
///
/// # Panics
/// When they can't be added.
pub async fn insert(url: &str, name: &str, documents: Vec<Document>) {
    collection::<Document>(url, name).await.insert_many(documents).await.expect("inserted");
}

/// Runs a command on the database.
///
/// # Panics
/// When it fails.
pub async fn command(url: &str, command: Document) -> Document {
    let database = collection::<Document>(url, "x").await.client().clone();
    let name = url.rsplit('/').next().unwrap_or_default();
    database.database(name).run_command(command).await.expect("an answer")
}
