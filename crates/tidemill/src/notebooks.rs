//! Notebooks as files beside the program: `NAME.notebook.md`.
//!
//! A file is Markdown with blocks of SQL, for the page, an editor and a
//! repository alike. Invariant: a name leads to one file of this folder and to
//! nothing else, also where a link lies in its place; a file is replaced whole,
//! and only if it is the one that the writer has seen, whoever changed it since.
//! Given to the page by [`crate::assemble`].

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};
use tidemill_core::{Error, Notebook, Result, Shelf, Shelved};
use tidemill_store::{RealDisk, atomic_write, disk};

/// End of the name of a file.
const END: &str = ".notebook.md";
/// Bytes of a notebook that are read at most.
const TEXT: u64 = 1 << 20;
/// Notebooks that are listed at most.
const LISTED: usize = 200;

/// Notebooks in a folder, which is made when the first is kept.
pub struct Folder {
    path: PathBuf,
    /// Held from the look at a file to its replacement.
    writing: parking_lot::Mutex<()>,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "notebooks in {}", self.path.display())
    }
}

impl Folder {
    /// The notebooks in the folder `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writing: parking_lot::Mutex::default() }
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.bytes().all(plain) {
            return Err(Error::user(format!(
                "{name:?} is no name of a notebook: use letters, digits, `.`, `_` and `-`"
            )));
        }
        Ok(self.path.join(format!("{name}{END}")))
    }

    fn text(path: &Path) -> Result<Option<String>> {
        let failed = |why: &str| Error::external(format!("can't read the notebook {}: {why}", path.display()));
        // Of the name itself: what a link leads to is no notebook of this folder.
        let about = match fs::symlink_metadata(path) {
            Ok(about) => about,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("the disk refused").because(e)),
        };
        if !about.is_file() {
            return Err(failed("it is no plain file").fatal());
        }
        if about.len() > TEXT {
            return Err(failed("it is larger than 1 MiB").fatal());
        }
        let bytes = fs::read(path).map_err(|e| failed("the disk refused").because(e))?;
        let text = String::from_utf8(bytes).map_err(|e| failed("it is not UTF-8").because(e))?;
        Ok(Some(text))
    }
}

/// Differs when the text does: 64 bits of FNV-1a, against mistakes and not against malice.
fn revision(text: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    format!("{hash:016x}{:x}", text.len())
}

impl Shelf for Folder {
    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => {
                return Err(Error::external(format!("can't list notebooks in {}", self.path.display())).because(e));
            }
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(END).map(String::from))
            .filter(|name| self.file(name).is_ok())
            .collect();
        names.sort();
        names.truncate(LISTED);
        Ok(names)
    }

    fn read(&self, name: &str) -> Result<Option<Notebook>> {
        let text = Self::text(&self.file(name)?)?;
        Ok(text.map(|text| Notebook { revision: revision(&text), text }))
    }

    fn keep(&self, name: &str, text: &str, seen: Option<&str>) -> Result<Shelved> {
        let path = self.file(name)?;
        let _writing = self.writing.lock();
        let there = Self::text(&path)?.map(|text| revision(&text));
        if there.as_deref() != seen {
            return Ok(Shelved::Refused(there));
        }
        let failed = |e| Error::external(format!("can't write the notebook {}", path.display())).because(e);
        if !self.path.is_dir() {
            disk::create_dir(&RealDisk, &self.path).map_err(failed)?;
        }
        atomic_write(&RealDisk, &path, text.as_bytes()).map_err(failed)?;
        Ok(Shelved::As(revision(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notebook_is_kept_over_the_one_that_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("new"));
        assert!(folder.names().unwrap().is_empty());
        assert_eq!(folder.read("a").unwrap(), None);
        let Shelved::As(first) = folder.keep("a", "# one", None).unwrap() else { panic!("kept") };
        assert_eq!(folder.keep("a", "# other", None).unwrap(), Shelved::Refused(Some(first.clone())));
        let Shelved::As(second) = folder.keep("a", "# two", Some(&first)).unwrap() else { panic!("kept") };
        assert_eq!(folder.keep("a", "# late", Some(&first)).unwrap(), Shelved::Refused(Some(second.clone())));
        let kept = folder.read("a").unwrap().unwrap();
        assert_eq!((kept.text.as_str(), &kept.revision), ("# two", &second));
        // An editor changes it beside us.
        fs::write(dir.path().join("new/a.notebook.md"), "# by hand").unwrap();
        assert!(matches!(folder.keep("a", "# three", Some(&second)).unwrap(), Shelved::Refused(Some(_))));
        assert_eq!(folder.keep("b", "x", Some(&second)).unwrap(), Shelved::Refused(None), "it was removed");
        assert_eq!(folder.names().unwrap(), ["a"]);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("in"));
        for name in ["../out", "a/b", "", ".", "..", ".a", "a\0b", "/etc/passwd", "a b"] {
            assert!(folder.read(name).is_err() && folder.keep(name, "x", None).is_err(), "{name:?}");
        }
        folder.keep("a", "x", None).unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("in/link.notebook.md")).unwrap();
        assert!(folder.read("link").unwrap_err().to_string().contains("no plain file"));
        assert!(folder.keep("link", "x", None).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "s");
    }
}
