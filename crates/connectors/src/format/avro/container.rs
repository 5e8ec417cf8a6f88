//! Rows as a file of Avro: an object container, with its schema in front.
//!
//! ```text
//! "Obj" 1 │ schema, codec │ mark │ { rows │ bytes │ rows, deflated │ mark }…
//! ```
//!
//! Invariant: the same rows make the same bytes; what was finished is a whole file.
//! Called by the encoder of files.

use super::{
    wire::{put_bytes, put_long},
    write::Writer,
};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use flate2::{Compression, write::DeflateEncoder};
use ring::digest;
use std::io::Write;
use tidemill_core::{Error, Result};

/// Bytes of rows that are deflated together.
const BLOCK: usize = 64 << 10;

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Container {
    mark: [u8; 16],
    header: Vec<u8>,
    block: Vec<u8>,
    rows: i64,
}

impl Container {
    /// A file of records of a name.
    ///
    /// # Errors
    /// When a column has no equal in Avro.
    pub(crate) fn new(name: &str, columns: &Schema) -> Result<Self, String> {
        let writer = Writer::new(name, columns)?;
        let schema = writer.schema().as_bytes();
        // Any bytes do that rows don't happen to have; these don't differ from run to run.
        let mut mark = [0; 16];
        mark.copy_from_slice(&digest::digest(&digest::SHA256, schema).as_ref()[..16]);
        let mut header = b"Obj\x01".to_vec();
        put_long(2, &mut header);
        for (key, value) in [("avro.schema", schema), ("avro.codec", b"deflate")] {
            put_bytes(key.as_bytes(), &mut header);
            put_bytes(value, &mut header);
        }
        put_long(0, &mut header);
        header.extend_from_slice(&mark);
        Ok(Self { mark, header, block: Vec::new(), rows: 0 })
    }

    /// Adds rows; what is ready is appended to `out`.
    ///
    /// # Errors
    /// When a value is larger than its type in Avro.
    pub(crate) fn rows(&mut self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        out.append(&mut self.header);
        let ready = Writer::rows(rows)?;
        for row in 0..rows.num_rows() {
            ready.put(row, &mut self.block);
            self.rows += 1;
            if self.block.len() >= BLOCK {
                self.flush(out)?;
            }
        }
        Ok(())
    }

    /// Appends what is left.
    ///
    /// # Errors
    /// Never, as memory is written to.
    pub(crate) fn flush(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let broken = |e| Error::internal("avro: deflating rows").because(e);
        let mut deflated = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflated.write_all(&self.block).map_err(broken)?;
        let deflated = deflated.finish().map_err(broken)?;
        put_long(self.rows, out);
        put_bytes(&deflated, out);
        out.extend_from_slice(&self.mark);
        self.block.clear();
        self.rows = 0;
        Ok(())
    }
}
