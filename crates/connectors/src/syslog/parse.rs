//! One message: RFC 5424, or what RFC 3164 found in use.
//!
//! RFC 5424 is a grammar, and what does not follow it is refused with its byte.
//! RFC 3164 is a description: after the priority, a time is looked for, then a
//! host, then a tag; what is not there is `None`, and the rest is the text, so
//! that no word of a message is lost. Its times have no year and no zone: the
//! year is the latest by which the message was written before its arrival, or
//! within a day after it; the zone is given by the caller.
//!
//! Invariant: the result depends on the record, its arrival and the zone alone.
//! Called by the format.

use crate::format::time::instant;
use tidemill_core::Timestamp;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message<'a> {
    /// Facility times eight plus severity.
    pub priority: u8,
    /// When, by the sender's clock, in microseconds since 1970.
    pub at: Option<i64>,
    /// The sender's name or address.
    pub host: Option<&'a str>,
    /// The program.
    pub app: Option<&'a str>,
    /// Its process.
    pub procid: Option<&'a str>,
    /// The kind of message.
    pub msgid: Option<&'a str>,
    /// The structured data.
    pub data: Vec<Element<'a>>,
    /// The text.
    pub text: &'a str,
}

/// An element of structured data: its name, and parameters with their values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element<'a> {
    /// Such as `origin`, or `exampleSDID@32473`.
    pub id: &'a str,
    /// In order; a name may come again.
    pub params: Vec<(&'a str, String)>,
}

/// By how much a sender's clock may be ahead, in microseconds, before the year is taken for the one before.
const AHEAD: i64 = 86_400_000_000;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Message<'_> {
    /// Its part of the system, as it is called: `auth`, `local3`.
    pub fn facility(&self) -> &'static str {
        FACILITIES.get(usize::from(self.priority / 8)).copied().unwrap_or("")
    }

    /// How severe it is, as it is called: `err`, `info`.
    pub fn severity(&self) -> &'static str {
        SEVERITIES[usize::from(self.priority % 8)]
    }
}

/// Reads a message that arrived at `arrival`; times without a zone are those of `zone`, such as `Z` or `+02:00`.
///
/// ```
/// use tidemill_connectors::syslog::parse;
/// let message = parse("<34>Oct 11 22:14:15 mymachine su[77]: 'su root' failed", None, "Z")?;
/// assert_eq!((message.facility(), message.severity()), ("auth", "crit"));
/// assert_eq!((message.host, message.app, message.procid), (Some("mymachine"), Some("su"), Some("77")));
/// assert_eq!(message.text, "'su root' failed");
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// Why it is none, with the byte.
pub fn parse<'a>(record: &'a str, arrival: Option<Timestamp>, zone: &str) -> Result<Message<'a>, String> {
    let record = record.trim_end_matches(['\n', '\r', '\0']);
    let fault = |at: usize, what: &str| format!("byte {at}: {what}");
    let inside = record.strip_prefix('<').ok_or_else(|| fault(0, "expected `<` and the priority"))?;
    let end = inside.bytes().take(4).position(|b| b == b'>').ok_or_else(|| fault(1, "expected a priority and `>`"))?;
    let digits = &inside[..end];
    let number = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u8>().ok() } else { None };
    let priority = number.filter(|p| *p < 192).ok_or_else(|| fault(1, "expected a priority from 0 to 191"))?;
    let rest = &inside[end + 1..];
    match rest.strip_prefix("1 ") {
        Some(rest) => {
            let at = record.len() - rest.len();
            Rfc5424 { record, at }.message(priority)
        }
        None => Ok(rfc3164(priority, rest, arrival, zone)),
    }
}

struct Rfc5424<'a> {
    record: &'a str,
    at: usize,
}

