//! What SQL says about event time: the options of a stream with a watermark,
//! and those of a view over windows.
//!
//! ```sql
//! CREATE STREAM posts (…, WATERMARK FOR created AS created - INTERVAL '5' SECOND)
//!   WITH (…, idle_after = '30s', max_ahead = '1h', allowed_lateness = '10m');
//! CREATE VIEW tags WITH (emit = 'update', allowed_lateness = '1h', late = 'late_posts') AS SELECT …;
//! ```
//!
//! Invariant: an option that would have no effect is an error. Called by
//! [`super::catalog`].

use super::{
    parse::Mark,
    progress::{Mark as Come, Time},
};
use tidemill_core::{Duration, Error, Options, Result, Timestamp, WatermarkSpec, nearest};

/// The event time of a stream, as it was declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StreamTime {
    /// The stream.
    pub(super) stream: String,
    /// Its column.
    pub(super) column: String,
    /// How the watermark follows the column.
    pub(super) spec: WatermarkSpec,
    /// How long windows take late rows after they closed.
    pub(super) lateness: Duration,
    /// How far it has come.
    pub(super) time: Time,
}

impl StreamTime {
    /// Takes the options about event time out of a stream's.
    ///
    /// # Errors
    /// When one can't be read, or there is no watermark that it could be about.
    pub(super) fn of(stream: &str, mark: Option<Mark>, options: &Options) -> Result<Option<Self>> {
        let given = ["idle_after", "max_ahead", "allowed_lateness"].map(|key| (key, options.get(key).is_some()));
        let Some(mark) = mark else {
            return match given.iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(Error::user(format!(
                    "option `{key}` is about event time, and the stream has none: declare WATERMARK FOR a column, as in CREATE STREAM {stream} (…, WATERMARK FOR t AS t - INTERVAL '5' SECOND)"
                ))),
                None => Ok(None),
            };
        };
        let default = WatermarkSpec::new(Duration::from_micros(mark.bound.unsigned_abs()));
        let spec = WatermarkSpec {
            idle_after: span_or(options, "idle_after", "never", default.idle_after)?,
            max_ahead: span_or(options, "max_ahead", "any", default.max_ahead)?,
            ..default
        };
        if spec.idle_after == Some(Duration::ZERO) {
            return Err(Error::user("option `idle_after` must be longer than nothing; 'never' turns it off"));
        }
        let lateness = options.duration("allowed_lateness", Duration::ZERO)?;
        let time = Time { mark: Come::Stream(spec), shift: 0, stream: stream.to_string() };
        Ok(Some(Self { stream: stream.to_string(), column: mark.column, spec, lateness, time }))
    }
}

/// A duration, or the word for none.
fn span_or(options: &Options, key: &str, none: &str, default: Option<Duration>) -> Result<Option<Duration>> {
    match options.get(key) {
        Some(text) if text.eq_ignore_ascii_case(none) => Ok(None),
        Some(text) => tidemill_core::parse_duration(text).map(Some).ok_or_else(|| {
            Error::user(format!("option `{key}` must be a duration with its unit (ms, s, m, h, d), such as '30s' or '1h', or '{none}', not `{text}`"))
        }),
        None => Ok(default),
    }
}

/// When a view over windows gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Emit {
    /// Each window when it closes, and again when a late row corrected it.
    #[default]
    Append,
    /// In each batch the windows that it changed, as they stand.
    Update,
    /// In each batch all windows that are kept, as they stand.
    Complete,
}

/// Options of a view.
#[derive(Debug, Clone, Default)]
pub(super) struct ViewOptions {
    pub(super) emit: Emit,
    /// Whether `emit` says that rows stay.
    pub(super) stays: bool,
    /// Instead of what the stream allows.
    pub(super) lateness: Option<Duration>,
    /// The view that rows go to that came too late.
    pub(super) late: Option<String>,
}

impl ViewOptions {
    /// Reads them.
    ///
    /// # Errors
    /// When one is unknown, or can't be read.
    pub(super) fn of(options: &Options) -> Result<Self> {
        let emit = match options.get("emit").map(str::to_lowercase).as_deref() {
            None | Some("append") => Emit::Append,
            Some("update") => Emit::Update,
            Some("complete") => Emit::Complete,
            Some(other) => {
                let known = ["append", "update", "complete"];
                let hint = nearest(other, &known).map_or(String::new(), |near| format!("; did you mean '{near}'?"));
                return Err(Error::user(format!(
                    "option `emit` must be 'append' (each window when it closes), 'update' (the windows that a batch changed) or 'complete' (all windows that are kept), not `{other}`{hint}"
                )));
            }
        };
        let stays = emit == Emit::Append && options.get("emit").is_some();
        let lateness = match options.get("allowed_lateness") {
            Some(_) => Some(options.duration("allowed_lateness", Duration::ZERO)?),
            None => None,
        };
        let late = options.get("late").map(ToString::to_string);
        options.finish()?;
        Ok(Self { emit, stays, lateness, late })
    }

    /// The first option that was given: it must have an effect.
    pub(super) fn given(&self) -> Option<&'static str> {
        match self {
            Self { late: Some(_), .. } => Some("late"),
            Self { lateness: Some(_), .. } => Some("allowed_lateness"),
            Self { emit: Emit::Update | Emit::Complete, .. } => Some("emit"),
            _ => None,
        }
    }
}

/// Which watermarks a window follows, and what it does with late rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Timing {
    /// The times that it follows, the least of those that are not idle; empty: the largest time that it has seen.
    pub(super) streams: Vec<Time>,
    /// How long it takes late rows after it closed.
    pub(super) lateness: Duration,
    pub(super) emit: Emit,
}

impl Timing {
    /// What is kept when the watermark is at `at`.
    pub(super) fn horizon(&self, at: Timestamp) -> Timestamp {
        at.minus(self.lateness)
    }

    /// Moves the watermark of `operator` to that of its streams and gives what it was before the batch, and is now.
    pub(super) fn watermarks(&self, operator: &str, run: &crate::plan::BatchRun) -> (Timestamp, Timestamp) {
        let idle = |time: &&Time| time.is_idle(run);
        // A stream that fell quiet holds nobody up; when all did, the furthest counts.
        let least = self.streams.iter().filter(|time| !idle(time)).map(|time| time.now(run)).min();
        let least = least.or_else(|| self.streams.iter().map(|time| time.now(run)).max());
        if let Some(at) = least.filter(|at| *at > Timestamp::MIN) {
            run.move_watermark(operator, at);
        }
        (run.watermark_before(operator), run.watermark_now(operator))
    }
}
