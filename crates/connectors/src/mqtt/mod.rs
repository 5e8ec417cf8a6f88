//! Connector `mqtt`: messages of an MQTT 5 server, by topic filters. In builds with the feature `mqtt`.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | `mqtt://host:1883`, or `mqtts://host:8883` |
//! | `topics` | filters with commas: `sensors/+/temperature, alarms/#` |
//! | `client_id` | the name under which the server keeps what comes while nobody is there; each stream needs its own |
//! | `qos` | `1` (unless said): the server sends again what was not acknowledged; `0`: it does not |
//! | `session_expiry` | how long the server keeps the session without us (1d) |
//! | `record` | `payload` (unless said), or `message`: an object of `topic`, `qos`, `retain` and `payload` |
//! | `username`, `password_file`, `password_env` | where the server asks for them |
//! | `in_flight` | messages that the server sends before the first of them is acknowledged (500) |
//! | `keep_alive` | how often a silent connection is tried (30s) |
//! | `max_line` | bytes of a message at most (1 MiB); a longer one is refused; of over 16 MiB the server sends none |
//!
//! **Nothing lost.** A message of QoS 1 is acknowledged when it is durable in
//! the log, in the order in which messages came; what was not is sent again, on
//! the next connection or to the next life of the program, as long as the
//! server keeps the session. Within a life, what was in the log already and
//! comes again is known by its packet number and is not taken twice. Those whose
//! acknowledgement was on its way when the connection broke come twice, as do
//! those that a program had in the log when it was killed before their
//! acknowledgement (QoS 1 is at least once). A server that has lost the session
//! is told by the state.
//!
//! Invariant: at most `in_flight` messages of QoS 1 are held beyond the log;
//! while the log is behind, none is acknowledged, and the server sends no more.

mod client;
mod envelope;
mod pending;
#[cfg(test)]
mod tests;

use crate::{
    backoff::Backoff,
    lines,
    social::{common::list, http::is_local, secret::Place},
};
use async_trait::async_trait;
use rumqttc::v5::mqttbytes::{QoS, valid_filter};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Claim, Error, Input, Intake, Options, Receiver, Result, Stop};

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Payload,
    Message,
}

/// A client of an MQTT 5 server.
#[derive(Debug, Clone)]
pub struct Mqtt {
    host: String,
    port: u16,
    secure: bool,
    topics: Vec<String>,
    client_id: String,
    qos: QoS,
    session_expiry: Duration,
    shape: Shape,
    login: Option<(String, Place)>,
    in_flight: u16,
    keep_alive: Duration,
    max_line: usize,
    backoff: Backoff,
}

