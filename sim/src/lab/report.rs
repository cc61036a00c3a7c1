//! What comes out of a figure: a table for people, JSON for programs, and a plot.

use std::{fs, path::Path};

use plotters::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::{arena::Run, net::Rate};
use crate::bench::{Failed, median};

/// What a link of a given rate is slower for headers and handshakes than its rate says.
const OVERHEAD: f64 = 1.045;

/// How long one copy takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OneCopy {
    /// Size ÷ rate, and 4.5 % for headers. `None` where nothing limits the link.
    pub nominal_s: Option<f64>,
    /// What nginx and curl took, in the same network.
    pub measured_s: Option<f64>,
}

impl OneCopy {
    /// For a file of `size` over a link that carries `rate`.
    pub fn new(size: u64, rate: &Rate, measured_s: Option<f64>) -> Self {
        let bits = rate.bits_per_s();
        let nominal_s = (0 < bits).then(|| size as f64 * 8.0 / bits as f64 * OVERHEAD);
        Self { nominal_s, measured_s }
    }
}

/// A figure, measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its name, as in the command.
    pub figure: String,
    /// What was done, in words.
    pub what: String,
    /// How long one copy takes.
    pub one_copy: OneCopy,
    /// Every run of every program.
    pub runs: Vec<Run>,
    /// What else was measured, and the ratios that the figure is about, each with its unit in its name.
    pub values: serde_json::Map<String, Value>,
}

impl Report {
    /// A report without runs.
    pub fn new(figure: &str, what: String, one_copy: OneCopy) -> Self {
        Self { figure: figure.to_owned(), what, one_copy, runs: Vec::new(), values: serde_json::Map::new() }
    }

    /// Notes a value.
    pub fn value(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// The middle of `field` over the runs of `program`. `None` if there are none.
    pub fn middle(&self, program: &str, field: impl Fn(&Run) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(program).map(field).collect();
        (!values.is_empty()).then(|| median(values))
    }

    /// The programs, in the order in which they ran first.
    pub fn programs(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for run in &self.runs {
            if !names.contains(&&*run.program) {
                names.push(&*run.program);
            }
        }
        names
    }

    /// Notes how long every program took, in copies and in times of ours.
    pub fn compare(&mut self) {
        let programs: Vec<String> = self.programs().into_iter().map(str::to_owned).collect();
        let Some(ours) = programs.first().and_then(|name| self.middle(name, |run| run.seconds)) else {
            return;
        };
        let copies = [("T1", self.one_copy.nominal_s), ("T1 measured", self.one_copy.measured_s)];
        for (name, copy) in copies {
            if let Some(copy) = copy {
                self.value(&format!("surf-node ÷ {name}"), round(ours / copy));
            }
        }
        for name in &programs[1..] {
            if let Some(theirs) = self.middle(name, |run| run.seconds) {
                self.value(&format!("{name} ÷ surf-node"), round(theirs / ours));
            }
        }
    }

    /// Prints it for people.
    pub fn print(&self) {
        let tcp = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
        let seconds = |value: Option<f64>| value.map_or("unknown".to_owned(), |s| format!("{s:.2} s"));
        println!("\n{}: {}", self.figure, self.what);
        println!(
            "T1, one copy: {} by size and rate, {} with nginx and curl. TCP of the system: {}",
            seconds(self.one_copy.nominal_s),
            seconds(self.one_copy.measured_s),
            tcp.trim()
        );
        if !self.runs.is_empty() {
            println!(
                "\n{:<14} {:>9} {:>7} {:>9} {:>9} {:>8} {:>11} {:>11} {:>8}",
                "", "all done", "÷ T1", "first", "median", "origin", "CPU s", "memory MiB", "wasted"
            );
            println!(
                "{:<14} {:>9} {:>7} {:>9} {:>9} {:>8} {:>11} {:>11} {:>8}",
                "", "s", "", "s", "s", "copies", "send/recv", "send/recv", "MiB"
            );
        }
        for name in self.programs() {
            self.of(name).for_each(|run| self.row(name, run));
            if 1 < self.of(name).count() {
                let middle = self.middle(name, |run| run.seconds);
                println!("{:<14} {:>9}", "  median", middle.map_or(String::new(), |s| format!("{s:.2}")));
            }
        }
        println!();
        for (name, value) in &self.values {
            println!("{name}: {value}");
        }
    }

    fn row(&self, name: &str, run: &Run) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let copy = self.one_copy.nominal_s.or(self.one_copy.measured_s);
        let least = run.done.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "{name:<14} {:>9.2} {:>7} {least:>9.2} {:>9.2} {:>8.2} {:>11} {:>11} {:>8}",
            run.seconds,
            copy.map_or(String::new(), |copy| format!("{:.2}", run.seconds / copy)),
            median(run.done.clone()),
            run.origin_copies,
            format!("{:.1}/{:.1}", run.cpu_sending_s, run.cpu_receiving_s),
            format!("{:.0}/{:.0}", mib(run.memory_sending), mib(run.memory_receiving)),
            run.wasted.map_or("?".to_owned(), |bytes| format!("{:.1}", mib(bytes))),
        );
    }

    /// Writes it for programs.
    pub fn write_json(&self, path: &Path) -> Result<(), Failed> {
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Failed::to("write the report", error))?;
        fs::write(path, text + "\n").map_err(|error| Failed::to(&format!("write {}", path.display()), error))
    }

    /// Draws what had come to the receivers, on average, over time: a line for each run.
    pub fn write_svg(&self, path: &Path) -> Result<(), Failed> {
        self.draw(path).map_err(|error| Failed::to(&format!("draw {}", path.display()), error))
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::new(path, (900, 500)).into_drawing_area();
        root.fill(&WHITE)?;
        let seconds = self.runs.iter().map(|run| run.seconds).fold(1.0, f64::max);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let points = self.runs.iter().flat_map(|run| &run.curve);
        let most = points.map(|(_, bytes)| mib(*bytes)).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.what, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..seconds, 0.0..most)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("seconds").y_desc("MiB over a receiver's link, on average").draw()?;
        for (at, name) in self.programs().into_iter().enumerate() {
            let color = Palette99::pick(at).to_rgba();
            for (nth, run) in self.of(name).enumerate() {
                let line = run.curve.iter().map(|(at, bytes)| (*at, mib(*bytes)));
                let drawn = chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
                if nth == 0 {
                    drawn.label(name).legend(move |(x, y)| {
                        PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2))
                    });
                }
            }
        }
        let mut labels = chart.configure_series_labels();
        labels
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .position(SeriesLabelPosition::LowerRight)
            .draw()?;
        root.present()?;
        Ok(())
    }

    fn of<'a>(&'a self, program: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.program == program)
    }
}

/// With three digits after the point, which is more than runs agree in.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
