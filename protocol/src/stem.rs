//! The part of a tensor's name that its neighbours share.
//!
//! Small neighbours with one stem share a chunk, and nodes announce whole stems. It depends on nothing but
//! the name: part of the manifest's format, so a change here is a new
//! [`FORMAT`](crate::manifest::FORMAT).

/// `name` up to and including its last part of digits only; without one, up to its last dot; without a
/// dot, all of it. Parts are what dots separate.
pub fn stem(name: &str) -> &str {
    let mut end = name.len();
    for part in name.rsplit('.') {
        if is_number(part) {
            return &name[..end];
        }
        // The dot before the first part is not there, and that part is looked at last.
        end = end.saturating_sub(part.len() + 1);
    }
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// Whether a part of `name` is digits only.
pub fn has_number(name: &str) -> bool {
    name.split('.').any(is_number)
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Part of the format: raise it rather than edit these.
    #[test]
    fn a_stem_ends_with_the_last_number_or_before_the_last_dot() {
        for (name, expected) in [
            ("model.layers.3.mlp.experts.12.up_proj.weight", "model.layers.3.mlp.experts.12"),
            ("model.layers.3.input_layernorm.weight", "model.layers.3"),
            ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "encoder.block.0.layer.1"),
            ("model.embed_tokens.weight", "model.embed_tokens"),
            ("layers.007.w", "layers.007"),
            ("layers.+1.w", "layers.+1"),
            ("layers.٣.w", "layers.٣"),
            ("7.weight", "7"),
            ("h.7", "h.7"),
            ("7", "7"),
            ("logits", "logits"),
            ("a..1.b", "a..1"),
            ("a..b", "a."),
            (".w", ""),
            ("", ""),
        ] {
            assert_eq!(stem(name), expected, "{name}");
        }
        assert!(has_number("a.1.b") && has_number("0") && !has_number("a1.b") && !has_number("a..b"));
    }

    proptest! {
        #[test]
        fn a_stem_begins_its_name_and_is_its_own(name in "[a1.é]{0,12}") {
            prop_assert!(name.starts_with(stem(&name)));
            if has_number(&name) {
                prop_assert_eq!(stem(stem(&name)), stem(&name));
            }
        }
    }
}
