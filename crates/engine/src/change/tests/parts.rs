//! States of the parts of a statement, when this statement or another changes.

use super::*;
use std::collections::BTreeSet;

#[test]
fn a_view_before_another_and_a_clause_in_one_leave_the_parts_of_others_alone() {
    let view = |name: &str, parts: &[&str]| {
        let parts: Vec<String> = parts.iter().map(|of| format!("SELECT DISTINCT {of} AS v FROM lines")).collect();
        format!("CREATE VIEW {name} AS SELECT count(*) AS n FROM ({}) AS d;", parts.join(" UNION ALL "))
    };
    let (first, many) = (view("first", &["upper(value)"]), view("many", &["value", "value || '!'"]));
    let dir = tempfile::tempdir().unwrap();
    let want = oracle(&many, &all(), "SELECT n FROM many");
    let program = changed(dir.path(), &many, &format!("{first}{many}"), |b| b).unwrap();
    feed(&program, &AFTER);
    assert_eq!(ask(&program, "SELECT n FROM many"), want);
    drop(program);
    // A part before the others of its statement takes the name of one: that is told, and of this statement only.
    let more = view("many", &["length(value)::TEXT", "value", "value || '!'"]);
    let told = actions(builder(dir.path()), &format!("{first}{more}"));
    let of = |view: &str| -> Vec<(String, Action, bool)> {
        let own = told.iter().filter(|(name, ..)| name == view || name.starts_with(&format!("{view}.")));
        own.map(|(name, action, why)| (name.clone(), *action, why.contains("reads other rows now"))).collect()
    };
    let named = |view: &str, parts: &[&str]| parts.iter().map(|part| format!("{view}{part}")).collect::<Vec<_>>();
    let names = |of: &[(String, Action, bool)]| of.iter().map(|(name, ..)| name.clone()).collect::<BTreeSet<_>>();
    assert_eq!(names(&of("first")), named("first", &["", ".distinct"]).into_iter().collect());
    assert!(of("first").iter().all(|(_, action, other)| *action == Action::Keep && !other), "{told:?}");
    let all_of_many = named("many", &["", ".distinct", ".distinct-2", ".distinct-3"]);
    assert_eq!(names(&of("many")), all_of_many.into_iter().collect());
    assert!(of("many").iter().all(|(_, action, other)| *other || *action == Action::New), "{told:?}");
    // The order of what it gives is no other query.
    let ordered = many.replace(" AS d;", " AS d ORDER BY n LIMIT 1;");
    let told = actions(builder(dir.path()), &format!("{first}{ordered}"));
    assert!(told.iter().all(|(_, action, why)| *action == Action::Keep && why.is_empty()), "{told:?}");
}

/// Takes the ledger's last commits away, as a crash does that comes before the sync.
pub(super) fn lose_commits(dir: &Path, count: usize) {
    // Planned and committed take turns behind the checkpoint and the program: cut them off from the end.
    let path = dir.join("programs/p/ledger/00000000000000000000.ledger");
    let bytes = std::fs::read(&path).unwrap();
    let frames: Vec<usize> = (0..bytes.len()).step_by(16).filter(|at| bytes[*at..].starts_with(b"TMF1")).collect();
    let committed = |at: &&usize| bytes[**at + 64..].starts_with(b"{\"committed\"");
    let cut = frames.iter().filter(committed).rev().nth(count - 1).copied().unwrap();
    std::fs::write(&path, &bytes[..cut]).unwrap();
}