impl<'a> Rfc5424<'a> {
    fn fault<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("byte {}: {what}", self.at))
    }

    fn rest(&self) -> &'a str {
        &self.record[self.at..]
    }

    /// A field of printable ASCII up to a space; `-` is none.
    fn field(&mut self, name: &str, most: usize) -> Result<Option<&'a str>, String> {
        let rest = self.rest();
        let Some(end) = rest.find(' ') else { return self.fault(&format!("expected {name} and a space")) };
        let field = &rest[..end];
        if field.is_empty() || field.len() > most || !field.bytes().all(|b| b.is_ascii_graphic()) {
            return self.fault(&format!("expected {name} of 1 to {most} plain characters, or `-`"));
        }
        self.at += end + 1;
        Ok((field != "-").then_some(field))
    }

    fn message(mut self, priority: u8) -> Result<Message<'a>, String> {
        let begin = self.at;
        let at = match self.field("a time", 64)? {
            None => None,
            Some(text) => {
                let micros = Some(text).filter(|text| text.contains('T')).and_then(instant);
                if micros.is_none() {
                    return Err(format!("byte {begin}: expected a time such as 2003-10-11T22:14:15.003Z, or `-`"));
                }
                micros
            }
        };
        let host = self.field("a host", 255)?;
        let app = self.field("a program", 48)?;
        let procid = self.field("a process", 128)?;
        let msgid = self.field("a message id", 32)?;
        let data = self.data()?;
        let text = match self.rest().strip_prefix(' ') {
            Some(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            None if self.rest().is_empty() => "",
            None => return self.fault("expected a space after the structured data"),
        };
        Ok(Message { priority, at, host, app, procid, msgid, data, text })
    }

    fn data(&mut self) -> Result<Vec<Element<'a>>, String> {
        if self.rest().starts_with('-') {
            self.at += 1;
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        while self.rest().starts_with('[') {
            self.at += 1;
            let mut element = Element { id: self.name()?, params: Vec::new() };
            loop {
                let rest = self.rest();
                if rest.starts_with(']') {
                    self.at += 1;
                    break;
                }
                if !rest.starts_with(' ') {
                    return self.fault("expected a space or `]` in the structured data");
                }
                self.at += 1;
                let name = self.name()?;
                if !self.rest().starts_with("=\"") {
                    return self.fault("expected `=\"` after a parameter's name");
                }
                self.at += 2;
                let value = self.value()?;
                element.params.push((name, value));
            }
            all.push(element);
        }
        if all.is_empty() { self.fault("expected structured data, or `-`") } else { Ok(all) }
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let rest = self.rest();
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'=' | b']' | b'"');
        let end = rest.bytes().position(|b| !plain(b)).unwrap_or(rest.len());
        if end == 0 || end > 32 {
            return self.fault("expected a name of 1 to 32 plain characters in the structured data");
        }
        self.at += end;
        Ok(&rest[..end])
    }

    /// Past the quote that ends the value. A backslash stands before `"`, `\` and `]`; before others it is itself.
    fn value(&mut self) -> Result<String, String> {
        let rest = self.rest();
        let mut value = String::new();
        let mut chars = rest.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(value);
                }
                '\\' => match chars.next_if(|(_, next)| matches!(next, '"' | '\\' | ']')) {
                    Some((_, escaped)) => value.push(escaped),
                    None => value.push('\\'),
                },
                ']' => {
                    self.at += at;
                    return self.fault("a `]` in a value stands behind a backslash");
                }
                c => value.push(c),
            }
        }
        self.at = self.record.len();
        self.fault("expected `\"` at the end of a value")
    }
}

fn rfc3164<'a>(priority: u8, rest: &'a str, arrival: Option<Timestamp>, zone: &str) -> Message<'a> {
    let mut message = Message { priority, text: rest, ..Message::default() };
    let Some((at, behind)) = time(rest, arrival, zone) else { return message };
    message.at = at;
    message.text = behind;
    // A host, unless the next word is a tag already, as in messages of the machine itself.
    if tag(behind).is_none()
        && let Some((host, text)) = behind.split_once(' ')
        && !host.is_empty()
    {
        (message.host, message.text) = (Some(host), text);
    }
    if let Some((app, procid, text)) = tag(message.text) {
        (message.app, message.procid, message.text) = (Some(app), procid, text);
    }
    message
}

/// `su: text`, `su[77]: text`: the program, its process, and the text.
fn tag(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let end = text.bytes().take(128).position(|b| matches!(b, b':' | b'[' | b' '))?;
    let app = &text[..end];
    if app.is_empty() {
        return None;
    }
    let (procid, behind) = match text[end..].strip_prefix('[') {
        Some(inside) => {
            let (procid, behind) = inside.split_once(']')?;
            if procid.len() > 128 || procid.contains(' ') {
                return None;
            }
            (Some(procid), behind)
        }
        None => (None, &text[end..]),
    };
    let behind = behind.strip_prefix(':')?;
    // `::1` and `10:22` are no programs: a text comes after a space, or not at all.
    let text = behind.strip_prefix(' ').or(behind.is_empty().then_some(behind))?;
    Some((app, procid.filter(|p| !p.is_empty()), text))
}

