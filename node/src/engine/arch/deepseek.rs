//! DeepSeek V2 and V3: latent attention, and after the first few blocks many small experts beside
//! one that every token takes.

use std::sync::Arc;

use super::{
    Architecture,
    block::{Attending, Block, NormKind},
    decoder::{Decoder, Reading, Variant},
    mixture::{self, MixtureShape, SharedShape},
    stack::{Blocks, Frame, Stack},
};
use crate::engine::{
    EngineError,
    cache::CacheShape,
    experts::ExpertShape,
    fields::Fields,
    latent::{LatentAttention, LatentShape, Query},
    parts::Parts,
    rotary::{Pairing, Rotary, Spelling},
    router::{Groups, Routing, Scoring},
    widths::Stage,
};

/// Of the norms over latents, whatever the configuration says of the others.
const LATENT_EPS: f64 = 1e-6;

/// In what V2 and V3 differ.
struct Version {
    context: usize,
    scoring: Scoring,
    /// How many of a group's best scores, summed, are the group's; `None` if groups do not count.
    groups_by_best: Option<usize>,
    corrected: bool,
    normalised: bool,
    pairing: Pairing,
}

#[derive(Debug)]
struct DeepSeek {
    /// What is as in Llama: all but attention.
    decoder: Decoder,
    attention: LatentShape,
    /// Elements of the queries' own latent, if they have one.
    query_latent: Option<usize>,
    bias: bool,
    rotary: Arc<Rotary>,
}

pub(super) fn read_v2(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let groups_by_best = match fields.text("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => Some(1),
        other => return Err(fields.invalid("topk_method", format!("is {other:?}, which is not known"))),
    };
    read(
        fields,
        Version {
            context: 2048,
            scoring: Scoring::Softmax,
            groups_by_best,
            corrected: false,
            // `norm_topk_prob` is set in no published V2, and transformers does not look at it.
            normalised: false,
            pairing: Pairing::Neighbours,
        },
    )
}

pub(super) fn read_v3(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let pairing = match fields.flag("rope_interleave")?.unwrap_or(true) {
        true => Pairing::Neighbours,
        false => Pairing::Halves,
    };
    read(
        fields,
        Version {
            context: 4096,
            scoring: Scoring::Sigmoid,
            groups_by_best: Some(2),
            corrected: true,
            normalised: fields.flag("norm_topk_prob")?.unwrap_or(true),
            pairing,
        },
    )
}

fn read(fields: &Fields<'_>, version: Version) -> Result<Box<dyn Architecture>, EngineError> {
    let size = |name| fields.count(name, 1..=1 << 16);
    let turned = fields.count("qk_rope_head_dim", 2..=1024)?;
    if !turned.is_multiple_of(2) {
        return Err(fields.invalid("qk_rope_head_dim", format!("is {turned}; it must be even")));
    }
    let rotary = Spelling { pairing: version.pairing, ..Spelling::DEFAULT };
    let reading = Reading { context: version.context, head_dim: Some(turned), rotary, ..Reading::default() };
    let decoder = Decoder::read(fields, &reading)?;
    let plain = size("qk_nope_head_dim")?;
    let scale = 1.0 / ((plain + turned) as f64).sqrt() * score_scale(fields)?;
    let attention = LatentShape {
        heads: fields.count("num_attention_heads", 1..=1024)?,
        latent: size("kv_lora_rank")?,
        plain,
        turned,
        value: size("v_head_dim")?,
        scale: scale as f32,
    };
    let mixture = Some(Arc::new(mixture(fields, &decoder, &version)?));
    let decoder = decoder.with(Variant { mixture, ..Variant::default() });
    let cache = CacheShape { blocks: decoder.blocks(), heads: 1, elements: attention.kept() };
    let frame = Frame { cache, ..decoder.frame("model.") };
    let blocks = DeepSeek {
        decoder,
        attention,
        query_latent: fields.count_if("q_lora_rank", 1..=1 << 16)?,
        bias: fields.flag("attention_bias")?.unwrap_or(false),
        rotary: Arc::new(Rotary::read(fields, turned, &rotary)?),
    };
    Ok(Box::new(Stack { frame, blocks: Box::new(blocks) }))
}

