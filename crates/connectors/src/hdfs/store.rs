//! HDFS as a store of objects: a file is an object, and its directories are made as they are needed.
//!
//! ```text
//! put    create .name.7f3a.tmp ─► write ─► hsync ─► close ─► rename to name     whole at once, and on the disks
//! get    where the blocks are ─► what the file is now ─► bytes                   of the version that is told
//! ```
//!
//! A put of what lies there already, byte for byte, changes nothing: with a new file the time of the last change would
//! be another, and who has read a part of it would take it for another version. A rename takes the place of a file
//! in one step of the NameNode. The client waits for an answer without an end; each wait has one here, and behind it
//! comes a new connection.
//!
//! Invariant: a file under its own name is whole; at most one version's bytes are in an answer. Called by the source
//! and the sink of objects, through their place.

use super::server::{Server, WAIT, read_failed, told};
use crate::objects::{Tree, half};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, future, stream, stream::BoxStream};
use hdfs_native::{HdfsError, WriteOptions, client::FileStatus, file::FileReader};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result,
    path::Path as Key,
};
use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

/// Bytes of a second of a write, at the least.
const PACE: u64 = 64 << 10;
/// Deletes that are asked side by side.
const DELETES: usize = 8;

/// Files of HDFS.
#[derive(Debug)]
pub(super) struct Files {
    server: Server,
    /// Tells the writes of this life apart from those of others.
    life: u32,
    writes: AtomicU32,
    /// What writes that failed may have left.
    left: Mutex<Vec<String>>,
}

fn absolute(key: &Key) -> String {
    format!("/{}", key.as_ref())
}

fn not_there(what: &str) -> Error {
    Error::NotImplemented { operation: what.to_string(), implementer: "hdfs".to_string() }
}

fn meta(status: &FileStatus) -> Result<ObjectMeta> {
    let changed = UNIX_EPOCH.checked_add(Duration::from_millis(status.modification_time));
    Ok(ObjectMeta {
        location: Key::parse(&status.path)?,
        last_modified: changed.unwrap_or(UNIX_EPOCH).into(),
        size: status.length as u64,
        e_tag: Some(format!("{:x}-{:x}", status.modification_time, status.length)),
        version: None,
    })
}

impl Files {
    pub(super) fn new(server: Server, life: u32) -> Self {
        Self { server, life, writes: AtomicU32::new(0), left: Mutex::default() }
    }

    /// Whether a file has just these bytes.
    async fn has(&self, path: &str, bytes: &Bytes) -> Result<bool> {
        let asked = self.server.asked(WAIT, |client| async move { client.get_file_info(path).await });
        match asked.await {
            Err(Error::NotFound { .. }) => return Ok(false),
            Ok(status) if !status.isdir && status.length == bytes.len() => {}
            answer => return answer.map(|_| false),
        }
        // One that can't be read is written again.
        let read = self.server.asked(time_for(bytes), |client| async move {
            let there = client.read(path).await?;
            if there.file_length() != bytes.len() {
                return Ok(Bytes::new());
            }
            there.read_range(0, bytes.len()).await
        });
        Ok(read.await.is_ok_and(|there| there == *bytes))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let tag = format!("{:08x}{:04x}", self.life, self.writes.fetch_add(1, Relaxed));
        let first = format!("{dir}/{}", half::of(name, &tag));
        let written = self.server.asked(time_for(&bytes), |client| {
            let first = first.as_str();
            async move {
                let mut file = client.create(first, WriteOptions::default()).await?;
                file.write_bytes(bytes).await?;
                match file.hsync().await {
                    // Cells of erasure coding are not synced one by one.
                    Err(HdfsError::OperationFailed(why)) if why.contains("erasure-coded") => {}
                    synced => synced?,
                }
                file.close().await?;
                client.rename(first, path, true).await
            }
        });
        let written = written.await;
        if written.is_err() {
            self.lock_left().push(first);
        }
        written
    }

    fn lock_left(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what failed writes have left, now that the server answers.
    async fn remove_left(&self) {
        let left = std::mem::take(&mut *self.lock_left());
        for path in left {
            let gone = self.server.asked(WAIT, |client| {
                let path = path.as_str();
                async move { client.delete(path, false).await }
            });
            if gone.await.is_err() {
                self.lock_left().push(path);
            }
        }
    }

    /// A file to be read, and what it is. The blocks are asked for first: should the file be replaced in between,
    /// what is told is the new version, which nobody who asks for the old one takes for it.
    async fn open(&self, path: &str) -> Result<(FileReader, FileStatus)> {
        let opened = self.server.asked(WAIT, |client| async move {
            let reader = client.read(path).await.map_err(read_failed)?;
            Ok((reader, client.get_file_info(path).await?))
        });
        opened.await
    }
}

fn time_for(bytes: &Bytes) -> Duration {
    WAIT + Duration::from_secs(bytes.len() as u64 / PACE)
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hdfs")
    }
}