/// The time at the beginning, and what comes after it and a space.
fn time<'a>(text: &'a str, arrival: Option<Timestamp>, zone: &str) -> Option<(Option<i64>, &'a str)> {
    // As rsyslog forwards: with year and zone.
    if text.as_bytes().first()?.is_ascii_digit() {
        let (stamp, behind) = text.split_once(' ')?;
        return (stamp.contains('T')).then(|| instant(stamp)).flatten().map(|at| (Some(at), behind));
    }
    let month = MONTHS.iter().position(|month| text.starts_with(month))? + 1;
    let rest = text.get(3..)?.strip_prefix(' ')?;
    let (day, rest) = rest.trim_start_matches(' ').split_once(' ')?;
    let day = number(day, 2)?;
    // Some devices write the year.
    let (year, rest) = match rest.split_once(' ') {
        Some((year, behind)) if year.len() == 4 => (Some(number(year, 4)?), behind),
        _ => (None, rest),
    };
    let (clock, behind) = rest.split_once(' ').unwrap_or((rest, ""));
    let clock = clock.strip_suffix(':').unwrap_or(clock);
    if clock.len() < 8 || !clock.bytes().all(|b| b.is_ascii_digit() || matches!(b, b':' | b'.')) {
        return None;
    }
    let of = |year: i64| instant(&format!("{year:04}-{month:02}-{day:02}T{clock}{zone}"));
    // That there is such a day and hour in any year.
    of(2024)?;
    let at = match (year, arrival) {
        (Some(year), _) => of(year),
        // The latest before the arrival, or soon after it, as clocks differ. Only leap years have every day.
        (None, Some(Timestamp(arrival))) => {
            let about = 1970 + arrival.div_euclid(31_556_952_000_000);
            (about - 5..=about + 1).filter_map(of).filter(|at| at - arrival <= AHEAD).max()
        }
        (None, None) => None,
    };
    Some((at, behind))
}

