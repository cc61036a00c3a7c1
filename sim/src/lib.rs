//! A swarm in one thread, with a clock and dice we control.
//!
//! The code under test is `surf_node::fetch`, unchanged. Only what it calls a
//! [`Directory`](surf_node::fetch::Directory) and a [`Dialer`](surf_node::fetch::Dialer) is ours:
//! [`net::Net`] delays, shares out bandwidth, drops and corrupts on the roll of a seeded die, and
//! time is tokio's paused clock, which jumps to the next timer when everyone waits. So a run of
//! minutes takes milliseconds, and the same seed is the same run, to the event.
//!
//! - [`net`]: nodes, their links, and everything that can go wrong on the way.
//! - [`scenario`]: a swarm of a given shape, run to its end.
//! - [`trace`]: what happened, as one hash.
//! - [`bench`](mod@bench): measurements of real nodes, for `surf-sim bench`.

pub mod bench;
pub mod net;
pub mod scenario;
pub mod trace;
