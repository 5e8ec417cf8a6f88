//! One name for a place on disk, however it is written.
//!
//! Invariant: two paths that lead to one place have one name, also when it is
//! not there yet. Called by sinks that have a place for themselves alone.

use std::path::{Component, Path, PathBuf};

/// The path in full, without `.`, `..` and symbolic links as far as it is there.
pub(crate) fn real_path(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let parts: Vec<Component<'_>> = whole.components().collect();
    // The longest beginning that is there; what comes behind it can have no links.
    let found = (1..=parts.len()).rev().find_map(|count| {
        let real = parts[..count].iter().collect::<PathBuf>().canonicalize().ok()?;
        Some((real, count))
    });
    let (mut real, count) = found.unwrap_or_default();
    for part in &parts[count..] {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            Component::CurDir => {}
            other => real.push(other),
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_a_path_give_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("there")).unwrap();
        std::os::unix::fs::symlink(root.join("there"), root.join("link")).unwrap();
        let real = |path: &str| real_path(&root.join(path));
        for path in ["there/two", "there/two/", "./there//two/.", "link/two", "link/../there/two", "there/new/../two"] {
            assert_eq!(real(path), root.join("there/two"), "{path}");
        }
        assert_eq!(real("there/"), root.join("there"));
        assert_ne!(real("there/two"), real("there/twO"));
        assert_eq!(real_path(Path::new("/")), Path::new("/"));
        assert_eq!(real_path(Path::new("nowhere/a/..")), std::path::absolute("nowhere").unwrap());
    }
}
