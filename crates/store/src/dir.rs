//! A data directory and its one owner.
//!
//! ```text
//! LOCK     locked while a process owns the directory; holds its pid, for people
//! GATE     locked while a batch commits, and by who copies the directory meanwhile
//! FORMAT   the version of all that is inside
//! log/  programs/ …
//! ```
//!
//! Who reads beside the owner needs no lock ([`crate::log::Log::look`]). Who needs
//! log, ledger and states of one and the same batch closes the [`Gate`]: the
//! owner's next commit waits for it.
//!
//! Invariant: two processes never write in one data directory. The lock is the
//! operating system's and goes with the process; a left-over file locks nothing.

use crate::{
    backup::MANIFEST,
    disk::{self, RealDisk},
    fault::{Named, io_error},
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{Error, Result};

/// 2 since the ledger keeps programs and commits of the past; 3 since small files have a checksum; 6 since topics know
/// whose notices take rows back.
const FORMAT: u32 = 6;
/// There while a directory is being restored.
pub(crate) const UNFINISHED: &str = "RESTORING";

/// A data directory that this process owns until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    disk: Arc<RealDisk>,
    /// Closing the file gives the directory free.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be (mode 0700) and takes it.
    ///
    /// # Errors
    /// At once when another process, or another part of this one, owns it,
    /// naming the process; when it is a backup, which stays as it is; when a newer Tidemill wrote it, naming the version
    /// needed; when the disk refuses.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let disk = Arc::new(RealDisk);
        if disk::Disk::exists(&*disk, &path.join(MANIFEST)) {
            let shown = path.display();
            return Err(Error::user(format!(
                "{shown} is a backup ({MANIFEST} lies in it) and stays as it is: make a data directory of it with \
                 `tidemill restore {shown} --data DIR`, and use that"
            )));
        }
        disk::create_dir(&*disk, path).named("create", path)?;
        let lock = lock(path)?;
        if disk::Disk::exists(&*disk, &path.join(UNFINISHED)) {
            return Err(Error::user(format!(
                "the restore into {} was not finished: remove the directory and restore again",
                path.display()
            )));
        }
        let format = path.join("FORMAT");
        if disk::Disk::exists(&*disk, &format) {
            let bytes = disk::read_file(&*disk, &format).named("read", &format)?;
            if check_format(path, &bytes)? < FORMAT {
                // All of an older format is read as it is; what is written from now on an older build must not touch.
                disk::atomic_write(&*disk, &format, format_text(FORMAT).as_bytes()).named("write", &format)?;
            }
        } else {
            disk::atomic_write(&*disk, &format, format_text(FORMAT).as_bytes()).named("write", &format)?;
        }
        Ok(Self { path: path.to_owned(), disk, _lock: lock })
    }

    /// Whether a directory may be looked at beside its owner: it is there, and
    /// of a format that this build reads.
    ///
    /// # Errors
    /// Saying what is wrong with it.
    pub fn check(path: impl AsRef<Path>) -> Result<()> {
        let (path, disk) = (path.as_ref(), RealDisk);
        let format = path.join("FORMAT");
        if !disk::Disk::exists(&disk, &format) {
            return Err(Error::user(format!("{} is no data directory: name one with --data DIR", path.display())));
        }
        check_format(path, &disk::read_file(&disk, &format).named("read", &format)?).map(drop)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk that it is on.
    pub fn disk(&self) -> Arc<dyn disk::Disk> {
        Arc::clone(&self.disk) as Arc<dyn disk::Disk>
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

/// What a commit passes, one at a time, in whatever process.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    file: File,
}

/// The gate is passed, or closed, until this is dropped.
#[derive(Debug)]
pub struct Passing<'a>(&'a File);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        // Closing the file would do it, too.
        let _unlocked = self.0.unlock();
    }
}

impl Gate {
    /// The gate of a data directory; made if need be.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn of(dir: &Path) -> Result<Self> {
        let path = dir.join("GATE");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok(Self { file: file.named("open", &path)?, path })
    }

    /// Passes when nobody else is in it; `None` when somebody is.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn try_pass(&self) -> Result<Option<Passing<'_>>> {
        match self.file.try_lock() {
            Ok(()) => Ok(Some(Passing(&self.file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(io_error("lock", &self.path, e)),
        }
    }

    /// Waits until nobody else is in it, and passes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pass(&self) -> Result<Passing<'_>> {
        self.file.lock().named("lock", &self.path)?;
        Ok(Passing(&self.file))
    }
}

