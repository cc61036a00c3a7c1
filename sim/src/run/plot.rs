//! What a scenario gave, as a picture: nodes that have everything, and what the seeds have sent, over time.

use plotters::prelude::*;

use super::{Outcome, Report};

const SIZE: (u32, u32) = (960, 720);

/// The picture, as SVG.
pub fn plot(report: &Report) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    svg(&|area| draw(report, area))
}

/// A place to draw.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
/// Why it cannot be drawn.
pub(crate) type Failed<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// What `draw` draws on white.
pub(crate) fn svg(
    draw: &dyn for<'a> Fn(&Area<'a>) -> Result<(), Failed<'a>>,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string())?;
        draw(&area).map_err(|error| error.to_string())?;
        area.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn draw<'a>(report: &Report, area: &Area<'a>) -> Result<(), Failed<'a>> {
    let (above, below) = area.split_vertically(SIZE.1 / 2);
    let end = report.runs.iter().map(|run| run.finished_by(1.0)).fold(report.one_copy_s, f64::max) * 1.05;
    let nodes = report.runs.iter().map(|run| run.nodes.len()).max().unwrap_or(1) as f64;
    let finished = |run: &Outcome| run.samples.iter().map(|s| (s.at_s, s.finished as f64)).collect();
    panel(&above, &format!("{}: nodes that have everything", report.title), report, (end, nodes), &finished)?;
    let model = report.model_bytes as f64;
    let copies = report.runs.iter().map(|run| run.seeds_sent as f64 / model).fold(1.0, f64::max);
    let sent = |run: &Outcome| run.samples.iter().map(|s| (s.at_s, s.seeds_sent as f64 / model)).collect();
    panel(&below, "copies of the model that the seeds have sent", report, (end, copies), &sent)
}

fn panel<'a>(
    area: &Area<'a>,
    title: &str,
    report: &Report,
    (end, top): (f64, f64),
    line: &dyn Fn(&Outcome) -> Vec<(f64, f64)>,
) -> Result<(), Failed<'a>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..top * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("seconds; the grey line is one copy's time")
        .light_line_style(WHITE)
        .draw()?;
    let one = [(report.one_copy_s, 0.0), (report.one_copy_s, top)];
    chart.draw_series(LineSeries::new(one, BLACK.mix(0.3)))?;
    for run in &report.runs {
        chart.draw_series(LineSeries::new(line(run), BLUE.mix(0.5)))?;
    }
    Ok(())
}
