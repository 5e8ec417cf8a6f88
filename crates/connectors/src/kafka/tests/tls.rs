//! TLS and SCRAM, in a build that has them: the listener of `ci/services` whose certificate is `TIDEMILL_KAFKA_CA`.

use super::*;
use crate::{contract::read_all, kafka::probe};
use tidemill_core::{Blame, Budget, Position};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_plain_and_scram_credentials_reads_and_a_foreign_certificate_is_refused() {
    let Some(brokers) = probe::server() else { return };
    let ca = std::env::var("TIDEMILL_KAFKA_CA").expect("TIDEMILL_KAFKA_CA, of ci/services up");
    probe::topic(&brokers, "encrypted", 1, &[]);
    probe::produce(&brokers, "encrypted", 0, numbered(0..3), None);
    let secure = probe::listener(&brokers, 5);
    let user = [("tls", "true"), ("user", "tidemill")];
    for sasl in ["PLAIN", "SCRAM-SHA-512"] {
        let options = [&user[..], &[("ca", ca.as_str()), ("sasl", sasl), ("password_env", "TIDEMILL_KAFKA_PASSWORD")]];
        let records = read_all(&source(&with(&secure, "encrypted", &options.concat())).unwrap()).await;
        assert_eq!(records.values().map(Vec::len).sum::<usize>(), 3, "{sasl}");
        let sink = sink(&with(&secure, "encrypted", &options.concat())).unwrap();
        sink.open(crate::contract::rows([]).schema()).await.unwrap();
        // Any variable that holds something else.
        let options = [&user[..], &[("ca", ca.as_str()), ("sasl", sasl), ("password_env", "PATH")]].concat();
        let error =
            source(&with(&secure, "encrypted", &options)).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
        assert_eq!(error.blame(), Blame::User, "{sasl}: {}", error.chain());
        assert!(error.to_string().contains("the credentials are refused"), "{sasl}: {}", error.chain());
    }
    // The system's certificates have not signed it.
    let options = [&user[..], &[("password_env", "TIDEMILL_KAFKA_PASSWORD")]].concat();
    let error = source(&with(&secure, "encrypted", &options)).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
    assert_eq!(error.blame(), Blame::User, "{}", error.chain());
    assert!(error.to_string().contains("certificate is not trusted: see option `ca`"), "{}", error.chain());
}
