//! How long the real code takes with few nodes, and what a round of the model must be to say the same.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use surf_node::config::Size;

use super::spread::Crowd;
use crate::{
    net::Breach,
    run::{Report, Run},
    scenario::Scenario,
};

/// Bytes in the chunks with which the real code is run. Links are as much slower as they are smaller than
/// a chunk of 2 MiB, so a second is a second.
const CHUNK: u64 = 256 << 10;

/// A fit of the model to the real code.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// How long a round is, beside the time in which a chunk passes a link.
    pub stretch: f64,
    /// Seconds that come on top: meeting, looking up, connecting.
    pub start_s: f64,
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
    /// Runs the scenario `herd` with crowds of these sizes, and fits a line through what it takes.
    pub fn measure(sizes: &[usize], seeds: u64, neighbours: usize) -> Result<Self, Breach> {
        let herd = Scenario::open("herd").expect("it comes along, and a test reads it");
        let scale = herd.chunk_size() / CHUNK;
        let mut points = Vec::new();
        let mut chunk_s = 0.0;
        for &nodes in sizes {
            let mut scenario = herd.clone();
            scenario.model.chunk = Size::Bytes(CHUNK);
            for group in &mut scenario.nodes {
                (group.up.bytes_per_s, group.down.bytes_per_s) =
                    (group.up.bytes_per_s / scale, group.down.bytes_per_s / scale);
                chunk_s = CHUNK as f64 / group.up.bytes_per_s as f64;
            }
            let crowd = scenario.group("downloads").expect("the herd has downloads");
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
        let sum = |term: &dyn Fn(f64, f64, f64) -> f64| -> f64 {
            let terms = points.iter().map(|point| {
                let (x, y) = (f64::from(point.rounds) * chunk_s, point.measured_s);
                term(x, y, 1.0 / (y * y))
            });
            terms.sum()
        };
        let (w, x, y) = (sum(&|_, _, w| w), sum(&|x, _, w| w * x), sum(&|_, y, w| w * y));
        let (xx, xy) = (sum(&|x, _, w| w * x * x), sum(&|x, y, w| w * x * y));
        let spread = w * xx - x * x;
        // With one size, or sizes that take the same, there is no line: all of it is stretch.
        let stretch = if spread > 1e-9 * w * xx { (w * xy - x * y) / spread } else { xy / xx };
        let start_s = if spread > 1e-9 * w * xx { (y - stretch * x) / w } else { 0.0 };
        for point in &mut points {
            point.predicted_s = start_s + stretch * f64::from(point.rounds) * chunk_s;
        }
        let off = points.iter().map(|point| (point.predicted_s / point.measured_s - 1.0).abs());
        let error_max = off.fold(0.0, f64::max);
        Self { stretch, start_s, error_max, points, chunk_s }
    }

    /// Seconds that so many rounds take on the links with which it was measured.
    pub fn predict(&self, rounds: u32) -> f64 {
        self.start_s + self.stretch * f64::from(rounds) * self.chunk_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again() {
        let point = |nodes, rounds: u32| {
            let measured_s = 0.5 + 1.25 * f64::from(rounds) * 0.2;
            Point { nodes, rounds, measured_s, predicted_s: 0.0 }
        };
        let fit = Calibration::fit(vec![point(1, 64), point(4, 70), point(16, 80)], 0.2);
        assert!(
            (fit.stretch - 1.25).abs() < 1e-9 && (fit.start_s - 0.5).abs() < 1e-9 && fit.error_max < 1e-9
        );
        let one = Calibration::fit(vec![point(1, 64)], 0.2);
        assert!((one.predict(64) - one.points[0].measured_s).abs() < 1e-9);
    }
}
