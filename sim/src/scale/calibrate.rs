//! How long the real code takes with few nodes, and what a round of the model must be to say the same.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::spread::Crowd;
use crate::{
    net::Breach,
    run::{Report, Run},
    scenario::Scenario,
};

/// A fit of the model to the real code.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// How long a round is with one node, beside the time in which a chunk passes a link.
    pub stretch: f64,
    /// How much longer with each doubling of the crowd: more ask the same, and wait for each other.
    pub per_doubling: f64,
    /// The largest error of the fit, beside what was measured.
    pub error_max: f64,
    /// What was measured.
    pub points: Vec<Point>,
    chunk_s: f64,
}

/// A crowd run with the real code.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// Nodes that wanted the model.
    pub nodes: usize,
    /// Rounds of the model.
    pub rounds: u32,
    /// Seconds until all had it, in the median of the seeds.
    pub measured_s: f64,
    /// The same, as the fit has it.
    pub predicted_s: f64,
}

impl Calibration {
    /// Runs the scenario `herd` with crowds of these sizes, and fits what a round takes, and takes more with each doubling.
    pub fn measure(sizes: &[usize], seeds: u64, neighbours: usize) -> Result<Self, Breach> {
        let herd = Scenario::open("herd").expect("it comes along, and a test reads it");
        let crowd = herd.group("downloads").expect("the herd has downloads");
        let chunk_s = herd.chunk_size() as f64 / herd.nodes[crowd].down.bytes_per_s as f64;
        let mut points = Vec::new();
        for &nodes in sizes {
            let mut scenario = herd.clone();
            scenario.nodes[crowd].count = nodes;
            let run = Run::new(scenario);
            let outcomes = (0..seeds).map(|seed| run.seed(seed, None)).collect::<Result<Vec<_>, _>>()?;
            let measured_s = Report::new(run.scenario(), outcomes).summary.finished_s[3];
            let chunks = run.scenario().model.chunks;
            let spread = Crowd { nodes, chunks, neighbours }.spread(&mut ChaCha8Rng::seed_from_u64(0));
            points.push(Point { nodes, rounds: spread.all, measured_s, predicted_s: 0.0 });
        }
        Ok(Self::fit(points, chunk_s))
    }

    /// Least squares of relative errors: a second of a short run counts as much as ten of a long one.
    fn fit(mut points: Vec<Point>, chunk_s: f64) -> Self {
        // Of what was measured, the share that an unstretched round makes up, and that times the doublings.
        let shares: Vec<(f64, f64)> = points
            .iter()
            .map(|point| {
                let share = f64::from(point.rounds) * chunk_s / point.measured_s;
                (share, share * doublings(point.nodes))
            })
            .collect();
        let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 { shares.iter().map(|&(u, v)| term(u, v)).sum() };
        let (u, v) = (sum(&|u, _| u), sum(&|_, v| v));
        let (uu, uv, vv) = (sum(&|u, _| u * u), sum(&|u, v| u * v), sum(&|_, v| v * v));
        let spread = uu * vv - uv * uv;
        // With one size nothing is known of others.
        let (stretch, per_doubling) = match spread > 1e-9 * uu * uu {
            true => ((u * vv - v * uv) / spread, (v * uu - u * uv) / spread),
            false => (u / uu, 0.0),
        };
        let mut fit = Self { stretch, per_doubling, error_max: 0.0, points: Vec::new(), chunk_s };
        for point in &mut points {
            point.predicted_s = fit.predict(point.nodes, point.rounds);
            fit.error_max = fit.error_max.max((point.predicted_s / point.measured_s - 1.0).abs());
        }
        Self { points, ..fit }
    }

    /// How long a round is with so many nodes, beside the time in which a chunk passes a link.
    pub fn stretch(&self, nodes: usize) -> f64 {
        self.stretch + self.per_doubling * doublings(nodes)
    }

    /// Seconds that so many rounds take on the links with which it was measured.
    pub fn predict(&self, nodes: usize, rounds: u32) -> f64 {
        self.stretch(nodes) * f64::from(rounds) * self.chunk_s
    }
}

fn doublings(nodes: usize) -> f64 {
    (nodes.max(1) as f64).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_is_found_again() {
        let point = |nodes: usize, rounds: u32| {
            let measured_s = (1.05 + 0.08 * doublings(nodes)) * f64::from(rounds) * 0.2;
            Point { nodes, rounds, measured_s, predicted_s: 0.0 }
        };
        let fit = Calibration::fit(vec![point(1, 64), point(4, 70), point(16, 80)], 0.2);
        let off = [fit.stretch - 1.05, fit.per_doubling - 0.08, fit.error_max];
        assert!(off.iter().all(|off| off.abs() < 1e-9), "{off:?}");
        let one = Calibration::fit(vec![point(4, 64)], 0.2);
        assert!((one.predict(4, 64) - one.points[0].measured_s).abs() < 1e-9);
    }
}
