//! Folders into models, and models into folders.
//!
//! - [`folder()`]: cuts a folder and keeps its chunks, or where they are.
//! - [`pull()`]: gets every chunk of a model that is not here.
//! - [`export()`]: writes the files of a model, byte for byte.
//! - [`announced()`]: what to tell the directory about a model. Pure.

mod announced;
mod export;
mod folder;
mod pull;

pub use announced::announced;
pub use export::{ExportError, export};
pub use folder::{PublishError, folder};
pub use pull::{Pull, PullError, pull};
