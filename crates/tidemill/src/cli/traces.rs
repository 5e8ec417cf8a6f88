//! The arguments of traces: which collector takes them, and what it is sent along.
//!
//! Invariant: nothing is exported unless it is asked for here; headers come from
//! a file that only its owner can read, or from the environment where the
//! environment names the collector too, and are printed nowhere. What is wrong is
//! told before anything is started. Called by `run` and `demo`.

use super::secrets;
use clap::Args;
use std::path::PathBuf;
use tidemill::{Error, Result, connectors::otlp::Traces};

/// What stands for the environment's collector.
const ENVIRONMENT: &str = "env";
/// The environment's variables of OpenTelemetry begin so; those for traces alone come first.
const PREFIX: &str = "OTEL_EXPORTER_OTLP_";

/// Where traces go.
#[derive(Debug, Args)]
pub(super) struct TracesArgs {
    /// Export a trace of each batch to this collector by OTLP over HTTP, such as http://127.0.0.1:4318; `env`: to the
    /// one that OTEL_EXPORTER_OTLP_ENDPOINT names.
    #[arg(long, value_name = "URL", env = "TIDEMILL_TRACES", help_heading = HEADING)]
    traces: Option<String>,

    /// File with headers for the collector, mode 0600, with lines `name: value`.
    #[arg(long, value_name = "FILE", requires = "traces", help_heading = HEADING)]
    traces_headers: Option<PathBuf>,
}

const HEADING: &str = "Traces";

impl TracesArgs {
    /// Where traces go; `None` unless it was asked for.
    ///
    /// # Errors
    /// A user's error when there is no such collector, or its headers can't be taken.
    pub(super) fn traces(&self) -> Result<Option<Traces>> {
        let Some(url) = self.traces.as_deref().map(str::trim).filter(|url| !url.is_empty()) else { return Ok(None) };
        let traces = if url == ENVIRONMENT { of_environment(secrets::variable)? } else { Traces::to(url)? };
        let Some(path) = &self.traces_headers else { return Ok(Some(traces)) };
        let text = secrets::read(path, "the headers", secrets::OWNER_ONLY)?;
        let named = |error: Error| Error::user(format!("{}: {}", path.display(), error.chain()));
        traces.headers(&text).map(Some).map_err(named)
    }
}

/// The collector that the environment names, with the environment's headers.
fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Traces> {
    let either =
        |name: &str| variable(&format!("{PREFIX}TRACES_{name}")).or_else(|| variable(&format!("{PREFIX}{name}")));
    if either("PROTOCOL").is_some_and(|protocol| protocol.trim() == "grpc") {
        return Err(Error::user(format!(
            "{PREFIX}PROTOCOL is grpc, and traces are sent as http/json: name the collector's HTTP port (mostly 4318) with \
             --traces http://HOST:4318"
        )));
    }
    let traces = match (variable(&format!("{PREFIX}TRACES_ENDPOINT")), variable(&format!("{PREFIX}ENDPOINT"))) {
        // As the specification has it: the one for traces alone is taken as it is.
        (Some(url), _) => Traces::at(url.trim())?,
        (None, Some(url)) => Traces::to(&url)?,
        (None, None) => {
            let what = format!("--traces env: neither {PREFIX}ENDPOINT nor {PREFIX}TRACES_ENDPOINT is set");
            return Err(Error::user(what));
        }
    };
    match either("HEADERS") {
        Some(list) => traces.header_list(&list),
        None => Ok(traces),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_taken_as_opentelemetry_has_it() {
        let of = |vars: &[(&str, &str)]| {
            let vars = vars.to_vec();
            of_environment(move |name| {
                let found = vars.iter().find(|(known, _)| name.strip_prefix(PREFIX) == Some(known));
                found.map(|(_, value)| (*value).to_string())
            })
        };
        let place = |vars: &[(&str, &str)]| format!("{:?}", of(vars).unwrap());
        assert!(place(&[("ENDPOINT", "http://127.0.0.1:4318")]).contains("POST http://127.0.0.1:4318/v1/traces"));
        let both = [("ENDPOINT", "http://a.example"), ("TRACES_ENDPOINT", "https://b.example/x")];
        assert!(place(&both).contains(" https://b.example/x"));
        let secret = [("ENDPOINT", "https://a.example"), ("HEADERS", "api-key=hunter2")];
        assert!(!place(&secret).contains("hunter2"));
        let wrong = |vars: &[(&str, &str)], says: &str| {
            let error = of(vars).unwrap_err().chain();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        };
        wrong(&[], "OTEL_EXPORTER_OTLP_ENDPOINT");
        wrong(&[("ENDPOINT", "http://127.0.0.1:4317"), ("PROTOCOL", "grpc")], "4318");
        wrong(&[("ENDPOINT", "http://a.example"), ("TRACES_HEADERS", "api-key=hunter2")], "https://");
        wrong(&[("ENDPOINT", "https://a.example"), ("HEADERS", "hunter2")], "pair 1");
    }
}
