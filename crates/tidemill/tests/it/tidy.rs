//! The house's rules as tests: module docs, arrows between crates, outsized
//! files, who may touch the world, and links that lead somewhere.
//!
//! Reads the repository's text only. Invariant: a rule's exceptions stand here
//! with their reason, and an exception that is no longer needed fails too.

mod links;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use text::{Source, identifiers, rust_files, text_files};

/// Lines of a file at most.
const LINES_MAX: usize = 800;
/// Lines from which a file needs a reason in [`OUTSIZED`].
const LINES_LONG: usize = 600;
/// Lines from which a file's opening needs more than one line.
const LINES_SHORT: usize = 60;
/// Long files, each with the reason why it is still one room.
const OUTSIZED: [(&str, &str); 0] = [];

/// Which crates of ours each crate may depend on. Arrows go down only.
const ARROWS: [(&str, &[&str]); 9] = [
    ("tidemill-core", &[]),
    ("tidemill-derive", &[]),
    ("tidemill-store", &["tidemill-core"]),
    ("tidemill-agent", &["tidemill-core", "tidemill-store"]),
    ("tidemill-engine", &["tidemill-core", "tidemill-store", "tidemill-derive"]),
    ("tidemill-connectors", &["tidemill-core", "tidemill-store"]),
    ("tidemill-web", &["tidemill-core"]),
    (
        "tidemill",
        &[
            "tidemill-core",
            "tidemill-derive",
            "tidemill-store",
            "tidemill-agent",
            "tidemill-engine",
            "tidemill-connectors",
            "tidemill-web",
        ],
    ),
    (
        "bench",
        &[
            "tidemill",
            "tidemill-core",
            "tidemill-store",
            "tidemill-agent",
            "tidemill-engine",
            "tidemill-connectors",
            "tidemill-web",
        ],
    ),
];

/// A name that only some places may use, as a path's end: `["fs"]`, `["SystemTime", "now"]`.
struct Guarded {
    name: &'static [&'static str],
    why: &'static str,
    /// Where the rule holds; all crates when empty.
    within: &'static [&'static str],
    /// Files and folders that may, with the reason.
    allowed: &'static [(&'static str, &'static str)],
    /// Whether the rule holds for tests too.
    in_tests: bool,
}

const GUARDED: [Guarded; 9] = [
    Guarded {
        name: &["unsafe"],
        why: "unsafe code is forbidden in the whole workspace",
        within: &[],
        allowed: &[],
        in_tests: true,
    },
    Guarded {
        name: &["fs"],
        why: "durable files are opened only in store, so that crashes can be simulated",
        within: &[],
        allowed: &[
            ("crates/store/src/disk/real.rs", "the real disk"),
            ("crates/store/src/dir.rs", "the lock of a data directory, which is never simulated"),
            ("crates/store/src/overflow.rs", "scratch for an embedded store, of which nothing survives a crash"),
            ("crates/connectors/src/files/", "reads files that belong to the user"),
            ("crates/connectors/src/tail.rs", "reads a file that belongs to the user"),
            ("crates/connectors/src/http/secret.rs", "reads the user's file of credentials"),
            ("crates/agent/src/source/spool.rs", "reads and renames files that belong to the user"),
            ("crates/tidemill/src/", "the command line reads programs and recordings"),
            ("crates/bench/src/", "writes its own input and reads its own memory use"),
        ],
        in_tests: false,
    },
    Guarded {
        name: &["current_dir"],
        why: "what a path is relative to is decided by the command line",
        within: &[],
        allowed: &[
            ("crates/tidemill/src/", "the command line"),
            ("crates/tidemill/tests/", "runs the binary in a directory of its own"),
        ],
        in_tests: true,
    },
    Guarded {
        name: &["SystemTime", "now"],
        why: "time is injected: ask the `Clock`",
        within: &[],
        allowed: &[
            ("crates/engine/src/clock.rs", "the system clock that programs are given"),
            ("crates/connectors/src/http/clock.rs", "signs requests and is compared to servers' dates"),
            ("crates/web/src/api.rs", "the server's time, for an uptime that does not trust the viewer's clock"),
            ("crates/tidemill/src/", "the command line"),
            ("crates/bench/src/", "measures"),
        ],
        in_tests: false,
    },
    Guarded {
        name: &["Instant", "now"],
        why: "time is injected: ask the `Clock`",
        within: &["crates/core/", "crates/engine/"],
        allowed: &[("crates/engine/benches/", "a bench measures")],
        in_tests: true,
    },
    Guarded {
        name: &["thread", "sleep"],
        why: "nothing waits by sleeping; a test moves the clock or waits for what it needs",
        within: &[],
        allowed: &[("crates/bench/src/", "paces its senders")],
        in_tests: true,
    },
    Guarded {
        name: &["process", "Command"],
        why: "no shell and no other program is ever started",
        within: &[],
        allowed: &[
            ("crates/bench/src/", "starts and kills Tidemill itself"),
            ("crates/tidemill/tests/", "runs the binary under test"),
        ],
        in_tests: true,
    },
    Guarded { name: &["net"], why: "core touches no network", within: &["crates/core/"], allowed: &[], in_tests: true },
    Guarded {
        name: &["env"],
        why: "core, engine and store are configured by their callers, not by the environment",
        within: &["crates/core/", "crates/engine/", "crates/store/"],
        allowed: &[("crates/engine/src/state/memory.rs", "scratch of a program without a data directory")],
        in_tests: false,
    },
];

