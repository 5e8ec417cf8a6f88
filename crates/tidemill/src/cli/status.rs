//! `tidemill status`: asks a running program's page how it fares.
//!
//! Invariant: as [`super::client`] has it: answers and waits are bounded, and a
//! token is not sent in clear.

use super::{
    client::ClientArgs,
    out::{out, outln},
};
use clap::Args;
use serde_json::Value;
use tidemill::Result;

/// Ask a running program how it fares.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill status
  tidemill status --web 127.0.0.1:4041
  tidemill status --json
  tidemill status --web https://mill.example:4040 --token-file token")]
pub(crate) struct Status {
    #[command(flatten)]
    page: ClientArgs,

    /// Print what the page says as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> Result<()> {
        let client = self.page.client()?;
        let [program, inputs, batches] =
            ["/api/v1/program", "/api/v1/inputs", "/api/v1/batches"].map(|path| client.get(path));
        let (program, inputs, batches) = (program?, inputs?, batches?);
        if self.json {
            outln!("{}", serde_json::json!({ "program": program, "inputs": inputs, "batches": batches }));
            return Ok(());
        }
        out!("{}", text(&program, &inputs, &batches));
        Ok(())
    }
}

fn text(program: &Value, inputs: &Value, batches: &Value) -> String {
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or(0);
    let word = |value: &Value, key: &str| {
        value[key].as_str().unwrap_or("?").chars().filter(|c| !c.is_control()).collect::<String>()
    };
    let mut lines = vec![format!("program {}: {}", word(program, "name"), word(program, "phase"))];
    if let Some(error) = program["error"].as_str() {
        lines.push(format!("  error: {error}"));
    }
    lines.push(format!(
        "  {} records in {} batches, {} refused, {} late",
        number(program, "records_in"),
        number(program, "batches"),
        number(program, "refused"),
        number(program, "late")
    ));
    let letters: Vec<String> =
        program["letters"].as_object().into_iter().flatten().map(|(kind, n)| format!("{n} {kind}")).collect();
    if !letters.is_empty() {
        lines.push(format!("  dead letters: {}; `tidemill dead list` shows them", letters.join(", ")));
    }
    for input in inputs.as_array().into_iter().flatten() {
        lines.push(format!(
            "  {} {}: {}, {} records",
            word(input, "stream"),
            word(input, "describe"),
            word(input, "state"),
            number(input, "records")
        ));
    }
    let batches = batches.as_array().map_or(&[][..], Vec::as_slice);
    if let Some(last) = batches.last().filter(|last| number(last, "state_bytes") > 0) {
        let spilled = number(last, "state_spilled");
        let on_disk = if spilled > 0 { format!(", {spilled} keys on disk only") } else { String::new() };
        lines.push(format!("  states: {} MiB in memory{on_disk}", number(last, "state_bytes").div_ceil(1 << 20)));
    }
    for batch in &batches[batches.len().saturating_sub(5)..] {
        let delay = number(batch, "scheduling_delay_us") + number(batch, "processing_us");
        lines.push(format!(
            "  batch {}: {} records, {} rows out, delay {}.{} ms",
            number(batch, "batch"),
            number(batch, "records_in"),
            number(batch, "rows_out"),
            delay / 1000,
            delay % 1000 / 100
        ));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_batches_are_told_in_order() {
        let batches: Vec<Value> =
            (1..=9)
                .map(|i| json!({"batch": i, "records_in": 10 * i, "processing_us": 1234, "state_bytes": 3_000_000, "state_spilled": i}))
                .collect();
        let text = text(
            &json!({"name": "demo", "phase": "running", "records_in": 450, "batches": 9, "refused": 3,
                "letters": {"bad_value": 1, "malformed": 2}}),
            &json!([{"stream": "posts", "describe": "tcp 127.0.0.1:1", "state": "connected", "records": 450}]),
            &Value::from(batches),
        );
        let want = "program demo: running
  450 records in 9 batches, 3 refused, 0 late
  dead letters: 1 bad_value, 2 malformed; `tidemill dead list` shows them
  posts tcp 127.0.0.1:1: connected, 450 records
  states: 3 MiB in memory, 9 keys on disk only
  batch 5: 50 records, 0 rows out, delay 1.2 ms
";
        assert!(text.starts_with(want), "{text}");
        assert!(text.ends_with("batch 9: 90 records, 0 rows out, delay 1.2 ms\n"), "{text}");
    }
}
