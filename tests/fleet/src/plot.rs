//! Latency by percentile as a drawing.

use std::path::Path;

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use plotters::prelude::*;

/// Draws one line for each histogram, of microseconds.
///
/// On the scale of percentiles, each further nine has the same width. On the scale of latencies,
/// each power of ten has the same size. So a tail that is ten times as rare or ten times as long is
/// as easy to see.
pub(crate) fn draw(file: &Path, title: &str, lines: &[(&str, &Histogram<u64>)]) -> Result<()> {
    let longest = lines.iter().map(|(_, line)| line.len()).max().unwrap_or(1).max(10);
    let nines = (longest as f64).log10();
    let shortest = lines.iter().map(|(_, line)| line.min()).min().unwrap_or(1).max(1) as f64 / 1e3;
    let slowest = lines.iter().map(|(_, line)| line.max()).max().unwrap_or(1).max(1) as f64 / 1e3;
    let latencies =
        10f64.powf(shortest.log10().floor())..10f64.powf(slowest.log10().ceil().max(1.0));

    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..nines, latencies.log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("milliseconds")
        .x_labels(nines.ceil() as usize + 1)
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|millis| format!("{millis}"))
        .label_style(("sans-serif", 14))
        .light_line_style(BLACK.mix(0.06))
        .draw()
        .map_err(failed)?;
    for (number, (name, histogram)) in lines.iter().enumerate() {
        let style = ShapeStyle::from(&Palette99::pick(number)).stroke_width(2);
        let series =
            chart.draw_series(LineSeries::new(points(histogram), style)).map_err(failed)?;
        series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    chart
        .configure_series_labels()
        // Lines rise to the right, so this corner is the emptiest.
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

/// The points of a line: as many as can be told apart, up to the percentile that its last value
/// stands for.
fn points(histogram: &Histogram<u64>) -> impl Iterator<Item = (f64, f64)> {
    let end = (histogram.len() as f64).log10();
    (0..=POINTS).map(move |point| {
        let nines = end * f64::from(point) / f64::from(POINTS);
        (nines, histogram.value_at_quantile(1.0 - 10f64.powf(-nines)).max(1) as f64 / 1e3)
    })
}

/// `90` for one nine, `99.9` for three.
fn percentile(nines: f64) -> String {
    let digits = (nines.ceil() as usize).saturating_sub(2);
    format!("{:.digits$}", 100.0 * (1.0 - 10f64.powf(-nines)))
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

const SIZE: (u32, u32) = (960, 540);
const POINTS: u32 = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_read_as_percentiles() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 4.0].map(percentile), ["0", "90", "99", "99.9", "99.99"]);
    }
}
