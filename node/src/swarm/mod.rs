//! swarm: being written.