fn number(text: &str, most: usize) -> Option<i64> {
    (!text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Option<i64> {
        Some(instant(text).unwrap())
    }

    /// The examples of RFC 5424, section 6.5.
    #[test]
    fn the_standards_examples_are_read() {
        let bom = "\u{feff}";
        let text = format!("<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - {bom}'su root' failed");
        let wanted = Message {
            priority: 34,
            at: at("2003-10-11T22:14:15.003Z"),
            host: Some("mymachine.example.com"),
            app: Some("su"),
            msgid: Some("ID47"),
            text: "'su root' failed",
            ..Message::default()
        };
        assert_eq!(parse(&text, None, "Z").unwrap(), wanted);
        let text =
            "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.";
        let message = parse(text, None, "Z").unwrap();
        assert_eq!((message.at, message.procid), (at("2003-08-24T12:14:15.000003Z"), Some("8710")));
        assert_eq!((message.facility(), message.severity()), ("local4", "notice"));
        let text = "<165>1 2003-10-11T22:14:15.003Z m evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"Application\" eventID=\"1011\"][examplePriority@32473 class=\"high\"]";
        let message = parse(text, None, "Z").unwrap();
        let params = |all: &[(&'static str, &str)]| all.iter().map(|(n, v)| (*n, (*v).to_string())).collect();
        assert_eq!(
            message.data,
            [
                Element {
                    id: "exampleSDID@32473",
                    params: params(&[("iut", "3"), ("eventSource", "Application"), ("eventID", "1011")])
                },
                Element { id: "examplePriority@32473", params: params(&[("class", "high")]) },
            ]
        );
        assert_eq!(message.text, "");
        let escaped = r#"<0>1 - - - - - [a b="\"x\\y\]z\n"] t"#;
        assert_eq!(parse(escaped, None, "Z").unwrap().data[0].params, params(&[("b", r#""x\y]z\n"#)]));
    }

    #[test]
    fn what_is_none_is_refused_with_its_byte() {
        for (text, wanted) in [
            ("", "byte 0: expected `<`"),
            ("no priority", "byte 0: expected `<`"),
            ("<192>x", "byte 1: expected a priority from 0 to 191"),
            ("<+1>x", "byte 1: expected a priority"),
            ("<1234>x", "byte 1: expected a priority"),
            ("<é>x", "byte 1: expected a priority"),
            ("<1>1 yesterday h a p m -", "byte 5: expected a time"),
            ("<1>1 2003-13-11T22:14:15Z h a p m -", "byte 5: expected a time"),
            ("<1>1 - h", "byte 7: expected a host and a space"),
            ("<1>1 - hé a p m -", "byte 7: expected a host of"),
            ("<1>1 - h a p m x", "byte 15: expected structured data"),
            ("<1>1 - h a p m [a b=c]", "byte 19: expected `=\"`"),
            ("<1>1 - h a p m [a b=\"c]", "byte 22: a `]`"),
            ("<1>1 - h a p m [a b=\"c", "byte 22: expected `\"`"),
            ("<1>1 - h a p m -x", "byte 16: expected a space after"),
        ] {
            let fault = parse(text, None, "Z").unwrap_err();
            assert!(fault.starts_with(wanted), "{text}: {fault}");
        }
    }

    #[test]
    fn what_was_found_in_use_is_read() {
        let arrival = Some(Timestamp(instant("2026-10-12T00:00:00Z").unwrap()));
        let read = |text: &'static str| {
            let m = parse(text, arrival, "Z").unwrap();
            assert!(m.msgid.is_none() && m.data.is_empty());
            (m.at, m.host, m.app, m.procid, m.text)
        };
        let ten = at("2026-10-11T22:14:15Z");
        for (text, wanted) in [
            // RFC 3164, section 5.4.
            (
                "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
                (ten, Some("mymachine"), Some("su"), None, "'su root' failed for lonvick on /dev/pts/8"),
            ),
            (
                "<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!",
                (at("2026-02-05T17:32:18Z"), Some("10.0.0.99"), None, None, "Use the BFG!"),
            ),
            ("<0>Use the BFG!", (None, None, None, None, "Use the BFG!")),
            // As the C library writes to the machine's own log.
            ("<38>Oct 11 22:14:15 sshd[4711]: hello\n", (ten, None, Some("sshd"), Some("4711"), "hello")),
            // As rsyslog forwards.
            (
                "<38>2026-10-12T00:14:15.5+02:00 h sshd[1]: x",
                (at("2026-10-11T22:14:15.5Z"), Some("h"), Some("sshd"), Some("1"), "x"),
            ),
            ("<38>Oct 11 2019 22:14:15.123: h x", (at("2019-10-11T22:14:15.123Z"), Some("h"), None, None, "x")),
            ("<38>Oct 11 22:14:15 h 10:22 it was", (ten, Some("h"), None, None, "10:22 it was")),
            ("<38>Oct 11 22:14:15 ::1 app: x", (ten, Some("::1"), Some("app"), None, "x")),
            ("<38>Oct 32 22:14:15 h a: x", (None, None, None, None, "Oct 32 22:14:15 h a: x")),
            ("<38>Oct 11 22:14:15", (ten, None, None, None, "")),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_year_is_the_latest_before_the_arrival() {
        let year = |text: &str, arrival: &str| {
            let text = format!("<1>{text} h a: x");
            let arrival = Timestamp(instant(arrival).unwrap());
            Timestamp(parse(&text, Some(arrival), "+02:00").unwrap().at.unwrap()).to_string()
        };
        assert_eq!(year("Dec 31 23:59:59", "2027-01-01T00:00:05Z"), "2026-12-31T21:59:59.000Z");
        assert_eq!(year("Jan  1 00:00:01", "2026-12-31T23:59:59Z"), "2026-12-31T22:00:01.000Z");
        assert_eq!(year("Feb 29 12:00:00", "2028-03-01T00:00:00Z"), "2028-02-29T10:00:00.000Z");
        assert_eq!(year("Dec 30 12:00:00", "2026-12-28T00:00:00Z"), "2025-12-30T10:00:00.000Z");
        // A day that only leap years have.
        assert_eq!(year("Feb 29 12:00:00", "2029-01-01T00:00:00Z"), "2028-02-29T10:00:00.000Z");
        assert_eq!(parse("<1>Dec 31 23:59:59 h a: x", None, "Z").unwrap().at, None);
    }

    proptest! {
        /// Every sign of a message is in one of its parts.
        #[test]
        fn nothing_of_a_message_is_lost(rest in "[A-Za-z0-9 :.\\[\\]é-]{0,60}") {
            for begin in ["<7>", "<7>Oct 11 22:14:15 ", "<7>Oct 11 22:14:15 h ", "<7>Oct 11 22:14:15 h a[1]: "] {
                let record = format!("{begin}{rest}");
                // That is RFC 5424.
                if record.starts_with("<7>1 ") {
                    continue;
                }
                let message = parse(&record, None, "Z").unwrap();
                let host = message.host.map(|host| format!("{host} ")).unwrap_or_default();
                let tags = |procid: &str| message.app.map(|app| [format!("{app}{procid}: "), format!("{app}{procid}:")]);
                let procid = message.procid.map(|p| format!("[{p}]")).unwrap_or_default();
                let tags = [tags(&procid), tags("[]")].into_iter().flatten().flatten().chain([String::new()]);
                let time = ["", "Oct 11 22:14:15 "];
                let whole = tags.flat_map(|tag| time.map(|time| format!("<7>{time}{host}{tag}{}", message.text)));
                prop_assert!(whole.into_iter().any(|whole| whole == record), "{:?} of {}", message, record);
            }
        }

        /// Elements that are written as the standard says are read back.
        #[test]
        fn values_read_back(values in prop::collection::vec("[ -~é\"\\\\\\]]{0,12}", 1..4)) {
            let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace(']', "\\]");
            let params: String = values.iter().map(|v| format!(" k=\"{}\"", escape(v))).collect();
            let record = format!("<1>1 - - - - - [id{params}] text");
            let message = parse(&record, None, "Z").unwrap();
            let got: Vec<String> = message.data[0].params.iter().map(|(_, v)| v.clone()).collect();
            prop_assert_eq!(got, values);
            prop_assert_eq!(message.text, "text");
        }
    }
}
