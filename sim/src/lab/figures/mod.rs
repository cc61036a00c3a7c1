//! One module for each figure that must be shown.

pub mod chaos;
pub mod crowd;
pub mod inference;
pub mod loopback;
pub mod lossy;
pub mod outsider;
pub mod resume;
pub mod seeds;

use std::{sync::Arc, time::Duration};

use super::{
    Lab, Payload,
    arena::Arena,
    net::Network,
    peers::{Program, all, web::Web},
    report::{OneCopy, Report},
};
use crate::bench::Failed;

/// How long nodes have to tell each other who has what before the clock runs. Nodes run all the time.
pub(crate) const SETTLE: Duration = Duration::from_millis(1500);

/// What one plain copy between two hosts takes, where nginx and curl are here.
async fn one_copy(
    lab: &Lab,
    network: &Arc<Network>,
    payload: &Payload,
    pair: (usize, usize),
) -> Result<OneCopy, Failed> {
    let options = &lab.options;
    let nominal = |measured| OneCopy::new(payload.size, &options.rate, measured);
    let web = match Web::plain(options.peers.as_deref()) {
        Ok(web) => web,
        Err(error) => {
            eprintln!("T1 is not measured: {error}");
            return Ok(nominal(None));
        }
    };
    let arena = Arena { lab, network, seeds: vec![pair.0], receivers: vec![pair.1], payload, dies: None };
    let run = web.distribute(&arena).await?;
    lab.note(&format!("one copy with nginx and curl: {:.2} s", run.seconds));
    Ok(nominal(Some(run.seconds)))
}

/// Puts every program to the job of `arena`, in each round. A program that fails is left out of the
/// rounds that follow; ours must not fail.
async fn everyone(lab: &Lab, arena: &Arena<'_>, report: &mut Report) -> Result<(), Failed> {
    let mut programs = all(&lab.options);
    programs.retain(|program| {
        let enough = arena.seeds.len() <= program.seeds_max();
        if !enough {
            lab.note(&format!("{} is left out: it takes from one peer only", program.name()));
        }
        enough
    });
    for round in 0..lab.options.rounds {
        let mut failed = Vec::new();
        for (at, program) in programs.iter().enumerate() {
            match program.distribute(arena).await {
                Ok(run) => {
                    lab.note(&format!("round {round}: {}: {:.2} s", run.program, run.seconds));
                    report.runs.push(run);
                }
                Err(error) if at == 0 => return Err(error),
                Err(error) => {
                    lab.note(&format!("{} is left out from here: {error}", program.name()));
                    failed.push(program.name());
                }
            }
        }
        programs.retain(|program| !failed.contains(&program.name()));
    }
    report.compare();
    Ok(())
}
