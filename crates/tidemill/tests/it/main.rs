//! What must hold of the whole: the house's rules, and the binary as its users run it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod again;
mod agent;
mod avro;
mod backup;
mod bad;
mod change;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod databases;
mod demo;
mod ends;
mod examples;
mod fences;
mod golden;
mod guard;
#[cfg(feature = "kafka")]
mod kafka;
mod letters;
mod limits;
mod live;
mod load;
mod notebook;
mod pipes;
mod programs;
mod prompt;
mod pty;
mod push;
mod run;
mod slips;
mod social;
#[cfg(any(feature = "cassandra", feature = "hbase", feature = "hdfs", feature = "mongodb", feature = "s3"))]
mod stores;
mod tidy;
mod topic_sink;
mod topics;
mod traces;
#[path = "../../../store/src/tests/tries.rs"]
mod tries;
mod undo;
mod whole;
