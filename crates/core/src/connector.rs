//! The registration list: names in SQL and config to the parts behind them.
//!
//! Invariant: the engine looks connectors up here by name and knows none of
//! them; a new one is one registration line in the `connectors` crate.

use crate::{Error, Format, Lookup, Notices, Options, Receiver, Result, Sink, Source, options::nearest};
use arrow_schema::SchemaRef;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// An opened input.
#[derive(Debug, Clone)]
pub enum Input {
    /// Read by offset.
    Source(Arc<dyn Source>),
    /// Pushed; each receiver gets a partition of the stream's topic.
    Receivers(Vec<Arc<dyn Receiver>>),
}

/// Opens an input from its options. Must not connect yet.
pub type InputFactory = fn(&Options) -> Result<Input>;
/// Makes a format from its options and the declared columns, if any.
pub type FormatFactory = fn(&Options, Option<SchemaRef>) -> Result<Arc<dyn Format>>;
/// Opens a sink from its options.
pub type SinkFactory = fn(&Options) -> Result<Arc<dyn Sink>>;

/// Opens a table that is asked by key: its options, the declared columns, the names of the key's columns. Must not
/// connect yet.
pub type LookupFactory = fn(&Options, &SchemaRef, &[String]) -> Result<Arc<dyn Lookup>>;

/// Known connectors, formats, sinks and tables by name.
#[derive(Clone, Default)]
pub struct Registry {
    inputs: BTreeMap<&'static str, InputFactory>,
    formats: BTreeMap<&'static str, FormatFactory>,
    sinks: BTreeMap<&'static str, SinkFactory>,
    lookups: BTreeMap<&'static str, LookupFactory>,
    notices: BTreeMap<&'static str, Arc<dyn Notices>>,
    /// Connectors that another build has, and which.
    elsewhere: BTreeMap<&'static str, &'static str>,
    /// The same of inputs.
    inputs_elsewhere: BTreeMap<&'static str, &'static str>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("inputs", &self.inputs.keys())
            .field("formats", &self.formats.keys())
            .field("sinks", &self.sinks.keys())
            .field("lookups", &self.lookups.keys())
            .finish()
    }
}

impl Registry {
    /// Registers an input connector.
    pub fn add_input(&mut self, name: &'static str, factory: InputFactory) {
        self.inputs.insert(name, factory);
    }

    /// Registers a format.
    pub fn add_format(&mut self, name: &'static str, factory: FormatFactory) {
        self.formats.insert(name, factory);
    }

    /// Registers a sink connector.
    pub fn add_sink(&mut self, name: &'static str, factory: SinkFactory) {
        self.sinks.insert(name, factory);
    }

    /// Registers a table that is asked by key.
    pub fn add_lookup(&mut self, name: &'static str, factory: LookupFactory) {
        self.lookups.insert(name, factory);
    }

    /// Registers who reads the notices in topics that keep its name.
    pub fn add_notices(&mut self, notices: Arc<dyn Notices>) {
        self.notices.insert(notices.name(), notices);
    }

    /// Who reads the notices that a topic names.
    ///
    /// # Errors
    /// When there is none of that name: what was taken back would be shown.
    pub fn notices(&self, topic: &str, name: &str) -> Result<Arc<dyn Notices>> {
        self.notices.get(name).cloned().ok_or_else(|| {
            Error::user(format!(
                "topic `{topic}` has notices of deleted {name}, which can't be read here, and what was deleted would be \
                 shown: give the registry of connectors along, or use a Tidemill that knows them"
            ))
        })
    }

    /// Notes that another build has a sink or a table of this name, and which build; who asks for it is told.
    pub fn note_elsewhere(&mut self, name: &'static str, build: &'static str) {
        self.elsewhere.insert(name, build);
    }

    /// Notes that another build has an input of this name, and which build; who asks for it is told.
    pub fn note_input_elsewhere(&mut self, name: &'static str, build: &'static str) {
        self.inputs_elsewhere.insert(name, build);
    }

    /// Why this build has no connector of that name, where another has it.
    pub fn elsewhere(&self, name: &str) -> Option<String> {
        self.elsewhere.get(name).map(|build| format!("this build has no connector `{name}`: {build}"))
    }

    /// Names of the inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.inputs.keys().copied()
    }

    /// Names of the tables that are asked by key.
    pub fn lookups(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.lookups.keys().copied()
    }

    /// Opens the table that option `connector` names.
    ///
    /// # Errors
    /// When there is none of that name, or its options are wrong.
    pub fn lookup(&self, options: &Options, columns: &SchemaRef, key: &[String]) -> Result<Arc<dyn Lookup>> {
        self.must_be_here(options)?;
        find(&self.lookups, options, "connector", None)?(options, columns, key)
    }

    /// Opens the input that option `connector` names.
    ///
    /// # Errors
    /// When there is none of that name, or its options are wrong.
    pub fn input(&self, options: &Options) -> Result<Input> {
        if let Some((name, build)) = options.get("connector").and_then(|name| self.inputs_elsewhere.get_key_value(name))
        {
            return Err(Error::user(format!("{}: this build has no connector `{name}`: {build}", options.owner())));
        }
        find(&self.inputs, options, "connector", None)?(options)
    }

    /// Makes the format that option `format` names; text lines when it names none.
    ///
    /// # Errors
    /// When there is none of that name, or its options are wrong.
    pub fn format(&self, options: &Options, columns: Option<SchemaRef>) -> Result<Arc<dyn Format>> {
        find(&self.formats, options, "format", Some("text"))?(options, columns)
    }

    /// Opens the sink that option `connector` names.
    ///
    /// # Errors
    /// When there is none of that name, or its options are wrong.
    pub fn sink(&self, options: &Options) -> Result<Arc<dyn Sink>> {
        self.must_be_here(options)?;
        find(&self.sinks, options, "connector", None)?(options)
    }

    fn must_be_here(&self, options: &Options) -> Result<()> {
        match options.get("connector").and_then(|name| self.elsewhere(name)) {
            Some(why) => Err(Error::user(format!("{}: {why}", options.owner()))),
            None => Ok(()),
        }
    }
}

fn find<F: Copy>(known: &BTreeMap<&'static str, F>, options: &Options, key: &str, default: Option<&str>) -> Result<F> {
    let name = match (options.get(key), default) {
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => options.require(key, "it names where the records come from or go to")?,
    };
    known.get(name).copied().ok_or_else(|| {
        let names: Vec<&str> = known.keys().copied().collect();
        let hint = nearest(name, &names)
            .map_or_else(|| format!("known are {}", names.join(", ")), |n| format!("did you mean `{n}`?"));
        Error::user(format!("{}: there is no {key} `{name}`; {hint}", options.owner()))
    })
}
