//! The page and its parts, carried in the binary.
//!
//! Invariant: together under 30 KB, plain files without a build step, and
//! nothing is fetched from anywhere else. Called by the router.

use crate::api;
use axum::{
    extract::Path,
    http::header,
    response::{IntoResponse, Response},
};

/// Name, media type and content of each part.
const PARTS: [(&str, &str, &str); 7] = [
    ("page.css", "text/css; charset=utf-8", include_str!("../pages/live/page.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("../pages/live/page.js")),
    ("view.js", "text/javascript; charset=utf-8", include_str!("../pages/live/view.js")),
    ("chart.js", "text/javascript; charset=utf-8", include_str!("../pages/live/chart.js")),
    ("feed.js", "text/javascript; charset=utf-8", include_str!("../pages/live/feed.js")),
    ("format.js", "text/javascript; charset=utf-8", include_str!("../pages/live/format.js")),
    ("icon.svg", "image/svg+xml", include_str!("../pages/live/icon.svg")),
];

const PAGE: &str = include_str!("../pages/live/page.html");

/// `/`
pub(crate) async fn page() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
}

/// `/assets/{name}`
pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    match PARTS.iter().find(|(part, ..)| *part == name) {
        Some((_, media, content)) => ([(header::CONTENT_TYPE, *media)], *content).into_response(),
        None => api::nothing_here().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stays_small_and_fetches_nothing_from_elsewhere() {
        let all = PARTS.iter().map(|(.., content)| *content).chain([PAGE]);
        assert!(all.clone().map(str::len).sum::<usize>() < 30_000);
        for content in all {
            // The only address is the name space of SVG, which is never fetched.
            let addresses = content.replace("http://www.w3.org/2000/svg", "");
            assert!(!addresses.contains("http://") && !addresses.contains("https://"));
            assert!(!content.contains("innerHTML") && !content.contains("insertAdjacentHTML"));
        }
        assert!(!PAGE.contains("style=") && !PAGE.contains("<style") && !PAGE.contains("onload"));
    }
}
