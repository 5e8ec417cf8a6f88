//! The tokens that a server knows, each with its role.
//!
//! ```text
//! # role    token, or its hash                                                        name
//! viewer    sha256:1f3d…64 hexadecimal digits…                                        grafana
//! operator  Zm9yIGV4YW1wbGUgb25seQ                                                    anna
//! ```
//!
//! Invariant: only hashes are kept; nothing here prints a token, nor does an
//! error about a line of the file; and finding one takes as long as not finding
//! it. Given to the server by whoever starts it, and asked by [`crate::callers`].

use crate::role::{Caller, Role};
use ring::digest::{SHA256, digest};
use std::{fmt, sync::Arc};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tidemill_core::{Error, Result};

/// Characters of a token at least: fewer could be guessed.
const SHORTEST: usize = 16;
/// Characters of a token, and of a name, at most.
const LONGEST: usize = 128;
/// Tokens at most.
const TOKENS: usize = 1024;

/// SHA-256 of a token.
pub(crate) type Digest = [u8; 32];

/// Who may ask, by token.
#[derive(Clone, Default)]
pub struct Tokens {
    known: Vec<(Digest, Caller)>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.known.len())
    }
}

impl Tokens {
    /// From lines `role token name`, where `sha256:…` stands for a token whose
    /// hash that is. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// A user's error that names `origin` and the line, and never its text.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut tokens = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| Error::user(format!("{origin}, line {}: {why}", number + 1));
            let words: Vec<&str> = line.split_whitespace().collect();
            let [role, token, name] = words[..] else {
                return Err(wrong("a line has three words: a role, a token or its hash, and a name"));
            };
            let role = Role::ALL.into_iter().find(|known| known.name() == role);
            let role = role.ok_or_else(|| wrong("it begins with a role: viewer, operator or admin"))?;
            tokens.add(role, token, name).map_err(|why| wrong(&why))?;
        }
        if tokens.known.is_empty() {
            return Err(Error::user(format!("there is no token in {origin}: give it lines `role token name`")));
        }
        Ok(tokens)
    }

    /// These and one more.
    ///
    /// # Errors
    /// A user's error when it is no token, or is there already; without its text.
    pub fn with(mut self, role: Role, token: &str, name: &str) -> Result<Self> {
        self.add(role, token, name)
            .map_err(|why| Error::user(format!("the token of {}: {why}", name.escape_debug())))?;
        Ok(self)
    }

    fn add(&mut self, role: Role, token: &str, name: &str) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > LONGEST || !name.chars().all(plain) {
            return Err(format!("a name consists of at most {LONGEST} letters, digits, `.`, `_` and `-`"));
        }
        let digest = match token.strip_prefix("sha256:") {
            Some(hash) => {
                hexadecimal(hash).ok_or("after `sha256:` come the 64 hexadecimal digits of the token's hash")?
            }
            // No other signs: a browser sends it as the name of a subprotocol, too.
            None if !(SHORTEST..=LONGEST).contains(&token.len()) || !token.chars().all(|c| plain(c) || c == '~') => {
                return Err(format!(
                    "a token consists of {SHORTEST} to {LONGEST} letters, digits, `.`, `_`, `~` and `-`; \
                     `openssl rand -hex 32` makes one"
                ));
            }
            None => hashed(token.as_bytes()),
        };
        if self.known.iter().any(|(known, caller)| *known == digest || &*caller.name == name) {
            return Err("this token or this name stands there a second time".to_string());
        }
        if self.known.len() == TOKENS {
            return Err(format!("there are more than {TOKENS} tokens"));
        }
        self.known.push((digest, Caller { name: Arc::from(name), role }));
        Ok(())
    }

    /// Whose token this is the hash of. Looks at all of them, whatever it finds.
    pub(crate) fn find(&self, presented: &Digest) -> Option<&Caller> {
        let (mut at, mut found) = (0_u32, Choice::from(0));
        for (i, (known, _)) in (0_u32..).zip(&self.known) {
            let same = known.ct_eq(presented);
            at.conditional_assign(&i, same);
            found |= same;
        }
        let caller = self.known.get(usize::try_from(at).ok()?).map(|(_, caller)| caller)?;
        bool::from(found).then_some(caller)
    }
}

/// What is kept of a token.
pub(crate) fn hashed(token: &[u8]) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token).as_ref());
    bytes
}

fn hexadecimal(text: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "canary-0123456789abcdef";

    #[test]
    fn tokens_and_their_hashes_are_found() {
        let hash: String = hashed(TOKEN.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        // As `printf %s TOKEN | sha256sum` has it.
        assert_eq!(hash, "4859dbe8050077420f266fc5f3ab1f4e484c4ce91e2d97abb70ab9679527381c");
        let text = format!("# who\n\nviewer sha256:{hash} grafana\n  admin\tother-token-0123456~  anna \n");
        let tokens = Tokens::parse(&text, "the file t").unwrap();
        let of = |token: &str| tokens.find(&hashed(token.as_bytes())).map(|c| (c.name.to_string(), c.role));
        assert_eq!(of(TOKEN), Some(("grafana".to_string(), Role::Viewer)));
        assert_eq!(of("other-token-0123456~"), Some(("anna".to_string(), Role::Admin)));
        for wrong in ["", "canary-0123456789abcde", "Canary-0123456789abcdef", &format!("sha256:{hash}"), &hash] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let more = tokens.with(Role::Operator, "third-token-0123456", "environment").unwrap();
        assert_eq!(more.find(&hashed(b"third-token-0123456")).unwrap().role, Role::Operator);
        assert_eq!(format!("{more:?}"), "3 tokens");
        assert!(Tokens::default().find(&hashed(b"")).is_none());
    }

    #[test]
    fn a_wrong_line_is_told_without_its_text() {
        for (line, told) in [
            ("viewer canary-0123456789abcdef", "three words"),
            ("viewer canary-0123456789abcdef a b", "three words"),
            ("root canary-0123456789abcdef a", "viewer, operator or admin"),
            ("Viewer canary-0123456789abcdef a", "viewer, operator or admin"),
            ("viewer canary-short a", "16 to 128"),
            ("viewer canary+0123456789/abcdef= a", "16 to 128"),
            ("viewer canary-0123456789abcdéf a", "16 to 128"),
            ("viewer sha256:canary a", "64 hexadecimal"),
            ("viewer canary-0123456789abcdef canary/../x", "a name consists"),
            ("admin second-0123456789abcdef one", "a second time"),
            ("admin first-0123456789abcdef two", "a second time"),
        ] {
            let text = format!("viewer first-0123456789abcdef one\n{line}\n");
            let error = Tokens::parse(&text, "the file t").unwrap_err().chain();
            assert!(error.contains("the file t, line 2: ") && error.contains(told), "{line}: {error}");
            assert!(!error.contains("canary") && !error.contains("0123456789"), "{error}");
        }
        let error = Tokens::parse("# none\n", "the file t").unwrap_err().chain();
        assert!(error.contains("no token in the file t"), "{error}");
        let error = Tokens::default().with(Role::Admin, "canary", "environment").unwrap_err().chain();
        assert!(error.contains("16 to 128") && !error.contains("canary"), "{error}");
    }
}
