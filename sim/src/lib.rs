//! A swarm in one thread, with a clock and dice we control.
//!
//! The code under test is `surf_node::fetch`, the code that decides what to announce and the code that decides
//! what to evict, unchanged. Only what they call a [`Directory`](surf_node::fetch::Directory) and a
//! [`Dialer`](surf_node::fetch::Dialer) is ours: [`net::Net`] delays, shares out bandwidth, drops and
//! corrupts on the roll of a seeded die, and time is tokio's paused clock, which jumps to the next timer
//! when everyone waits. So a run of minutes takes seconds, and the same seed is the same run, to the event.
//!
//! - [`scenario`]: a swarm as a small file describes it.
//! - [`run`]: a scenario run to its end, and what it gave.
//! - [`net`]: nodes, their links, everything that can go wrong on the way, and the rules that must never be broken.
//! - [`model`]: what is distributed.
//! - [`scale`]: what swarms of a size that cannot be simulated would cost and take.
//! - [`trace`]: what happened, as one hash.
//! - [`bench`](mod@bench): measurements of real nodes, for `surf-sim bench`.
//! - [`soak`]: three real nodes at work for hours, for `surf-sim soak`.
//! - [`lab`]: real nodes and other programs in a network of namespaces, for `surf-sim lab`.

pub mod bench;
#[cfg(target_os = "linux")]
pub mod lab;
pub mod model;
pub mod net;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod soak;
pub mod trace;
