//! What a tensor is for, by its name: what quantising goes by.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The table of tokens.
    Embedding,
    /// The projection to logits.
    Head,
    /// Makes values, or keys and values, or all three: what attention hands on.
    Value,
    /// Makes keys.
    Key,
    /// Leads out of attention.
    Attended,
    /// Leads out of the feed-forward part.
    Down,
    /// Any other matrix.
    Other,
}

/// Modules that are not quantised, whatever their shape, by what their names hold: norms, convolutions, tables of
/// positions and types.
const STAY_WITH: &[&str] = &["norm", "Norm", "conv", "position", "token_type", "relative"];

/// The same, by how their names begin.
const STAY_FROM: &[&str] = &["ln"];

/// By the end of a module's name, parts of it separated by dots; the first that fits counts. `None` is not quantised:
/// routers, and weights that stand in the file the other way round, inputs by outputs (GPT-2's). A part that ends with
/// `*` is any that begins so.
const ROLES: &[(&str, Option<Role>)] = &[
    ("gate", None),
    ("router", None),
    ("shared_expert_gate", None),
    ("wpe", None),
    ("c_attn", None),
    ("q_attn", None),
    ("c_proj", None),
    ("c_fc", None),
    ("embed_tokens", Some(Role::Embedding)),
    ("word_embeddings", Some(Role::Embedding)),
    ("wte", Some(Role::Embedding)),
    ("shared", Some(Role::Embedding)),
    ("tok_embeddings", Some(Role::Embedding)),
    ("embed_in", Some(Role::Embedding)),
    ("lm_head", Some(Role::Head)),
    ("embed_out", Some(Role::Head)),
    ("v_proj", Some(Role::Value)),
    ("v", Some(Role::Value)),
    ("value", Some(Role::Value)),
    ("v_lin", Some(Role::Value)),
    ("wv", Some(Role::Value)),
    ("kv_b_proj", Some(Role::Value)),
    ("qkv_proj", Some(Role::Value)),
    ("query_key_value", Some(Role::Value)),
    ("Wqkv", Some(Role::Value)),
    ("k_proj", Some(Role::Key)),
    ("k", Some(Role::Key)),
    ("key", Some(Role::Key)),
    ("k_lin", Some(Role::Key)),
    ("wk", Some(Role::Key)),
    ("Dense*.wo", Some(Role::Down)),
    ("attention.output.dense", Some(Role::Attended)),
    ("output.dense", Some(Role::Down)),
    ("self_attention.dense", Some(Role::Attended)),
    ("down_proj", Some(Role::Down)),
    ("w2", Some(Role::Down)),
    ("lin2", Some(Role::Down)),
    ("fc2", Some(Role::Down)),
    ("dense_4h_to_h", Some(Role::Down)),
    ("o_proj", Some(Role::Attended)),
    ("o", Some(Role::Attended)),
    ("out_lin", Some(Role::Attended)),
    ("out_proj", Some(Role::Attended)),
    ("wo", Some(Role::Attended)),
];

/// What the tensor called `name` is for; `None` if it is not quantised, whatever its shape.
pub fn role(name: &str) -> Option<Role> {
    let module = name.strip_suffix(".weight")?;
    let last = module.rsplit('.').next().unwrap_or(module);
    if STAY_WITH.iter().any(|part| last.contains(part)) || STAY_FROM.iter().any(|part| last.starts_with(part))
    {
        return None;
    }
    // Meta's name for the head, which others have for parts of layers.
    if module == "output" {
        return Some(Role::Head);
    }
    match ROLES.iter().find(|(end, _)| ends(module, end)) {
        Some((_, role)) => *role,
        None => Some(Role::Other),
    }
}

fn ends(module: &str, end: &str) -> bool {
    let mut parts = module.rsplit('.');
    end.rsplit('.').all(|expected| {
        parts.next().is_some_and(|part| match expected.strip_suffix('*') {
            Some(start) => part.starts_with(start),
            None => part == expected,
        })
    })
}