#[async_trait]
impl ObjectStore for Files {
    async fn put_opts(&self, location: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode != PutMode::Overwrite {
            return Err(not_there("a put under a condition"));
        }
        let path = absolute(location);
        let bytes = match payload.as_ref() {
            [one] => one.clone(),
            _ => payload
                .iter()
                .fold(BytesMut::new(), |mut all, piece| {
                    all.extend_from_slice(piece);
                    all
                })
                .freeze(),
        };
        if !self.has(&path, &bytes).await? {
            self.write(&path, bytes).await?;
        }
        self.remove_left().await;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Key, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_there("an upload of parts"))
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let path = absolute(location);
        let (reader, status) = self.open(&path).await?;
        let meta = meta(&status)?;
        options.check_preconditions(&meta)?;
        let range = match options.range {
            _ if options.head => 0..0,
            // Behind its end there is nothing: what the file is now is told all the same.
            Some(range) => range.as_range(meta.size).unwrap_or(0..0),
            None => 0..meta.size,
        };
        // A range behind what the blocks have is a panic of the client.
        if reader.file_length() < status.length {
            let why = format!("{path} was replaced, or is being written");
            return Err(Error::Generic { store: "hdfs", source: why.into() });
        }
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        let bytes = reader.read_range_stream(start, end - start).map_err(move |e| told(&path, e));
        let bytes = self.server.paced(bytes.boxed());
        Ok(GetResult {
            payload: GetResultPayload::Stream(bytes),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let server = self.server.clone();
        let deleted = locations.map(move |location| {
            let server = server.clone();
            async move {
                let location = location?;
                let path = absolute(&location);
                server.asked(WAIT, |client| async move { client.delete(&path, false).await }).await?;
                Ok(location)
            }
        });
        deleted.buffered(DELETES).boxed()
    }

    /// Files below a directory, in no order; a directory that is not there is an error, and so is a file.
    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let dir = absolute(prefix.unwrap_or(&Key::default()));
        let client = match self.server.client() {
            Ok(client) => client,
            Err(error) => return stream::once(future::ready(Err(error))).boxed(),
        };
        let listed = client.list_status_iter(&dir, true).into_stream();
        let files = listed.filter_map(move |status| {
            let listed = match status.map_err(read_failed) {
                Ok(status) if status.isdir => None,
                Ok(status) if status.path == dir => {
                    let source = "it is a file, and no directory".into();
                    Some(Err(Error::NotSupported { source }))
                }
                Ok(status) => Some(meta(&status)),
                // A directory below may go while it is looked at.
                Err(HdfsError::FileNotFound(path)) if path != dir && path.starts_with(dir.as_str()) => None,
                Err(error) => Some(Err(told(&dir, error))),
            };
            future::ready(listed)
        });
        self.server.paced(files.boxed())
    }

    async fn list_with_delimiter(&self, _: Option<&Key>) -> Result<ListResult> {
        Err(not_there("a list of directories"))
    }

    async fn copy_opts(&self, _: &Key, _: &Key, _: CopyOptions) -> Result<()> {
        Err(not_there("a copy"))
    }

    async fn rename_opts(&self, from: &Key, to: &Key, options: RenameOptions) -> Result<()> {
        let [from, to] = [from, to].map(absolute);
        let renamed = self.server.asked(WAIT, |client| async move {
            if let Some((dir, _)) = to.rsplit_once('/').filter(|(dir, _)| !dir.is_empty()) {
                client.mkdirs(dir, 0o755, true).await?;
            }
            client.rename(&from, &to, matches!(options.target_mode, RenameTargetMode::Overwrite)).await
        });
        renamed.await
    }
}

#[async_trait]
impl Tree for Files {
    /// A file that is open is seen, with the length that the NameNode knows of it: that of its full blocks, or that of
    /// the last sync. Its last block counts as a full one in the space that the file takes, and so tells it apart.
    /// Of files with erasure coding, and of those whose blocks are not alike, this tells nothing: they pass for closed.
    async fn is_closed(&self, file: &Key) -> Result<bool> {
        let path = absolute(file);
        let asked = self.server.asked(WAIT, |client| async move {
            let summary = client.get_content_summary(&path).await.map_err(read_failed)?;
            Ok((client.get_file_info(&path).await?, summary))
        });
        let (status, summary) = asked.await?;
        let block = status.blocksize.unwrap_or_default();
        let copies = u64::from(status.replication.unwrap_or(1).max(1));
        let more = summary.space_consumed.saturating_sub(summary.length.saturating_mul(copies));
        let is_open = more > 0 && more <= block * copies && summary.space_consumed % block.max(1) == 0;
        Ok(!is_open)
    }
}