fn mixture(fields: &Fields<'_>, decoder: &Decoder, version: &Version) -> Result<MixtureShape, EngineError> {
    let (experts, taken) =
        mixture::counts(fields, &["n_routed_experts", "num_local_experts", "num_experts"])?;
    let dense = fields.count_if("first_k_dense_replace", 0..=1 << 16)?.unwrap_or(0);
    let every = fields.count_if("moe_layer_freq", 1..=1 << 16)?.unwrap_or(1);
    let intermediate = fields.count("moe_intermediate_size", 1..=1 << 20)?;
    let shared =
        |count| SharedShape { name: "mlp.shared_experts", intermediate: intermediate * count, gate: None };
    Ok(MixtureShape {
        blocks: (0..decoder.blocks()).map(|at| dense <= at && at.is_multiple_of(every)).collect(),
        router: "mlp.gate",
        corrected: version.corrected,
        routing: Routing {
            experts,
            taken,
            scoring: version.scoring,
            groups: match version.groups_by_best {
                Some(by_best) => Some(Groups::read(fields, experts, taken, by_best)?),
                None => None,
            },
            normalised: version.normalised,
            scale: fields.real("routed_scaling_factor")?.unwrap_or(1.0) as f32,
        },
        experts: ExpertShape {
            under: "mlp.experts",
            names: ["gate_proj", "up_proj", "down_proj"],
            hidden: decoder.hidden(),
            intermediate,
            activation: decoder.activation(),
        },
        shared: fields.count_if("n_shared_experts", 1..=64)?.map(shared),
    })
}

/// What scores are multiplied with where positions were stretched: `(0.1 · mscale_all_dim · ln factor + 1)²`.
fn score_scale(fields: &Fields<'_>) -> Result<f64, EngineError> {
    let scaling = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return Ok(1.0) };
    let kind = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
    let (all, factor) =
        (scaling.real("mscale_all_dim")?.unwrap_or(0.0), scaling.real("factor")?.unwrap_or(1.0));
    if kind == "default" || factor <= 1.0 {
        return Ok(1.0);
    }
    Ok((0.1 * all * factor.ln() + 1.0).powi(2))
}

impl Blocks for DeepSeek {
    fn stages(&self) -> Vec<Stage> {
        let attention = self.attention.stage(self.decoder.hidden(), self.query_latent.unwrap_or(0));
        std::iter::once(attention).chain(self.decoder.feed_forward_stages()).collect()
    }

    fn block(&self, index: usize, parts: &Parts<'_>) -> Result<Block, EngineError> {
        let norm = |name| NormKind::Rms(self.decoder.eps()).read(parts, name, self.decoder.hidden());
        Ok(Block {
            before_attention: Some(norm("input_layernorm")?),
            attention: Attending::Latent(self.attention(index, &parts.under("self_attn"))?),
            after_attention: None,
            before_mlp: Some(norm("post_attention_layernorm")?),
            mlp: self.decoder.feed_forward(index, parts)?,
            after_mlp: None,
            parallel: false,
        })
    }
}

impl DeepSeek {
    fn attention(&self, block: usize, parts: &Parts<'_>) -> Result<LatentAttention, EngineError> {
        let (shape, hidden) = (self.attention, self.decoder.hidden());
        let width = shape.heads * shape.query();
        let query = match self.query_latent {
            None => Query::Direct(parts.linear("q_proj", hidden, width, false)?),
            Some(latent) => Query::Through(
                parts.linear("q_a_proj", hidden, latent, self.bias)?,
                parts.rms_norm("q_a_layernorm", latent, LATENT_EPS)?,
                parts.linear("q_b_proj", latent, width, false)?,
            ),
        };
        let expanded = shape.heads * (shape.plain + shape.value);
        Ok(LatentAttention {
            query,
            compress: parts.linear("kv_a_proj_with_mqa", hidden, shape.kept(), self.bias)?,
            norm: parts.rms_norm("kv_a_layernorm", shape.latent, LATENT_EPS)?,
            expand: parts.matrix("kv_b_proj", expanded, shape.latent)?,
            output: parts.linear("o_proj", shape.heads * shape.value, hidden, self.bias)?,
            rotary: Arc::clone(&self.rotary),
            shape,
            block,
        })
    }
}
