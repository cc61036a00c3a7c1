//! Mixtral: Mistral with experts in place of the MLP.

use std::sync::Arc;

use super::{
    Architecture,
    decoder::{Decoder, Reading, Variant},
    mixture::{self, MixtureShape},
};
use crate::engine::{
    EngineError,
    experts::ExpertShape,
    fields::Fields,
    router::{Routing, Scoring},
};

pub(super) fn read(fields: &Fields<'_>) -> Result<Box<dyn Architecture>, EngineError> {
    let decoder = Decoder::read(fields, &Reading { context: 1 << 17, ..Reading::default() })?;
    let window = fields.limit_if("sliding_window", 1..=1 << 24)?;
    let (experts, taken) = mixture::counts(fields, &["num_local_experts", "num_experts"])?;
    let mixture = MixtureShape {
        blocks: vec![true; decoder.blocks()],
        router: "block_sparse_moe.gate",
        corrected: false,
        routing: Routing {
            experts,
            taken,
            scoring: Scoring::Softmax,
            groups: None,
            normalised: true,
            scale: 1.0,
        },
        experts: ExpertShape {
            under: "block_sparse_moe.experts",
            names: ["w1", "w3", "w2"],
            hidden: decoder.hidden(),
            intermediate: decoder.intermediate(),
            activation: decoder.activation(),
        },
        shared: None,
    };
    let windows = vec![window; decoder.blocks()];
    Ok(decoder.boxed(Variant { windows, mixture: Some(Arc::new(mixture)), ..Variant::default() }))
}
