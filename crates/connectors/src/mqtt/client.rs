//! The connection to a server, for the life of a program.
//!
//! ```text
//!  event loop (a task of its own: pings go out also while the log is behind)
//!      │ bounded by `in_flight`, as nothing is acknowledged before it is durable
//!      ▼
//!  messages ─► records ─► append ─► durable ─► acknowledged, in order
//! ```
//!
//! Invariant: as that of [`super`]. Called by the receiver alone.

use super::{Mqtt, envelope::record, pending::Pending};
use crate::lines::{HEAD, letter};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            QoS,
            v5::{
                ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, Packet, Publish, RetainForwardRule,
                SubAck, SubscribeReasonCode,
            },
        },
    },
};
use std::{ops::Range, sync::Arc, time::Duration};
use tidemill_core::{Block, Error, Intake, Result, Stop};
use tokio::{sync::mpsc, task::JoinHandle, time};

/// Bytes of a message at least that the server may send.
const LET_IN: usize = 16 << 20;
/// Bytes of a block, after which no more messages are gathered.
const BLOCK: usize = 256 << 10;
/// A connection attempt is given up after this long, in seconds.
const CONNECT: u64 = 15;
/// How long a stop waits for what is not durable yet, and for the goodbye.
const PARTING: Duration = Duration::from_secs(2);
/// Refusals of a connection that worked before, after which a human has to act.
const DENIALS: u32 = 6;

/// What the event loop tells: an event, or why the connection is gone. It then waits to be told to go on.
type Told = Result<Event, ConnectionError>;

/// Acks of blocks, with the messages in them, in the order of the log.
type Acks = FuturesOrdered<BoxFuture<'static, (Range<u64>, Result<()>)>>;

/// Runs until the stop, or until a human has to act.
pub(super) async fn run(mqtt: &Mqtt, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
    let options = options(mqtt)?;
    // At most two connections' acknowledgements are under way, and a subscription.
    let (client, events) = AsyncClient::new(options, usize::from(mqtt.in_flight) * 2 + 64);
    let (tell, told) = mpsc::channel(usize::from(mqtt.in_flight) + 64);
    let (go_on, goes_on) = mpsc::channel(1);
    let polling = tokio::spawn(poll(events, tell, goes_on));
    let mut session = Session {
        mqtt,
        client,
        intake,
        pending: Pending::default(),
        acks: FuturesOrdered::new(),
        connected: false,
        worked: false,
        denials: 0,
    };
    let ended = session.run(told, &go_on, &stop).await;
    drop(go_on);
    end(polling).await;
    ended
}

/// Ends the event loop, which may be waiting for the server.
async fn end(mut polling: JoinHandle<()>) {
    if time::timeout(PARTING, &mut polling).await.is_err() {
        polling.abort();
    }
}

/// Polls the event loop, beside the log; after a failure only when told to.
async fn poll(mut events: EventLoop, tell: mpsc::Sender<Told>, mut goes_on: mpsc::Receiver<()>) {
    loop {
        let event = events.poll().await;
        let failed = event.is_err();
        if tell.send(event).await.is_err() || failed && goes_on.recv().await.is_none() {
            return;
        }
        if failed {
            // What was acknowledged before the session knew of it: these numbers were the old connection's.
            events.clean();
        }
    }
}

fn options(mqtt: &Mqtt) -> Result<MqttOptions> {
    let mut options = MqttOptions::new(&mqtt.client_id, &mqtt.host, mqtt.port);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = u32::try_from(mqtt.session_expiry.as_secs()).ok();
    properties.receive_maximum = Some(mqtt.in_flight);
    properties.max_packet_size = u32::try_from(mqtt.max_line.max(LET_IN)).ok();
    options
        .set_connect_properties(properties)
        .set_clean_start(false)
        .set_manual_acks(true)
        .set_keep_alive(mqtt.keep_alive)
        .set_connection_timeout(CONNECT);
    if let Some((name, place)) = &mqtt.login {
        options.set_credentials(name, place.read_one()?.expose());
    }
    if mqtt.secure {
        let config = crate::jetstream::tls().map_err(Error::internal)?;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
    }
    Ok(options)
}

