//! Counts words that arrive over TCP, each second.
//!
//! In one terminal, serve some lines; in another, count them:
//!
//! ```text
//! tidemill replay README.md --listen 127.0.0.1:9999 --rate 20/s --loop
//! cargo run --example word_count -- 127.0.0.1:9999
//! ```
//!
//! Ctrl-C stops it; started again, it goes on after the last line that it counted.

use tidemill::prelude::*;

/// How often each word stands in the lines.
pub(crate) fn count(lines: &DStream<String>) -> DStream<(Str, i64)> {
    lines.flat_map::<Str, _>(|line, out| out.extend(line.split_whitespace())).count_by_value()
}

fn main() -> Result<()> {
    tidemill::logging::init(0);
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9999".to_string());
    let (host, port) = address.rsplit_once(':').ok_or_else(|| Error::user("say host:port"))?;
    let port = port.parse().map_err(|e| Error::user("the port is a number").because(e))?;

    let context = tidemill::context("word_count").data_dir("tidemill-data/word_count").build();
    count(&context.socket_text_stream(host, port)?).print();
    Assembly::new(context).show(Show::Nothing).run()?;
    Ok(())
}
