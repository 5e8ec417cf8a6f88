//! Sources, channels, sinks, interceptors, selectors and groups of Flume, one by one, as ours.
//!
//! Invariant: a key is taken only by what writes it, or by a note that says why it is not needed. A new equal is an arm
//! here, and a golden in the tests.

use super::{
    Note,
    properties::{Properties, Value},
    replace,
};

/// Writes a file of ours from Flume's keys.
pub(super) struct Writer<'a> {
    from: &'a Properties,
    agent: String,
    out: String,
    notes: Vec<Note>,
}

/// How the value of a key is written.
#[derive(Clone, Copy)]
pub(super) enum As {
    Text,
    Number,
    Flag,
    /// Milliseconds.
    Millis,
    /// Seconds; 0 is never.
    Seconds,
}

/// A text as TOML has it.
pub(super) fn quoted(text: &str) -> String {
    if text.contains('\\') && !text.contains(['\'', '\n', '\r']) {
        return format!("'{text}'");
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn list(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
}

/// A key as TOML has it: bare where it may be.
fn bare(key: &str) -> String {
    let fine = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fine { key.to_owned() } else { quoted(key) }
}

impl<'a> Writer<'a> {
    pub(super) fn new(from: &'a Properties, agent: &str) -> Self {
        Self { from, agent: agent.to_owned(), out: format!("name = {}\n", quoted(agent)), notes: Vec::new() }
    }

    pub(super) fn finish(mut self) -> (String, Vec<Note>) {
        for (key, value) in self.from.left(&format!("{}.", self.agent)) {
            let text = format!("`{}.{key} = {}` has no equal", self.agent, value.text);
            self.notes.push(Note { line: value.line, lost: true, text });
        }
        (self.out, self.notes)
    }

    pub(super) fn note(&mut self, line: usize, lost: bool, text: impl Into<String>) {
        self.notes.push(Note { line, lost, text: text.into() });
    }

    pub(super) fn take(&self, at: &str, key: &str) -> Option<Value> {
        self.from.take(&format!("{}.{at}.{key}", self.agent))
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) {
        self.out.push_str(text.as_ref());
        self.out.push('\n');
    }

    /// Writes `key` of Flume's as `ours`, if it is there.
    pub(super) fn copy(&mut self, at: &str, key: &str, ours: &str, form: As) -> bool {
        let Some(value) = self.take(at, key) else { return false };
        let text = value.text.trim();
        let written = match form {
            As::Text => Some(quoted(text)),
            As::Number => text.parse::<u64>().ok().filter(|n| *n > 0).map(|n| n.to_string()),
            As::Flag => text.to_lowercase().parse::<bool>().ok().map(|flag| flag.to_string()),
            As::Millis => text.parse::<u64>().ok().map(|n| quoted(&format!("{n}ms"))),
            As::Seconds => text.parse::<u64>().ok().map(|n| quoted(&format!("{n}s"))),
        };
        match written {
            Some(written) => self.line(format!("{ours} = {written}")),
            None => self.note(value.line, true, format!("`{key} = {text}` has no equal")),
        }
        true
    }

    /// Takes keys that need nothing here, and says why.
    pub(super) fn not_needed(&mut self, at: &str, keys: &[&str], why: &str) {
        for key in keys {
            if let Some(value) = self.take(at, key) {
                self.note(value.line, false, format!("`{key}` is not needed: {why}"));
            }
        }
    }

    /// A regular expression; Java's has more than ours, which is linear in time.
    fn regex(&mut self, at: &str, key: &str, ours: &str) {
        if let Some(value) = self.take(at, key) {
            if let Err(error) = regex::Regex::new(&value.text) {
                let why = error.to_string();
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                self.note(value.line, true, format!("`{key}` has no equal as it is ({why}): write it in another way"));
            }
            self.line(format!("{ours} = {}", quoted(&value.text)));
        }
    }

    pub(super) fn address(&mut self, at: &str, host: &str, default: &str) {
        let found = self.take(at, host);
        let name = found.as_ref().map_or(default, |value| value.text.as_str()).to_owned();
        match self.take(at, "port") {
            Some(port) => self.line(format!("address = {}", quoted(&format!("{name}:{}", port.text)))),
            None => self.note(found.map_or(0, |value| value.line), true, "there is no port"),
        }
    }

    pub(super) fn all(&mut self) {
        let names = |kind: &str| self.from.words(&format!("{}.{kind}", self.agent));
        let (sources, channels) = (names("sources"), names("channels"));
        let (sinks, groups) = (names("sinks"), names("sinkgroups"));
        for name in sources {
            self.source(&name);
        }
        for name in channels {
            self.channel(&name);
        }
        for name in sinks {
            self.sink(&name);
        }
        for name in groups {
            self.group(&name);
        }
    }

    fn source(&mut self, name: &str) {
        let at = format!("sources.{name}");
        let Some(kind) = self.take(&at, "type") else { return };
        let channels = self.from.words(&format!("{}.{at}.channels", self.agent));
        let batches = "a source puts what there is together";
        self.line(format!("\n[sources.{}]", bare(name)));
        let short = kind.text.rsplit('.').next().unwrap_or_default().to_lowercase();
        match short.as_str() {
            "netcat" | "netcatsource" => {
                self.line("type = \"netcat\"");
                self.address(&at, "bind", "0.0.0.0");
                self.copy(&at, "max-line-length", "max_line", As::Number);
                match self.take(&at, "ack-every-event") {
                    Some(value) if value.text.trim() == "false" => {}
                    asked => {
                        // Whether a peer waits is known to whoever wrote it: an answer that was asked for is lost.
                        let line = asked.as_ref().map_or(kind.line, |value| value.line);
                        self.note(
                            line,
                            asked.is_some(),
                            "netcat does not answer `OK` to each line: a peer must not wait for it",
                        );
                    }
                }
            }
            "spooldir" | "spooldirectorysource" => {
                self.line("type = \"spooldir\"");
                self.copy(&at, "spoolDir", "directory", As::Text);
                self.copy(&at, "fileSuffix", "completed_suffix", As::Text);
                self.copy(&at, "deletePolicy", "delete_policy", As::Text);
                for (flag, key, ours, default) in [
                    ("fileHeader", "fileHeaderKey", "file_header", "file"),
                    ("basenameHeader", "basenameHeaderKey", "basename_header", "basename"),
                ] {
                    let header = self.take(&at, key).map_or_else(|| default.to_owned(), |value| value.text);
                    if self.take(&at, flag).is_some_and(|value| value.text.trim() == "true") {
                        self.line(format!("{ours} = {}", quoted(&header)));
                    }
                }
                self.regex(&at, "includePattern", "include");
                self.copy(&at, "pollDelay", "poll", As::Millis);
                if let Some(value) = self.take(&at, "deserializer.maxLineLength") {
                    self.note(
                        value.line,
                        true,
                        "`deserializer.maxLineLength` cuts a longer line into several events; over `max_line`, which \
                         is in bytes, it is refused and counted here",
                    );
                }
                self.copy(&at, "deserializer.maxLineLength", "max_line", As::Number);
                if let Some(value) = self.take(&at, "deserializer").filter(|value| value.text.trim() != "LINE") {
                    self.note(
                        value.line,
                        true,
                        format!("`deserializer = {}` has no equal: a line is an event", value.text),
                    );
                }
                self.not_needed(&at, &["trackerDir", "trackingPolicy"], "the position is kept in the durable channels");
            }
            "taildir" | "taildirsource" => return self.taildir(name, &channels, &kind),
            "exec" | "execsource" => {
                let command = self.take(&at, "command");
                let words: Vec<&str> =
                    command.as_ref().map(|c| c.text.split_whitespace().collect()).unwrap_or_default();
                let line = command.as_ref().map_or(kind.line, |command| command.line);
                match words.as_slice() {
                    ["tail", options @ .., path]
                        if !path.starts_with('-') && options.iter().all(|o| o.starts_with('-')) =>
                    {
                        self.line("type = \"tail\"");
                        self.line(format!("path = {}", quoted(path)));
                        self.note(
                            line,
                            false,
                            "`exec` of `tail` is the source `tail`, which goes on where it was after a restart",
                        );
                    }
                    _ => {
                        self.line("type = \"exec\"  # has no equal");
                        self.note(
                            line,
                            true,
                            "`exec` has no equal: no program is started; see `tidemill agent --help`",
                        );
                    }
                }
                self.not_needed(&at, &["restart", "restartThrottle", "logStdErr", "shell"], "no program is started");
            }
            "avro" | "avrosource" => {
                self.line("type = \"avro\"");
                self.address(&at, "bind", "0.0.0.0");
                self.compression(&at);
                self.not_needed(&at, &["threads"], "connections share the agent's threads");
            }
            "seq" | "sequencegeneratorsource" => {
                self.line("type = \"seq\"");
                self.copy(&at, "totalEvents", "total", As::Number);
                self.copy(&at, "batchSize", "batch_size", As::Number);
            }
            short if self.connector_source(&at, short, &kind) => {}
            _ => {
                self.line(format!("type = {}  # has no equal", quoted(&kind.text)));
                self.note(kind.line, true, format!("the source `{}` has no equal", kind.text));
            }
        }
        self.line(format!("channels = {}", list(&channels)));
        self.not_needed(&at, &["batchSize", "batchTimeout"], batches);
        self.selector(&at, &channels);
        self.interceptors(name, &at);
    }

    /// One source a file group: ours tails one file.
    fn taildir(&mut self, name: &str, channels: &[String], kind: &Value) {
        let at = format!("sources.{name}");
        // The heading that was begun.
        let heading = format!("\n[sources.{}]\n", bare(name));
        self.out.truncate(self.out.len() - heading.len());
        let groups = self.from.words(&format!("{}.{at}.filegroups", self.agent));
        let [skip, offsets] = ["skipToEnd", "byteOffsetHeader"]
            .map(|key| self.take(&at, key).filter(|value| value.text.trim().eq_ignore_ascii_case("true")));
        let start = if skip.is_some() { "latest" } else { "earliest" };
        if let Some(value) = offsets {
            self.note(value.line, true, "`byteOffsetHeader` has no equal: events don't say where they stood");
        }
        for group in &groups {
            let Some(path) = self.take(&at, &format!("filegroups.{group}")) else { continue };
            let own = if groups.len() == 1 { name.to_owned() } else { format!("{name}_{group}") };
            self.line(format!("\n[sources.{}]", bare(&own)));
            self.line("type = \"tail\"");
            self.line(format!("path = {}", quoted(&path.text)));
            self.line(format!("start = {}", quoted(start)));
            if path.text.rsplit('/').next().is_some_and(|name| name.contains(['*', '+', '(', '[', '\\', '|'])) {
                self.note(
                    path.line,
                    true,
                    format!("`filegroups.{group}` is a pattern; `tail` reads one file: make a source of each"),
                );
            }
            self.line(format!("channels = {}", list(channels)));
            self.selector(&at, channels);
            let headers = self.from.below(&format!("{}.{at}.headers.{group}.", self.agent));
            for (header, value) in headers {
                self.take(&at, &format!("headers.{group}.{header}"));
                self.line(format!("\n[[sources.{}.interceptors]]\ntype = \"static\"", bare(&own)));
                self.line(format!("key = {}\nvalue = {}", quoted(&header), quoted(&value.text)));
            }
            self.interceptors(&own, &at);
        }
        self.note(kind.line, false, "TAILDIR is a source `tail` for each file group");
        self.not_needed(&at, &["positionFile", "writePosInterval"], "the position is kept in the durable channels");
        self.not_needed(&at, &["batchSize", "idleTimeout"], "a tail reads what is appended");
    }

    fn compression(&mut self, at: &str) {
        if let Some(value) = self.take(at, "compression-type").filter(|value| value.text.trim() != "none") {
            self.line(format!("compression = {}", quoted(&value.text)));
        }
    }

    fn selector(&mut self, at: &str, channels: &[String]) {
        let kind = self.take(at, "selector.type").map_or_else(|| "replicating".to_owned(), |value| value.text);
        let words = |text: &str| list(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        match kind.as_str() {
            "multiplexing" => {
                let header =
                    self.take(at, "selector.header").map_or_else(|| "flume.selector.header".to_owned(), |v| v.text);
                let mut parts = vec!["type = \"multiplexing\"".to_owned(), format!("header = {}", quoted(&header))];
                for key in ["mapping", "optional"] {
                    let prefix = format!("{}.{at}.selector.{key}.", self.agent);
                    let entries: Vec<String> = self
                        .from
                        .below(&prefix)
                        .into_iter()
                        .map(|(value, to)| {
                            self.take(at, &format!("selector.{key}.{value}"));
                            format!("{} = {}", bare(&value), words(&to.text))
                        })
                        .collect();
                    if !entries.is_empty() || key == "mapping" {
                        parts.push(format!("{key} = {{ {} }}", entries.join(", ")));
                    }
                }
                if let Some(default) = self.take(at, "selector.default") {
                    parts.push(format!("default = {}", words(&default.text)));
                }
                self.line(format!("selector = {{ {} }}", parts.join(", ")));
            }
            "replicating" => {
                if let Some(optional) = self.take(at, "selector.optional") {
                    self.line(format!("selector = {{ type = \"replicating\", optional = {} }}", words(&optional.text)));
                }
            }
            other => {
                let line = self.from.take(&format!("{}.{at}.selector.type", self.agent)).map_or(0, |value| value.line);
                self.note(
                    line,
                    true,
                    format!("the selector `{other}` has no equal: all of {} get each event", channels.join(", ")),
                );
            }
        }
    }

    fn channel(&mut self, name: &str) {
        let at = format!("channels.{name}");
        let Some(kind) = self.take(&at, "type") else { return };
        self.line(format!("\n[channels.{}]", bare(name)));
        match kind.text.to_lowercase().as_str() {
            "memory" => {
                self.line("type = \"memory\"");
                self.copy(&at, "capacity", "capacity", As::Number);
                self.copy(&at, "byteCapacity", "byte_capacity", As::Number);
                self.not_needed(&at, &["byteCapacityBufferPercentage"], "headers are counted as they are");
            }
            other => {
                self.line("type = \"file\"");
                self.copy(&at, "capacity", "capacity", As::Number);
                if other == "file" {
                    let dirs = [
                        "checkpointDir",
                        "dataDirs",
                        "useDualCheckpoints",
                        "backupCheckpointDir",
                        "checkpointInterval",
                        "maxFileSize",
                        "minimumRequiredSpace",
                    ];
                    self.not_needed(&at, &dirs, "a durable channel is a topic of the data directory (`data`)");
                } else {
                    self.note(
                        kind.line,
                        true,
                        format!("the channel `{}` has no equal: it becomes a durable one here", kind.text),
                    );
                }
            }
        }
        self.not_needed(&at, &["transactionCapacity"], "a put or take is bounded by the channel's capacity");
        self.not_needed(&at, &["keep-alive"], "a source waits for room as long as it takes");
    }

    fn sink(&mut self, name: &str) {
        let at = format!("sinks.{name}");
        let Some(kind) = self.take(&at, "type") else { return };
        self.line(format!("\n[sinks.{}]", bare(name)));
        match kind.text.rsplit('.').next().unwrap_or_default().to_lowercase().as_str() {
            "logger" | "loggersink" => {
                self.line("type = \"logger\"");
                self.copy(&at, "maxBytesToLog", "max_bytes", As::Number);
            }
            "null" | "nullsink" => self.line("type = \"null\""),
            "file_roll" | "rollingfilesink" => {
                self.line("type = \"file\"");
                self.copy(&at, "sink.directory", "directory", As::Text);
                self.copy(&at, "sink.rollInterval", "roll_interval", As::Seconds);
                self.copy(&at, "sink.pathManager.prefix", "prefix", As::Text);
                if let Some(value) = self.take(&at, "sink.pathManager.extension") {
                    self.line(format!("suffix = {}", quoted(&format!(".{}", value.text))));
                }
                self.copy(&at, "sink.batchSize", "batch_size", As::Number);
                self.text_only(&at, "sink.serializer");
            }
            "hdfs" | "hdfseventsink" => {
                self.line("type = \"file\"");
                if let Some(path) = self.take(&at, "hdfs.path") {
                    self.line(format!("directory = {}  # was {}", quoted(&format!("out/{name}")), path.text));
                    self.note(
                        path.line,
                        true,
                        "this sink writes files on this machine's disk, without dates in their path; a sink `store` with the connector `hdfs` writes to HDFS, by batches",
                    );
                }
                self.copy(&at, "hdfs.filePrefix", "prefix", As::Text);
                self.copy(&at, "hdfs.fileSuffix", "suffix", As::Text);
                self.copy(&at, "hdfs.rollInterval", "roll_interval", As::Seconds);
                if let Some(value) = self.take(&at, "hdfs.rollSize").filter(|value| value.text.trim() != "0") {
                    self.line(format!("roll_size = {}", quoted(value.text.trim())));
                }
                self.copy(&at, "hdfs.batchSize", "batch_size", As::Number);
            }
            "avro" | "avrosink" => {
                self.line("type = \"avro\"");
                self.address(&at, "hostname", "localhost");
                self.compression(&at);
                self.copy(&at, "batch-size", "batch_size", As::Number);
                self.copy(&at, "request-timeout", "timeout", As::Millis);
                self.not_needed(&at, &["connect-timeout"], "`timeout` holds for the connection, too");
                self.not_needed(&at, &["maxIoWorkers"], "connections share the agent's threads");
            }
            short if self.connector_sink(&at, short, &kind) => {}
            _ => {
                self.line(format!("type = {}  # has no equal", quoted(&kind.text)));
                self.note(kind.line, true, format!("the sink `{}` has no equal", kind.text));
            }
        }
        if let Some(channel) = self.take(&at, "channel") {
            self.line(format!("channel = {}", quoted(&channel.text)));
        }
        self.copy(&at, "batchSize", "batch_size", As::Number);
    }

    fn text_only(&mut self, at: &str, key: &str) {
        if let Some(value) = self.take(at, key).filter(|value| !value.text.trim().eq_ignore_ascii_case("TEXT")) {
            self.note(value.line, true, format!("`{key} = {}` has no equal: bodies are written as lines", value.text));
        }
    }

    fn interceptors(&mut self, name: &str, at: &str) {
        for one in self.from.words(&format!("{}.{at}.interceptors", self.agent)) {
            let at = format!("{at}.interceptors.{one}");
            let Some(kind) = self.take(&at, "type") else { continue };
            self.line(format!("\n[[sources.{}.interceptors]]", bare(name)));
            let class = kind.text.trim_end_matches("$Builder");
            let short = class.rsplit('.').next().unwrap_or_default().to_lowercase();
            match short.trim_end_matches("interceptor").trim_end_matches('_') {
                "timestamp" => {
                    self.line("type = \"timestamp\"");
                    self.copy(&at, "headerName", "header", As::Text);
                    self.copy(&at, "header", "header", As::Text);
                }
                "host" => {
                    self.line("type = \"host\"");
                    self.copy(&at, "hostHeader", "header", As::Text);
                    let asked = self.take(&at, "useIP");
                    if asked.as_ref().is_none_or(|value| value.text.trim() != "false") {
                        let line = asked.as_ref().map_or(kind.line, |value| value.line);
                        self.note(line, asked.is_some(), "`host` gives this machine's name, not its address");
                    }
                }
                "static" => {
                    self.line("type = \"static\"");
                    self.copy(&at, "key", "key", As::Text);
                    self.copy(&at, "value", "value", As::Text);
                }
                "regex_filter" | "regexfiltering" => {
                    self.line("type = \"regex_filter\"");
                    self.regex(&at, "regex", "regex");
                    self.copy(&at, "excludeEvents", "exclude", As::Flag);
                }
                "regex_extractor" | "regexextractor" => self.extractor(&at),
                "search_replace" | "searchandreplace" => {
                    self.line("type = \"search_replace\"");
                    self.regex(&at, "searchPattern", "search");
                    self.replacement(&at);
                    self.not_needed(&at, &["charset"], "bodies are bytes, patterns UTF-8");
                }
                "remove_header" | "removeheader" => {
                    self.line("type = \"remove_header\"");
                    if let Some(value) = self.take(&at, "withName") {
                        self.line(format!("matching = {}", quoted(&regex::escape(&value.text))));
                    }
                    self.regex(&at, "matching", "matching");
                }
                "uuid" => {
                    self.line("type = \"uuid\"");
                    self.copy(&at, "headerName", "header", As::Text);
                    self.copy(&at, "prefix", "prefix", As::Text);
                }
                _ => {
                    self.line(format!("type = {}  # has no equal", quoted(&kind.text)));
                    self.note(kind.line, true, format!("the interceptor `{}` has no equal", kind.text));
                    continue;
                }
            }
            self.copy(&at, "preserveExisting", "preserve", As::Flag);
        }
    }

    fn replacement(&mut self, at: &str) {
        let Some(value) = self.take(at, "replaceString") else { return };
        let search = self.take(at, "searchPattern").and_then(|value| regex::Regex::new(&value.text).ok());
        let text = value.text.trim();
        let ours = replace::replacement(text, search.as_ref()).unwrap_or_else(|why| {
            self.note(value.line, true, format!("`replaceString = {text}` is written as it stands: {why}"));
            text.replace('$', "$$")
        });
        self.line(format!("replace = {}", quoted(&ours)));
    }

    fn extractor(&mut self, at: &str) {
        self.line("type = \"regex_extractor\"");
        self.regex(at, "regex", "regex");
        let mut headers = Vec::new();
        for serializer in self.from.words(&format!("{}.{at}.serializers", self.agent)) {
            headers.extend(self.take(at, &format!("serializers.{serializer}.name")).map(|value| value.text));
            let kind = self.take(at, &format!("serializers.{serializer}.type"));
            if let Some(kind) = kind.filter(|kind| !matches!(kind.text.trim(), "" | "default")) {
                self.note(
                    kind.line,
                    true,
                    format!("the serializer `{}` has no equal: the text is taken as it is", kind.text),
                );
                self.take(at, &format!("serializers.{serializer}.pattern"));
            }
        }
        self.line(format!("headers = {}", list(&headers)));
    }

    fn group(&mut self, name: &str) {
        let at = format!("sinkgroups.{name}");
        let sinks = self.from.words(&format!("{}.{at}.sinks", self.agent));
        let kind = self.take(&at, "processor.type");
        let kind = kind.map_or_else(|| "default".to_owned(), |value| value.text.trim().to_lowercase());
        if kind == "default" {
            return;
        }
        self.line(format!("\n[groups.{}]\ntype = {}\nsinks = {}", bare(name), quoted(&kind), list(&sinks)));
        if kind == "failover" {
            let mut priorities = Vec::new();
            for sink in &sinks {
                let Some(value) = self.take(&at, &format!("processor.priority.{sink}")) else { continue };
                match value.text.trim().parse::<u64>() {
                    Ok(priority) if priority > 0 => priorities.push(format!("{} = {priority}", bare(sink))),
                    _ => self.note(value.line, true, "a priority is 1 or more here"),
                }
            }
            if !priorities.is_empty() {
                self.line(format!("priority = {{ {} }}", priorities.join(", ")));
            }
            self.copy(&at, "processor.maxpenalty", "max_backoff", As::Millis);
        } else {
            if let Some(value) = self.take(&at, "processor.selector") {
                match value.text.trim().to_lowercase().as_str() {
                    order @ ("random" | "round_robin") => self.line(format!("selector = {}", quoted(order))),
                    other => {
                        self.note(value.line, true, format!("the selector `{other}` has no equal: round robin it is"));
                    }
                }
            }
            self.copy(&at, "processor.selector.maxTimeOut", "max_backoff", As::Millis);
            self.not_needed(&at, &["processor.backoff"], "a sink that failed always rests");
        }
    }
}
