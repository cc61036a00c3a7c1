//! Folders into models, and models into folders.
//!
//! - [`folder()`]: cuts a folder and keeps its chunks, or where they are.
//! - [`quantized()`]: makes one of fewer bits of it first, and measures what that costs.
//! - [`Secrets`]: what is never published.
//! - [`pull()`]: gets every chunk of a model that is not here.
//! - [`export()`]: writes the files of a model, byte for byte.
//! - [`Announced`]: what to tell the directory about a model. Pure.
//! - [`announcer`]: tells it, whenever that changes.

mod announced;
pub mod announcer;
mod export;
mod folder;
mod pull;
mod quantize;
mod secrets;

pub use announced::Announced;
pub use export::{ExportError, export};
pub(crate) use folder::unrunnable;
pub use folder::{PublishError, folder};
pub use pull::{Pull, PullError, pull};
pub use quantize::{Kind, ModelHost, QuantizeError, Quantizing, Unsuitable, WriteError, quantized, sweep};
pub use secrets::Secrets;
