//! Files of Flume's users, and what becomes of them: `golden/NAME.conf`, `.toml` and `.notes`.

use super::{Imported, import};
use crate::{Plan, config::tests::world};

/// The notes, a line each.
fn notes(imported: &Imported) -> String {
    let line =
        |note: &super::Note| format!("{} {} {}\n", note.line, if note.lost { "LOST" } else { "note" }, note.text);
    imported.notes.iter().map(line).collect()
}

fn golden(conf: &str, toml: &str, wanted: &str) -> Imported {
    let imported = import(conf, None).unwrap();
    assert_eq!(imported.toml, toml, "\n{}", imported.toml);
    assert_eq!(notes(&imported), wanted, "\n{}", notes(&imported));
    imported
}

macro_rules! goldens {
    ($name:literal) => {
        golden(
            include_str!(concat!("golden/", $name, ".conf")),
            include_str!(concat!("golden/", $name, ".toml")),
            include_str!(concat!("golden/", $name, ".notes")),
        )
    };
}

#[test]
fn the_first_file_of_flumes_guide_runs_as_it_is() {
    let imported = goldens!("netcat-logger");
    let plan = Plan::read(&imported.toml, "x", &world()).unwrap();
    assert_eq!(plan.lines(), ["r1: tcp-listen localhost:44444 -> c1", "c1 -> k1: logger, at least once"]);
}

#[test]
fn spooled_files_into_hdfs_become_files_here() {
    let imported = goldens!("spooldir-hdfs");
    let plan = Plan::read(&imported.toml, "x", &world()).unwrap();
    assert_eq!(
        plan.lines(),
        ["logs: spooldir /var/spool/app -> disk", "disk -> hdfs: files in out/hdfs, exactly once"]
    );
}

#[test]
fn hops_and_failover_are_the_same() {
    let imported = goldens!("avro-groups");
    // The registry of this test has no `tail`.
    let error = Plan::read(&imported.toml, "x", &world()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("there is no source `tail`"), "{error}");
}

#[test]
fn interceptors_and_selectors_are_the_same_and_what_has_no_equal_is_told() {
    let imported = goldens!("interceptors-selectors");
    let error = Plan::read(&imported.toml, "x", &world()).unwrap_err().to_string();
    for want in ["`com.example.Mine$Builder`", "no connector `hbase`", "no regular expression", "`tail`"] {
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn kafka_syslog_and_hbase_are_connectors_here() {
    let imported = goldens!("kafka-syslog-hbase");
    // The registry of this test has none of them: what is written is right but for that.
    let error = Plan::read(&imported.toml, "x", &world()).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 6, "{error}");
    for want in ["no source `kafka`", "no source `syslog`", "no connector `kafka`", "no connector `hbase`"] {
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn an_agent_is_named_where_there_are_several() {
    let two = "a.sources = r\nb.sources = r\nb.sources.r.type = seq\nb.sources.r.channels = c\n";
    assert!(import(two, None).unwrap_err().to_string().contains("agents a, b"));
    assert!(import(two, Some("c")).unwrap_err().to_string().contains("no agent `c`"));
    let imported = import(two, Some("b")).unwrap();
    assert!(imported.toml.contains("[sources.r]\ntype = \"seq\"\nchannels = [\"c\"]"), "{}", imported.toml);
    assert!(import("just = text", None).is_err());
}

#[test]
fn a_key_that_nobody_knows_is_told_with_its_line() {
    let conf = "a.sources = r\na.sources.r.type = seq\na.sources.r.surprise = 7\na.sources.r.channels = c\n";
    assert_eq!(notes(&import(conf, None).unwrap()), "3 LOST `a.sources.r.surprise = 7` has no equal\n");
}

#[test]
fn what_would_change_events_is_written_as_flume_means_it_or_told() {
    let conf = "a.sources = r s\n\
        a.sources.r.type = spooldir\n\
        a.sources.r.spoolDir = /in\n\
        a.sources.r.deserializer.maxLineLength = 2048\n\
        a.sources.r.channels = c\n\
        a.sources.r.interceptors = i j\n\
        a.sources.r.interceptors.i.type = search_replace\n\
        a.sources.r.interceptors.i.searchPattern = (a)\n\
        a.sources.r.interceptors.i.replaceString = $1XX\\\\$\n\
        a.sources.r.interceptors.j.type = search_replace\n\
        a.sources.r.interceptors.j.searchPattern = (a)\n\
        a.sources.r.interceptors.j.replaceString = $2\n\
        a.sources.s.type = TAILDIR\n\
        a.sources.s.filegroups = f\n\
        a.sources.s.filegroups.f = /var/log/a.log\n\
        a.sources.s.skipToEnd = true\n\
        a.sources.s.byteOffsetHeader = true\n\
        a.sources.s.channels = c\n";
    let imported = import(conf, None).unwrap();
    for line in ["max_line = 2048\n", "replace = \"${1}XX$$\"\n", "replace = \"$$2\"\n", "start = \"latest\"\n"] {
        assert!(imported.toml.contains(line), "{line}{}", imported.toml);
    }
    let wanted = "\
        4 LOST `deserializer.maxLineLength` cuts a longer line into several events; over `max_line`, which is in bytes, \
        it is refused and counted here\n\
        12 LOST `replaceString = $2` is written as it stands: there is no group 2\n\
        13 note TAILDIR is a source `tail` for each file group\n\
        17 LOST `byteOffsetHeader` has no equal: events don't say where they stood\n";
    assert_eq!(notes(&imported), wanted);
}
