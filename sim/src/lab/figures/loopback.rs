//! As fast as the machine can: one file over the loopback of one host, beside bare quinn and sendme.
//! Without a limit on the link, this is about CPU time and memory.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    bench::{Failed, median},
    lab::{
        Lab,
        arena::Arena,
        net::Network,
        peers::{Program, sendme::Sendme},
        report::{OneCopy, Report, round},
    },
};

/// Measures.
pub async fn run(lab: &Lab) -> Result<Report, Failed> {
    let options = &lab.options;
    let network = Arc::new(Network::up(1, &options.rate)?);
    let what = format!("1 → 1 over loopback, {} MiB, verified and on disk", options.size >> 20);
    let mut report = Report::new("loopback", what, OneCopy { nominal_s: None, measured_s: None });
    let sendme = Sendme::find(options.peers.as_deref());
    let wanted = options.compare.as_ref().is_none_or(|list| list.iter().any(|name| name == "sendme"));
    let mut rounds = Vec::new();
    for at in 0..options.rounds {
        let ours = measure_ours(lab, &network)?;
        lab.note(&format!("round {at}: {ours}"));
        let theirs = match &sendme {
            Ok(sendme) if wanted => Some(measure_sendme(lab, &network, sendme, &mut report).await?),
            Ok(_) => None,
            Err(error) => {
                lab.note(&format!("sendme is left out: {error}"));
                None
            }
        };
        rounds.push((ours, theirs));
    }
    let names = ["pull_s", "quinn_s", "of_quinn", "publish_s", "cpu_send", "cpu_receive", "cpu_quinn"];
    let disk = ["write_s", "cpu_write"];
    let memory = ["memory_publish", "memory_send", "memory_receive"];
    for name in names.into_iter().chain(disk).chain(memory) {
        let values = rounds.iter().filter_map(|(ours, _)| ours[name].as_f64()).collect();
        report.value(name, round(median(values)));
    }
    let ratios: Vec<f64> =
        rounds.iter().filter_map(|(ours, theirs)| Some((*theirs)? / ours["pull_s"].as_f64()?)).collect();
    if !ratios.is_empty() {
        report.value("sendme ÷ surf-node", round(median(ratios)));
    }
    Ok(report)
}

/// `surf-sim bench transfer`, on the host.
fn measure_ours(lab: &Lab, network: &Network) -> Result<Value, Failed> {
    let options = &lab.options;
    let mut command: Command = network.command(0, &options.this);
    command.args(["bench", "transfer", "--rounds", "1", "--mib", &(options.size >> 20).to_string()]);
    command.arg("--dir").arg(lab.folder("transfer")?).arg("--program").arg(&options.program);
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    let said = || Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    serde_json::from_str(&last).map_err(|_| said())
}

async fn measure_sendme(
    lab: &Lab,
    network: &Arc<Network>,
    sendme: &Sendme,
    report: &mut Report,
) -> Result<f64, Failed> {
    let payload = lab.payload(lab.options.size)?;
    let arena = Arena { lab, network, seeds: vec![0], receivers: vec![0], payload: &payload, dies: None };
    let run = sendme.distribute(&arena).await?;
    let seconds = run.seconds;
    lab.note(&format!("sendme: {seconds:.2} s"));
    report.runs.push(run);
    Ok(seconds)
}
