//! transfer: being written.