/// Words that code of a crate must not contain: who knows whom beyond Cargo's arrows.
const STRANGERS: [(&str, &[&str]); 6] = [
    ("crates/core/", &["datafusion", "tidemill_store", "tidemill_engine", "tidemill_connectors", "tidemill_web"]),
    ("crates/store/", &["datafusion", "tidemill_engine", "tidemill_connectors", "tidemill_web"]),
    ("crates/agent/", &["datafusion", "tidemill_engine", "tidemill_connectors", "tidemill_web"]),
    ("crates/engine/", &["tidemill_connectors", "tidemill_web"]),
    ("crates/connectors/", &["datafusion", "tidemill_engine", "tidemill_web"]),
    ("crates/web/", &["datafusion", "tidemill_engine", "tidemill_store", "tidemill_connectors"]),
];

fn report(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn files_open_with_their_purpose() {
    let mut found = Vec::new();
    for Source { path, text, is_test, .. } in rust_files() {
        let docs = text.lines().take_while(|line| line.starts_with("//!")).count();
        let name = path.rsplit('/').next().unwrap_or(path);
        let short = text.lines().count() < LINES_SHORT;
        let wanted = if *is_test || short || name == "mod.rs" { 1 } else { 2 };
        if docs < wanted {
            found.push(format!(
                "{path}: opens with {docs} lines of `//!`, {wanted} are the least: purpose, invariant, who calls it"
            ));
        }
    }
    report("module docs", &found);
}

#[test]
fn files_have_one_room() {
    let mut found = Vec::new();
    let mut long = BTreeSet::new();
    for Source { path, text, .. } in rust_files() {
        let lines = text.lines().count();
        let excused = OUTSIZED.iter().any(|(file, _)| file == path);
        if lines > LINES_LONG {
            long.insert(path.clone());
        }
        if lines > LINES_MAX {
            found.push(format!("{path}: {lines} lines, {LINES_MAX} are the most: there is a second room inside"));
        } else if lines > LINES_LONG && !excused {
            found.push(format!("{path}: {lines} lines; split it, or give the reason in OUTSIZED"));
        }
    }
    found.extend(
        OUTSIZED
            .iter()
            .filter(|(file, _)| !long.contains(*file))
            .map(|(file, _)| format!("{file}: is short or gone; take it out of OUTSIZED")),
    );
    report("outsized files", &found);
}

#[test]
fn arrows_go_down() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut found = Vec::new();
    for (path, manifest) in text::manifests() {
        let name = text::package_name(&manifest);
        let Some(allowed) = arrows.get(name.as_str()) else {
            found.push(format!("{path}: say in ARROWS what `{name}` may depend on"));
            continue;
        };
        for dependency in text::dependencies(&manifest) {
            let ours = arrows.contains_key(dependency.as_str());
            if ours && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{path}: `{name}` must not depend on `{dependency}`"));
            }
            let light = ["tidemill-core", "tidemill-store", "tidemill-agent", "tidemill-connectors", "tidemill-web"];
            if light.contains(&name.as_str()) && dependency.starts_with("datafusion") {
                found.push(format!("{path}: `{name}` compiles without DataFusion"));
            }
        }
        if !manifest.contains("[lints]\nworkspace = true") {
            found.push(format!("{path}: take the workspace's lints: `[lints]` with `workspace = true`"));
        }
    }
    report("arrows between crates", &found);
}

#[test]
fn rooms_do_not_name_strangers() {
    let mut found = Vec::new();
    for source in rust_files() {
        for (room, strangers) in STRANGERS.iter().filter(|(room, _)| source.path.starts_with(room)) {
            for (line, word) in identifiers(&source.code) {
                if strangers.contains(&word) {
                    found.push(format!("{}:{line}: {room} must not name `{word}`", source.path));
                }
            }
        }
    }
    report("rooms that know too much", &found);
}

