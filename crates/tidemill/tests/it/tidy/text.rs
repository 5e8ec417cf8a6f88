//! The repository as text: its files, and Rust code without comments and strings.
//!
//! Invariant: the code of a file has the lines of the file, so that what is
//! found there can be named by line. Called by the rules.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Folders that hold no text of ours.
const PASSED_BY: [&str; 4] = [".git", "target", "tidemill-data", "node_modules"];
/// Names' ends of text files.
const TEXT: [&str; 16] = [
    ".rs",
    ".toml",
    ".md",
    ".sql",
    ".js",
    ".css",
    ".html",
    ".json",
    ".sh",
    ".txt",
    ".yml",
    ".yaml",
    ".svg",
    ".py",
    "/run",
    "/services",
];

/// A file of Rust.
pub(super) struct Source {
    /// From the workspace's root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    /// Without comments, strings and characters.
    pub(super) code: String,
    /// `code` without test modules.
    pub(super) shipped: String,
    /// Whether the whole file is of tests, examples or benches.
    pub(super) is_test: bool,
}

pub(super) fn root() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    crates.and_then(Path::parent).expect("the crate lies in crates/").to_path_buf()
}

/// A file's text, by its path from the root.
pub(super) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub(super) fn exists(path: &str) -> bool {
    root().join(path).exists()
}

/// Folders within a folder: name and path, by name.
pub(super) fn folders(path: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = entries(path).into_iter().filter(|(_, path)| root().join(path).is_dir()).collect();
    found.sort();
    found
}

fn entries(path: &str) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(root().join(path)) else { return Vec::new() };
    entries
        .map(|entry| {
            let name = entry.expect("a readable folder").file_name().to_string_lossy().into_owned();
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            (name, path)
        })
        .collect()
}

