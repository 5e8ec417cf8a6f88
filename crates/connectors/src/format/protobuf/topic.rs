//! The messages of a topic, and the frame that each begins with.
//!
//! ```text
//! descriptor, schema_file, schema    the message that option `message` names
//! the same, with registry            also registered under the subject; its records are framed
//! registry alone                     that of the subject's newest schema, when the program starts; framed
//! ```
//!
//! Invariant: all records of a life are of one schema; the registry is asked for it
//! once. Called by the sink `kafka`.

use super::{put::put_varint, schema, target::Target, write::Writer};
use crate::format::{
    registry::{self, Language, SchemaRegistry},
    time::Unit,
};
use arrow_schema::Schema;
use prost_reflect::MessageDescriptor;
use std::sync::{Arc, OnceLock};
use tidemill_core::{Error, Options, Result};

/// How rows become records of a topic.
#[derive(Debug)]
pub(crate) struct Topic {
    owner: String,
    /// What options give; else the registry has it.
    given: Option<Target>,
    registry: Option<Registry>,
    opened: OnceLock<(Writer, Vec<u8>)>,
}

/// Where the schema lies.
#[derive(Debug)]
struct Registry {
    registry: Arc<SchemaRegistry>,
    subject: String,
    what: What,
}

/// What the registry is told or asked.
#[derive(Debug)]
enum What {
    /// To register this text.
    Register(String),
    /// Its newest schema, and the message of it if it is not the first.
    Newest { message: Option<String>, number: Unit },
}

impl Topic {
    /// From a sink's options. Nothing is asked yet.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub(crate) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner().to_string();
        let wrong = |why: &str| Error::user(format!("{owner}: {why}"));
        let Some(registry) = SchemaRegistry::from_options(options)? else {
            if options.get("subject").is_some() {
                return Err(wrong("option `subject` goes with `registry`"));
            }
            let given = Some(Target::from_options(options)?);
            return Ok(Self { owner, given, registry: None, opened: OnceLock::new() });
        };
        let subject = registry::subject(options)?;
        let (given, what) = match schema::from_options(options)? {
            None => {
                let message = options.get("message").map(str::to_string);
                (None, What::Newest { message, number: Unit::from_options(options)? })
            }
            Some(given) => {
                let target = Target::given(options, &given)?;
                (Some(target.clone()), What::Register(own_text(given, &target.message).map_err(|why| wrong(&why))?))
            }
        };
        let registry = Some(Registry { registry, subject, what });
        Ok(Self { owner, given, registry, opened: OnceLock::new() })
    }

    /// Whether rows of these columns become messages, as far as the schema is known.
    ///
    /// # Errors
    /// With the column, and what to change.
    pub(crate) fn check(&self, columns: &Schema) -> Result<()> {
        self.given.as_ref().map_or(Ok(()), |target| target.writer(columns).map(drop))
    }

    /// What writes rows of these columns, which are the same for all rows, and what each record begins with. Where
    /// there is a registry it is asked once, and waited for.
    ///
    /// # Errors
    /// As [`Topic::check`]; when the registry refuses the schema, or does not answer.
    pub(crate) fn open(&self, columns: &Schema) -> Result<(&Writer, &[u8])> {
        let (writer, frame) = match self.opened.get() {
            Some(opened) => opened,
            None => {
                let (target, frame) = self.target()?;
                let writer = target.writer(columns)?;
                self.opened.get_or_init(|| (writer, frame))
            }
        };
        Ok((writer, frame))
    }

    fn target(&self) -> Result<(Target, Vec<u8>)> {
        let nothing = || Error::internal("a topic of messages without a schema");
        let Some(Registry { registry, subject, what }) = &self.registry else {
            return Ok((self.given.clone().ok_or_else(nothing)?, Vec::new()));
        };
        let (id, target) = match what {
            What::Register(text) => {
                let id = registry.register(subject, Language::Protobuf, text)?;
                (id, self.given.clone().ok_or_else(nothing)?)
            }
            What::Newest { message, number } => {
                let (id, newest) = registry.newest_to_write(subject)?;
                let found = newest.of(Language::Protobuf).and_then(|newest| {
                    let file = schema::registered(newest)?;
                    match message {
                        Some(name) => schema::find(file.parent_pool(), name).and_then(|message| {
                            let own = message.parent_file() == file;
                            if own { Ok(message) } else { Err(format!("`{name}` is a message of another schema")) }
                        }),
                        None => file.messages().next().ok_or_else(|| "it has no message".to_string()),
                    }
                });
                let message = found
                    .map_err(|why| Error::user(format!("{}: the newest schema of `{subject}`: {why}", self.owner)))?;
                (id, Target::new(&self.owner, message, *number))
            }
        };
        let mut frame = Vec::new();
        registry::frame(id, &mut frame);
        put_place(&schema::place(&target.message), &mut frame);
        Ok((target, frame))
    }
}

/// The text to register of a schema that options have given.
fn own_text(given: schema::Given, message: &MessageDescriptor) -> Result<String, String> {
    let by_hand = "register it by hand, and leave the schema out here: the subject's newest is written then";
    let Some((file, text)) = given.file else {
        return Err(format!("a registry takes no descriptors but the text of `schema_file`: give that, or {by_hand}"));
    };
    if let Some(import) = file.dependencies().find(|import| !import.name().starts_with("google/protobuf/")) {
        return Err(format!("the schema imports {}, which the registry has to have first: {by_hand}", import.name()));
    }
    if message.parent_file() != file {
        return Err("option `message` must name a message of the file itself, where there is a registry".to_string());
    }
    Ok(text)
}

/// Appends where a message lies in its file: zigzag numbers behind their count, or one zero for the first message.
fn put_place(place: &[usize], bytes: &mut Vec<u8>) {
    let zigzag = |number: usize| (number as u64) << 1;
    match place {
        [0] => put_varint(0, bytes),
        place => [place.len()].iter().chain(place).for_each(|number| put_varint(zigzag(*number), bytes)),
    }
}
