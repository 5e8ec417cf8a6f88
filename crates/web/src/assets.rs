//! The pages and their parts, carried in the binary.
//!
//! A page is a folder under `pages/` whose `page.js` exports `open`, and its
//! entry in [`PAGES`]: that puts it into the navigation under its folder's
//! name. `frame` holds what all of them share, `vendor` what others wrote, with
//! its licence, compressed.
//!
//! Invariant: plain files without a build step, together under 1.5 MB as they
//! are sent, and nothing is fetched from anywhere else. Called by the router.

use crate::api::{self, problem};
use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A folder of files that are served under its name.
struct Folder {
    name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! folder {
    ($folder:literal: $($file:literal),+ $(,)?) => {
        Folder {
            name: $folder,
            files: &[$(($file, include_bytes!(concat!("../pages/", $folder, "/", $file)) as &[u8])),+],
        }
    };
}

/// The pages, in the order of the navigation; the first is shown at `/`.
const PAGES: &[Folder] = &[
    folder!("overview": "page.js", "view.js"),
    folder!("live": "page.js", "forms.js", "options.js", "plot.js", "cloud.js", "save.js"),
    folder!("batches": "page.js", "charts.js", "detail.js", "plan.js", "again.js"),
    folder!("streams": "page.js"),
    folder!("lineage": "page.js", "layout.js", "drawing.js"),
    folder!("alerts": "page.js"),
    folder!(
        "notebook": "page.js", "cell.js", "editor.js", "complete.js", "result.js", "markdown.js", "file.js", "ask.js", "notebook.css"
    ),
    folder!("api": "page.js"),
];

/// What all pages share.
const SHARED: &[Folder] = &[
    folder!(
        "frame": "main.js", "store.js", "feed.js", "ask.js", "lock.js", "chart.js", "dom.js", "sample.js",
        "strings.js", "frame.css", "icon.svg",
    ),
    folder!("vendor": "echarts.js.gz", "land.json.gz", "NOTICE.txt"),
];

const INDEX: &str = include_str!("../pages/frame/index.html");

/// `/`
pub(crate) async fn page() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], INDEX).into_response()
}

/// `/assets/pages.js`: the names of the pages, for the navigation.
pub(crate) async fn pages() -> Response {
    let names: Vec<String> = PAGES.iter().map(|page| format!("'{}'", page.name)).collect();
    let module = format!("export const pages = [{}];\n", names.join(", "));
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], module).into_response()
}

/// `/assets/{folder}/{file}`
pub(crate) async fn asset(Path((folder, file)): Path<(String, String)>, asked: HeaderMap) -> Response {
    let Some(folder) = PAGES.iter().chain(SHARED).find(|known| known.name == folder) else {
        return api::nothing_here().await;
    };
    let is = |name: &str| name == file || name.strip_suffix(".gz") == Some(file.as_str());
    let Some((name, content)) = folder.files.iter().find(|(name, _)| is(name)) else {
        return api::nothing_here().await;
    };
    let media = [(header::CONTENT_TYPE, media(&file))];
    if *name == file {
        return (media, *content).into_response();
    }
    let takes = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    if !takes.flat_map(|value| value.split(',')).any(|coding| coding.trim().split(';').next() == Some("gzip")) {
        return problem(StatusCode::NOT_ACCEPTABLE, "this file is kept compressed: ask with `Accept-Encoding: gzip`");
    }
    (media, [(header::CONTENT_ENCODING, "gzip")], *content).into_response()
}

