//! How an agent ends whose sink takes nothing.

use super::{Agent, Setting};
use crate::{
    config::{ChannelPlan, Deal, GroupPlan, Plan, SinkKind, SinkPlan, SourcePlan},
    event::Event,
    reach::Reach,
    selector::Selector,
    sink::Outlet,
    source::seq::Seq,
    status::Held,
    tests::RuntimeClock,
};
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Duration, Error, Guarantee, Result, StopHandle};
use tidemill_store::SimDisk;
use tokio::time::{Instant, sleep, timeout};

/// Takes nothing: it fails, or does not come back.
struct Stuck {
    hangs: bool,
}

#[async_trait]
impl Outlet for Stuck {
    fn describe(&self) -> String {
        "stuck".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, _left: Option<String>, _durable: bool) -> Result<Option<String>> {
        Ok(None)
    }

    async fn deliver(&mut self, _events: &[Event]) -> Result<Option<String>> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(Error::external("the line broke"))
    }
}

fn plan(hangs: bool) -> Plan {
    let source = SourcePlan {
        name: "r1".to_owned(),
        origin: Box::new(Seq { total: Some(1000), batch_size: 1 }),
        interceptors: vec![],
        selector: Selector::Replicating { optional: vec![] },
        channels: vec!["c1".to_owned()],
        reach: Reach::default(),
    };
    let sink = SinkPlan {
        name: "k1".to_owned(),
        kind: SinkKind::Given(Box::new(Stuck { hangs })),
        max_backoff: Duration::from_secs(2),
        batch_size: 3,
    };
    let channel = ChannelPlan::Memory { capacity: 5, bytes: 1 << 20 };
    Plan {
        name: "a1".to_owned(),
        data: None,
        channels: [("c1".to_owned(), channel)].into(),
        sources: vec![source],
        groups: vec![GroupPlan { channel: "c1".to_owned(), deal: Deal::Failover, sinks: vec![sink] }],
    }
}

/// Stops an agent after five seconds, and again after `quit`; what its channel held, and when it ended.
async fn stopped(hangs: bool, quit: Option<Duration>) -> (Held, Duration) {
    let begun = Instant::now();
    let setting = Setting {
        clock: Arc::new(RuntimeClock(begun)),
        disk: Arc::new(SimDisk::new()),
        data: None,
        out: Arc::new(std::sync::Mutex::new(Vec::new())),
    };
    let agent = Agent::start(plan(hangs), setting).await.unwrap();
    let quitting = agent.quit_handle();
    let (handle, stop) = StopHandle::new();
    let stopping = async {
        sleep(Duration::from_secs(5)).await;
        handle.stop();
        if let Some(quit) = quit {
            sleep(quit).await;
            quitting.stop();
        }
    };
    let running = timeout(Duration::from_secs(60), agent.run(stop, Duration::from_secs(10), |_| ()));
    let (ended, ()) = tokio::join!(running, stopping);
    let ended = ended.expect("it does not end");
    // What could not be handed on is told, and no error.
    (ended.unwrap().channels.remove(0).1, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_with_a_full_channel_says_what_it_holds() {
    let (held, ended) = stopped(false, None).await;
    assert_eq!(held, Held { events: 5, durable: false });
    assert!((Duration::from_secs(15)..Duration::from_secs(17)).contains(&ended), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_hangs_does_not_hold_the_end_up() {
    for (quit, wanted) in [(None, 16), (Some(Duration::from_secs(1)), 7)] {
        let (held, ended) = stopped(true, quit).await;
        assert_eq!(held, Held { events: 5, durable: false });
        let wanted = Duration::from_secs(wanted);
        assert!((wanted..wanted + Duration::from_secs(1)).contains(&ended), "{ended:?}");
    }
}
