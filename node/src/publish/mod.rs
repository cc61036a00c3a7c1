//! publish: being written.