#[test]
fn the_world_is_touched_where_it_may_be() {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    let files = rust_files();
    for (number, rule) in GUARDED.iter().enumerate() {
        for source in files {
            if !rule.within.is_empty() && !rule.within.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            let code = if rule.in_tests { &source.code } else { &source.shipped };
            let lines = text::uses(code, rule.name);
            if lines.is_empty() {
                continue;
            }
            match rule.allowed.iter().find(|(place, _)| source.path.starts_with(place)) {
                Some((place, _)) => drop(used.insert((number, *place))),
                None => found.extend(
                    lines
                        .iter()
                        .map(|line| format!("{}:{line}: `{}`: {}", source.path, rule.name.join("::"), rule.why)),
                ),
            }
        }
        // The command line and the benches are rooms with a standing permit; a single file's must be in use.
        for (place, _) in rule.allowed.iter().filter(|(place, _)| place.ends_with(".rs")) {
            if !used.contains(&(number, *place)) {
                found.push(format!("{place}: no longer uses `{}`; take its permit away", rule.name.join("::")));
            }
        }
    }
    report("who touches the world", &found);
}

#[test]
fn texts_name_no_machine() {
    // In two pieces, so that this file may hold it.
    let banned = concat!("/wo", "rk/");
    let mut found = Vec::new();
    for (path, text) in text_files() {
        for (number, line) in text.lines().enumerate() {
            if line.contains(banned) {
                found.push(format!("{path}:{}: names the folder of one machine, {banned}", number + 1));
            }
        }
    }
    report("absolute paths", &found);
}

#[test]
fn links_lead_somewhere() {
    report("links in Markdown", &links::broken());
}

#[test]
fn paths_in_prose_exist() {
    report("paths in Markdown and module docs", &links::missing_paths());
}

#[test]
fn the_walk_names_every_room() {
    let walk = text::read("ARCHITECTURE.md");
    let mut found = Vec::new();
    for (name, path) in text::folders("crates") {
        if !walk.contains(&format!("crates/{name}")) {
            found.push(format!("crates/{name} is not in ARCHITECTURE.md"));
        }
        for (folder, path) in text::folders(&format!("{path}/src")) {
            // Beside a file of its name, a folder holds that file's tests or parts.
            let part = text::exists(&format!("{path}.rs"));
            if !part
                && !["/`", "`"]
                    .iter()
                    .any(|end| ["`", "/"].iter().any(|at| walk.contains(&format!("{at}{folder}{end}"))))
            {
                found.push(format!("{path}/ is not in ARCHITECTURE.md"));
            }
        }
    }
    report("rooms that the walk passes by", &found);
}

#[test]
fn the_glossary_names_types_that_exist() {
    let defined: BTreeSet<String> = rust_files().iter().flat_map(|source| text::definitions(&source.code)).collect();
    let mut found = Vec::new();
    let glossary = text::read("GLOSSARY.md");
    let rows = glossary.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(3));
    for name in rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        let last = name.rsplit("::").next().unwrap_or(name);
        if !defined.contains(last) {
            found.push(format!("`{name}` is defined nowhere"));
        }
    }
    report("GLOSSARY.md", &found);
}

#[test]
fn the_guide_from_spark_names_what_is_there() {
    let defined: BTreeSet<String> = rust_files().iter().flat_map(|source| text::definitions(&source.code)).collect();
    let guide = text::read("docs/guides/from-spark.md");
    let ours = guide.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(2));
    let names = ours.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let methods = names.filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    let found: Vec<_> =
        methods.filter(|name| !defined.contains(*name)).map(|name| format!("there is no `{name}`")).collect();
    report("docs/guides/from-spark.md", &found);
}

#[test]
fn every_example_is_known_to_ci() {
    let list = text::read("ci/examples.txt");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let known: BTreeSet<Vec<&str>> = lines.map(|line| line.split(' ').take(3).collect()).collect();
    let mut found = Vec::new();
    let mut there = BTreeSet::new();
    for (path, manifest) in text::manifests() {
        let package = text::package_name(&manifest);
        let folder = path.replace("Cargo.toml", "examples/");
        for source in rust_files() {
            let Some(name) = source.path.strip_prefix(&folder).and_then(|name| name.strip_suffix(".rs")) else {
                continue;
            };
            if name.contains('/') {
                continue;
            }
            there.insert(format!("{package} {name}"));
            if !["run", "build"].iter().any(|verb| known.contains(&vec![*verb, package.as_str(), name])) {
                found.push(format!("{}: say in ci/examples.txt whether it ends by itself", source.path));
            }
        }
    }
    for line in known {
        if !there.contains(&line[1..].join(" ")) {
            found.push(format!("ci/examples.txt: there is no `{}`", line.join(" ")));
        }
    }
    report("examples", &found);
}

#[test]
fn crates_are_where_the_rules_look() {
    let root = text::root();
    assert!(Path::new(&root).join("Cargo.toml").is_file(), "{} is not the workspace", root.display());
    assert!(rust_files().len() > 100, "the rules see the sources");
}
