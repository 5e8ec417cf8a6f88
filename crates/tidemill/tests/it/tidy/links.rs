//! Links and paths in prose: what a reader clicks or types must be there.
//!
//! Checks links to files and headings in Markdown, and paths in back quotes
//! there and in module docs. Addresses on the network are left alone: a test
//! needs none. Called by the rules.

use super::text::{exists, read, text_files};

/// Beginnings of paths that are meant from the workspace's root.
const ROOTED: [&str; 4] = ["crates/", "docs/", "ci/", ".ci/"];

fn markdown() -> Vec<(String, String)> {
    let mut files: Vec<_> = text_files().into_iter().filter(|(path, _)| path.ends_with(".md")).collect();
    for (_, text) in &mut files {
        *text = prose_of(text);
    }
    files
}

/// Markdown with code blocks and HTML comments made blank; lines stay.
fn prose_of(text: &str) -> String {
    let (mut out, mut fenced, mut hidden) = (String::new(), false, false);
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        hidden |= !fenced && line.trim_start().starts_with("<!--");
        if !fenced && !fence && !hidden {
            out.push_str(line);
        }
        hidden &= !line.contains("-->");
        out.push('\n');
    }
    out
}

/// Links to files or headings that are not there.
pub(super) fn broken() -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in markdown() {
        for (number, line) in text.lines().enumerate() {
            for target in targets(&without_code(line)) {
                if let Some(problem) = problem(&file, &target) {
                    found.push(format!("{file}:{}: {problem}", number + 1));
                }
            }
        }
    }
    found
}

/// A line without what stands in back quotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// Where the links and pictures of a line lead.
fn targets(line: &str) -> Vec<String> {
    let links = line.match_indices("](").map(|(at, open)| (at + open.len(), ')'));
    let pictures = line.match_indices("src=\"").map(|(at, open)| (at + open.len(), '"'));
    let ends = links.chain(pictures).filter_map(|(at, close)| line[at..].split_once(close));
    ends.map(|(target, _)| target.split(' ').next().unwrap_or_default().to_string()).collect()
}

fn problem(file: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let there = if path.is_empty() { file.to_string() } else { beside(file, path) };
    if !exists(&there) {
        return Some(format!("({target}): there is no {there}"));
    }
    let headed = heading.is_empty() || !there.ends_with(".md") || headings(&read(&there)).iter().any(|h| h == heading);
    (!headed).then(|| format!("({target}): {there} has no such heading"))
}

/// `path` as seen from the folder of `file`, from the root.
fn beside(file: &str, path: &str) -> String {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_string() } else { parts.join("/") }
}

/// Anchors of a text's headings, as forges make them.
fn headings(text: &str) -> Vec<String> {
    let prose = prose_of(text);
    let titles = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles
        .map(|title| {
            let kept =
                title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
            kept.replace(' ', "-")
        })
        .collect()
}

/// Paths in back quotes, in Markdown and in module docs, that are not there.
pub(super) fn missing_paths() -> Vec<String> {
    let mut found = Vec::new();
    let docs = text_files().into_iter().filter(|(path, _)| path.starts_with("crates/") && path.ends_with(".rs"));
    let docs = docs.map(|(path, text)| {
        let lines: Vec<&str> = text.lines().map(|line| if line.starts_with("//!") { line } else { "" }).collect();
        (path, lines.join("\n"))
    });
    for (file, text) in markdown().into_iter().chain(docs) {
        for (number, line) in text.lines().enumerate() {
            for quoted in line.split('`').skip(1).step_by(2) {
                let plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
                if plain && ROOTED.iter().any(|root| quoted.starts_with(root)) && !exists(quoted) {
                    found.push(format!("{file}:{}: `{quoted}` is not there", number + 1));
                }
            }
        }
    }
    found
}

#[test]
fn links_are_read_as_written() {
    let line = "see [a](b.md#c), ![p](img/x.png \"title\") and <img src=\"y.png\">, not `[x](z)`";
    assert_eq!(targets(&without_code(line)), ["b.md#c", "img/x.png", "y.png"]);
    assert_eq!(beside("docs/guides/a.md", "../../README.md"), "README.md");
    assert_eq!(beside("README.md", "./"), ".");
    assert_eq!(headings("# A walk: 2 rooms\n```\n# no\n```\n## `run`s"), ["a-walk-2-rooms", "runs"]);
    assert_eq!(prose_of("a\n<!-- [x](y) -->\n```\n[x](y)\n```\nb"), "a\n\n\n\n\nb\n");
}

#[test]
fn a_broken_link_is_told() {
    assert!(problem("README.md", "no/such/file.md").is_some());
    assert!(problem("README.md", "Cargo.toml").is_none());
    assert!(problem("README.md", "https://example.org/x").is_none());
}
