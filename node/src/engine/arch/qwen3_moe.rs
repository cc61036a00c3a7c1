//! Qwen 3 with experts: some or all blocks have them in place of the MLP.

use std::sync::Arc;

use super::{
    Architecture,
    decoder::{Decoder, Reading, Together, Variant},
    mixture::{self, MixtureShape},
};
use crate::engine::{
    EngineError,
    experts::ExpertShape,
    fields::Fields,
    router::{Routing, Scoring},
};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { context: 1 << 15, ..Reading::default() })?;
    let bias = fields.flag("attention_bias")?.unwrap_or(false);
    let window = match fields.flag("use_sliding_window")? {
        Some(true) => fields.limit_if("sliding_window", 1..=1 << 24)?,
        Some(false) | None => None,
    };
    let windows = vec![window; decoder.blocks()];
    let mixture = Some(Arc::new(mixture(fields, &decoder)?));
    let variant = Variant {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(Together::Head),
        windows,
        mixture,
        ..Variant::default()
    };
    Ok(decoder.boxed(variant))
}

/// The experts of the Qwen families.
pub(super) fn mixture(fields: &Fields<'_>, decoder: &Decoder) -> Result<MixtureShape, EngineError> {
    let (experts, taken) = mixture::counts(fields, &["num_experts", "num_local_experts"])?;
    Ok(MixtureShape {
        blocks: mixture::sparse_blocks(fields, decoder.blocks())?,
        router: "mlp.gate",
        corrected: false,
        routing: Routing {
            experts,
            taken,
            scoring: Scoring::Softmax,
            groups: None,
            normalised: fields.flag("norm_topk_prob")?.unwrap_or(false),
            scale: 1.0,
        },
        experts: ExpertShape {
            under: "mlp.experts",
            names: ["gate_proj", "up_proj", "down_proj"],
            hidden: decoder.hidden(),
            intermediate: fields.count("moe_intermediate_size", 1..=1 << 20)?,
            activation: decoder.activation(),
        },
        shared: None,
    })
}
