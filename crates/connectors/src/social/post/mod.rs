//! One form for the posts of all networks: format `post`.
//!
//! The log keeps what a network sent; this format reads it as one [`Post`],
//! whichever network it came from. So a mapping that is mended mends the
//! history too, and a program that reads `posts` works with another network
//! when its connector is changed.
//!
//! | Option | Meaning |
//! |---|---|
//! | `network` | whose posts they are: `bluesky`, `mastodon`, `wikimedia`, `x`, `x-v1`, `weibo`; the stream's connector unless said |
//!
//! | Column | |
//! |---|---|
//! | `id` | the network's own; with `source` it names one post |
//! | `kind` | `post`, `edit`, or `delete`: a notice that the post of this `id` is to be shown no more |
//! | `created_at` | when it was written; of a notice, when it was sent, where that is told |
//! | `source` | the network |
//! | `author` | struct of `id`, `name` (the handle), `display`, `followers` |
//! | `text` | plain: without HTML, and without entities such as `&amp;` |
//! | `lang` | as the network has it, such as `en` or `pt-BR` |
//! | `hashtags`, `mentions`, `urls` | lists of texts, without `#` and `@` |
//! | `geo` | struct of `lat`, `lon` (degrees) and `place`, a name |
//! | `counts` | struct of `replies`, `reposts`, `likes`, `quotes` |
//! | `raw` | the record as it was received |
//!
//! Invariant: a record gives one row or is refused with the reason; a mapper
//! never guesses an id. Called by the engine's leaf through the format.

mod bluesky;
mod columns;
mod mastodon;
pub(crate) mod notices;
pub mod stored;
mod text;
mod weibo;
mod wikimedia;
mod x;
mod x_v1;

pub use columns::schema;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use serde_json::Value;
use std::sync::Arc;
use tidemill_core::{Block, Decoder, Error, Format, Notices, Options, Refusal, Result, Timestamp, nearest};

/// A social network whose posts can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Bluesky, as its Jetstream sends posts.
    Bluesky,
    /// Mastodon, and servers that speak its API.
    Mastodon,
    /// The recent changes of Wikimedia's projects.
    Wikimedia,
    /// X, by version 2 of its API.
    X,
    /// X, by version 1.1 of its API.
    XV1,
    /// Weibo.
    Weibo,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Bluesky, Self::Mastodon, Self::Wikimedia, Self::X, Self::XV1, Self::Weibo];

    /// Its name in options, and in the column `source`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bluesky => "bluesky",
            Self::Mastodon => "mastodon",
            Self::Wikimedia => "wikimedia",
            Self::X => "x",
            Self::XV1 => "x-v1",
            Self::Weibo => "weibo",
        }
    }

    /// The network of this name, or of the connector of this name.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "x-sample" | "x-search" => Some(Self::X),
            _ => Self::ALL.into_iter().find(|network| network.name() == name),
        }
    }

    /// Reads one record, a JSON object.
    ///
    /// # Errors
    /// When it is none, or lacks what makes a post: why, naming the field or the byte.
    pub fn read(self, record: &[u8]) -> Result<Post, String> {
        let value: Value = serde_json::from_slice(record)
            .map_err(|e| format!("byte {}: not JSON: {e}", e.column().saturating_sub(1)))?;
        if !value.is_object() {
            return Err("byte 0: expected an object".to_string());
        }
        match self {
            Self::Bluesky => bluesky::read(&value),
            Self::Mastodon => mastodon::read(&value),
            Self::Wikimedia => wikimedia::read(&value),
            Self::X => x::read(&value),
            Self::XV1 => x_v1::read(&value),
            Self::Weibo => weibo::read(&value),
        }
    }
}

/// What a record says about its post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Here it is.
    #[default]
    Post,
    /// It has changed; this is how it is now.
    Edit,
    /// It is to be shown no more.
    Delete,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Post => "post",
            Self::Edit => "edit",
            Self::Delete => "delete",
        }
    }
}

