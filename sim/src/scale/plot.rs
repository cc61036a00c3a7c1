//! Messages of the DHT and time to all, over the size of the swarm.

use plotters::prelude::*;

use super::Report;
use crate::run::{Area, Failed, svg};

/// The picture, as SVG.
pub fn plot(report: &Report) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    svg(&|area| draw(report, area))
}

fn draw<'a>(report: &Report, area: &Area<'a>) -> Result<(), Failed<'a>> {
    let (above, below) = area.split_vertically(area.dim_in_pixel().1 / 2);
    let line = |figure: &dyn Fn(&super::Row) -> f64| -> Vec<(f64, f64)> {
        report.rows.iter().map(|row| (row.nodes as f64, figure(row))).collect()
    };
    panel(&above, "messages of one look-up", &line(&|row| row.load.look_up_messages))?;
    panel(&below, "time until all have the model, beside that of one copy", &line(&|row| row.ratio))
}

fn panel<'a>(area: &Area<'a>, title: &str, points: &[(f64, f64)]) -> Result<(), Failed<'a>> {
    let (first, last) = (points.first().map_or(1.0, |p| p.0), points.last().map_or(10.0, |p| p.0));
    let top = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d((first..last.max(first + 1.0)).log_scale(), 0.0..top)?;
    chart.configure_mesh().x_desc("nodes").light_line_style(WHITE).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE))?;
    chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, BLUE.filled())))?;
    Ok(())
}
