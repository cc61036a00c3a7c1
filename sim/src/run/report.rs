//! Many seeds together: a table, and JSON.

use std::fmt;

use serde::Serialize;

use super::Outcome;
use crate::scenario::Scenario;

/// What a scenario gave.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's title.
    pub title: String,
    /// Bytes in the model.
    pub model_bytes: u64,
    /// Seconds that one copy takes.
    pub one_copy_s: f64,
    /// One run for each seed.
    pub runs: Vec<Outcome>,
    /// Medians over the runs.
    pub summary: Summary,
}

/// Medians over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Seconds until a tenth, half, nine tenths and all of those who wanted something had it.
    pub finished_s: [f64; 4],
    /// The last of these, beside the time that one copy takes.
    pub ratio: f64,
    /// The longest last one of all seeds, beside that time.
    pub ratio_max: f64,
    /// Seconds until all had the first tenth of the chunks in order.
    pub tenth_s: f64,
    /// Copies of the model that left those who had it at the beginning.
    pub seed_copies: f64,
    /// Bytes that came twice, beside the model's, for each node.
    pub duplicate_share: f64,
    /// Bytes that were of no use, beside the model's, for each node.
    pub wasted_share: f64,
}

/// Parts of the nodes for which the time is told.
const PARTS: [f64; 4] = [0.1, 0.5, 0.9, 1.0];

impl Outcome {
    /// When this part of the nodes had what it wanted.
    pub fn finished_by(&self, part: f64) -> f64 {
        let count = self.finished_s.len();
        let at = ((count as f64 * part).ceil() as usize).clamp(1, count.max(1));
        self.finished_s.get(at - 1).copied().unwrap_or(0.0)
    }
}

impl Report {
    /// Sums up what a scenario gave.
    pub fn new(scenario: &Scenario, runs: Vec<Outcome>) -> Self {
        let (model_bytes, one_copy_s) = (scenario.size(), scenario.one_copy_s());
        let of = |figure: &dyn Fn(&Outcome) -> f64| median(runs.iter().map(figure).collect());
        let share =
            |bytes: u64, run: &Outcome| bytes as f64 / (model_bytes * run.nodes.len().max(1) as u64) as f64;
        let last = runs.iter().map(|run| run.finished_by(1.0)).fold(0.0, f64::max);
        let summary = Summary {
            finished_s: PARTS.map(|part| of(&|run| run.finished_by(part))),
            ratio: of(&|run| run.finished_by(1.0)) / one_copy_s,
            ratio_max: last / one_copy_s,
            tenth_s: of(&|run| run.tenth_s.last().copied().unwrap_or(0.0)),
            seed_copies: of(&|run| run.seeds_sent as f64 / model_bytes as f64),
            duplicate_share: of(&|run| share(run.duplicate, run)),
            wasted_share: of(&|run| share(run.wasted, run)),
        };
        Self { title: scenario.title.clone(), model_bytes, one_copy_s, runs, summary }
    }
}

/// The middle one; of an even number, the lower of the two.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, model_bytes, one_copy_s, runs, summary } = self;
        writeln!(f, "{title}: {:.1} MiB, one copy takes {one_copy_s:.2} s", *model_bytes as f64 / MIB)?;
        let head = ["10 %", "50 %", "90 %", "all", "÷ copy", "1st tenth", "seed copies", "again", "wasted"];
        write!(f, "{:>8}", "seed")?;
        head.iter().try_for_each(|head| write!(f, " {head:>11}"))?;
        writeln!(f, " {:>8} {:>9}  trace", "gave up", "events")?;
        for run in runs {
            let share = |bytes: u64| bytes as f64 / (*model_bytes * run.nodes.len().max(1) as u64) as f64;
            write!(f, "{:>8}", run.seed)?;
            PARTS.iter().try_for_each(|part| write!(f, " {:>9.2} s", run.finished_by(*part)))?;
            write!(f, " {:>11.3}", run.finished_by(1.0) / one_copy_s)?;
            write!(f, " {:>9.2} s", run.tenth_s.last().copied().unwrap_or(0.0))?;
            write!(f, " {:>11.2}", run.seeds_sent as f64 / *model_bytes as f64)?;
            write!(f, " {:>10.2}% {:>10.2}%", 100.0 * share(run.duplicate), 100.0 * share(run.wasted))?;
            writeln!(f, " {:>8} {:>9}  {}", run.gave_up, run.events, &run.trace[..16])?;
        }
        write!(f, "{:>8}", "median")?;
        summary.finished_s.iter().try_for_each(|at| write!(f, " {at:>9.2} s"))?;
        write!(f, " {:>11.3} {:>9.2} s {:>11.2}", summary.ratio, summary.tenth_s, summary.seed_copies)?;
        writeln!(f, " {:>10.2}% {:>10.2}%", 100.0 * summary.duplicate_share, 100.0 * summary.wasted_share)?;
        write!(
            f,
            "all nodes: {:.3} of one copy's time in the median, {:.3} at most",
            summary.ratio, summary.ratio_max
        )
    }
}

const MIB: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_of_them() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
