//! The metadata of a model, in the words of `config.json`.

mod rotary;

use serde_json::{Map, Value, json};
use surf_chunker::Checkpoint;
use surf_chunker::gguf::{Metadata, Value as Entry};

use super::{EMBEDDING, Fault};

/// Architectures that can be run: what `general.architecture` says, and what `model_type` does.
const ARCHITECTURES: [(&str, &str); 9] = [
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("gpt2", "gpt2"),
    ("llama", "llama"),
    ("phi3", "phi3"),
    ("qwen2", "qwen2"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3", "qwen3"),
    ("qwen3moe", "qwen3_moe"),
];

/// Fields of every architecture: what GGUF calls them after the architecture's name, and what
/// `config.json` does.
const FIELDS: [(&str, &str); 10] = [
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
];

/// The same for GPT-2.
const FIELDS_OF_GPT2: [(&str, &str); 6] = [
    ("embedding_length", "n_embd"),
    ("block_count", "n_layer"),
    ("feed_forward_length", "n_inner"),
    ("attention.head_count", "n_head"),
    ("context_length", "n_positions"),
    ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
];

/// Blocks of a model. What has more is refused by whoever reads the configuration.
const BLOCKS_MAX: u64 = 1024;

/// All that a configuration is made of.
pub(super) struct About<'a> {
    metadata: &'a Metadata<'a>,
    manifest: &'a Checkpoint,
    tensors: &'a [(String, Vec<u8>)],
    /// `general.architecture`.
    name: &'a str,
    model_type: &'static str,
    config: Map<String, Value>,
}

impl<'a> About<'a> {
    /// Fails if this is nothing that can be run.
    pub(super) fn read(
        metadata: &'a Metadata<'a>,
        manifest: &'a Checkpoint,
        tensors: &'a [(String, Vec<u8>)],
    ) -> Result<Self, Fault> {
        const NAME: &str = "general.architecture";
        let name = metadata.find(NAME).and_then(|name| name.as_str());
        let name = name.ok_or_else(|| format!("{NAME} is missing"))?;
        let found = ARCHITECTURES.iter().find(|(known, _)| *known == name);
        let (_, model_type) = found.ok_or_else(|| {
            let known = ARCHITECTURES.map(|(name, _)| name).join(", ");
            format!("{NAME} is {name:?}; supported are {known}")
        })?;
        Ok(Self { metadata, manifest, tensors, name, model_type, config: Map::new() })
    }

    /// What `config.json` would say.
    pub(super) fn config(mut self) -> Result<Value, Fault> {
        let fields = if self.name == "gpt2" { &FIELDS_OF_GPT2[..] } else { &FIELDS };
        for (from, to) in fields {
            if let Some(number) = self.number(from)? {
                self.set(to, number);
            }
        }
        let rows = self.manifest.tensor(EMBEDDING).and_then(|table| table.shape.first().copied());
        self.set("vocab_size", json!(rows));
        self.set("tie_word_embeddings", json!(!self.has("output.weight")));
        let head_dim = self.head_dim()?;
        self.set("head_dim", json!(head_dim));
        if let Some(turned) = self.count("rope.dimension_count")?.filter(|turned| *turned != head_dim) {
            // A little more, because what the share makes of a head is rounded down.
            self.set("partial_rotary_factor", json!((turned as f64 + 0.25) / head_dim as f64));
        }
        if let Some(scaling) = self.scaling(head_dim)? {
            self.set("rope_scaling", scaling);
        }
        self.particulars(head_dim)?;
        self.experts()?;
        self.biases()?;
        self.set("model_type", json!(self.model_type));
        Ok(Value::Object(self.config))
    }

