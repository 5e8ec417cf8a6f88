//! Which files an input has: a file, those of a directory, or those of a glob.
//!
//! Invariant: a file that is being prepared (its name begins with `.` or `_`,
//! or ends in `.tmp`) is never listed. Listing costs one `stat` while a
//! directory has not changed. Called by [`super::FilesSource`].

use glob::{MatchOptions, Pattern};
use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tidemill_core::{Error, Result};

/// A directory that changed this recently may change again within the same
/// time stamp, so its listing is not kept.
const STAMP: Duration = Duration::from_secs(1);
const MATCH: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What is listed.
#[derive(Debug)]
pub(super) struct Listing {
    /// Partitions are named by their path below this directory.
    pub(super) root: PathBuf,
    what: What,
    /// The names as of a change time of the directory.
    kept: Option<(SystemTime, Vec<PathBuf>)>,
}

#[derive(Debug)]
enum What {
    File(PathBuf),
    Directory,
    /// A pattern below the root, and how many directories deep it goes.
    Glob(Pattern, usize),
}

impl Listing {
    /// From a path as the user wrote it.
    pub(super) fn new(path: &str) -> Result<Self> {
        if !path.contains(['*', '?', '[']) {
            let path = PathBuf::from(path);
            let meta = fs::metadata(&path).map_err(|e| {
                Error::user(format!("files: can't read {}; is option `path` right?", path.display())).because(e)
            })?;
            if meta.is_dir() {
                return Ok(Self { root: path, what: What::Directory, kept: None });
            }
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            let root = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
            return Ok(Self { root, what: What::File(name), kept: None });
        }
        let mut root = PathBuf::new();
        let mut rest = PathBuf::new();
        for part in Path::new(path).components() {
            let plain = !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
            if plain && rest.as_os_str().is_empty() { root.push(part) } else { rest.push(part) }
        }
        let text = rest.to_string_lossy();
        let pattern = Pattern::new(&text)
            .map_err(|e| Error::user(format!("files: option `path`: `{path}` is not a pattern")).because(e))?;
        let deep = if text.contains("**") { usize::MAX } else { rest.components().count() - 1 };
        Ok(Self { root, what: What::Glob(pattern, deep), kept: None })
    }

    /// Paths below the root, in order; again from the disk only if the directory has changed.
    pub(super) fn names(&mut self) -> Result<&[PathBuf]> {
        let root = if self.root.as_os_str().is_empty() { Path::new(".") } else { &self.root };
        let failed = |e: io::Error| Error::external(format!("files: can't list {}", root.display())).because(e);
        let flat = !matches!(self.what, What::Glob(_, deep) if deep > 0);
        let changed = if flat { Some(fs::metadata(root).and_then(|m| m.modified()).map_err(failed)?) } else { None };
        let current = self.kept.as_ref().is_some_and(|(at, _)| Some(*at) == changed);
        if !current {
            let mut names = Vec::new();
            match &self.what {
                What::File(name) => names.push(name.clone()),
                What::Directory => walk(root, Path::new(""), 0, &mut |name| names.push(name)).map_err(failed)?,
                What::Glob(pattern, deep) => walk(root, Path::new(""), *deep, &mut |name| {
                    if pattern.matches_path_with(&name, MATCH) {
                        names.push(name);
                    }
                })
                .map_err(failed)?,
            }
            names.sort();
            let long_ago = changed.filter(|at| at.elapsed().is_ok_and(|age| age > STAMP));
            // A time that is never equal to the directory's has the next call list again.
            self.kept = Some((long_ago.unwrap_or(SystemTime::UNIX_EPOCH), names));
        }
        Ok(self.kept.as_ref().map_or(&[], |(_, names)| names))
    }

    /// Whole paths of all files, in order.
    pub(super) fn files(mut self) -> Result<impl Iterator<Item = PathBuf>> {
        let names = self.names()?.to_vec();
        let root = self.root;
        Ok(names.into_iter().map(move |name| root.join(name)))
    }
}

fn walk(root: &Path, below: &Path, deep: usize, found: &mut impl FnMut(PathBuf)) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        if is_being_prepared(&name) {
            continue;
        }
        let path = below.join(&name);
        let mut kind = entry.file_type()?;
        if kind.is_symlink() {
            // A link that leads nowhere is nobody's file.
            let Ok(meta) = fs::metadata(entry.path()) else { continue };
            kind = meta.file_type();
        }
        if kind.is_file() {
            found(path);
        } else if kind.is_dir() && deep > 0 && !entry.file_type()?.is_symlink() {
            walk(root, &path, deep - 1, found)?;
        }
    }
    Ok(())
}

fn is_being_prepared(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(['.', '_']) || name.ends_with(".tmp")
}