/// Who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Author {
    /// The network's own.
    pub id: Option<String>,
    /// The handle, without `@`.
    pub name: Option<String>,
    /// The name that is shown.
    pub display: Option<String>,
    /// How many follow the author.
    pub followers: Option<i64>,
}

/// Where it was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Geo {
    /// Degrees north and east.
    pub point: Option<(f64, f64)>,
    /// The name of the place, or the network's id of it.
    pub place: Option<String>,
}

/// What others did with it, so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Answers.
    pub replies: Option<i64>,
    /// Reposts, boosts, retweets.
    pub reposts: Option<i64>,
    /// Likes, favourites.
    pub likes: Option<i64>,
    /// Reposts with a text.
    pub quotes: Option<i64>,
}

/// A post of any network.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Post {
    /// The network's own id; never empty.
    pub id: String,
    /// What the record says about it.
    pub kind: Kind,
    /// When it was written.
    pub created_at: Option<Timestamp>,
    /// Who wrote it.
    pub author: Author,
    /// The plain text.
    pub text: Option<String>,
    /// Its language.
    pub lang: Option<String>,
    /// Tags without `#`, in order.
    pub hashtags: Vec<String>,
    /// Handles (or ids, where there is no handle) of those it names.
    pub mentions: Vec<String>,
    /// Links, in full where the network tells.
    pub urls: Vec<String>,
    /// Where.
    pub geo: Geo,
    /// How often it was answered, and so on.
    pub counts: Counts,
}

/// Format `post`.
#[derive(Debug, Clone)]
pub struct PostFormat {
    network: Network,
    schema: SchemaRef,
}

impl PostFormat {
    /// Posts of a network, with all columns.
    pub fn new(network: Network) -> Self {
        Self { network, schema: schema() }
    }

    /// From a stream's options and declared columns, which may be some of [`schema`], in any order.
    ///
    /// # Errors
    /// When the network is not known, or a column is no post's or of another type.
    pub fn from_options(options: &Options, columns: Option<SchemaRef>) -> Result<Self> {
        let owner = options.owner();
        let given = options.get("network").or_else(|| options.get("connector")).unwrap_or_default();
        let network = Network::of(given).ok_or_else(|| {
            let names = Network::ALL.map(Network::name);
            let hint = nearest(given, &names)
                .map_or_else(|| format!("it is one of {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            Error::user(format!(
                "{owner}: format `post` reads posts of a network, not of `{given}`: set option `network`; {hint}"
            ))
        })?;
        let Some(columns) = columns else { return Ok(Self::new(network)) };
        columns::check(owner, &columns)?;
        Ok(Self { network, schema: columns })
    }
}

impl Format for PostFormat {
    fn name(&self) -> &'static str {
        "post"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        let fields: Vec<_> = projection.iter().map(|i| Arc::clone(&self.schema.fields()[*i])).collect();
        Box::new(PostDecoder { network: self.network, schema: Arc::new(Schema::new(fields)) })
    }

    fn notices(&self) -> Option<Arc<dyn Notices>> {
        notices::of(self.network)
    }
}

struct PostDecoder {
    network: Network,
    schema: SchemaRef,
}

impl Decoder for PostDecoder {
    fn decode(&mut self, block: &Block, refused: &mut Vec<Refusal>) -> Result<RecordBatch> {
        let mut posts = Vec::with_capacity(block.len());
        for (row, record) in block.records().enumerate() {
            let read = self.network.read(record).and_then(|post| {
                let missing =
                    self.schema.fields().iter().find(|f| !f.is_nullable() && columns::is_missing(&post, f.name()));
                match missing {
                    Some(field) => Err(format!("field \"{}\": missing, and declared NOT NULL", field.name())),
                    None => Ok(post),
                }
            });
            match read {
                Ok(post) => posts.push((post, row)),
                Err(reason) => refused.push(Refusal { row, reason }),
            }
        }
        let arrays = self
            .schema
            .fields()
            .iter()
            .map(|field| columns::column(field, &posts, self.network, block))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(posts.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map_err(|e| Error::internal("columns of posts don't fit their schema").because(e))
    }
}