    /// What only models of this architecture have.
    fn particulars(&mut self, head_dim: u64) -> Result<(), Fault> {
        match self.name {
            "llama" => {
                // Its heads' elements are in another order than transformers has them in.
                self.set("rope_interleave", json!(true));
                let (inner, outer) = (self.has("blk.0.attn_q.bias"), self.has("blk.0.attn_output.bias"));
                if inner && !outer {
                    self.model_type = "qwen2";
                } else {
                    self.set("attention_bias", json!(outer));
                    self.set("mlp_bias", json!(self.has("blk.0.ffn_down.bias")));
                }
            }
            "phi3" => {
                let original = self.count("rope.scaling.original_context_length")?;
                self.set("original_max_position_embeddings", json!(original));
            }
            "gemma2" | "gemma3" => {
                self.set("hidden_activation", json!("gelu_pytorch_tanh"));
                for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
                    if let Some(cap) = self.number(field)? {
                        self.set(field, cap);
                    }
                }
                if let Some(types) = self.layer_types()? {
                    self.set("layer_types", types);
                }
                let scalar = self.query_scalar(head_dim)?;
                self.set("query_pre_attn_scalar", json!(scalar));
            }
            _ => (),
        }
        Ok(())
    }

    /// What there is to say of experts, if there are any.
    fn experts(&mut self) -> Result<(), Fault> {
        let Some(count) = self.count("expert_count")?.filter(|count| 0 < *count) else { return Ok(()) };
        match self.name {
            "llama" => self.model_type = "mixtral",
            // As llama.cpp has it; no file says.
            "qwen2moe" => self.set("norm_topk_prob", json!(false)),
            "qwen3moe" => self.set("norm_topk_prob", json!(true)),
            name => {
                return Err(
                    self.wrong("expert_count", format!("is {count}; no {name} is known to have experts"))
                );
            }
        }
        self.set("num_experts", json!(count));
        self.set("num_local_experts", json!(count));
        let taken = self.count("expert_used_count")?;
        self.set("num_experts_per_tok", json!(taken));
        let rows = |tensor: &str, at: usize| {
            self.manifest.tensor(tensor).and_then(|tensor| tensor.shape.get(at).copied())
        };
        let (each, shared) = (rows("blk.0.ffn_gate_exps.weight", 1), rows("blk.0.ffn_gate_shexp.weight", 0));
        if !self.config.contains_key("intermediate_size") {
            self.set("intermediate_size", json!(each));
        }
        self.set("moe_intermediate_size", json!(each));
        self.set("shared_expert_intermediate_size", json!(shared));
        Ok(())
    }

    /// Biases are there or not; one that nobody asks for would be left out without a word.
    fn biases(&self) -> Result<(), Fault> {
        if self.name == "gpt2" {
            // Which has them everywhere.
            return Ok(());
        }
        let flag = |field: &str| self.config.get(field).and_then(Value::as_bool).unwrap_or(false);
        let (attention, mlp) = (flag("attention_bias"), flag("mlp_bias"));
        let unused = |name: &str| {
            let Some(module) = name.strip_suffix(".bias") else { return false };
            match module.rsplit('.').next() {
                Some("attn_q" | "attn_k" | "attn_v") => !attention && !self.model_type.starts_with("qwen2"),
                Some("attn_output") => !attention,
                Some("ffn_gate" | "ffn_up" | "ffn_down") => !mlp,
                _ => true,
            }
        };
        match self.manifest.tensors().iter().find(|tensor| unused(&tensor.name)) {
            Some(tensor) => {
                Err(format!("has {}, a bias that no {} is known to have", tensor.name, self.name))
            }
            None => Ok(()),
        }
    }

    /// The largest Gemmas scale queries by the width that each head would have if they shared the
    /// hidden size; GGUF does not say so, and llama.cpp knows them by their blocks, too.
    fn query_scalar(&self, head_dim: u64) -> Result<u64, Fault> {
        let shared =
            matches!((self.name, self.count("block_count")?), ("gemma2", Some(46)) | ("gemma3", Some(62)));
        let (width, heads) = (self.count("embedding_length")?, self.count("attention.head_count")?);
        let each = width.and_then(|width| width.checked_div(heads?));
        Ok(each.filter(|_| shared).unwrap_or(head_dim))
    }

    /// Which blocks see a window: told for each, or by how many there are up to one that sees everything.
    fn layer_types(&self) -> Result<Option<Value>, Fault> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let Some(pattern) = self.find(PATTERN) else { return Ok(None) };
        let kind = |slides| if slides { "sliding_attention" } else { "full_attention" };
        if let Some(each) = pattern.as_list() {
            let slides = each.iter().take(BLOCKS_MAX as usize).map(|slides| slides.as_bool().map(kind));
            let types: Option<Vec<_>> = slides.collect();
            return types
                .map(|types| Some(json!(types)))
                .ok_or_else(|| self.wrong(PATTERN, "must be truth values"));
        }
        let every = self.count(PATTERN)?.unwrap_or(0);
        let blocks = self.count("block_count")?.unwrap_or(0).min(BLOCKS_MAX);
        let types = (0..blocks).map(|block| kind(every == 0 || block % every < every - 1));
        Ok(Some(json!(types.collect::<Vec<_>>())))
    }

    /// As said, else as the projection of queries has it, else as the heads share the width.
    fn head_dim(&self) -> Result<u64, Fault> {
        const HEADS: &str = "attention.head_count";
        let heads = self.count(HEADS)?.unwrap_or(0);
        let rows = self.manifest.tensor("blk.0.attn_q.weight").and_then(|query| query.shape.first().copied());
        let rows = rows.or(self.count("embedding_length")?).unwrap_or(0);
        match self.count("attention.key_length")?.or(rows.checked_div(heads)) {
            Some(head_dim) if 0 < head_dim => Ok(head_dim),
            _ => Err(self.wrong(HEADS, "is missing, or does not fit the width")),
        }
    }

    fn set(&mut self, field: &str, value: Value) {
        self.config.insert(field.to_owned(), value);
    }

    /// One number, which may stand there once for each block.
    fn number(&self, field: &str) -> Result<Option<Value>, Fault> {
        let Some(value) = self.find(field) else { return Ok(None) };
        let one = match value.as_list() {
            Some(list) => {
                let first = list.iter().next().filter(|_| list.len() as u64 <= BLOCKS_MAX);
                first.filter(|first| list.iter().all(|each| each == *first))
            }
            None => Some(value),
        };
        let number = match one {
            Some(Entry::Float(number)) if number.is_finite() => Some(json!(number)),
            Some(value) => value.as_u64().map(|number| json!(number)),
            None => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(field, "must be one number, the same for all blocks"))
    }

    fn count(&self, field: &str) -> Result<Option<u64>, Fault> {
        let Some(number) = self.number(field)? else { return Ok(None) };
        number.as_u64().map(Some).ok_or_else(|| self.wrong(field, "must be a whole number"))
    }

    fn real(&self, field: &str) -> Result<Option<f64>, Fault> {
        Ok(self.number(field)?.and_then(|number| number.as_f64()))
    }

    fn find(&self, field: &str) -> Option<Entry<'a>> {
        self.metadata.find(&format!("{}.{field}", self.name))
    }

    fn wrong(&self, field: &str, reason: impl std::fmt::Display) -> Fault {
        format!("{}.{field} {reason}", self.name)
    }

    fn has(&self, tensor: &str) -> bool {
        self.manifest.tensor(tensor).is_some()
    }
}
