//! Reading members of JSON objects, and texts without their HTML.
//!
//! Invariant: what is missing, `null` or of another type is `None`; only an id
//! that is missing is an error. Called by the mappers.

use serde_json::Value;
use tidemill_core::Timestamp;

/// The text at a path of members, such as `user/name`.
pub(super) fn string(value: &Value, path: &str) -> Option<String> {
    at(value, path)?.as_str().map(str::to_string)
}

/// The text at a path, unless it is empty.
pub(super) fn filled(value: &Value, path: &str) -> Option<String> {
    string(value, path).filter(|text| !text.is_empty())
}

/// The whole number at a path.
pub(super) fn number(value: &Value, path: &str) -> Option<i64> {
    at(value, path)?.as_i64()
}

/// The id at a path: a text, or a whole number.
pub(super) fn id(value: &Value, path: &str) -> Option<String> {
    match at(value, path)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// The instant at a path.
pub(super) fn instant(value: &Value, path: &str) -> Option<Timestamp> {
    crate::format::time::instant(at(value, path)?.as_str()?).map(Timestamp)
}

/// The value at a path.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').try_fold(value, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// The items of the list at a path; none when there is no list.
pub(super) fn items<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    at(value, path).and_then(Value::as_array).into_iter().flatten()
}

/// What is refused when a record has no id.
pub(super) fn missing(field: &str) -> String {
    format!("field \"{field}\": missing, so it is no post")
}

/// The text that HTML shows: paragraphs apart by an empty line, `<br>` as a line's end, other tags left out.
pub(super) fn plain(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        text.push_str(&rest[..open]);
        let Some(length) = rest[open..].find('>') else {
            // No tag: a `<` on its own.
            text.push_str(&rest[open..]);
            rest = "";
            break;
        };
        let tag = rest[open + 1..open + length].trim_end_matches('/').trim();
        let name = tag.split_ascii_whitespace().next().unwrap_or_default();
        if name.eq_ignore_ascii_case("br") {
            text.push('\n');
        } else if name.eq_ignore_ascii_case("/p") {
            text.push_str("\n\n");
        }
        rest = &rest[open + length + 1..];
    }
    text.push_str(rest);
    unescape(text.trim_end_matches('\n'))
}

/// The text without entities such as `&amp;`; what is none stays.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(from) = rest.find('&') {
        out.push_str(&rest[..from]);
        let entity = rest[from + 1..].find(';').filter(|length| *length <= 8);
        let found = entity.and_then(|length| Some((character(&rest[from + 1..from + 1 + length])?, length)));
        match found {
            Some((c, length)) => {
                out.push(c);
                rest = &rest[from + length + 2..];
            }
            None => {
                out.push('&');
                rest = &rest[from + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn character(entity: &str) -> Option<char> {
    Some(match entity {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => '\u{a0}',
        _ => {
            let number = entity.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_becomes_what_it_shows() {
        for (html, text) in [
            ("<p>one<br>two<br/>three</p><p>four &amp; five</p>", "one\ntwo\nthree\n\nfour & five"),
            (
                r#"<p><a href="https://a.example/tags/tea" class="mention hashtag">#<span>tea</span></a> &lt;3</p>"#,
                "#tea <3",
            ),
            ("no tags", "no tags"),
            ("1 < 2", "1 < 2"),
            ("&#39;x&#x1F375;&quot; &unknown; &amp", "'x🍵\" &unknown; &amp"),
            ("", ""),
            ("<P>茶</P>", "茶"),
        ] {
            assert_eq!(plain(html), text, "{html}");
        }
        assert_eq!(unescape("&amp;lt;"), "&lt;");
    }
}
