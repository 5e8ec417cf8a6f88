//! Hopping windows whose aggregates can be taken back: a slide costs the pane that comes and the one that goes.
//!
//! ```text
//! panes      0  1  2  3  4  5  6 | 7          window 1..7:  sums of 0..6
//!            └ taken away         └ added                   − pane 0 + pane 7
//! ```
//!
//! All groups of the window have a number ([`Groups`]) and their counts and sums
//! lie in arrays by it ([`Sums`]), so that only the groups of those two panes are
//! touched. When the plan above wants only the first few ([`First`]), they are found by
//! one pass over one array, and nothing is hashed, sorted or copied that they don't
//! need.
//!
//! Invariant: what it gives for a window is what merging the window's panes gives,
//! to the last digit; a sum that could not be taken back exactly ends it, and
//! [`super::slide`] goes on, which merges. It is a cache of the panes: made anew
//! whenever it is not there, and never stored. Called by [`super::state`].

use super::{
    first::First,
    groups::Groups,
    slide::{GONE, full_rows, is_many},
    state::Layout,
    sums::{Sums, Way, can},
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::Schema;
use datafusion::common::Result as DfResult;
use std::{collections::BTreeMap, fmt, sync::Arc};
use tidemill_core::Interval;

/// Some rows of a pane.
struct Chunk {
    groups: Vec<u32>,
    states: Vec<ArrayRef>,
}

/// What an aggregate's value is ordered by.
#[derive(Debug, Clone, Copy)]
enum Ranked {
    /// Its only state.
    State(usize),
    /// A sum over a count.
    Mean { count: usize, sum: usize },
}

/// Sums of the window that was given last.
pub(super) struct Running {
    /// Places of the groups in the rows of the state, the pane left out.
    keys: Vec<usize>,
    first_state: usize,
    groups: Groups,
    /// Rows of the window's panes that each group has.
    alive: Vec<u32>,
    /// How many groups have any.
    count: usize,
    sums: Vec<Sums>,
    panes: BTreeMap<i64, Vec<Chunk>>,
    /// The panes in the sums are those from the first to before the second.
    from: i64,
    until: i64,
    first: Option<(First, Ranked)>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sums of {} groups in {} panes", self.count, self.panes.len())
    }
}

impl Running {
    /// For rows of this layout, when it is worth it and the aggregates can.
    pub(super) fn of(layout: &Layout) -> DfResult<Option<Self>> {
        let aggregates = &layout.aggregates;
        if !is_many(layout) || aggregates.is_empty() {
            return Ok(None);
        }
        for aggregate in aggregates {
            if !can(aggregate)? {
                return Ok(None);
            }
        }
        let widths = aggregates.iter().map(|a| Ok(a.state_fields()?.len())).collect::<DfResult<Vec<_>>>()?;
        let first_state = layout.kept.fields().len() - widths.iter().sum::<usize>();
        let keys: Vec<usize> = (0..first_state).filter(|place| *place != layout.pane).collect();
        let states = layout.kept.fields()[first_state..].iter().map(|field| Sums::new(field.data_type()));
        let (Some(sums), false) = (states.collect::<Option<Vec<_>>>(), keys.is_empty()) else { return Ok(None) };
        let schema = Schema::new(keys.iter().map(|at| layout.kept.field(*at).clone()).collect::<Vec<_>>());
        let first = layout.first.and_then(|first| {
            let at: usize = widths[..first.aggregate].iter().sum();
            let ranked = match (aggregates[first.aggregate].fun().name(), widths[first.aggregate]) {
                ("avg", 2) if sums[at + 1].is_float() => Ranked::Mean { count: at, sum: at + 1 },
                ("count" | "sum", 1) => Ranked::State(at),
                _ => return None,
            };
            Some((first, ranked))
        });
        Ok(Some(Self {
            keys,
            first_state,
            groups: Groups::new(Arc::new(schema))?,
            alive: Vec::new(),
            count: 0,
            sums,
            panes: BTreeMap::new(),
            from: i64::MIN,
            until: i64::MIN,
            first,
        }))
    }

    /// Bytes that it takes beside the panes, with which it shares the states of their rows.
    pub(super) fn bytes(&self) -> usize {
        let sums: usize = self.sums.iter().map(Sums::bytes).sum();
        let numbers: usize = self.panes.values().flatten().map(|chunk| chunk.groups.capacity()).sum();
        self.groups.bytes() + sums + (numbers + self.alive.capacity()) * size_of::<u32>()
    }

