//! A PostgreSQL server, and the connection to it.
//!
//! TLS is required, with certificates that the web trusts, unless the server is
//! on this machine or the URL says `sslmode`. A connection that breaks is made
//! anew at the next try.
//!
//! ```text
//! connecting, with its handshakes                 [`CONNECT`] for each address, and once more
//! an answer                                       [`ANSWER`]
//! an answer that has to do with all of a batch    [`WORK`]
//! a machine that is gone                          40 s, by TCP
//! our transaction, when it is we who are gone     60 s, by the server, unless the URL says `idle_in_transaction_session_timeout`
//! ```
//!
//! Invariant: nothing waits without an end, and no password stands in a program,
//! a log or an error. Called by the sink and the lookup.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};
use tidemill_core::{Error, Options, Result};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
};
use tokio_postgres::{
    Client, Config,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection to an address may take; and the handshakes of all together.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take that needs no work. Who waits for a lock waits as long, and asks again.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// How long an answer may take that comes when all rows of a batch are read, written or removed. Of a server that
/// is gone TCP tells much earlier; this bounds one that stands still and is there.
pub(super) const WORK: Duration = Duration::from_secs(600);
/// Of silence, until TCP asks whether the other side is there, then how often and how many times.
const IDLE: Duration = Duration::from_secs(15);
const PROBES: (Duration, u32) = (Duration::from_secs(5), 5);
/// After so many seconds the server gives up a transaction whose client says nothing, and every lock with it: a machine
/// that has vanished would keep the next life out for as long as the server believes in it, which may be hours.
const ABANDONED: u64 = 60;
/// How long what was sent may wait for TCP's word that it arrived.
const UNHEARD: Duration = Duration::from_secs(40);

/// A server, and the connection to it.
pub(super) struct Server {
    config: Config,
    /// Whether the address says itself when the server gives up a transaction.
    says_abandoned: bool,
    /// For people, without anything secret.
    pub(super) place: String,
    client: Mutex<Option<Connected>>,
}

/// A connection. It ends with this at once, whatever is under way on it.
pub(super) struct Connected {
    client: Client,
    running: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        // Else it would wait for answers that nobody wants any more.
        self.running.abort();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The addresses as they are written: the hosts, or else the numbers of hosts.
fn addresses(config: &Config) -> Vec<Host> {
    let numbers = config.get_hostaddrs().iter().map(|number| Host::Tcp(number.to_string()));
    if config.get_hosts().is_empty() { numbers.collect() } else { config.get_hosts().to_vec() }
}

/// Whether all that is connected to is this machine.
fn is_here(config: &Config) -> bool {
    let here = |host: &Host| match host {
        Host::Tcp(name) => crate::http::is_local(name),
        Host::Unix(_) => true,
    };
    // What `hostaddr` says is what is connected to, whatever the host is called.
    !addresses(config).is_empty()
        && config.get_hosts().iter().all(here)
        && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

impl Server {
    /// From the options `url` and `password_env`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let url = options.require("url", "it names the server: postgres://user@host/database")?;
        let owner = options.owner();
        let mut config: Config = url.parse().map_err(|_| {
            // The error of the parser might quote what is secret.
            Error::user(format!("{owner}: option `url` must be like postgres://user@host:5432/database"))
        })?;
        if config.get_password().is_some() {
            return Err(Error::user(format!(
                "{owner}: a password must not stand in a program: leave it out of `url`, and name the environment variable that holds it in option `password_env`"
            )));
        }
        if let Some(name) = options.get("password_env") {
            let password = std::env::var(name).map_err(|_| {
                Error::user(format!("{owner}: the environment variable `{name}` of option `password_env` is not set"))
            })?;
            config.password(password);
        }
        if !url.contains("sslmode") {
            config.ssl_mode(if is_here(&config) { SslMode::Disable } else { SslMode::Require });
        }
        if !url.contains("keepalives") {
            config.keepalives_idle(IDLE).keepalives_interval(PROBES.0).keepalives_retries(PROBES.1);
        }
        if !url.contains("tcp_user_timeout") {
            config.tcp_user_timeout(UNHEARD);
        }
        config.connect_timeout(CONNECT).application_name("tidemill");
        let hosts: Vec<String> = addresses(&config)
            .into_iter()
            .map(|host| match host {
                Host::Tcp(name) => name,
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let place = format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default());
        let says_abandoned = url.contains("idle_in_transaction_session_timeout");
        Ok(Self { config, says_abandoned, place, client: Mutex::default() })
    }

    /// The hosts with their ports and the database, named in one way.
    pub(super) fn real_place(&self) -> String {
        let ports = self.config.get_ports();
        let host = |(at, host): (usize, Host)| {
            let name = match host {
                Host::Tcp(name) if matches!(name.as_str(), "127.0.0.1" | "::1") => "localhost".to_string(),
                Host::Tcp(name) => name.to_lowercase(),
                Host::Unix(path) => path.display().to_string(),
            };
            format!("{name}:{}", ports.get(at).or(ports.first()).copied().unwrap_or(5432))
        };
        let hosts: Vec<String> = addresses(&self.config).into_iter().enumerate().map(host).collect();
        // A user's own database is the default.
        let base = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{}/{base}", hosts.join(","))
    }

    pub(super) fn failed(&self, what: &str, table: &str, error: tokio_postgres::Error) -> Error {
        let text = format!("postgres: can't {what} table `{table}` at {}", self.place);
        // Connections, resources, operators' actions and conflicts pass; the rest is for a human.
        let passes = error
            .code()
            .is_none_or(|code| ["08", "53", "57", "40", "55", "58"].iter().any(|class| code.code().starts_with(class)));
        if passes { Error::external(text).because(error) } else { Error::user(text).because(error) }
    }

    /// Waits for an answer, not for ever; what the server says in time is within.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn within<T>(
        &self,
        (what, table): (&str, &str),
        most: Duration,
        act: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<Result<T, tokio_postgres::Error>> {
        tokio::time::timeout(most, act).await.map_err(|_| {
            let (place, most) = (&self.place, most.as_secs());
            Error::external(format!("postgres: can't {what} table `{table}` at {place}: no answer in {most} s"))
        })
    }

    /// Lets a connection go that ended while nothing was asked, and says so: who asks next would not learn of it,
    /// as [`Server::client`] makes another.
    pub(super) async fn let_go_if_closed(&self) -> bool {
        self.client.lock().await.take_if(|held| held.client.is_closed()).is_some()
    }

    /// The connection, made anew when it is gone.
    pub(super) async fn client(&self, table: &str) -> Result<MutexGuard<'_, Option<Connected>>> {
        let mut held = self.client.lock().await;
        if held.as_ref().is_none_or(|connected| connected.client.is_closed()) {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| Error::internal("postgres: TLS").because(e))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            // The driver bounds each connection, and not what is said on it then.
            let most = CONNECT.saturating_mul(u32::try_from(addresses(&self.config).len()).unwrap_or(1)) + CONNECT;
            let what = "connect for";
            let connected = self.within((what, table), most, self.config.connect(MakeRustlsConnect::new(tls))).await?;
            let (client, connection) = connected.map_err(|e| self.failed(what, table, e))?;
            // It says to the client's next call that it broke.
            let running = tokio::spawn(async move { drop(connection.await) });
            let connected = Connected { client, running };
            if !self.says_abandoned {
                let set = format!("SET idle_in_transaction_session_timeout = '{ABANDONED}s'");
                let asked = self.within((what, table), ANSWER, connected.client.batch_execute(&set)).await?;
                match asked.map_err(|e| self.failed(what, table, e)) {
                    // A server that only speaks as PostgreSQL does may know no such setting.
                    Err(error) if !error.is_retryable() => {
                        tracing::debug!(error = error.chain(), "it has no such setting");
                    }
                    asked => asked?,
                }
            }
            *held = Some(connected);
        }
        Ok(held)
    }
}

/// The client of a connection that is held.
pub(super) fn of(held: &mut Option<Connected>) -> Result<&mut Client> {
    held.as_mut().map(|held| &mut held.client).ok_or_else(|| Error::internal("postgres: no connection"))
}

/// Lets a connection go after an error that passes: it may be half open, and what is still under way on it must
/// not answer the next question.
pub(super) fn settled<T>(held: &mut Option<Connected>, done: Result<T>) -> Result<T> {
    if done.as_ref().is_err_and(Error::is_retryable) {
        *held = None;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_reached_without_tls() {
        let config = |url: &str| Server::from_options(&Options::new("sink", [("url", url)])).unwrap().config;
        for here in [
            "postgres://me@localhost/x",
            "postgres://me@127.0.0.1,[::1]:5433/x",
            "host=/run/postgresql user=me",
            "host=localhost hostaddr=127.0.0.1 user=me",
            "hostaddr=127.0.0.1 user=me",
        ] {
            assert_eq!(config(here).get_ssl_mode(), SslMode::Disable, "{here}");
        }
        for away in [
            "postgres://me@db.example.org/x",
            "postgres://me@localhost,db.example.org/x",
            "host=localhost hostaddr=203.0.113.5 user=me",
            "hostaddr=203.0.113.5 user=me",
            "host=db.example.org hostaddr=127.0.0.1 user=me",
            "user=me",
        ] {
            assert_eq!(config(away).get_ssl_mode(), SslMode::Require, "{away}");
        }
        assert_eq!(config("postgres://me@db.example.org/x?sslmode=disable").get_ssl_mode(), SslMode::Disable);
        let at = |url: &str| Server::from_options(&Options::new("sink", [("url", url)])).unwrap();
        assert_eq!(at("hostaddr=203.0.113.5 user=me").place, "203.0.113.5/");
        assert_ne!(at("hostaddr=203.0.113.5 user=me").real_place(), at("hostaddr=203.0.113.6 user=me").real_place());
    }

    #[test]
    fn a_machine_that_is_gone_is_noticed() {
        let config = |url: &str| Server::from_options(&Options::new("sink", [("url", url)])).unwrap().config;
        let usual = config("postgres://me@localhost/x");
        assert!(usual.get_keepalives());
        assert_eq!((usual.get_keepalives_idle(), usual.get_keepalives_interval()), (IDLE, Some(PROBES.0)));
        assert_eq!((usual.get_keepalives_retries(), usual.get_tcp_user_timeout()), (Some(5), Some(&UNHEARD)));
        let own = config("postgres://me@localhost/x?keepalives_idle=7&tcp_user_timeout=9");
        assert_eq!(own.get_keepalives_idle(), Duration::from_secs(7));
        assert_eq!(own.get_tcp_user_timeout(), Some(&Duration::from_secs(9)));
    }
}