/// The `FORMAT` file of a version: a line with the number, and from 3 on one with its checksum.
fn format_text(version: u32) -> String {
    let line = format!("{version}\n");
    if version < 3 { line } else { format!("{line}crc32c {:08x}\n", crc32c::crc32c(line.as_bytes())) }
}

/// The version in a `FORMAT` file, when this build knows it.
fn check_format(path: &Path, bytes: &[u8]) -> Result<u32> {
    let text = String::from_utf8_lossy(bytes);
    let version = text.lines().next().and_then(|line| line.parse::<u32>().ok());
    match version.filter(|version| text == format_text(*version)) {
        Some(known) if (1..=FORMAT).contains(&known) => Ok(known),
        Some(newer) if newer > FORMAT => Err(Error::user(format!(
            "{} was written in format version {newer}, this build knows versions up to {FORMAT}: use a Tidemill that knows version {newer}",
            path.display()
        ))),
        _ => Err(Error::external(format!(
            "{} is damaged: it does not hold a version number and its checksum",
            path.join("FORMAT").display()
        ))
        .fatal()),
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .named("open", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // The pid is for the message only.
            let _ignored = file.read_to_string(&mut owner);
            let owner = owner.trim();
            let owner = if owner.is_empty() { "another process".to_owned() } else { format!("process {owner}") };
            return Err(Error::user(format!(
                "the data directory {} is in use by {owner}: stop it, or name another directory",
                dir.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(io_error("lock", &path, e)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).named("write", &path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_passes_the_gate() {
        let tmp = tempfile::tempdir().unwrap();
        let (commit, copy) = (Gate::of(tmp.path()).unwrap(), Gate::of(tmp.path()).unwrap());
        let passing = commit.try_pass().unwrap().unwrap();
        assert!(copy.try_pass().unwrap().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(copy.pass().unwrap()));
            drop(passing);
            waiting.join().unwrap();
        });
        let closed = copy.pass().unwrap();
        assert!(commit.try_pass().unwrap().is_none());
        drop(closed);
        assert!(commit.try_pass().unwrap().is_some());
    }

    #[test]
    fn a_second_owner_is_refused_by_name_and_pid() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert_eq!(error.blame(), tidemill_core::Blame::User);
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_naming_the_version() {
        let tmp = tempfile::tempdir().unwrap();
        let format = tmp.path().join("FORMAT");
        drop(DataDir::open(tmp.path()).unwrap());
        let now = std::fs::read(&format).unwrap();
        assert_eq!(now, format!("6\ncrc32c {:08x}\n", crc32c::crc32c(b"6\n")).as_bytes());
        for older in ["1\n".to_owned(), "2\n".to_owned(), format_text(3)] {
            std::fs::write(&format, older).unwrap();
            DataDir::check(tmp.path()).unwrap();
            drop(DataDir::open(tmp.path()).unwrap());
            assert_eq!(std::fs::read(&format).unwrap(), now, "an older one is taken over");
        }
        std::fs::write(&format, format_text(7)).unwrap();
        let text = DataDir::open(tmp.path()).unwrap_err().to_string();
        assert!(text.contains("version 7"), "{text}");
        std::fs::write(&format, "").unwrap();
        assert!(DataDir::open(tmp.path()).is_err());
    }

    #[test]
    fn a_flipped_bit_of_the_format_is_damage_and_no_other_version() {
        let tmp = tempfile::tempdir().unwrap();
        let now = format_text(FORMAT).into_bytes();
        for at in 0..now.len() {
            for bit in 0..8 {
                let mut flipped = now.clone();
                flipped[at] ^= 1 << bit;
                let error = check_format(tmp.path(), &flipped).unwrap_err();
                assert!(error.to_string().contains("FORMAT is damaged"), "byte {at}, bit {bit}: {error}");
            }
            assert!(check_format(tmp.path(), &now[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_backup_is_refused_and_left_as_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("BACKUP.json"), "{}").unwrap();
        let error = DataDir::open(tmp.path()).unwrap_err().to_string();
        assert!(error.contains("is a backup") && error.contains("tidemill restore "), "{error}");
        let names: Vec<_> = std::fs::read_dir(tmp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["BACKUP.json"], "no lock, no format");
    }

    #[test]
    fn others_may_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a/b");
        let dir = DataDir::open(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.join("LOCK")), mode(&dir.join("FORMAT"))), (0o700, 0o600, 0o600));
    }
}
