//! A server, or a replica set, and how it is reached.
//!
//! Invariant: no password stands in a program, a log or an error; nothing waits
//! without an end; over the network, TLS unless the address says otherwise.
//! Called by the sink, and by those who read a collection.

use crate::http::secret::Place;
use mongodb::{
    Client, Database,
    bson::{Document, RawDocumentBuf},
    error::ErrorKind,
    options::{ClientOptions, Credential, ServerAddress, Tls, TlsOptions},
};
use std::{fmt, time::Duration};
use tidemill_core::{Error, Options, Result};
use tokio::sync::OnceCell;

/// How long a connection, and the choice of a server, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a command may take; one that takes longer is given up and repeated, which changes nothing.
pub(super) const COMMAND: Duration = Duration::from_secs(120);

/// Codes of errors that pass: elections, shutdowns, networks within the cluster, conflicts, time-outs, readings that
/// rested too long.
const PASSING: [i32; 23] = [
    6, 7, 24, 43, 50, 64, 89, 91, 112, 133, 134, 189, 202, 234, 237, 262, 9001, 10107, 11600, 11601, 11602, 13435,
    13436,
];
/// Codes of "unauthorized" and "authentication failed".
const DENIED: [i32; 2] = [13, 18];

/// A database of a server.
pub struct Server {
    /// Without user and password.
    url: String,
    user: Option<String>,
    password: Option<Place>,
    auth_source: Option<String>,
    /// `host:port/database`, for people.
    pub(super) place: String,
    pub(super) database: String,
    client: OnceCell<Client>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The parts of `mongodb://user@host:port,host/database?options`.
struct Parts<'a> {
    user: Option<String>,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

/// Whether what stands behind a host as its port, if anything does, is one.
fn has_port(host: &str) -> bool {
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl<'a> Parts<'a> {
    /// From an address; the error does not quote it, as it may hold a password.
    fn parse(url: &'a str) -> Result<Self, &'static str> {
        if url.starts_with("mongodb+srv://") {
            return Err("mongodb+srv:// is looked up in the DNS, which this build can't: take the address that lists \
                        the servers, mongodb://host1:27017,host2:27017/database?replicaSet=…&tls=true");
        }
        let rest = url.strip_prefix("mongodb://").ok_or("an address is mongodb://host:27017/database")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (front, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match front.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, front),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err("a password must not stand in a program: leave it out, and name the environment's variable \
                        that holds it in option `password_env`, or its file in `password_file`");
        }
        if hosts.is_empty() {
            return Err("an address is mongodb://host:27017/database");
        }
        // A password with `/` or `?` in it ends what is before the `@` early, and would be taken for a port.
        if path.contains('@') || query.contains('@') || !hosts.split(',').all(has_port) {
            return Err(
                "an address is mongodb://user@host:27017/database: its ports are numbers, there is no other @ in \
                 it, and no password: name the environment's variable that holds that in \
                 option `password_env`, or its file in `password_file`",
            );
        }
        let user = user.filter(|user| !user.is_empty()).map(crate::http::proxy::decode);
        Ok(Self { user, hosts, path, query })
    }
}

impl Server {
    /// From the options `url`, `database`, `password_env`, `password_file`, `auth_source`.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let url = options.require("url", "it names the server: mongodb://user@host:27017/database")?;
        let parts = Parts::parse(url).map_err(|why| Error::user(format!("{owner}: option `url`: {why}")))?;
        let database = match (options.get("database"), parts.path) {
            (Some(name), _) => name,
            (None, "") => {
                let text = "the database is not named: write it behind the server, mongodb://host:27017/database, or \
                            in option `database`";
                return Err(Error::user(format!("{owner}: option `url`: {text}")));
            }
            (None, path) => path,
        };
        if database.contains(['.', '/', '\\', ' ', '"', '$', '\0']) || database.len() > 63 {
            return Err(Error::user(format!("{owner}: `{database}` can't be a database's name")));
        }
        let mut server = Self::at(&parts, database);
        if ["password", "password_file", "password_env"].map(|key| options.get(key).is_some()).contains(&true) {
            server.password = Some(Place::from_options(options, "password", "TIDEMILL_MONGODB_PASSWORD")?);
        }
        server.auth_source = options.get("auth_source").map(str::to_string);
        match (&server.user, &server.password) {
            (Some(_), None) => Err(Error::user(format!(
                "{owner}: option `url` names a user without a password: name the environment's variable that holds it in option `password_env`"
            ))),
            (None, Some(_)) => Err(Error::user(format!(
                "{owner}: there is a password, and no user: mongodb://user@host:27017/database"
            ))),
            _ => Ok(server),
        }
    }

    /// `mongodb://host:port/database.collection`, and the collection; of a user, the password is in the
    /// environment's variable `TIDEMILL_MONGODB_PASSWORD`.
    ///
    /// # Errors
    /// When it is no such address, or has a password.
    pub fn with_collection(url: &str) -> Result<(Self, String)> {
        let wrong = |why: &str| Error::user(format!("the address of a collection: {why}"));
        let parts = Parts::parse(url).map_err(wrong)?;
        let Some((database, collection)) = parts.path.split_once('.').filter(|(d, c)| !d.is_empty() && !c.is_empty())
        else {
            return Err(wrong("it names no collection: mongodb://host:27017/database.collection"));
        };
        let mut server = Self::at(&parts, database);
        server.password = server.user.as_ref().map(|_| Place::Env("TIDEMILL_MONGODB_PASSWORD".to_string()));
        Ok((server, collection.to_string()))
    }

    fn at(parts: &Parts<'_>, database: &str) -> Self {
        let query = if parts.query.is_empty() { String::new() } else { format!("?{}", parts.query) };
        Self {
            url: format!("mongodb://{}/{query}", parts.hosts),
            user: parts.user.clone(),
            password: None,
            auth_source: None,
            place: format!("{}/{database}", parts.hosts),
            database: database.to_string(),
            client: OnceCell::new(),
        }
    }

    /// The servers, in an order and a spelling of their own, and the database.
    pub(super) fn real_place(&self) -> String {
        let hosts = self.place.split('/').next().unwrap_or_default();
        let mut hosts: Vec<String> = hosts
            .split(',')
            .map(|host| {
                let (name, port) =
                    host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((host, "27017"));
                let name = if crate::http::is_local(name) { "localhost".to_string() } else { name.to_lowercase() };
                format!("{name}:{port}")
            })
            .collect();
        hosts.sort_unstable();
        format!("{}/{}", hosts.join(","), self.database)
    }

    /// The database; connections are made as they are needed, and anew when they break.
    ///
    /// # Errors
    /// When the address or the credentials can't be used.
    pub(super) async fn database(&self) -> Result<Database> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        Ok(client.database(&self.database))
    }

