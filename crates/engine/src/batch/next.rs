//! What the next batch is, and when it is due.
//!
//! A tick or news of an input begins one; its ranges are what each input has
//! since the last batch, within what the rate and the bounds allow. Invariant:
//! nothing is decided from an input that `position` does not name, so a batch
//! that was not planned leaves no trace. Called by the loop in [`super::pipeline`].

use super::{
    RateControl, Trigger,
    clock::{self, Tick},
    pipeline::Pipeline,
};
use crate::{
    ingest::{Intakes, REPLAYED},
    plan::StreamInput,
};
use futures::{FutureExt, future::select_all};
use std::collections::BTreeMap;
use tidemill_core::{
    Batch, BatchId, Budget, Duration, Offset, OffsetRange, PartitionId, Phase, Position, Result, Stop, Stretch,
    Timestamp,
};

/// A program without anything to do says that it is well this often.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between looks at sources that can't say when they have something new.
const IDLE: Duration = Duration::from_millis(5);

/// What a batch reads, by stream.
type Ranges = BTreeMap<String, Vec<OffsetRange>>;

impl Pipeline {
    /// The next batch, when it is due; `None` when the program ends.
    pub(super) async fn next(&self, stop: &Stop, draining: Option<Timestamp>) -> Result<Option<(Batch, Tick)>> {
        let mut looked = self.config.clock.now();
        loop {
            let (last, began) = {
                let progress = self.progress.lock();
                (progress.last, progress.began)
            };
            let id = last.map_or(BatchId(1), |(id, _)| BatchId(id.0 + 1));
            let last_time = last.map(|(_, time)| time);
            if draining.is_some() {
                return self.next_draining(id, last_time, draining).await;
            }
            // An input that can't even begin is told at once, not found missing some day.
            if let Some(error) = self.intakes.lock().as_ref().and_then(Intakes::failed) {
                return Err(error);
            }
            let now = self.config.clock.now();
            if now < looked || now.since(looked) >= LOOK {
                looked = now;
                self.board.publish_idle();
            }
            let tick = match self.config.trigger {
                Trigger::Every(interval) => {
                    let owed = || self.window_due(last_time, false).is_some();
                    clock::next_tick(interval, last_time, now, began, owed)
                }
                Trigger::Asap | Trigger::Once | Trigger::Drain => match self.window_due(last_time, false) {
                    Some(time) if time <= now => Tick { missed: true, ..Tick::now(time, time.max(began)) },
                    _ => Tick::now(clock::after(last_time, now), now),
                },
            };
            if tick.due > now {
                let until = tick.due.min(now.plus(LOOK));
                tokio::select! {
                    () = self.config.clock.sleep_until(until) => {}
                    // The last tick comes early: a stop does not wait for the interval.
                    () = stop.stopped() => return self.next_draining(id, last_time, None).await,
                }
                if until < tick.due {
                    continue;
                }
            }
            if tick.missed {
                self.progress.lock().looked = None;
                return Ok(Some((self.nothing(id, tick.time), tick)));
            }
            let ranges = self.ranges().await?;
            let empty = ranges.values().all(Vec::is_empty) && !self.letters_wait();
            let now = self.config.clock.now();
            match self.config.trigger {
                Trigger::Every(_) | Trigger::Once => return Ok(Some((Batch { id, time: tick.time, ranges }, tick))),
                Trigger::Asap | Trigger::Drain if !empty => {
                    let tick = Tick::now(clock::after(last_time, now), now);
                    return Ok(Some((Batch { id, time: tick.time, ranges }, tick)));
                }
                Trigger::Asap if self.wakes(last_time).is_some_and(|wakes| wakes <= now) => {
                    // Timeouts and timers that are due, all in one batch however long nobody ran.
                    let tick = Tick::now(clock::after(last_time, now), now);
                    return Ok(Some((self.nothing(id, tick.time), tick)));
                }
                Trigger::Drain if self.exhausted().await? => {
                    if let Some(time) = self.window_due(last_time, true) {
                        // A window by batch time is given early: nobody waits for its end.
                        return Ok(Some((self.nothing(id, time), Tick::now(time, now))));
                    }
                    // Without a watermark there is no window to close.
                    if self.watermarks().is_empty() {
                        return Ok(None);
                    }
                    let tick = Tick::now(clock::after(last_time, now), now);
                    return Ok(Some((Batch::end(id, tick.time), tick)));
                }
                Trigger::Asap | Trigger::Drain => {}
            }
            let look = now.plus(LOOK);
            // At its end a drained program does not wait for timeouts and timers: they stay for the next start.
            let wakes = self.wakes(last_time).filter(|_| self.config.trigger == Trigger::Asap);
            let due = [self.window_due(last_time, false), wakes].into_iter().flatten().min();
            let look = due.map_or(look, |due| look.min(due));
            tokio::select! {
                () = self.wait() => {}
                () = self.config.clock.sleep_until(look) => {}
                () = stop.stopped() => return self.next_draining(id, last_time, None).await,
            }
        }
    }

    /// Whether receivers refused something since the last commit, which lets it be run again.
    fn letters_wait(&self) -> bool {
        self.keep.as_ref().is_some_and(|keep| keep.dead().is_fresh())
    }

    /// Whether a batch ends the program: its inputs are exhausted.
    pub(super) fn is_end(&self, batch: &Batch) -> bool {
        batch.is_end() && !self.inputs.is_empty()
    }

