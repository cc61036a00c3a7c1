//! A node of the swarm: keeps chunks, serves them, finds them, and runs the model they make up.
//!
//! Follow one chunk from a peer to a logit, top to bottom; that is also the direction of imports:
//!
//! ```text
//!   engine     asks for a group of tensors          (knows only `weights::Weights`; owns candle)
//!   weights    asks for the chunks of a group       (knows only `source::ModelSource`)
//!   fetch      store, then peers, then origin       (knows `Directory` and `Dialer`)
//!   swarm      who has it: the DHT                  (owns libp2p)
//!   transfer   bytes from one peer                  (owns quinn)
//!   store      chunks on disk                       (owns sled)
//!   origin     a folder or a web server             (owns object_store)
//!   source     anything that may have chunks        (traits)
//!   identity   one key for both planes              (names both)
//!   members    who belongs to the swarm             (its key, lists of peers)
//!   secret     files that nobody else may read
//!   journal    what happened, for those who ask
//!   allocator  memory that the program holds
//! ```
//!
//! [`Node`] is the one place where these are put together; [`publish`] turns folders into models
//! and back; [`rpc`] lets other programs drive the node, and [`cli`] is one of them.

pub mod allocator;
pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fetch;
pub mod identity;
pub mod journal;
pub mod members;
pub mod node;
pub mod origin;
pub mod publish;
pub mod rpc;
pub mod secret;
pub mod source;
pub mod store;
pub mod swarm;
pub mod transfer;
pub mod weights;

pub use config::Config;
pub use node::Node;

/// Tests run models too.
#[cfg(test)]
#[ctor::ctor(unsafe)]
fn start() {
    engine::enter_sandbox();
}
