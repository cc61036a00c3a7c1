//! A long and lossy way between two hosts: what share of the link is used.

use std::sync::Arc;

use super::{everyone, one_copy};
use crate::{
    bench::Failed,
    lab::{
        Lab,
        arena::Arena,
        net::{Network, Rate},
        relay,
        report::{Report, round},
    },
};

/// The host in the middle, which relays.
const MIDDLE: usize = 2;

/// Measures over a way that treats packets in this `manner`.
pub async fn run(lab: &Lab, manner: relay::Manner) -> Result<Report, Failed> {
    let options = &lab.options;
    let payload = lab.payload(options.size)?;
    let network = Arc::new(Network::up(3, &options.rate)?);
    let copy = one_copy(lab, &network, &payload, (0, 1)).await?;
    // The relay has a link of its own, which must not count twice.
    network.shape(MIDDLE, &"0".parse::<Rate>()?)?;
    let log = lab.folder("relay")?.join("relay.log");
    let mut relay = relay::start(&network, (MIDDLE, 0, 1), manner, &options.this, &log)?;
    super::super::peers::soon("the relay", relay.line_with("ready")).await?;
    let what = format!(
        "1 → 1, {} MiB, {}, {} ms round trip, {} ms jitter, {} % loss",
        payload.size >> 20,
        options.rate,
        manner.delay_ms * 2.0,
        manner.jitter_ms,
        manner.loss * 100.0
    );
    let mut report = Report::new("lossy", what, copy);
    let arena =
        Arena { lab, network: &network, seeds: vec![0], receivers: vec![1], payload: &payload, dies: None };
    everyone(lab, &arena, &mut report).await?;
    if let Some(nominal) = copy.nominal_s {
        for name in report.programs().into_iter().map(str::to_owned).collect::<Vec<_>>() {
            let seconds = report.middle(&name, |run| run.seconds);
            report.value(&format!("share of the link, {name}"), seconds.map(|s| round(nominal / s)));
        }
    }
    Ok(report)
}