impl Mqtt {
    /// The messages of QoS 1 that fit the filters, of a server on `host:port` that keeps them for `client_id`.
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>, topics: &str) -> Self {
        Self {
            host: host.into(),
            port,
            secure: false,
            topics: list(topics),
            client_id: client_id.into(),
            qos: QoS::AtLeastOnce,
            session_expiry: Duration::from_secs(24 * 3600),
            shape: Shape::Payload,
            login: None,
            in_flight: 500,
            keep_alive: Duration::from_secs(30),
            max_line: lines::MAX_LINE,
            backoff: Backoff::new(u64::from(std::process::id())),
        }
    }

    /// The client that a stream's options ask for.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let wrong = |why: &str| Error::user(format!("{owner}: {why}"));
        let url = options.require("url", "it names the server, such as mqtt://127.0.0.1:1883")?;
        let (secure, place) = match url.split_once("://") {
            Some(("mqtt", place)) => (false, place),
            Some(("mqtts", place)) => (true, place),
            _ => return Err(wrong("option `url` must begin with mqtt:// or mqtts://")),
        };
        let place = place.trim_end_matches('/');
        if place.contains(['/', '@', '?']) {
            return Err(wrong(
                "option `url` is mqtt://host:port and no more; filters stand in `topics`, names in `username` and `password_file`",
            ));
        }
        let usual = if secure { 8883 } else { 1883 };
        let (host, port) = match place.rsplit_once(':') {
            // An address of version 6 without a port.
            Some((host, _)) if host.starts_with('[') && !host.ends_with(']') => (place, usual),
            Some((host, port)) => {
                (host, port.parse().map_err(|_| wrong("option `url`: a port is a number up to 65535"))?)
            }
            None => (place, usual),
        };
        if host.is_empty() {
            return Err(wrong("option `url` names no host: mqtt://host:port"));
        }
        let topics = options.require("topics", "it has the topics, such as 'sensors/+/temperature, alarms/#'")?;
        let id = "the server keeps messages for it while the program is away; each stream needs its own";
        let mut client = Self::new(host, port, options.require("client_id", id)?, topics);
        client.secure = secure;
        if client.client_id.is_empty() || client.client_id.len() > 256 || client.client_id.starts_with(' ') {
            return Err(wrong("option `client_id` must be a name of 1 to 256 bytes"));
        }
        if client.topics.is_empty() {
            return Err(wrong("option `topics` has no filter"));
        }
        if let Some(filter) = client.topics.iter().find(|filter| !fits(filter)) {
            return Err(wrong(&format!(
                "option `topics`: `{filter}` is no filter: `+` stands for a whole level, `#` for all levels at the end"
            )));
        }
        client.qos = match options.get("qos") {
            None | Some("1") => QoS::AtLeastOnce,
            Some("0") => QoS::AtMostOnce,
            Some("2") => {
                return Err(wrong(
                    "option `qos` is 1 at most: the log has each message that is acknowledged, and none twice but after a kill",
                ));
            }
            Some(_) => return Err(wrong("option `qos` must be 0 or 1")),
        };
        client.session_expiry = options.duration("session_expiry", client.session_expiry)?;
        if client.session_expiry.as_secs() == 0 || u32::try_from(client.session_expiry.as_secs()).is_err() {
            return Err(wrong(
                "option `session_expiry` must be a second at least: the server forgets what it kept at once",
            ));
        }
        client.shape = match options.get("record").unwrap_or("payload") {
            "payload" => Shape::Payload,
            "message" => Shape::Message,
            other => return Err(wrong(&format!("option `record` must be `payload` or `message`, not `{other}`"))),
        };
        // Also without a name: a password in the program's text is refused there.
        let password = Place::from_options(options, "password", "MQTT_PASSWORD")?;
        client.login = options.get("username").map(|name| (name.to_string(), password));
        if client.login.is_none() && (options.get("password_file").is_some() || options.get("password_env").is_some()) {
            return Err(wrong("option `username` is missing: the password is somebody's"));
        }
        if client.login.is_some() && !secure && !is_local(&client.host) {
            return Err(wrong("option `url`: a password goes over the network by mqtts:// only"));
        }
        client.in_flight = options.parse("in_flight", client.in_flight)?;
        if client.in_flight == 0 {
            return Err(wrong("option `in_flight` must be 1 at least"));
        }
        client.keep_alive = options.duration("keep_alive", client.keep_alive)?;
        if !(5..=65535).contains(&client.keep_alive.as_secs()) {
            return Err(wrong("option `keep_alive` must be between 5s and 18h"));
        }
        client.max_line = lines::max_line(options)?;
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }

    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Whether a filter is one, of a group or not.
fn fits(filter: &str) -> bool {
    let own = match filter.strip_prefix("$share/") {
        Some(shared) => match shared.split_once('/') {
            Some((group, own)) if !group.is_empty() && !group.contains(['+', '#']) => own,
            _ => return false,
        },
        None => filter,
    };
    !own.contains('\0') && valid_filter(own)
}

#[async_trait]
impl Receiver for Mqtt {
    fn describe(&self) -> String {
        format!("mqtt {} {}", self.place(), self.topics.join(", "))
    }

    fn claim(&self) -> Option<Claim> {
        // The server lets one of two clients of the same name go.
        Some(Claim::new(format!("MQTT client `{}` of {}", self.client_id, self.place())))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        client::run(self, intake, stop).await
    }
}