fn walk(path: &str, found: &mut Vec<String>) {
    for (name, path) in entries(path) {
        if root().join(&path).is_dir() {
            if !PASSED_BY.contains(&name.as_str()) {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Paths of all files, in order.
fn all_files() -> Vec<String> {
    let mut found = Vec::new();
    walk("", &mut found);
    found.sort();
    found
}

/// All text files: path and text.
pub(super) fn text_files() -> Vec<(String, String)> {
    let texts = all_files().into_iter().filter(|path| TEXT.iter().any(|end| format!("/{path}").ends_with(end)));
    // A file that is no UTF-8 is data.
    texts.filter_map(|path| fs::read_to_string(root().join(&path)).ok().map(|text| (path, text))).collect()
}

/// All files of Rust under `crates/`, read once.
pub(super) fn rust_files() -> &'static [Source] {
    static FILES: OnceLock<Vec<Source>> = OnceLock::new();
    FILES.get_or_init(|| {
        let ours = text_files().into_iter().filter(|(path, _)| path.starts_with("crates/") && path.ends_with(".rs"));
        ours.map(|(path, text)| source(path, text)).collect()
    })
}

fn source(path: String, text: String) -> Source {
    let code = code_of(&text);
    let is_test =
        ["/tests/", "/examples/", "/benches/"].iter().any(|part| path.contains(part)) || path.ends_with("/tests.rs");
    let shipped = if is_test { String::new() } else { without_tests(&code) };
    Source { path, text, code, shipped, is_test }
}

/// Manifests of all crates: path and text.
pub(super) fn manifests() -> Vec<(String, String)> {
    let paths = folders("crates").into_iter().map(|(_, path)| format!("{path}/Cargo.toml"));
    paths.filter(|path| exists(path)).map(|path| (path.clone(), read(&path))).collect()
}

/// The `name` of a manifest's package.
pub(super) fn package_name(manifest: &str) -> String {
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = "));
    name.unwrap_or_default().trim_matches('"').to_string()
}

/// Names in all sections of a manifest that reach the product: not those for tests.
pub(super) fn dependencies(manifest: &str) -> Vec<String> {
    let (mut found, mut inside) = (Vec::new(), false);
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
            // `[dependencies.name]`
            if let Some((before, name)) = section.rsplit_once("dependencies.")
                && !before.ends_with("dev-")
            {
                found.push(name.to_string());
            }
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.push(name.trim_matches('"').to_string());
        }
    }
    found
}

/// Rust with all comments, strings and characters made blank; lines stay.
pub(super) fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    let blank = |from: usize, to: usize, out: &mut String| {
        out.extend(chars[from..to.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        to
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let in_word = at > 0 && is_word(chars[at - 1]);
        at = match rest {
            ['/', '/', ..] => {
                let end = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
                blank(at, at + end, &mut out)
            }
            ['/', '*', ..] => blank(at, at + block_comment(rest), &mut out),
            ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] if !in_word && raw_string(rest).is_some() => {
                blank(at, at + raw_string(rest).unwrap_or(1), &mut out)
            }
            ['"', ..] => blank(at, at + string(rest), &mut out),
            ['\'', '\\', ..] => {
                let end = rest.iter().skip(3).position(|c| *c == '\'').map_or(rest.len(), |end| end + 4);
                blank(at, at + end, &mut out)
            }
            ['\'', _, '\'', ..] => blank(at, at + 3, &mut out),
            [other, ..] => {
                out.push(*other);
                at + 1
            }
            [] => break,
        };
    }
    out
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Length of `r#"…"#`; `None` for a raw identifier.
fn raw_string(rest: &[char]) -> Option<usize> {
    let begin = rest.iter().position(|c| *c == 'r')? + 1;
    let hashes = rest[begin..].iter().take_while(|c| **c == '#').count();
    if rest.get(begin + hashes) != Some(&'"') {
        return None;
    }
    let mut at = begin + hashes + 1;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(rest.len())
}

/// Code up to its test module, which stands at the end by custom.
fn without_tests(code: &str) -> String {
    let mut shipped = String::with_capacity(code.len());
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let begins = line == "#[cfg(test)]" && lines.peek().is_some_and(|l| l.starts_with("mod ") && l.ends_with('{'));
        if begins {
            break;
        }
        shipped.push_str(line);
        shipped.push('\n');
    }
    shipped
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Identifiers and keywords with their lines.
pub(super) fn identifiers(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = code.lines().enumerate();
    lines.flat_map(|(n, line)| line.split(|c| !is_word(c)).filter(|w| !w.is_empty()).map(move |w| (n + 1, w)))
}

/// Lines that use `name`: one word anywhere, or `["process", "Command"]` as
/// `process::Command` or `process::{…, Command, …}`.
pub(super) fn uses(code: &str, name: &[&str]) -> Vec<usize> {
    let [module, item] = name else {
        return identifiers(code).filter(|(_, word)| name.contains(word)).map(|(line, _)| line).collect();
    };
    let mut lines = Vec::new();
    for (at, _) in code.match_indices(&format!("{module}::")) {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &code[at + module.len() + 2..];
        let named = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default(),
            None => rest.split(|c| !is_word(c)).next().unwrap_or_default(),
        };
        if named.split(|c| !is_word(c)).any(|word| word == *item) {
            lines.push(code[..at].lines().count().max(1));
        }
    }
    lines
}

/// Names that the code defines.
pub(super) fn definitions(code: &str) -> Vec<String> {
    let words: Vec<&str> = identifiers(code).map(|(_, word)| word).collect();
    let kinds = ["struct", "enum", "trait", "type", "fn", "mod", "const"];
    words.windows(2).filter(|pair| kinds.contains(&pair[0])).map(|pair| pair[1].to_string()).collect()
}

#[test]
fn code_is_told_from_text() {
    let source = "let a = \"unsafe \\\" {\"; // unsafe\nlet c = '\"'; /* unsafe /* */ */ fs::read(r#\"unsafe\"#);\nlet 'x: &'a = b'\\'';";
    let code = code_of(source);
    assert_eq!(code.lines().count(), 3);
    assert!(!code.contains("unsafe"), "{code}");
    assert_eq!(uses(&code, &["fs"]), [2]);
    assert_eq!(
        identifiers(&code).filter(|(line, _)| *line == 3).map(|(_, w)| w).collect::<Vec<_>>(),
        ["let", "x", "a", "b"]
    );
}

#[test]
fn uses_are_found_in_paths_and_groups() {
    let code = "use std::{\n process::{Command, ExitCode},\n};\nstd::process::Command::new();\nmy_process::Command;\nclap::Command;";
    assert_eq!(uses(code, &["process", "Command"]), [2, 4]);
}

#[test]
fn dependencies_are_read_from_every_section() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\n\"b\" = { path = \"..\" }\n# no\n[dev-dependencies]\nt = \"1\"\n[target.'cfg(unix)'.dependencies]\nc = \"1\"\n[dependencies.d]\nversion = \"1\"\n[build-dependencies]\ne = \"1\"\n";
    assert_eq!(dependencies(manifest), ["a", "b", "c", "d", "e"]);
    assert_eq!(package_name(manifest), "x");
}
