//! Whether what an agent needs is there, before it runs.
//!
//! Invariant: nothing is written, and what is listened at or connected to is let go at once. A probe says how things
//! are now; a sink that can't be reached now may be when the agent runs. Called by `tidemill check`.

use crate::{
    config::{Plan, SinkKind},
    reach::Listens,
};
use std::path::Path;
use tidemill_core::Duration;
use tidemill_store::disk::Disk;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was looked at, and how it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// For people: `source "r1"`.
    pub what: String,
    /// What is fine, or why it is not.
    pub found: Result<String, String>,
}

impl Plan {
    /// Looks at all addresses and directories of the plan.
    pub async fn probe(&self, disk: &dyn Disk) -> Vec<Probe> {
        let mut probes = Vec::new();
        for source in &self.sources {
            let mut looks = Vec::new();
            for at in &source.reach.listens {
                looks.push(listen(at).await);
            }
            if !source.reach.peers.is_empty() {
                looks.push(one_of(&source.reach.peers).await);
            }
            looks.extend(source.origin.probe());
            probes.extend(looks.into_iter().map(|found| Probe { what: format!("source \"{}\"", source.name), found }));
        }
        for sink in self.groups.iter().flat_map(|group| &group.sinks) {
            let found = match &sink.kind {
                SinkKind::Avro { address, .. } => Some(connect(address).await),
                SinkKind::File(config) => Some(directory(&config.directory, disk)),
                SinkKind::Store { peers, .. } if !peers.is_empty() => Some(one_of(peers).await),
                _ => None,
            };
            probes.extend(found.map(|found| Probe { what: format!("sink \"{}\"", sink.name), found }));
        }
        probes
    }
}

/// A directory that is there, or can be made below one that is.
fn directory(path: &Path, disk: &dyn Disk) -> Result<String, String> {
    let shown = path.display();
    if disk.exists(path) {
        return disk
            .list(path)
            .map(|_| format!("{shown} is there"))
            .map_err(|e| format!("{shown} is no directory: {e}"));
    }
    let above = path.ancestors().skip(1).find(|above| above.as_os_str().is_empty() || disk.exists(above));
    match above {
        Some(above) if above.as_os_str().is_empty() || disk.list(above).is_ok() => Ok(format!("{shown} will be made")),
        _ => Err(format!("{shown} can't be made: what is above it is no directory")),
    }
}

async fn listen(at: &Listens) -> Result<String, String> {
    let (address, bound, net) = match at {
        Listens::Tcp(address) => (address, TcpListener::bind(address).await.map(drop), ""),
        Listens::Udp(address) => (address, UdpSocket::bind(address).await.map(drop), " (UDP)"),
    };
    match bound {
        Ok(()) => Ok(format!("{address}{net} is free to listen at")),
        Err(error) => Err(format!("can't listen at {address}{net}: {error}")),
    }
}

/// Whether somebody listens at an address.
async fn connect(address: &str) -> Result<String, String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(format!("{address} answers")),
        Ok(Err(error)) => Err(format!("can't connect to {address}: {error}")),
        Err(_) => Err(format!("{address} does not answer within {} seconds", PATIENCE.as_secs())),
    }
}

/// Whether one of them listens: it tells of the others.
async fn one_of(peers: &[String]) -> Result<String, String> {
    let looks = futures::future::join_all(peers.iter().map(|peer| connect(peer))).await;
    let mut failed = Vec::new();
    for look in looks {
        match look {
            Ok(answers) => return Ok(answers),
            Err(why) => failed.push(why),
        }
    }
    Err(failed.join("; "))
}
