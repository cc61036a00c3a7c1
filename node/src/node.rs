//! Where the parts are put together, and nowhere else.

/// A running node.
#[derive(Debug)]
pub struct Node;
