//! Which peers a node deals with, among those that have proven who they are.

use std::collections::BTreeSet;

use surf_protocol::NodeId;

/// Lists of peers. By default, everyone is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// If there are any, only these are let in.
    pub allow: BTreeSet<NodeId>,
    /// These are not, whatever the other list says.
    pub deny: BTreeSet<NodeId>,
}

impl Access {
    /// Whether the node deals with `peer`.
    pub fn lets_in(&self, peer: NodeId) -> bool {
        !self.deny.contains(&peer) && (self.allow.is_empty() || self.allow.contains(&peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(allow: &[u8], deny: &[u8]) -> Access {
        let ids = |numbers: &[u8]| numbers.iter().map(|&n| NodeId([n; 32])).collect();
        Access { allow: ids(allow), deny: ids(deny) }
    }

    #[test]
    fn deny_wins_and_a_list_of_allowed_peers_lets_in_no_others() {
        let table: [(&[u8], &[u8], [bool; 3]); 5] = [
            (&[], &[], [true, true, true]),
            (&[], &[1], [false, true, true]),
            (&[1], &[], [true, false, false]),
            (&[1, 2], &[1], [false, true, false]),
            (&[1], &[1], [false, false, false]),
        ];
        for (allow, deny, expected) in table {
            let access = access(allow, deny);
            assert_eq!([1, 2, 3].map(|n| access.lets_in(NodeId([n; 32]))), expected, "{access:?}");
        }
    }
}
