//! One host has a model, others run it all at once without having any of it, so all of them need the
//! same layers at the same time: how soon the first layers are there, and how soon the last.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{SETTLE, one_copy};
use crate::{
    bench::{
        Failed,
        engine::{Shape, write_model},
        median,
    },
    lab::{
        Lab, Payload,
        arena::Arena,
        measure::{Meter, Role},
        net::Network,
        process::Node,
        report::{Report, round},
    },
};

/// How often to look which layers have come.
const LOOK: Duration = Duration::from_millis(200);

/// Tokens in the prompt: enough that it is one, few enough that computing takes no time to speak of.
const PROMPT: [u32; 4] = [3, 10, 17, 24];

/// The share of the bytes that must be there first.
const FIRST: f64 = 0.1;

/// A Llama whose blocks of 6.1 MiB add up to about `size` bytes, so that order can be seen.
fn shape(size: u64) -> Shape {
    let (hidden, intermediate, vocab) = (512, 1408, 2048);
    let block = 2 * (4 * hidden * hidden + 3 * hidden * intermediate) as u64;
    let ends = 2 * 2 * (hidden * vocab) as u64;
    let layers = (size.saturating_sub(ends) / block).max(1) as usize;
    Shape { layers, hidden, intermediate, heads: 8, kv_heads: 8, vocab }
}

/// Measures, with `nodes` that run the model.
pub async fn run(lab: &Lab, nodes: usize) -> Result<Report, Failed> {
    let options = &lab.options;
    let folder = lab.folder("payload")?;
    let weights = write_model(&folder, &shape(options.size))?;
    let name = "model.safetensors".to_owned();
    let size = std::fs::metadata(folder.join(&name))?.len();
    let payload = Payload { folder, name, size };
    let network = Arc::new(Network::up(nodes + 1, &options.rate)?);
    let copy = one_copy(lab, &network, &payload, (0, 1)).await?;
    let what = format!(
        "1 → {nodes} that generate from {} MiB of weights in layer order, {} each way",
        weights >> 20,
        options.rate
    );
    let mut report = Report::new("inference", what, copy);
    let receivers = (1..=nodes).collect();
    let arena = Arena { lab, network: &network, seeds: vec![0], receivers, payload: &payload, dies: None };
    let mut firsts = Vec::new();
    for at in 0..options.rounds {
        let run = once(&arena, &mut firsts).await?;
        lab.note(&format!("round {at}: all have generated after {:.2} s", run.seconds));
        report.runs.push(run);
    }
    report.compare();
    let last = firsts.iter().copied().fold(0.0, f64::max);
    report.value("first tenth in order, last node, s", round(last));
    report.value("first tenth in order, median, s", round(median(firsts)));
    if let Some(nominal) = copy.nominal_s {
        report.value("first tenth in order, last node ÷ T1", round(last / nominal));
    }
    Ok(report)
}

async fn once(arena: &Arena<'_>, firsts: &mut Vec<f64>) -> Result<crate::lab::arena::Run, Failed> {
    let (network, program) = (arena.network, &arena.lab.options.program);
    let dir = |host: usize| -> Result<PathBuf, Failed> { arena.folder("surf-node", host) };
    let seed = Node::join(network, arena.seeds[0], program, &dir(arena.seeds[0])?, &[], &[]).await?;
    let model = seed.publish(network, &arena.payload.folder).await?;
    let through = [seed.addr.clone()];
    let memory = (2 * arena.payload.size).to_string();
    let mut nodes = Vec::new();
    for &host in &arena.receivers {
        let memory = ["--memory", &*memory];
        nodes.push(Node::join(network, host, program, &dir(host)?, &through, &memory).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let receiving = nodes.iter().map(|node| (node.pid(), Role::Receives));
    let programs: Vec<_> = std::iter::once((seed.pid(), Role::Sends)).chain(receiving).collect();
    let work = async |meter: Arc<Meter>| {
        let all = nodes.iter().map(|node| generate(network, node, &model, &meter));
        let times = try_join_all(all).await?;
        firsts.extend(times.iter().map(|(first, _)| first));
        Ok((times.into_iter().map(|(_, done)| done).collect(), None))
    };
    arena.measure("surf-node", &programs, work).await
}

/// Seconds until the first tenth of the weights was there in order, and until a token was there.
async fn generate(
    network: &Arc<Network>,
    node: &Node,
    model: &str,
    meter: &Meter,
) -> Result<(f64, f64), Failed> {
    let body = json!({
        "model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "ignore_eos": true,
    });
    let answer = async {
        let answer = node.post(network, "/v1/completions", &body).await?;
        let came = answer["usage"]["completion_tokens"] == 1;
        let done = meter.elapsed();
        if came { Ok(done) } else { Err(Failed(format!("no token came: {answer}"))) }
    };
    let first = async {
        loop {
            // The node knows of no such model until its manifest has come.
            let detail = node.get(network, &format!("/surf/v1/models/{model}")).await?;
            if FIRST <= in_order(&detail) {
                return Ok(meter.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::try_join!(first, answer)
}

/// The share of a model's weights that are here without a gap, in the order of a pass. A group counts
/// when all of it is here.
fn in_order(detail: &Value) -> f64 {
    let Some(groups) = detail["group_list"].as_array() else { return 0.0 };
    let of = |group: &Value, name: &str| group[name].as_u64().unwrap_or(0);
    let total: u64 = groups.iter().map(|group| of(group, "bytes")).sum();
    let whole = groups.iter().take_while(|group| of(group, "bytes") == of(group, "held_bytes"));
    whole.map(|group| of(group, "bytes")).sum::<u64>() as f64 / total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_ends_what_is_in_order() {
        let group = |bytes: u64, held: u64| json!({"bytes": bytes, "held_bytes": held});
        let detail = json!({"group_list": [group(10, 10), group(20, 20), group(30, 29), group(40, 40)]});
        assert_eq!(in_order(&detail), 0.3);
        assert_eq!(in_order(&json!({"error": {}})), 0.0);
    }

    #[test]
    fn a_shape_has_the_size_asked_for() {
        let shape = shape(128 << 20);
        assert_eq!(shape.layers, 20);
    }
}