struct Session<'a> {
    mqtt: &'a Mqtt,
    client: AsyncClient,
    intake: Arc<dyn Intake>,
    pending: Pending,
    acks: Acks,
    connected: bool,
    /// Whether there was a connection in this life.
    worked: bool,
    denials: u32,
}

impl Session<'_> {
    async fn run(&mut self, mut told: mpsc::Receiver<Told>, go_on: &mpsc::Sender<()>, stop: &Stop) -> Result<()> {
        let mut backoff = self.mqtt.backoff.clone();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.stopped() => return self.part(&mut told).await,
                Some((block, durable)) = self.acks.next(), if !self.acks.is_empty() => {
                    durable?;
                    self.durable(&block)?;
                    continue;
                }
                event = told.recv() => event,
            };
            match event {
                None => return Err(Error::internal("mqtt: the event loop has ended")),
                Some(Ok(event)) => {
                    // What has come with it goes into the same block.
                    let mut messages = Vec::new();
                    let mut bytes = self.take(event, &mut messages, &mut backoff)?;
                    let mut failed = None;
                    while bytes < BLOCK {
                        match told.try_recv() {
                            Ok(Ok(event)) => bytes += self.take(event, &mut messages, &mut backoff)?,
                            Ok(Err(error)) => {
                                failed = Some(error);
                                break;
                            }
                            Err(_none) => break,
                        }
                    }
                    self.keep(messages).await?;
                    if let Some(error) = failed {
                        self.lost(&error, &mut backoff, go_on, stop).await?;
                    }
                }
                Some(Err(error)) => self.lost(&error, &mut backoff, go_on, stop).await?,
            }
        }
    }

    /// Takes an event; how many bytes of messages it brought.
    fn take(
        &mut self,
        event: Event,
        messages: &mut Vec<Publish>,
        backoff: &mut crate::backoff::Backoff,
    ) -> Result<usize> {
        match event {
            Event::Incoming(Packet::Publish(message)) => {
                let again = message.qos != QoS::AtMostOnce && !self.pending.is_new(&message);
                if again {
                    self.acknowledge()?;
                    return Ok(0);
                }
                let bytes = message.payload.len();
                messages.push(message);
                Ok(bytes)
            }
            Event::Incoming(Packet::ConnAck(answer)) => {
                self.pending.connected(answer.session_present);
                let lost = if self.worked && !answer.session_present {
                    "; the server has lost the session: what came meanwhile is gone"
                } else {
                    ""
                };
                self.intake.report(&format!("connected to {}{lost}", self.mqtt.place()));
                (self.connected, self.worked) = (true, true);
                self.denials = 0;
                backoff.reset();
                let filter = |path: &String| Filter {
                    // What was retained comes once, not with each connection.
                    retain_forward_rule: RetainForwardRule::OnNewSubscribe,
                    preserve_retain: true,
                    ..Filter::new(path, self.mqtt.qos)
                };
                let filters: Vec<Filter> = self.mqtt.topics.iter().map(filter).collect();
                let asked = self.client.try_subscribe_many(filters);
                asked.map_err(|error| Error::internal("mqtt: no room for a subscription").because(error))?;
                Ok(0)
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                self.subscribed(&answer)?;
                Ok(0)
            }
            _ => Ok(0),
        }
    }

    /// Whether the server gives what was asked for.
    fn subscribed(&self, answer: &SubAck) -> Result<()> {
        for (code, topic) in answer.return_codes.iter().zip(&self.mqtt.topics) {
            match code {
                SubscribeReasonCode::Success(qos) if *qos as u8 >= self.mqtt.qos as u8 => {}
                SubscribeReasonCode::Success(_) => {
                    self.intake.report(&format!(
                        "connected to {}; the server gives `{topic}` with QoS 0 only: what comes while nobody is there is lost",
                        self.mqtt.place()
                    ));
                }
                code => {
                    let why = format!(
                        "mqtt: the server refuses the filter `{topic}` ({code:?}); check option `topics` and what `username` may read"
                    );
                    return Err(Error::user(why));
                }
            }
        }
        Ok(())
    }

    /// Hands messages to the log as one block.
    async fn keep(&mut self, messages: Vec<Publish>) -> Result<()> {
        let (mut records, mut long) = (Vec::with_capacity(messages.len()), Vec::new());
        for message in &messages {
            let record = record(self.mqtt.shape, message);
            if record.len() > self.mqtt.max_line {
                let topic = String::from_utf8_lossy(&message.topic);
                let (length, most) = (record.len(), self.mqtt.max_line);
                let reason =
                    format!("a message of {length} bytes on `{topic}`, over the bound of {most} (option `max_line`)");
                long.push(letter(reason, record[..length.min(HEAD)].to_vec()));
            } else {
                records.push(record);
            }
        }
        let ack = if records.is_empty() {
            None
        } else {
            Some(self.intake.append(Block::from_records(&records), None).await?)
        };
        for letter in long {
            self.intake.refuse(letter).await?;
        }
        let waiting: Vec<Publish> = messages.into_iter().filter(|message| message.qos != QoS::AtMostOnce).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let block = self.pending.sent(waiting);
        match ack {
            Some(ack) => self.acks.push_back(async move { (block, ack.await) }.boxed()),
            // Only refused ones: they are told by now.
            None => self.durable(&block)?,
        }
        Ok(())
    }

    fn durable(&mut self, block: &Range<u64>) -> Result<()> {
        self.pending.durable(block);
        self.acknowledge()
    }

    /// Acknowledges what may be.
    fn acknowledge(&mut self) -> Result<()> {
        // Numbers of a connection that is gone mean nothing to the server before it has sent them again.
        while self.connected
            && let Some(message) = self.pending.next()
        {
            let sent = self.client.try_ack(&message);
            sent.map_err(|error| Error::internal("mqtt: no room for an acknowledgement").because(error))?;
        }
        Ok(())
    }

    /// The connection is gone: waits, and lets the event loop try again.
    async fn lost(
        &mut self,
        error: &ConnectionError,
        backoff: &mut crate::backoff::Backoff,
        go_on: &mpsc::Sender<()>,
        stop: &Stop,
    ) -> Result<()> {
        self.connected = false;
        let why = why(error, &self.mqtt.client_id);
        if is_denial(error) {
            self.denials += 1;
            if !self.worked || self.denials >= DENIALS {
                return Err(Error::user(format!("mqtt: {}: {why}", self.mqtt.place())));
            }
        }
        let wait = backoff.next_wait();
        tracing::info!(server = self.mqtt.place(), %why, ?wait, "reconnecting");
        self.intake.report(&format!("reconnecting in {:.1} s: {why}", wait.as_secs_f64()));
        tokio::select! {
            biased;
            () = stop.stopped() => {}
            () = time::sleep(wait) => drop(go_on.send(()).await),
        }
        Ok(())
    }

    /// Acknowledges what becomes durable soon, and says goodbye: the server keeps the session.
    async fn part(&mut self, told: &mut mpsc::Receiver<Told>) -> Result<()> {
        let acknowledging = async {
            while self.pending.waiting() > 0 {
                let Some((block, durable)) = self.acks.next().await else { break };
                durable?;
                self.durable(&block)?;
            }
            Ok(())
        };
        time::timeout(PARTING, acknowledging).await.unwrap_or(Ok(()))?;
        if !self.connected {
            return Ok(());
        }
        // What comes now is not taken, and so not acknowledged: the next life has it.
        if self.client.try_disconnect().is_ok() {
            let gone = async { while let Some(Ok(_)) = told.recv().await {} };
            let _late = time::timeout(PARTING, gone).await;
        }
        Ok(())
    }
}

/// Whether the server does not want this client at all.
fn is_denial(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::ConnectionRefused(code) => *code,
        ConnectionError::MqttState(StateError::ConnFail { reason }) => *reason,
        _ => return false,
    };
    use ConnectReturnCode as Code;
    matches!(
        code,
        Code::RefusedProtocolVersion
            | Code::UnsupportedProtocolVersion
            | Code::BadClientId
            | Code::ClientIdentifierNotValid
            | Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod
            | Code::QoSNotSupported
    )
}

/// Why a connection is gone, with what helps where that is known.
fn why(error: &ConnectionError, client_id: &str) -> String {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        }) => format!("another client has the name `{client_id}`: give each stream a `client_id` of its own"),
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                format!("the server refuses the client ({code:?}); check `username` and its password")
            }
            code => format!("the server refuses the client ({code:?})"),
        },
        other => other.to_string(),
    }
}
