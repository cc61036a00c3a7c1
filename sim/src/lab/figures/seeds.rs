//! Four hosts with slow links have one file, a fifth with a fast one wants it: whether it takes from
//! all of them, and what happens when one dies half-way.

use std::sync::Arc;

use super::{everyone, one_copy};
use crate::{
    bench::Failed,
    lab::{
        Lab,
        arena::Arena,
        net::{Network, Rate},
        report::Report,
    },
};

/// Hosts that have the file.
const SEEDS: usize = 4;

/// Measures. Each seed's link carries a quarter of the receiver's. With `kill`, one of them is killed
/// when the receiver has half.
pub async fn run(lab: &Lab, seed_rate: &Rate, kill: bool) -> Result<Report, Failed> {
    let options = &lab.options;
    let payload = lab.payload(options.size)?;
    let network = Arc::new(Network::up(SEEDS + 1, &options.rate)?);
    let copy = one_copy(lab, &network, &payload, (0, SEEDS)).await?;
    for seed in 0..SEEDS {
        network.shape(seed, seed_rate)?;
    }
    let dies = if kill { "; one seed dies half-way" } else { "" };
    let what =
        format!("{SEEDS} seeds at {seed_rate} → 1 at {}, {} MiB{dies}", options.rate, payload.size >> 20);
    let mut report = Report::new("four-seeds", what, copy);
    let arena = Arena {
        lab,
        network: &network,
        seeds: (0..SEEDS).collect(),
        receivers: vec![SEEDS],
        payload: &payload,
        // Not the first, through which the others have joined: that is another test.
        dies: kill.then_some(SEEDS - 1),
    };
    everyone(lab, &arena, &mut report).await?;
    Ok(report)
}
