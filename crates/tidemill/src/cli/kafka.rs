//! `--kafka`: topic commands on an Apache Kafka in place of the embedded log.
//!
//! Invariant: what is printed has the same form as for the log, so that scripts
//! can take either. A build without Kafka says which build has it. Called by
//! `topic`, `produce` and `consume`.

use clap::Args;
#[cfg(not(feature = "kafka"))]
use tidemill::Error;

/// Where the cluster is, and who asks.
#[derive(Debug, Args)]
pub(crate) struct KafkaArg {
    /// On an Apache Kafka instead of the data directory: some of its servers, such as localhost:9092.
    #[arg(long = "kafka", global = true, display_order = 810, value_name = "SERVERS")]
    servers: Option<String>,

    /// The user for SASL.
    #[arg(long = "kafka-user", global = true, display_order = 811, value_name = "NAME")]
    user: Option<String>,

    /// The environment variable that holds the user's password.
    #[arg(long = "kafka-password-env", global = true, display_order = 812, value_name = "VARIABLE")]
    password_env: Option<String>,
}

impl KafkaArg {
    /// Whether a cluster is meant.
    pub(crate) fn is_given(&self) -> bool {
        self.servers.is_some()
    }

    /// The options of a connector for it.
    fn options(&self) -> tidemill::Options {
        let given = [("brokers", &self.servers), ("user", &self.user), ("password_env", &self.password_env)];
        let given = given.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        tidemill::Options::new("--kafka", given)
    }
}

#[cfg(not(feature = "kafka"))]
impl KafkaArg {
    /// Says which build can do it.
    pub(crate) fn missing(&self) -> Error {
        // The options are told as wrong by a build that has Kafka.
        let _options = self.options();
        Error::user("this build has no Kafka: the one with it is made by cargo build --release --features kafka")
    }
}

#[cfg(feature = "kafka")]
pub(crate) use with_kafka::*;

#[cfg(feature = "kafka")]
mod with_kafka {
    use super::KafkaArg;
    use crate::cli::{
        out::{self, outln},
        print_columns,
    };
    use std::io::{self, BufRead, IsTerminal, Read};
    use tidemill::{
        Error, Result,
        connectors::{
            kafka::{Servers, admin::Admin},
            lines::MAX_LINE,
        },
    };

    impl KafkaArg {
        pub(crate) fn open(&self) -> Result<Admin> {
            Ok(Admin::new(Servers::from_options(&self.options())?))
        }
    }

    /// `topic list`.
    pub(crate) fn list(admin: &Admin) -> Result<()> {
        let mut rows = Vec::new();
        for (name, partitions) in admin.topics()? {
            let records: u64 = admin.describe(&name)?.iter().map(|p| p.end - p.first).sum();
            rows.push(vec![name, partitions.to_string(), records.to_string()]);
        }
        print_columns(&["topic", "partitions", "records"], &[1, 2], rows)
    }

    /// `topic describe`.
    pub(crate) fn describe(admin: &Admin, topic: &str) -> Result<()> {
        let partitions = admin.describe(topic)?;
        outln!("topic {topic}");
        let row = |p: &tidemill::connectors::kafka::admin::PartitionInfo| {
            vec![p.number.to_string(), p.first.to_string(), p.end.to_string()]
        };
        print_columns(&["partition", "first offset", "next offset"], &[0, 1, 2], partitions.iter().map(row).collect())
    }

    /// `produce`.
    pub(crate) fn produce(admin: &Admin, topic: &str, partition: Option<u32>) -> Result<()> {
        let (mut input, mut number) = (io::stdin().lock(), 0_u64);
        let mut long = None;
        let kept = admin.produce(topic, partition.map(signed), &mut || {
            let mut line = Vec::new();
            number += 1;
            let read = (&mut input)
                .take(MAX_LINE as u64 + 2)
                .read_until(b'\n', &mut line)
                .map_err(|e| Error::external("can't read standard input").because(e))?;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            if line.len() > MAX_LINE {
                long = Some(number);
            }
            Ok((read > 0 && long.is_none()).then_some(line))
        })?;
        outln!("kept {kept} lines in {topic}");
        match long {
            Some(number) => {
                Err(Error::user(format!("line {number} is longer than {MAX_LINE} bytes; the lines before it are kept")))
            }
            None => Ok(()),
        }
    }

    /// What `consume` shows.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Wanted {
        pub(crate) partition: Option<u32>,
        pub(crate) from_beginning: bool,
        /// Records at most.
        pub(crate) max: u64,
        pub(crate) offsets: bool,
    }

    /// `consume`.
    pub(crate) fn consume(admin: &Admin, topic: &str, wanted: Wanted) -> Result<()> {
        let safe = io::stdout().is_terminal();
        let newest = (!wanted.from_beginning).then_some(wanted.max);
        let mut left = wanted.max;
        if left == 0 {
            return Ok(());
        }
        admin.consume(topic, wanted.partition.map(signed), newest, &mut |record| {
            let mut text = Vec::new();
            if wanted.offsets {
                text.extend_from_slice(format!("{}:{}\t", record.partition, record.offset).as_bytes());
            }
            if safe {
                let shown = String::from_utf8_lossy(record.value);
                text.extend(
                    shown
                        .chars()
                        .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
                        .collect::<String>()
                        .bytes(),
                );
            } else {
                text.extend_from_slice(record.value);
            }
            text.push(b'\n');
            out::bytes(&text)?;
            left -= 1;
            Ok(left > 0 && !out::is_closed())
        })
    }

    fn signed(partition: u32) -> i32 {
        i32::try_from(partition).unwrap_or(i32::MAX)
    }
}
