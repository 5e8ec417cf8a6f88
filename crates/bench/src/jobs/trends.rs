//! W2: trending hashtags, as the SQL that an analyst would write.
//!
//! Only windows that the watermark has closed are compared: the last minute of
//! the input has no end to wait for.

use crate::{
    check::Rows,
    input::{files::Files, tweets::KEYWORD},
    loops::w2::{SLIDE_MS, TOP, WINDOW_MS},
    measure::{Side, timed},
};
use std::collections::BTreeMap;
use tidemill_core::{Event, Timestamp};
use tidemill_engine::{StreamingContext, Trigger, records_of};

/// W2: the ten most frequent tags of each window, as [`crate::loops::w2::Trends`] has them.
pub(crate) fn w2(files: &Files, threads: usize) -> Option<Side<'_, i64, Vec<(String, u64)>>> {
    Some(Box::new(move || {
        timed(
            || {
                let data = tempfile::tempdir()?;
                let context = StreamingContext::builder("trends")
                    .data_dir(data.path())
                    .trigger(Trigger::Drain)
                    .batch_bytes(256 << 20)
                    .partitions(threads)
                    .registry(tidemill_connectors::registry())
                    .build();
                let mut events = context.board().subscribe();
                context.declare_sql(&program(&files.dir.to_string_lossy()))?;
                context.start()?;
                context.await_termination()?;
                let mut views = Vec::new();
                while let Ok(event) = events.try_recv() {
                    if let Event::View(view) = event {
                        views.push(view.rows.clone());
                    }
                }
                Ok(views)
            },
            |views| {
                let mut windows: BTreeMap<i64, Vec<(String, u64)>> = BTreeMap::new();
                for rows in views {
                    for (end, tag, n) in records_of::<(Timestamp, String, i64)>(&rows)? {
                        windows.entry(end.millis()).or_default().push((tag, u64::try_from(n)?));
                    }
                }
                Ok(crate::loops::w2::closed(Rows::new(windows.into_iter().collect()), files.items))
            },
        )
    }))
}

fn program(dir: &str) -> String {
    let (slide, size) = (SLIDE_MS / 1000, WINDOW_MS / 1000);
    format!(
        "CREATE STREAM tweets (
             created_at TIMESTAMP, lang TEXT, text TEXT,
             WATERMARK FOR created_at AS created_at - INTERVAL '1' SECOND
         ) WITH (connector = 'files', path = '{dir}', format = 'json');

         CREATE VIEW top AS
         SELECT window_end, lower(tag) AS tag, count(*) AS n
         FROM (
             SELECT window_end, unnest(hashtags(text)) AS tag
             FROM HOP(TABLE tweets, DESCRIPTOR(created_at), INTERVAL '{slide}' SECOND, INTERVAL '{size}' SECOND)
             WHERE lang = 'en' OR text LIKE '%{KEYWORD}%'
         )
         GROUP BY window_end, lower(tag)
         ORDER BY n DESC, tag
         LIMIT {TOP};"
    )
}
