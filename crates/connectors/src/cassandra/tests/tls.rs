//! TLS with the server of the tests, whose certificate is one that it made itself.
//!
//! Invariant: these run in a build with `cassandra-tls` alone.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_trusted_by_option_and_not_otherwise() {
    let Some(server) = server().await else { return };
    let ca = std::env::var("TIDEMILL_CASSANDRA_CA").expect("the server's certificate");
    let port = server.rsplit_once(':').unwrap().1;
    let dir = tempfile::tempdir().unwrap();
    for (host, ca, fits) in [("127.0.0.1", Some(&ca), true), ("127.0.0.1", None, false), ("localhost", Some(&ca), true)]
    {
        let host = format!("{host}:{port}");
        let ca = ca.map(|ca| ("ca", ca.as_str()));
        let options: Vec<(&str, &str)> = [("tls", "on"), ("key", "n")].into_iter().chain(ca).collect();
        let sink = sink(&host, "guarded", &options, &dir.path().join(&host));
        match sink.open(rows([]).schema()).await {
            Ok(()) => assert!(fits, "{host}"),
            Err(error) => assert!(!fits && error.chain().contains("ertificate"), "{}", error.chain()),
        }
    }
    let none = dir.path().join("none.pem");
    std::fs::write(&none, "nothing").unwrap();
    let options = [("tls", "on"), ("ca", none.to_str().unwrap())];
    let error = sink(&server, "guarded", &options, dir.path()).open(rows([]).schema()).await.unwrap_err();
    assert!(error.to_string().contains("has no certificate") && !error.is_retryable(), "{}", error.chain());
}
