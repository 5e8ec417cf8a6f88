//! The servers, as options name them, and what their errors mean.
//!
//! | Option | Meaning |
//! |---|---|
//! | `brokers` | some of the cluster's servers: `kafka1:9092,kafka2:9092` |
//! | `user`, `password_env` | SASL PLAIN: the user, and the environment variable that holds the password |
//! | `sasl` | the mechanism: `PLAIN` (default); `SCRAM-SHA-256` and `SCRAM-SHA-512` need a build with TLS |
//! | `tls` | `true`: encrypted; needs a build with TLS (feature `kafka-tls`) |
//! | `ca` | a file with the certificates to trust, instead of the system's |
//! | `certificate`, `certificate_key` | files with our own certificate and its key, where the servers ask for one |
//! | `certificate_key_password_env` | the environment variable that holds the key's password |
//! | `properties` | more of librdkafka's own settings: `fetch.min.bytes=5, socket.timeout.ms=5000` |
//!
//! Invariant: no password stands in a program, a log or an error. An error that passes by itself is external and
//! tried again; one that a human has to mend (credentials, permissions, a topic that is not there) is the user's.
//! Called by all of this folder.

use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tidemill_core::{Error, Options, Result};

/// How long a call of the cluster may take.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// Settings that are ours: another value would break what the ledger relies on.
const OURS: [&str; 14] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    // An end that a follower tells is no end of the partition.
    "client.rack",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "request.required.acks",
    "sasl.password",
    "transactional.id",
    "transaction.timeout.ms",
];

/// A cluster, and how to come to it.
#[derive(Clone)]
pub struct Servers {
    config: ClientConfig,
    brokers: String,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

impl Servers {
    /// The cluster at `brokers`, without credentials.
    pub fn new(brokers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("client.id", "tidemill");
        // What is told waits until it is heard, so it should be little.
        config.set_log_level(RDKafkaLogLevel::Error);
        // A broker that comes back is found soon.
        config.set("reconnect.backoff.max.ms", "1000");
        Self { config, brokers: brokers.to_string() }
    }

    /// From the options above.
    ///
    /// # Errors
    /// When one is missing or wrong, or this build can't do what it asks for.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let mut servers = Self::new(options.require("brokers", "it names some of the cluster's servers: host:9092")?);
        if servers.brokers.split(',').any(|broker| !broker.trim().contains(':')) {
            return Err(Error::user(format!(
                "{owner}: option `brokers` must be like kafka1:9092,kafka2:9092, each with its port"
            )));
        }
        if options.get("zookeeper").is_some() {
            return Err(Error::user(format!(
                "{owner}: option `zookeeper`: no ZooKeeper is asked for anything; name the brokers alone in option `brokers`"
            )));
        }
        let tls = options.parse("tls", false)?;
        let user = options.get("user");
        let mechanism = options.get("sasl").unwrap_or("PLAIN").to_uppercase();
        if options.get("password").is_some() {
            return Err(Error::user(format!(
                "{owner}: a password must not stand in a program: name the environment variable that holds it in option `password_env`"
            )));
        }
        if !cfg!(feature = "kafka-tls") {
            without_tls(owner, tls, &mechanism)?;
        }
        let config = &mut servers.config;
        config.set(
            "security.protocol",
            match (tls, user.is_some()) {
                (false, false) => "plaintext",
                (false, true) => "sasl_plaintext",
                (true, false) => "ssl",
                (true, true) => "sasl_ssl",
            },
        );
        if let Some(ca) = options.get("ca") {
            if !tls {
                return Err(Error::user(format!("{owner}: option `ca` goes with tls = 'true'")));
            }
            config.set("ssl.ca.location", ca);
        }
        match (options.get("certificate"), options.get("certificate_key")) {
            (Some(_), Some(_)) if !tls => {
                return Err(Error::user(format!("{owner}: option `certificate` goes with tls = 'true'")));
            }
            (Some(certificate), Some(key)) => {
                config.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
            }
            (None, None) => {}
            _ => return Err(Error::user(format!("{owner}: options `certificate` and `certificate_key` go together"))),
        }
        if let Some(name) = options.get("certificate_key_password_env") {
            config.set("ssl.key.password", secret(owner, "certificate_key_password_env", name)?);
        }
        match (user, options.get("password_env")) {
            (Some(user), Some(name)) => {
                let password = secret(owner, "password_env", name)?;
                if !matches!(mechanism.as_str(), "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512") {
                    return Err(Error::user(format!(
                        "{owner}: option `sasl` must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, not `{mechanism}`"
                    )));
                }
                config.set("sasl.mechanism", mechanism).set("sasl.username", user).set("sasl.password", password);
            }
            (None, None) => {}
            _ => return Err(Error::user(format!("{owner}: options `user` and `password_env` go together"))),
        }
        for pair in options.get("properties").unwrap_or_default().split(',').filter(|pair| !pair.trim().is_empty()) {
            let Some((key, value)) = pair.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
                return Err(Error::user(format!(
                    "{owner}: option `properties` must be like fetch.min.bytes=5, socket.timeout.ms=5000, not `{pair}`"
                )));
            };
            if OURS.contains(&key) {
                return Err(Error::user(format!(
                    "{owner}: option `properties`: `{key}` is not for you to set: the ledger relies on our value"
                )));
            }
            if key.contains("password") || key.contains("secret") || key == "ssl.key.pem" {
                return Err(Error::user(format!(
                    "{owner}: option `properties`: `{key}` must not stand in a program: see options `password_env` and `certificate_key_password_env`"
                )));
            }
            config.set(key, value);
        }
        // Says a wrong name or value now and not at the first record.
        config.create_native_config().map_err(|error| {
            Error::user(format!("{owner}: option `properties` is refused by librdkafka")).because(error)
        })?;
        Ok(servers)
    }

    /// The brokers, for people.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// A client with these settings beside those of the cluster.
    pub(super) fn client<T: FromClientConfigAndContext<Heard>>(&self, settings: &[(&str, &str)]) -> Result<(T, Heard)> {
        let mut config = self.config.clone();
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let heard = Heard::default();
        let client = config.create_with_context(heard.clone());
        let client = client.map_err(|e| Error::user("kafka: these settings don't make a client").because(e))?;
        Ok((client, heard))
    }

    /// What a failed call means.
    pub(super) fn failed(&self, what: &str, error: KafkaError, heard: &Heard) -> Error {
        let said = heard.last();
        let code = error.rdkafka_error_code();
        let told = said.as_ref().map(|(code, _)| *code);
        let text = format!("kafka: can't {what} at {}", self.brokers);
        for code in [code, told].into_iter().flatten() {
            let fix = match code {
                Code::Authentication | Code::SaslAuthenticationFailed => {
                    "the credentials are refused: see options `user` and `password_env`"
                }
                // Other handshakes that fail may be a broker that starts or ends.
                Code::SSL if said.as_ref().is_some_and(|(_, why)| why.contains("certificate")) => {
                    "the server's certificate is not trusted: see option `ca`"
                }
                Code::UnsupportedSASLMechanism | Code::IllegalSASLState => {
                    "the servers don't take this kind of credentials: see options `sasl` and `user`"
                }
                Code::TopicAuthorizationFailed => "the user may not do this with the topic",
                Code::GroupAuthorizationFailed => "the user may not use the group",
                Code::TransactionalIdAuthorizationFailed => "the user may not use the transactional id",
                Code::ClusterAuthorizationFailed => "the user may not do this with the cluster",
                _ => continue,
            };
            let why = said.map(|(_, why)| why).unwrap_or_default();
            return Error::user(format!("{text}: {fix}")).because(Said(why, error));
        }
        let why = said.filter(|_| passes(code)).map(|(_, why)| why).unwrap_or_default();
        Error::external(text).because(Said(why, error))
    }
}

