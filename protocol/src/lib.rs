//! The words nodes use with each other.
//!
//! This crate is pure: no sockets, no files, no clock, no threads, no async. Everything here can be
//! tested by calling a function and looking at what it returns.
//!
//! Reading order:
//! - [`id`]: names. A [`ChunkId`] *is* the BLAKE3 hash of the bytes it names.
//! - [`chunk`]: [`Chunk`], the only way to hold a chunk's bytes, and proof that they were checked.
//! - [`range`]: part of a chunk, with the hashes that prove it belongs there.
//! - [`manifest`]: which chunks make up which file, and which bytes are which tensor; [`stem`]: which tensors
//!   belong together by their names.
//! - [`dtype`]: types that programs compute with. Nothing that is hashed depends on them.
//! - [`bitmap`]: who has which chunks of a manifest.
//! - [`contact`]: where a node's data plane listens, signed by that node.
//! - [`name`]: `PEER/NAME`, signed by the publisher.
//! - [`wire`]: requests, replies, and the encoding of everything above. The only user of `bincode`.
//! - [`limits`]: every upper bound of the protocol, and why it has that value.

pub mod bitmap;
pub mod chunk;
pub mod contact;
pub mod dtype;
pub mod id;
pub mod limits;
pub mod manifest;
pub mod name;
pub mod range;
pub mod stem;
pub mod wire;

pub use bitmap::Bitmap;
pub use chunk::Chunk;
pub use contact::{Contact, SignedContact};
pub use dtype::Dtype;
pub use id::{ChunkId, ModelId, NodeId};
pub use manifest::{FileEntry, Manifest, TensorEntry};
pub use name::{FullName, Name, SignedName};
pub use range::VerifiedRange;
