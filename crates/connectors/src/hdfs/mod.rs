//! Source and sink `hdfs`: files of Apache HDFS, each read once by ranges, and written one a batch, part and directory,
//! exactly once. Both are those [of objects](crate::objects); here are their options and the place.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the NameNode and a directory: `hdfs://namenode:8020/logs`; a name service, `hdfs://cluster/logs`; or, with what the files of Hadoop say, `hdfs:///logs`. Of a source a pattern of names too: `hdfs://namenode:8020/logs/**/*.json` |
//! | `hadoop_conf` | the directory of `core-site.xml` and `hdfs-site.xml`, for name services (as `HADOOP_CONF_DIR` says) |
//! | `user` | as whom files are read and written (as `HADOOP_USER_NAME` says, or who runs the program) |
//!
//! The rest of the options is as of [S3](crate::s3): `format` and `partition_by` of the sink; `format`, `refresh`,
//! `after`, `max_line`, `header` and those of Avro of the source.
//!
//! ```text
//! commit   /posts/day=…/.batch-000000000007-part-00000.parquet.7f3a….tmp    written and synced, seen by no reader
//!          /posts/day=…/batch-000000000007-part-00000.parquet               by a rename
//!          /posts/_tidemill.json  {"batch":7}                               the batch is whole
//! ```
//!
//! What HDFS has otherwise than S3: names are in no order, so each look is at all of a directory, with no `sweep`; a
//! version is known by the time of its last change and its length; a file that is open is seen by all, and is not
//! taken before it is closed; a directory that is not there is an error of the source, and is made by the sink.
//!
//! Invariant: what is of HDFS alone is here. Called by the registry.

#[doc(hidden)]
pub mod probe;
mod server;
mod store;
#[cfg(test)]
mod tests;

use crate::objects::{ObjectsSink, ObjectsSource, Place, pattern};
use object_store::path::Path as Key;
use ring::rand::{SystemRandom, generate};
use server::Server;
use std::{path::Path, sync::Arc};
use store::Files;
use tidemill_core::{Error, Options, Result};

/// The files that a stream's options name.
///
/// # Errors
/// When an option is missing or wrong.
pub fn source(options: &Options) -> Result<ObjectsSource> {
    if options.get("sweep").is_some() {
        return Err(Error::user(format!(
            "{}: leave out `sweep`: each look is at all files, as often as `refresh` says",
            options.owner()
        )));
    }
    let (address, names) = url(options, "it names a directory: hdfs://namenode:8020/logs")?;
    let (dir, pattern) = pattern(options, names)?;
    ObjectsSource::from_options(options, place(options, address, dir)?, pattern)
}

/// The files that a sink's options name.
///
/// # Errors
/// When an option is missing or wrong.
pub fn sink(options: &Options) -> Result<ObjectsSink> {
    let (address, dir) = url(options, "it names a directory: hdfs://namenode:8020/posts")?;
    ObjectsSink::from_options(options, place(options, address, dir)?)
}

/// The server that option `url` names, and the path there without its first slash.
fn url<'a>(options: &'a Options, what: &str) -> Result<(&'a str, &'a str)> {
    let url = options.require("url", what)?;
    let rest = url.strip_prefix("hdfs://").ok_or_else(|| {
        Error::user(format!("{}: option `url`: write it as hdfs://namenode:8020/logs", options.owner()))
    })?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    Ok((&url[.."hdfs://".len() + host.len()], path))
}

/// A directory of a server; nothing is asked of it.
fn place(options: &Options, address: &str, dir: &str) -> Result<Place> {
    let owner = options.owner();
    let wrong = |key: &str, why: &str| Error::user(format!("{owner}: option `{key}`: {why}"));
    let prefix = Key::parse(dir.trim_end_matches('/'))
        .map_err(|e| wrong("url", "what follows the server is no path").because(e))?;
    let conf = options.get("hadoop_conf").map(str::to_string);
    if let Some(conf) = &conf
        && !["core-site.xml", "hdfs-site.xml"].iter().any(|file| Path::new(conf).join(file).is_file())
    {
        return Err(wrong("hadoop_conf", &format!("there is no core-site.xml and no hdfs-site.xml in {conf}")));
    }
    let user = options.get("user").map(str::to_string);
    // Without a host, the one that Hadoop's files name.
    let asked = if address == "hdfs://" { format!("{address}/") } else { address.to_string() };
    let server = Server { address: asked, user, conf, client: Arc::default() };
    server.client().map_err(|e| {
        let fix = "say the NameNode's port (hdfs://namenode:8020/logs), or where Hadoop's files are that know this name service (option `hadoop_conf`)";
        wrong("url", &format!("`{address}` can't be reached so: {fix}")).because(e)
    })?;
    let life =
        generate::<[u8; 4]>(&SystemRandom::new()).map_err(|_| Error::external("the system gives no random numbers"))?;
    let files = Arc::new(Files::new(server, u32::from_be_bytes(life.expose())));
    Ok(Place {
        store: Arc::clone(&files) as _,
        kind: "hdfs",
        root: address.to_string(),
        prefix: prefix.to_string(),
        is_sorted: false,
        endpoint: None,
        tree: Some(files),
        fix,
    })
}

/// What a human has to mend.
fn fix(place: &Place, error: &object_store::Error) -> Option<String> {
    use object_store::Error as Cause;
    match error {
        Cause::PermissionDenied { .. } => {
            Some("the user may not do that: grant it there, or name another user in option `user`".to_string())
        }
        Cause::Unauthenticated { .. } => Some(
            "it asks for Kerberos: set `hadoop.security.authentication` in the files that `hadoop_conf` names, get a ticket with kinit, and see that libgssapi_krb5 is there"
                .to_string(),
        ),
        Cause::NotFound { .. } => {
            Some(format!("there is no directory `/{}`: make it first (hdfs dfs -mkdir -p), or correct option `url`", place.prefix))
        }
        Cause::NotSupported { .. } => {
            Some("a part of its path is a file and no directory: name a directory, and of its files a pattern".to_string())
        }
        _ => None,
    }
}
