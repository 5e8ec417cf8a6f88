//! Texts that replace a match: Java's as ours.
//!
//! In Java `$1` is a group whatever follows, with more digits as long as there is such a group; `${name}` is a named one
//! and a backslash takes the next character as it is. Here `${1}` and `${name}` are groups, and `$$` is a dollar.
//!
//! Invariant: what is written means the same, or why it can't is told. Called by the import.

use regex::Regex;

/// `java` as ours, for matches of `search`; `None` when that is not known.
///
/// # Errors
/// What Java would refuse, too, once a match comes.
pub(super) fn replacement(java: &str, search: Option<&Regex>) -> Result<String, String> {
    let is_there = |group: usize| search.is_none_or(|search| group < search.captures_len());
    let mut ours = String::with_capacity(java.len());
    let mut chars = java.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('$') => ours.push_str("$$"),
                Some(other) => ours.push(other),
                None => return Err("nothing follows its last backslash".to_owned()),
            },
            '$' if chars.next_if_eq(&'{').is_some() => {
                let name: String = chars.by_ref().take_while(|c| *c != '}').collect();
                let known = |search: &Regex| search.capture_names().flatten().any(|known| known == name);
                if !search.is_none_or(known) {
                    return Err(format!("there is no group `{name}`"));
                }
                ours.push_str(&format!("${{{name}}}"));
            }
            '$' => {
                let digit = |c: &char| c.to_digit(10).map(|digit| digit as usize);
                let mut group = chars.next_if(char::is_ascii_digit).as_ref().and_then(digit);
                let first = group.ok_or("no group follows its dollar, which `\\$` would be")?;
                if !is_there(first) {
                    return Err(format!("there is no group {first}"));
                }
                while let (Some(so_far), Some(next)) = (group, chars.peek().and_then(digit)) {
                    let longer = so_far * 10 + next;
                    // Without its pattern a group of two digits is not likely.
                    if search.is_none() || !is_there(longer) {
                        break;
                    }
                    group = Some(longer);
                    chars.next();
                }
                ours.push_str(&format!("${{{}}}", group.unwrap_or(first)));
            }
            other => ours.push(other),
        }
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_dollars_mean_what_they_mean_to_java() {
        let two = Regex::new(r"(\d+)-(?<last>\d+)").unwrap();
        let eleven = Regex::new(&"(.)".repeat(11)).unwrap();
        for (java, search, ours) in [
            ("$1XX", Some(&two), "${1}XX"),
            ("$12", Some(&two), "${1}2"),
            ("$12", Some(&eleven), "${1}2"),
            ("$11$0", Some(&eleven), "${11}${0}"),
            ("$11", None, "${1}1"),
            (r"\$5 and \\ ${last}!", Some(&two), r"$$5 and \ ${last}!"),
            ("", Some(&two), ""),
        ] {
            assert_eq!(replacement(java, search).as_deref(), Ok(ours), "{java}");
        }
        for (java, why) in [("$3", "no group 3"), ("$x", "`\\$`"), ("${no}", "no group `no`"), ("a\\", "backslash")] {
            let error = replacement(java, Some(&two)).unwrap_err();
            assert!(error.contains(why), "{java}: {error}");
        }
        // What is written means that here, too.
        let ours = replacement(r"\$$1XX", Some(&two)).unwrap();
        assert_eq!(two.replace("7-8", ours.as_str()), "$7XX");
    }
}