fn media(file: &str) -> &'static str {
    match file.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files of ours, as text.
    fn ours() -> impl Iterator<Item = (String, &'static str)> {
        let own = PAGES.iter().chain(SHARED).filter(|folder| folder.name != "vendor");
        let files = own.flat_map(|folder| folder.files.iter().map(|(name, content)| (folder.name, *name, *content)));
        files
            .map(|(folder, name, content)| (format!("{folder}/{name}"), std::str::from_utf8(content).unwrap()))
            .chain([("frame/index.html".to_string(), INDEX)])
    }

    #[test]
    fn the_pages_stay_small_and_fetch_nothing_from_elsewhere() {
        let sent: usize = PAGES.iter().chain(SHARED).flat_map(|f| f.files).map(|(_, content)| content.len()).sum();
        assert!(sent < 1_500_000, "{sent} bytes");
        assert!(ours().map(|(_, text)| text.len()).sum::<usize>() < 250_000);
        for (name, text) in ours() {
            // The only address is the name space of SVG, which is never fetched.
            let addresses = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!addresses.contains("http://") && !addresses.contains("https://"), "{name}");
            assert!(!text.contains("insertAdjacentHTML") && !text.contains("outerHTML"), "{name}");
            assert!(!text.contains("document.write") && !text.contains("eval("), "{name}");
            // The chart library's box takes it over, so that it can only empty it.
            assert_eq!(text.matches("innerHTML").count(), if name == "live/plot.js" { 2 } else { 0 }, "{name}");
        }
        assert!(!INDEX.contains("style=") && !INDEX.contains("<style") && !INDEX.contains("onload"));
    }

    #[test]
    fn every_file_that_a_page_imports_is_served() {
        let known: Vec<String> = ours().map(|(name, _)| name).collect();
        for (name, text) in ours().filter(|(name, _)| name.ends_with(".js")) {
            let folder = name.split('/').next().unwrap();
            for path in text.lines().filter_map(|line| line.strip_prefix("import ")?.split('\'').nth(1)) {
                let file = match path.strip_prefix("../") {
                    Some(other) => other.to_string(),
                    None => format!("{folder}/{}", path.trim_start_matches("./")),
                };
                assert!(file == "pages.js" || known.contains(&file), "{name} imports {path}");
            }
        }
        for page in PAGES {
            assert!(page.files.iter().any(|(name, _)| *name == "page.js"), "{}", page.name);
            let strings = ours().find(|(name, _)| name == "frame/strings.js").unwrap().1;
            assert!(strings.contains(&format!("\n  {}: [", page.name)), "no name for the page {}", page.name);
        }
    }

    /// Files that a file imports before it runs, and those that they import.
    fn imports(file: &str, known: &mut Vec<String>) {
        let (folder, text) = (file.split('/').next().unwrap(), ours().find(|(name, _)| name == file).unwrap().1);
        for path in text.lines().filter_map(|line| line.strip_prefix("import ")?.split('\'').nth(1)) {
            let file = match path.strip_prefix("../") {
                Some(other) => other.to_string(),
                None => format!("{folder}/{}", path.trim_start_matches("./")),
            };
            if file != "pages.js" && !known.contains(&file) {
                known.push(file.clone());
                imports(&file, known);
            }
        }
    }

    #[test]
    fn the_first_paint_waits_for_one_round_of_small_files() {
        let mut needed = vec!["frame/main.js".to_string()];
        imports("frame/main.js", &mut needed);
        let first = format!("{}/page.js", PAGES[0].name);
        needed.push(first.clone());
        imports(&first, &mut needed);
        // What is not named here is asked for only when another file has come: a round more.
        for file in needed.iter().chain([&"frame/frame.css".to_string()]) {
            assert!(INDEX.contains(&format!("\"/assets/{file}\"")), "{file} is not named in index.html");
        }
        let named: Vec<&str> = INDEX.split("\"/assets/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for name in named.iter().filter(|name| name.ends_with(".js") && **name != "pages.js") {
            assert!(needed.iter().any(|file| file == name), "{name} is not needed at first");
        }
        let sent = |name: &&str| ours().find(|(file, _)| file == *name).map_or(0, |(_, text)| text.len());
        let bytes = INDEX.len() + named.iter().map(sent).sum::<usize>();
        assert!(bytes < 100_000, "{bytes} bytes before the first paint");
    }

    #[test]
    fn every_text_is_there_in_both_languages_and_every_key_that_is_used_is_there() {
        let strings = ours().find(|(name, _)| name == "frame/strings.js").unwrap().1;
        let table = strings.split("const TABLE = {\n").nth(1).unwrap().split("\n};").next().unwrap();
        let mut keys = Vec::new();
        for line in table.lines() {
            let (key, texts) = line.trim().split_once(": [").unwrap_or_else(|| panic!("{line}"));
            let texts = texts.strip_suffix("],").unwrap_or_else(|| panic!("{line}"));
            assert_eq!(texts.matches("', '").count(), 1, "two texts: {line}");
            let (english, chinese) = texts.split_once("', '").unwrap();
            for place in ["{0}", "{1}"] {
                assert_eq!(english.contains(place), chinese.contains(place), "{line}");
            }
            assert!(!keys.contains(&key), "twice: {key}");
            keys.push(key);
        }
        let mut used = 0;
        for (name, text) in ours().filter(|(name, _)| name.ends_with(".js")) {
            for (at, call) in text.match_indices("t('") {
                // Another function may end in the same letter, as `select('` does.
                if text[..at].ends_with(|c: char| c.is_alphanumeric()) {
                    continue;
                }
                let key = text[at + call.len()..].split('\'').next().unwrap();
                assert!(keys.contains(&key), "{name}: no text `{key}`");
                used += 1;
            }
        }
        assert!(used > 50, "{used} texts are used");
    }
}
