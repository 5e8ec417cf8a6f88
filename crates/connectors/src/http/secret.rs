//! Credentials: from a file or the environment, never from a program's text.
//!
//! A [`Place`] says where one is; it is read anew for each connection, so that
//! a token which was replaced is taken without a restart.
//!
//! Invariant: nothing prints a [`Secret`]: not `Debug`, not an error, not a log.

use std::{fmt, path::PathBuf};
use tidemill_core::{Error, Options, Result};

/// Bytes of a file with credentials at most.
const MOST: u64 = 64 << 10;

/// A credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        Self::Given(vec![Secret::new(text)])
    }
}

impl Secret {
    /// A credential of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text, for the wire alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a credential is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// In the environment's variable of this name.
    Env(String),
    /// Here, given by a program in Rust.
    Given(Vec<Secret>),
}

impl Place {
    /// From the options `<what>_file` or `<what>_env`; the variable `usual` unless they say.
    ///
    /// # Errors
    /// When the credential itself stands in the program, or both options are given.
    pub fn from_options(options: &Options, what: &str, usual: &str) -> Result<Self> {
        let owner = options.owner();
        let (file, env) = (format!("{what}_file"), format!("{what}_env"));
        if options.get(what).is_some() {
            return Err(Error::user(format!(
                "{owner}: option `{what}`: a credential does not stand in a program; put it into a file and name it with `{file}`, or into the environment and name the variable with `{env}` ({usual} unless said)"
            )));
        }
        match (options.get(&file), options.get(&env)) {
            (Some(_), Some(_)) => Err(Error::user(format!("{owner}: give `{file}` or `{env}`, not both"))),
            (Some(path), None) => Ok(Self::File(PathBuf::from(path))),
            (None, Some(name)) => Ok(Self::Env(name.to_string())),
            (None, None) => Ok(Self::Env(usual.to_string())),
        }
    }

    /// The credentials, one a line (in a variable also with commas); lines that are empty or begin with `#` are
    /// passed over.
    ///
    /// # Errors
    /// When they can't be read, or there is none.
    pub fn read(&self) -> Result<Vec<Secret>> {
        let text = match self {
            Self::Given(secrets) => return Ok(secrets.clone()),
            Self::Env(name) => std::env::var(name)
                .map_err(|_| {
                    let what = "which should hold the credential, is not set";
                    Error::user(format!("the environment's variable {name}, {what}"))
                })?
                .replace(',', "\n"),
            Self::File(path) => {
                let named = |e| Error::user(format!("can't read the credential in {}", path.display())).because(e);
                let length = std::fs::metadata(path).map_err(named)?.len();
                if length > MOST {
                    return Err(Error::user(format!("{} has {length} bytes and is no credential", path.display())));
                }
                std::fs::read_to_string(path).map_err(named)?
            }
        };
        let all: Vec<Secret> =
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(Secret::new).collect();
        // What goes into a header has to be plain; the text itself is not shown.
        if all.iter().any(|secret| !secret.0.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::user(format!("the credential in {self} has spaces or signs that none has")));
        }
        if all.is_empty() {
            return Err(Error::user(format!("there is no credential in {self}")));
        }
        Ok(all)
    }

    /// The first of them, for networks that take one.
    ///
    /// # Errors
    /// As [`Place::read`].
    pub fn read_one(&self) -> Result<Secret> {
        self.read()?.into_iter().next().ok_or_else(|| Error::internal("a credential that was read"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "variable {name}"),
            Self::Given(_) => f.write_str("the program"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# two tokens\nAAA-111\n\n  BBB-222  \n").unwrap();
        let path = file.path().display().to_string();
        let place = Place::from_options(&Options::new("s", [("token_file", path.as_str())]), "token", "T").unwrap();
        let all = place.read().unwrap();
        assert_eq!(all, [Secret::new("AAA-111"), Secret::new("BBB-222")]);
        assert_eq!(place.read_one().unwrap().expose(), "AAA-111");
        assert_eq!(
            format!("{all:?} {:?}", Place::Given(vec![Secret::new("AAA-111")])),
            "[(secret), (secret)] Given([(secret)])"
        );

        // Damaged ones are told without their text.
        std::fs::write(file.path(), "tok en").unwrap();
        let error = place.read().unwrap_err().chain();
        assert!(error.contains("spaces") && !error.contains("tok en"), "{error}");
        std::fs::write(file.path(), "# none\n").unwrap();
        assert!(place.read().unwrap_err().chain().contains("no credential"));
    }

    #[test]
    fn a_credential_in_the_program_is_refused() {
        let error = Place::from_options(&Options::new("s", [("token", "hunter2")]), "token", "X_TOKEN").unwrap_err();
        assert!(error.to_string().contains("`token_file`") && !error.to_string().contains("hunter2"), "{error}");
        let both = Options::new("s", [("token_file", "a"), ("token_env", "b")]);
        assert!(Place::from_options(&both, "token", "T").is_err());
        let unset =
            Place::from_options(&Options::new("s", [("token_env", "TIDEMILL_NEVER_SET")]), "token", "T").unwrap();
        assert!(unset.read().unwrap_err().to_string().contains("TIDEMILL_NEVER_SET"));
    }
}
