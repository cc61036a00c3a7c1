//! One host has a file and others want it, all at once: how long until the last has it, and how often
//! the first had to send it.

use std::sync::Arc;

use super::{everyone, one_copy};
use crate::{
    bench::Failed,
    lab::{
        Lab,
        arena::Arena,
        net::Network,
        report::{Report, round},
    },
};

/// Measures, with `nodes` receivers.
pub async fn run(lab: &Lab, figure: &str, nodes: usize) -> Result<Report, Failed> {
    let options = &lab.options;
    let payload = lab.payload(options.size)?;
    let network = Arc::new(Network::up(nodes + 1, &options.rate)?);
    let copy = one_copy(lab, &network, &payload, (0, 1)).await?;
    let what = format!("1 → {nodes}, {} MiB, {} each way", payload.size >> 20, options.rate);
    let mut report = Report::new(figure, what, copy);
    let receivers = (1..=nodes).collect();
    let arena = Arena { lab, network: &network, seeds: vec![0], receivers, payload: &payload, dies: None };
    everyone(lab, &arena, &mut report).await?;
    for name in report.programs().into_iter().map(str::to_owned).collect::<Vec<_>>() {
        if let Some(copies) = report.middle(&name, |run| run.origin_copies) {
            report.value(&format!("origin copies, {name}"), round(copies));
        }
    }
    Ok(report)
}