/// What a build without TLS refuses.
pub(super) fn without_tls(owner: &str, tls: bool, mechanism: &str) -> Result<()> {
    let what = match (tls, mechanism.starts_with("SCRAM")) {
        (true, _) => "option `tls`",
        (false, true) => "option `sasl`",
        (false, false) => return Ok(()),
    };
    Err(Error::user(format!(
        "{owner}: {what}: this build has no TLS for Kafka; build one with cargo build --release --features kafka-tls"
    )))
}

/// What an environment variable holds.
fn secret(owner: &str, option: &str, name: &str) -> Result<String> {
    std::env::var(name)
        .map_err(|_| Error::user(format!("{owner}: the environment variable `{name}` of option `{option}` is not set")))
}

/// Whether it is about the way to a broker, which may come back.
pub(super) fn passes(code: Option<Code>) -> bool {
    matches!(
        code,
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::MessageTimedOut
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::NotCoordinator
                | Code::NetworkException
        )
    )
}

/// An error with what the client had heard beside it.
#[derive(Debug)]
struct Said(String, KafkaError);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { write!(f, "{}", self.1) } else { write!(f, "{} ({})", self.1, self.0) }
    }
}

impl std::error::Error for Said {}

/// What a client says beside its calls: why there is no connection, most of all.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Option<(Code, String)>>>);

impl Heard {
    /// The last error that it told of.
    pub(super) fn last(&self) -> Option<(Code, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes an error.
    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That there is no connection follows from what was told before, and a kind alone from its words.
        if last.as_ref().is_none_or(|(told, _)| !passes(Some(code)) && *told != code) {
            *last = Some((code, reason.to_string()));
        }
    }

    /// A call has worked: what was told before is over.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(?level, fac, message, "librdkafka");
        // A consumer tells the kind of its errors alone; the log has the servers' words.
        for (code, words) in
            [(Code::Authentication, "SASL authentication error: "), (Code::SSL, "SSL handshake failed: ")]
        {
            if let Some((_, why)) = message.split_once(words) {
                self.note(&KafkaError::Global(code), why);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        self.note(&error, reason);
    }
}

impl ConsumerContext for Heard {}
