//! Whether what an agent needs is there, before it runs.
//!
//! Invariant: nothing is written, and what is listened at or connected to is let go at once. A probe says how things
//! are now; a sink that can't be reached now may be when the agent runs. Called by `tidemill check`.

use crate::config::{Plan, SinkKind};
use std::path::Path;
use tidemill_core::Duration;
use tidemill_store::disk::Disk;
use tokio::net::{TcpListener, TcpStream};

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
            let found = match &source.listens {
                Some(address) => Some(listen(address).await),
                None => source.origin.probe(),
            };
            probes.extend(found.map(|found| Probe { what: format!("source \"{}\"", source.name), found }));
        }
        for sink in self.groups.iter().flat_map(|group| &group.sinks) {
            let found = match &sink.kind {
                SinkKind::Avro { address, .. } => Some(connect(address).await),
                SinkKind::File(config) => Some(directory(&config.directory, disk)),
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

async fn listen(address: &str) -> Result<String, String> {
    match TcpListener::bind(address).await {
        Ok(_) => Ok(format!("{address} is free to listen at")),
        Err(error) => Err(format!("can't listen at {address}: {error}")),
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