    async fn connect(&self) -> Result<Client> {
        // The address has no secret any more.
        let wrong = |e| Error::user(format!("mongodb: the address {} can't be used", self.url)).because(told(&e));
        let mut options = ClientOptions::parse(&self.url).await.map_err(wrong)?;
        options.app_name = Some("tidemill".to_string());
        options.connect_timeout = Some(CONNECT);
        options.server_selection_timeout = Some(CONNECT);
        let here = options.hosts.iter().all(|host| match host {
            ServerAddress::Tcp { host, .. } => crate::http::is_local(host),
            _ => true,
        });
        if options.tls.is_none() && !here {
            options.tls = Some(Tls::Enabled(TlsOptions::default()));
        }
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            let mut credential = Credential::default();
            credential.username = Some(user.clone());
            credential.password = Some(password.read_one()?.expose().to_string());
            credential.source = Some(self.auth_source.clone().unwrap_or_else(|| "admin".to_string()));
            options.credential = Some(credential);
        }
        Client::with_options(options).map_err(wrong)
    }

    /// Runs a command and gives its answer, in which single writes may have failed.
    ///
    /// # Errors
    /// When there is no answer in time, or the command as a whole was refused.
    pub(super) async fn run(&self, what: &str, command: RawDocumentBuf) -> Result<Document> {
        let database = self.database().await?;
        self.within(what, async { database.run_raw_command(command).await }).await
    }

    /// Waits for an answer, not for ever.
    ///
    /// # Errors
    /// When there is none, or it is an error.
    pub(super) async fn within<T>(
        &self,
        what: &str,
        act: impl Future<Output = Result<T, mongodb::error::Error>>,
    ) -> Result<T> {
        self.answer(what, COMMAND, act).await?.map_err(|e| self.failed(what, &e))
    }

    /// As [`Server::within`], with an error of the driver's as it is.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn answer<T>(
        &self,
        what: &str,
        most: Duration,
        act: impl Future<Output = Result<T, mongodb::error::Error>>,
    ) -> Result<Result<T, mongodb::error::Error>> {
        tokio::time::timeout(most, act).await.map_err(|_| {
            Error::external(format!("mongodb: can't {what} at {}: no answer in {} s", self.place, most.as_secs()))
        })
    }

    /// An error of the driver as ours.
    pub(super) fn failed(&self, what: &str, error: &mongodb::error::Error) -> Error {
        let text = format!("mongodb: can't {what} at {}", self.place);
        let (passes, hint) = match &*error.kind {
            ErrorKind::Command(command) if DENIED.contains(&command.code) => {
                (false, "; check the user in option `url` and option `password_env`")
            }
            ErrorKind::Command(command) => (PASSING.contains(&command.code), ""),
            ErrorKind::Authentication { .. } => (false, "; check the user in option `url` and option `password_env`"),
            ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => (false, ""),
            _ => (true, ""),
        };
        let text = format!("{text}{hint}");
        let error = told(error);
        if passes { Error::external(text).because(error) } else { Error::user(text).because(error) }
    }
}

