//! Stands for `mapped` on systems where a mapped file that shrinks cannot be survived: nothing is mapped.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use surf_protocol::chunk::InFile;

/// A mapped chunk file. There is none.
#[derive(Debug)]
pub(super) enum Mapping {}

impl InFile for Mapping {
    fn is_unchanged(&self) -> bool {
        match *self {}
    }
}

/// Never maps: read the file instead.
pub(super) fn map(_: &Path, _: u32) -> io::Result<Option<(Bytes, Arc<Mapping>)>> {
    Ok(None)
}
