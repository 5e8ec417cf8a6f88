//! Operators: one verb, one file, each with its own methods on
//! [`crate::DStream`], its lowering, an example that runs, and its tests.

mod cache;
mod cogroup;
mod count_by_value;
mod event_time;
mod group;
pub(crate) mod keyed;
mod map;
mod map_with_state;
mod partitions;
mod reduce;
mod rows;
mod split;
mod stateful;
#[cfg(test)]
mod survive;
mod timers;
mod transform;
mod union;
mod update_state;
mod window;

pub(crate) use rows::renamed;

pub use event_time::{Bounds, CountWindow, EventStream, EventWindows, TimeWindow};
pub use map::{Filter, FlatMap, Map};
pub use map_with_state::{MapWithState, State};
pub use partitions::Records;
pub use split::Split;
pub use timers::{Keyed, Timer, WithTimers};
pub use update_state::StateStream;