/// What a driver's error says, in one line and without its debris.
pub(super) fn told(error: &mongodb::error::Error) -> String {
    match &*error.kind {
        ErrorKind::Command(command) => format!("{} (code {})", command.message, command.code),
        ErrorKind::ServerSelection { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(options: &[(&str, &str)]) -> Result<Server> {
        Server::from_options(&Options::new("sink \"s\"", options.iter().copied()))
    }

    #[test]
    fn addresses_are_told_apart_and_passwords_are_not_told() {
        let place = |url: &str| server(&[("url", url)]).unwrap().real_place();
        assert_eq!(place("mongodb://127.0.0.1/shop"), place("mongodb://localhost:27017/shop?tls=false"));
        assert_eq!(place("mongodb://b,A:1/shop"), "a:1,b:27017/shop");
        assert_eq!(place("mongodb://[::1]:27018/x"), "localhost:27018/x");
        for (url, want) in [
            ("postgres://localhost/x", "mongodb://host"),
            ("mongodb:///x", "mongodb://host"),
            ("mongodb+srv://a.example/x", "lists the servers"),
            ("mongodb://localhost", "the database is not named"),
            ("mongodb://localhost/a.b", "can't be a database's name"),
            ("mongodb://me:hunter2@localhost/x", "`password_env`"),
            ("mongodb://me:hunter2/x@localhost/x", "`password_env`"),
            ("mongodb://me:1/hunter2@localhost/x", "`password_env`"),
            ("mongodb://me:1?hunter2@localhost/x", "`password_env`"),
            ("mongodb://me:hunter2/x", "its ports are numbers"),
            ("mongodb://me@localhost/x", "`password_env`"),
        ] {
            let error = server(&[("url", url)]).unwrap_err().chain();
            assert!(error.contains(want) && !error.contains("hunter2"), "{error}");
        }
        let error = server(&[("url", "mongodb://localhost/x"), ("password_env", "X")]).unwrap_err().to_string();
        assert!(error.contains("no user"), "{error}");
        let (of, collection) = Server::with_collection("mongodb://localhost:1/social.posts.de?a=b").unwrap();
        assert_eq!((of.place.as_str(), of.url.as_str()), ("localhost:1/social", "mongodb://localhost:1/?a=b"));
        assert_eq!(collection, "posts.de");
        assert!(Server::with_collection("mongodb://localhost/social").is_err());
        let error = Server::with_collection("mongodb://me:1/hunter2@localhost/social.posts").unwrap_err().chain();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
