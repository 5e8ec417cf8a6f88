//! Files and variables with tokens and keys.
//!
//! Invariant: a file that others could read, or write, is refused before it is
//! read, and no error shows what stands in one. Called by [`super::page`] and
//! [`super::client`].

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};
use tidemill::{Error, Result};

/// Bytes of such a file at most.
const MOST: u64 = 1 << 20;

/// Permissions that a file must not give: none but its owner may have any.
pub(super) const OWNER_ONLY: u32 = 0o077;
/// A group may read it, as keys of certificates are often kept.
pub(super) const NO_OTHERS: u32 = 0o037;
/// What is in it is for all.
pub(super) const ANYBODY: u32 = 0;

/// The text of a file that gives nobody a permission of `forbidden`.
///
/// # Errors
/// A user's error that names the file and what to do.
pub(super) fn read(path: &Path, what: &str, forbidden: u32) -> Result<String> {
    let shown = path.display();
    let failed = |why: &str| Error::user(format!("can't read {what} in {shown}: {why}"));
    let file = File::open(path).map_err(|e| failed("is the path right?").because(e))?;
    // Of what was opened, not of what is there by now.
    let about = file.metadata().map_err(|e| failed("is the path right?").because(e))?;
    if !about.is_file() {
        return Err(failed("it is no file"));
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & forbidden != 0 {
        return Err(Error::user(format!(
            "others may read or change {what} in {shown} (mode {mode:04o}): run `chmod 600 {shown}`, and replace what they may have seen"
        )));
    }
    if about.size() > MOST {
        return Err(failed("it is larger than 1 MiB"));
    }
    let mut text = String::new();
    // The cause would be that it is no text, of which nothing is shown.
    file.take(MOST).read_to_string(&mut text).map_err(|_| failed("it is not UTF-8, or the disk fails"))?;
    Ok(text)
}

/// A variable of the environment that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, "admin canary-0123456789abcdef me\n").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for bad in [0o644, 0o640, 0o604, 0o660, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777] {
            mode(bad);
            let error = read(&path, "the tokens", OWNER_ONLY).unwrap_err().chain();
            assert!(error.contains("chmod 600") && error.contains(&format!("mode {bad:04o}")), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
        for good in [0o600, 0o400] {
            mode(good);
            assert!(read(&path, "the tokens", OWNER_ONLY).unwrap().contains("canary"));
        }
        mode(0o640);
        assert!(read(&path, "the key", NO_OTHERS).is_ok());
        mode(0o644);
        assert!(read(&path, "the key", NO_OTHERS).is_err() && read(&path, "the certificate", ANYBODY).is_ok());
        fs::write(&path, b"canary \xff").unwrap();
        let error = read(&path, "the certificate", ANYBODY).unwrap_err().chain();
        assert!(error.contains("not UTF-8") && !error.contains("canary"), "{error}");
        let error = read(dir.path(), "the tokens", OWNER_ONLY).unwrap_err().chain();
        assert!(error.contains("it is no file"), "{error}");
        assert!(read(&dir.path().join("none"), "the tokens", OWNER_ONLY).unwrap_err().chain().contains("No such file"));
    }
}
