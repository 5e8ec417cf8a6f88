//! The descriptors of messages: from a file of `protoc`, from text, from a registry.
//!
//! Text is compiled here (crate `protox`); what it imports is read beside it, or is
//! what a registry's schema refers to. Google's own files are always there.
//!
//! Invariant: nothing is read but what options and imports name. Called by the format.

use crate::format::registry::Registered;
use prost_reflect::{DescriptorPool, FileDescriptor, MessageDescriptor};
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tidemill_core::{Error, Options, Result, nearest};

/// The name of a schema that has no file.
const NAMELESS: &str = "schema.proto";

/// The schema that options name.
pub(super) struct Given {
    pub(super) pool: DescriptorPool,
    /// The file, and its text, as a registry takes it; none of a set of descriptors.
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "nothing else is told to a registry"))]
    pub(super) file: Option<(FileDescriptor, String)>,
}

impl Given {
    fn file(file: FileDescriptor, text: String) -> Self {
        Self { pool: file.parent_pool().clone(), file: Some((file, text)) }
    }
}

/// The schema that options name, if they do.
///
/// # Errors
/// When it can't be read.
pub(super) fn from_options(options: &Options) -> Result<Option<Given>> {
    let owner = options.owner();
    let wrong = |option: &str, why: String| Error::user(format!("{owner}: option `{option}`: {why}"));
    match (options.get("descriptor"), options.get("schema_file"), options.get("schema")) {
        (None, None, None) => Ok(None),
        (Some(path), None, None) => {
            let bytes = crate::files::small(path).map_err(|why| wrong("descriptor", why))?;
            let pool = DescriptorPool::decode(&bytes[..]).map_err(|e| {
                wrong(
                    "descriptor",
                    format!(
                        "{path} is no set of descriptors (protoc --descriptor_set_out={path} --include_imports): {e}"
                    ),
                )
            })?;
            Ok(Some(Given { pool, file: None }))
        }
        (None, Some(path), None) => {
            let text = text_of(path).map_err(|why| wrong("schema_file", why))?;
            let path = Path::new(path);
            let (name, dir) = (path.file_name().and_then(|name| name.to_str()), path.parent());
            let name = name.ok_or_else(|| wrong("schema_file", "it names no file".to_string()))?;
            let beside = Beside(dir.unwrap_or(Path::new("")).to_owned());
            let file = compile(name, beside).map_err(|why| wrong("schema_file", why))?;
            Ok(Some(Given::file(file, text)))
        }
        (None, None, Some(text)) => {
            let texts = Texts(HashMap::from([(NAMELESS.to_string(), text.to_string())]));
            let file = compile(NAMELESS, texts).map_err(|why| wrong("schema", why))?;
            Ok(Some(Given::file(file, text.to_string())))
        }
        _ => Err(Error::user(format!("{owner}: give one of `descriptor`, `schema_file` and `schema`"))),
    }
}

fn text_of(path: &str) -> Result<String, String> {
    String::from_utf8(crate::files::small(path)?).map_err(|_| format!("{path} is no text"))
}

/// The file of a registry's schema.
pub(super) fn registered(schema: &Registered) -> Result<FileDescriptor, String> {
    let mut texts: HashMap<String, String> = schema.references.iter().cloned().collect();
    texts.insert(NAMELESS.to_string(), schema.text.clone());
    compile(NAMELESS, Texts(texts))
}

/// A message by its full name.
pub(super) fn find(pool: &DescriptorPool, name: &str) -> Result<MessageDescriptor, String> {
    pool.get_message_by_name(name.trim_start_matches('.')).ok_or_else(|| {
        let messages: Vec<MessageDescriptor> = pool.all_messages().collect();
        let names: Vec<&str> = messages.iter().map(MessageDescriptor::full_name).collect();
        let own: Vec<&str> =
            names.iter().copied().filter(|name| !name.starts_with("google.protobuf.")).take(20).collect();
        let hint = nearest(name, &names)
            .map_or_else(|| format!("there are {}", own.join(", ")), |n| format!("did you mean `{n}`?"));
        format!("there is no message `{name}`; {hint}")
    })
}

/// The message at a place of a file: each index is of a message within the one before.
pub(super) fn at(file: &FileDescriptor, indexes: &[usize]) -> Result<MessageDescriptor, String> {
    let nowhere = || format!("there is no message at {indexes:?} of the schema");
    let (first, inner) = indexes.split_first().ok_or_else(nowhere)?;
    let first = file.messages().nth(*first).ok_or_else(nowhere)?;
    inner.iter().try_fold(first, |outer, index| {
        // Messages that stand for the entries of maps have their place among the others.
        outer.child_messages().nth(*index).ok_or_else(nowhere)
    })
}

/// Where a message lies in its file, as [`at`] takes it.
#[cfg(feature = "kafka")]
pub(super) fn place(message: &MessageDescriptor) -> Vec<usize> {
    // The path of descriptors: a list's number before each index.
    message.path().iter().skip(1).step_by(2).filter_map(|index| usize::try_from(*index).ok()).collect()
}

fn compile(name: &str, files: impl FileResolver + 'static) -> Result<FileDescriptor, String> {
    let mut chain = ChainFileResolver::new();
    chain.add(files);
    chain.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(chain);
    compiler.include_imports(true).include_source_info(false);
    compiler.open_file(name).map_err(|e| e.to_string())?;
    let pool = compiler.descriptor_pool();
    pool.get_file_by_name(name).ok_or_else(|| format!("{name} was not compiled"))
}

/// Files of a folder.
#[derive(Debug)]
struct Beside(PathBuf);

impl FileResolver for Beside {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let path = self.0.join(name);
        // What is not here may be one of Google's.
        let bytes = crate::files::small(&path.to_string_lossy()).map_err(|_| protox::Error::file_not_found(name))?;
        let text = String::from_utf8(bytes).map_err(|_| protox::Error::new(format!("{name} is no text")))?;
        File::from_source(name, &text)
    }
}

/// Files in memory.
#[derive(Debug)]
struct Texts(HashMap<String, String>);

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(text) => File::from_source(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}
