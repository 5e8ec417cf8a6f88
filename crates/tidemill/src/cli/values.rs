//! Values of arguments: durations, times, rates, addresses.
//!
//! Invariant: what can't be read is an error that shows what could be. Called
//! by clap.

use std::net::SocketAddr;
use tidemill::{
    Duration, Timestamp,
    connectors::format::time::instant,
    core::{Clock, parse_bytes, parse_duration},
    engine::SystemClock,
    store::log::check_program_name,
};

/// `250ms`, `20s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "write a duration with its unit (ms, s, m, h, d), such as 250ms, 20s, 5m, 1h or 7d".to_string())
}

/// `2026-01-31T15:00:00Z`, or `90m`: so long ago.
pub(crate) fn past(text: &str) -> Result<Timestamp, String> {
    if let Some(at) = instant(text) {
        return Ok(Timestamp(at));
    }
    let ago = duration(text).map_err(|_| "write a time such as 2026-01-31T15:00:00Z, or how long ago, such as 90m")?;
    let ago = i64::try_from(ago.as_micros()).map_err(|_| "that is too long ago")?;
    Ok(Timestamp(SystemClock.now().0.saturating_sub(ago)))
}

/// `2000` or `2000/s`: records per second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/s").trim().replace('_', "").parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("write records per second, such as 2000 or 2000/s".to_string()),
    }
}

/// `10x` or `10`: times faster.
pub(crate) fn speed(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches(['x', '×']).parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("write how many times faster, such as 1x, 10x or 0.5x".to_string()),
    }
}

/// A program's name.
pub(crate) fn program_name(text: &str) -> Result<String, String> {
    check_program_name(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// `512MiB`, `2GB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "write a size such as 512MiB or 2GB".to_string())
}

/// `127.0.0.1:4040`, `localhost:4040`, `:4040`, or `4040`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || "write an address as host:port, such as 127.0.0.1:4040 (port 0: any free one)".to_string();
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port: u16 = port.parse().map_err(|_| wrong())?;
    match host {
        "" | "localhost" => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        _ => text.parse().map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_more_than_nothing() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert!(size("0").is_err() && size("much").is_err());
    }

    #[test]
    fn a_duration_says_its_unit() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["20", "7", "", "s", "0", "0s", "-1s", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_is_positive() {
        assert_eq!(rate("2000/s"), Ok(2000.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "fast", "/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_speed_is_positive() {
        assert_eq!((speed("10x"), speed("0.5"), speed("3×")), (Ok(10.0), Ok(0.5), Ok(3.0)));
        for wrong in ["0x", "-1x", "infx", "x", "10/s"] {
            assert!(speed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_may_be_short() {
        let want: SocketAddr = "127.0.0.1:4040".parse().unwrap();
        for text in ["127.0.0.1:4040", "localhost:4040", ":4040", "4040"] {
            assert_eq!(address(text), Ok(want), "{text}");
        }
        assert_eq!(address("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        assert!(address("example").is_err());
        assert!(address("127.0.0.1:70000").is_err());
    }
}