    /// A batch over what is left when the program stops; `None` when nothing is,
    /// or it is `until` and sources still give more.
    async fn next_draining(
        &self,
        id: BatchId,
        last: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Option<(Batch, Tick)>> {
        let intakes = self.intakes.lock().take();
        if let Some(intakes) = intakes {
            self.board.update_program(|program| program.phase = Phase::Stopping);
            intakes.close().await;
        }
        let now = self.config.clock.now();
        if until.is_some_and(|until| now >= until) {
            return Ok(None);
        }
        // A source that never ends would be read for as long as a stop may last.
        let ranges = self.ranges_where(|input| !input.source.is_endless()).await?;
        if ranges.values().all(Vec::is_empty) && !self.letters_wait() {
            return Ok(None);
        }
        let tick = Tick::now(clock::after(last, now), now);
        Ok(Some((Batch { id, time: tick.time, ranges }, tick)))
    }

    pub(super) async fn ranges(&self) -> Result<Ranges> {
        self.ranges_where(|_| true).await
    }

    /// What the inputs have since the last batch; of those that `reads` says no to, nothing.
    async fn ranges_where(&self, reads: impl Fn(&StreamInput) -> bool + Sync) -> Result<Ranges> {
        let rate = match self.config.rate {
            RateControl::Fixed(rate) => Some(rate),
            RateControl::Pid { .. } => self.progress.lock().rate,
            RateControl::Off => None,
        };
        let records = match (rate, self.config.trigger) {
            (Some(rate), Trigger::Every(interval)) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive count")]
                let records = (rate * interval.as_secs_f64()).max(1.0) as u64;
                records.min(self.config.batch_records)
            }
            _ => self.config.batch_records,
        };
        let count = self.inputs.len().max(1) as u64;
        let budget = Budget {
            records: (records / count).max(1),
            bytes: (self.config.batch_bytes / count).max(1),
            parallelism: self.config.partitions,
        };
        let begun = self.config.clock.now();
        self.take_replays().await?;
        let mut ranges = BTreeMap::new();
        for input in &self.inputs {
            let position = self.position(&input.name);
            let mut planned = match reads(input) {
                true => self.persist(|| input.source.plan(&position, budget)).await?,
                false => Vec::new(),
            };
            planned.extend(input.replays(self.replayed(&input.name)));
            ranges.insert(input.name.clone(), planned);
        }
        self.progress.lock().looked = Some(Stretch { begun, ended: self.config.clock.now() });
        Ok(ranges)
    }

    /// Takes requests to run dead letters again; they have come when somebody asked.
    async fn take_replays(&self) -> Result<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let at_once = matches!(self.config.trigger, Trigger::Once | Trigger::Drain);
        let now = self.config.clock.now();
        self.persist(|| async { tokio::task::block_in_place(|| keep.replays().take_requests(now, at_once)) }).await
    }

    /// Where a source has been read to.
    fn position(&self, stream: &str) -> Position {
        let mut position = self.progress.lock().positions.get(stream).cloned().unwrap_or_default();
        position.remove(&PartitionId::new(REPLAYED));
        position
    }

    /// How far a stream has read the dead letters that are run again.
    fn replayed(&self, stream: &str) -> Option<Offset> {
        self.progress.lock().positions.get(stream)?.get(&PartitionId::new(REPLAYED)).copied()
    }

    /// Whether all input was read.
    pub(crate) async fn exhausted(&self) -> Result<bool> {
        for input in &self.inputs {
            if input.replays(self.replayed(&input.name)).is_some() {
                return Ok(false);
            }
            if !input.source.is_exhausted(&self.position(&input.name)).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Completes when an input may have something new.
    async fn wait(&self) {
        let mut waits = Vec::with_capacity(self.inputs.len() + 1);
        let mut all_wait = true;
        for input in &self.inputs {
            if input.source.can_wait() {
                let position = self.position(&input.name);
                waits.push(async move { input.source.wait(&position).await }.boxed());
            } else {
                all_wait = false;
            }
        }
        if !all_wait || waits.is_empty() {
            waits.push(self.config.clock.sleep_until(self.config.clock.now().plus(IDLE)));
        }
        select_all(waits).await;
    }

    /// A batch that reads nothing.
    fn nothing(&self, id: BatchId, time: Timestamp) -> Batch {
        Batch { id, time, ranges: self.inputs.iter().map(|input| (input.name.clone(), Vec::new())).collect() }
    }

    /// When a window by batch time needs a batch though nothing comes.
    fn window_due(&self, last: Option<Timestamp>, ending: bool) -> Option<Timestamp> {
        let last = last?;
        self.states.all().iter().filter_map(|state| state.due(last, ending)).min()
    }

    /// When a timeout, a timer or a partition that falls idle has something to do though nothing comes.
    fn wakes(&self, last: Option<Timestamp>) -> Option<Timestamp> {
        let last = last?;
        let states = self.states.all().iter().filter_map(|state| state.wakes(last)).min();
        [states, self.idle_due(last)].into_iter().flatten().min()
    }

    /// When quiet partitions come nearer to being idle, and windows that waited for them to closing.
    fn idle_due(&self, last: Timestamp) -> Option<Timestamp> {
        let progress = self.progress.lock();
        let Some(followed) = &progress.followed else {
            // Only a batch says by what the watermarks of this life go.
            let waits = progress.streams.values().any(|mark| mark.when_quiet().is_some());
            return waits.then_some(last);
        };
        let pauses = progress.streams.iter().filter_map(|(name, mark)| mark.next_idle(*followed.get(name)?));
        pauses.min().map(|pause| last.plus(pause))
    }
}