    /// Whether it goes on to this window: they come in order.
    pub(super) fn reaches(&self, window: Interval) -> bool {
        window.start.0 >= self.from && window.end.0 >= self.until
    }

    /// Whether rows of a pane must be told.
    pub(super) fn has(&self, pane: i64) -> bool {
        (self.from..self.until).contains(&pane)
    }

    /// Adds rows of a pane. `false`: it can't be done exactly, and this is of no more use.
    pub(super) fn add(&mut self, pane: i64, rows: &[RecordBatch]) -> DfResult<bool> {
        for rows in rows {
            let keys: Vec<ArrayRef> = self.keys.iter().map(|place| Arc::clone(rows.column(*place))).collect();
            let groups = self.groups.number(&keys)?;
            self.alive.resize(self.groups.len(), 0);
            for group in &groups {
                let rows = &mut self.alive[*group as usize];
                self.count += usize::from(*rows == 0);
                *rows += 1;
            }
            let states = rows.columns()[self.first_state..].to_vec();
            for (sums, states) in self.sums.iter_mut().zip(&states) {
                sums.grow(self.groups.len());
                if !sums.apply(&groups, states, Way::In)? {
                    return Ok(false);
                }
            }
            self.panes.entry(pane).or_default().push(Chunk { groups, states });
        }
        Ok(true)
    }

    /// Takes away the panes before `from`.
    fn drop_before(&mut self, from: i64) -> DfResult<bool> {
        let stay = self.panes.split_off(&from);
        for chunk in std::mem::replace(&mut self.panes, stay).into_values().flatten() {
            for group in &chunk.groups {
                let rows = &mut self.alive[*group as usize];
                *rows -= 1;
                self.count -= usize::from(*rows == 0);
            }
            for (sums, states) in self.sums.iter_mut().zip(&chunk.states) {
                if !sums.apply(&chunk.groups, states, Way::Out)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The rows of a window as `Final` reads them, each group once, and of the groups only those that the plan
    /// above can give. `panes` are all that are held. `None`: it can't be done exactly, and this is of no more use.
    pub(super) fn window<'a>(
        &mut self,
        layout: &Layout,
        window: Interval,
        panes: impl Iterator<Item = (i64, &'a [RecordBatch])>,
    ) -> DfResult<Option<Vec<RecordBatch>>> {
        if !self.drop_before(window.start.0)? {
            return Ok(None);
        }
        self.from = window.start.0;
        let next = self.until.max(self.from)..window.end.0;
        for (pane, rows) in panes.filter(|(pane, _)| next.contains(pane)) {
            if !self.add(pane, rows)? {
                return Ok(None);
            }
        }
        self.until = window.end.0;
        if self.groups.len() > self.count * 2 + GONE {
            self.forget()?;
        }
        let alive = (0_u32..).zip(&self.alive).filter(|(_, rows)| **rows > 0);
        let alive: Vec<u32> = alive.map(|(group, _)| group).collect();
        let wanted = match self.first {
            None => alive,
            Some((first, Ranked::State(at))) => {
                first.among(&alive, |group| self.sums[at].rank(group, self.alive[group]))
            }
            Some((first, Ranked::Mean { count, sum })) => {
                first.among(&alive, |group| self.sums[sum].rank_of_mean(&self.sums[count], group, self.alive[group]))
            }
        };
        if wanted.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let states = self.sums.iter().map(|sums| sums.of(&wanted, &self.alive)).collect::<DfResult<Vec<_>>>()?;
        let values = self.groups.of(&wanted)?;
        full_rows(layout, window, &self.keys, &values, &states).map(|rows| Some(vec![rows]))
    }

    /// Numbers the groups anew, without those that are gone.
    fn forget(&mut self) -> DfResult<()> {
        let alive = (0_u32..).zip(&self.alive).filter(|(_, rows)| **rows > 0);
        let stay: Vec<u32> = alive.map(|(group, _)| group).collect();
        let mut places = vec![0_u32; self.alive.len()];
        for (to, from) in (0_u32..).zip(&stay) {
            places[*from as usize] = to;
        }
        self.groups = self.groups.only(&stay)?;
        self.alive = stay.iter().map(|group| self.alive[*group as usize]).collect();
        self.sums = self.sums.iter().map(|sums| sums.only(&stay)).collect();
        for group in self.panes.values_mut().flatten().flat_map(|chunk| &mut chunk.groups) {
            *group = places[*group as usize];
        }
        Ok(())
    }
}
