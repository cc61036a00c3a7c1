//! object: being written.
/// x
#[derive(Debug)]
pub struct Object;
