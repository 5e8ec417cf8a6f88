//! `/api/v1/grafana.json`: a dashboard for Grafana, made from the list of metrics.
//!
//! Invariant: each metric of [`METRICS`] is on it once, with its own help as
//! the panel's words; nothing else is. Called by the router.

use crate::metrics::{METRICS, Metric};
use axum::Json;
use serde_json::{Value, json};

/// Panels beside each other.
const ACROSS: usize = 2;
/// Grafana's grid is so wide.
const GRID: usize = 24;
const HIGH: usize = 8;

/// `/api/v1/grafana.json`
pub(crate) async fn grafana() -> Json<Value> {
    Json(dashboard())
}

fn dashboard() -> Value {
    let shown = METRICS.iter().filter(|metric| metric.name != "tidemill_build_info");
    let panels: Vec<Value> = shown.enumerate().map(|(at, metric)| panel(at, metric)).collect();
    json!({
        "title": "Tidemill",
        "uid": "tidemill",
        "tags": ["tidemill"],
        "schemaVersion": 39,
        "refresh": "5s",
        "time": { "from": "now-15m", "to": "now" },
        "templating": { "list": [
            { "name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus" },
            {
                "name": "instance", "type": "query", "label": "Program", "includeAll": true, "multi": true,
                "datasource": source(),
                "query": { "query": "label_values(tidemill_build_info, instance)", "refId": "instance" }, "refresh": 2,
            },
        ] },
        "panels": panels,
    })
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${source}" })
}

fn panel(at: usize, metric: &Metric) -> Value {
    let wide = GRID / ACROSS;
    let targets: Vec<Value> = queries(metric)
        .into_iter()
        .enumerate()
        .map(|(i, (query, legend))| {
            let name = char::from(b'A' + u8::try_from(i).unwrap_or(0)).to_string();
            json!({ "refId": name, "expr": query, "legendFormat": legend, "datasource": source() })
        })
        .collect();
    json!({
        "id": at + 1,
        "type": "timeseries",
        "title": title(metric.name),
        "description": metric.help,
        "datasource": source(),
        "gridPos": { "x": at % ACROSS * wide, "y": at / ACROSS * HIGH, "w": wide, "h": HIGH },
        "fieldConfig": { "defaults": { "unit": unit(metric), "min": 0 }, "overrides": [] },
        "targets": targets,
    })
}

/// What a panel asks: a counter by its rate, a histogram by its quantiles, a gauge as it is.
fn queries(metric: &Metric) -> Vec<(String, String)> {
    let Metric { name, kind, labels, .. } = metric;
    let legend: Vec<String> = labels.iter().map(|label| format!("{{{{{label}}}}}")).collect();
    let legend = if legend.is_empty() { "{{instance}}".to_string() } else { legend.join(" ") };
    let of = format!("{name}{{instance=~\"$instance\"}}");
    match *kind {
        "counter" => vec![(format!("rate({of}[$__rate_interval])"), legend)],
        "histogram" => [("0.5", "half"), ("0.99", "99 of 100")]
            .map(|(quantile, legend)| {
                let buckets = format!("{name}_bucket{{instance=~\"$instance\"}}[$__rate_interval]");
                (format!("histogram_quantile({quantile}, sum by (le) (rate({buckets})))"), legend.to_string())
            })
            .into(),
        _ => vec![(of, legend)],
    }
}

/// The metric's name as words: `Records received`.
fn title(name: &str) -> String {
    let words = name.trim_start_matches("tidemill_").trim_end_matches("_total").replace('_', " ");
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn unit(metric: &Metric) -> &'static str {
    let rate = metric.kind == "counter";
    if metric.name.contains("_bytes") {
        return if rate { "Bps" } else { "bytes" };
    }
    match (metric.name.contains("_seconds"), rate) {
        (true, _) => "s",
        (false, true) => "cps",
        (false, false) => "short",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_a_panel_that_asks_for_it() {
        let dashboard = dashboard();
        let panels = dashboard["panels"].as_array().unwrap();
        assert_eq!(panels.len(), METRICS.len() - 1);
        for (panel, metric) in panels.iter().zip(METRICS.iter().skip(1)) {
            let asked = panel["targets"][0]["expr"].as_str().unwrap();
            assert!(asked.contains(metric.name), "{asked}");
            assert_eq!(asked.starts_with("rate("), metric.kind == "counter", "{asked}");
            assert_eq!(panel["description"], metric.help);
        }
        assert_eq!(title("tidemill_records_received_total"), "Records received");
    }
}
