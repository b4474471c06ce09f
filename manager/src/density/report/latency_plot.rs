//! Latency plot: for each step, the share of guests that had answered after a time. Time is
//! logarithmic, so that a reader sees both the bulk and the tail.

use plotters::prelude::*;

use super::{
    DrawError,
    figures::{count, log_tick},
    palette::{Canvas, SERIES, style, svg},
};
use crate::density::step::Step;

const SIZE: (u32, u32) = (920, 380);
/// More points than this are not seen.
const MOST_POINTS: usize = 400;
/// Nothing is restored faster, and a logarithm needs a bound.
const LEAST_MS: f64 = 0.01;

pub(super) fn draw(steps: &[Step]) -> Result<String, DrawError> {
    svg(SIZE, |canvas| draw_on(canvas, steps))
}

fn draw_on(root: &Canvas<'_>, steps: &[Step]) -> Result<(), DrawError> {
    let curves: Vec<_> = steps.iter().map(distribution).collect();
    let times = || curves.iter().flatten().map(|(ms, _)| *ms);
    let (least, most) = (
        times().fold(f64::MAX, f64::min),
        times().fold(LEAST_MS, f64::max),
    );
    let least = least.min(most);

    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(46)
        .y_label_area_size(86)
        .build_cartesian_2d((least * 0.8..most * 1.3).log_scale(), 0.0..101.0)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh);
    mesh.x_labels(12)
        .y_labels(6)
        .x_label_formatter(&log_tick)
        .y_label_formatter(&|percent| format!("{percent:.0} %"))
        .x_desc("restore latency (ms)")
        .y_desc("guests that have answered")
        .draw()?;
    for (curve, color) in curves.into_iter().zip(SERIES.iter().cycle()) {
        chart.draw_series(LineSeries::new(staircase(&curve), color.stroke_width(2)))?;
    }
    root.present()
}

/// Points (milliseconds, percent of guests that answered by then), thinned to what can be seen.
fn distribution(step: &Step) -> Vec<(f64, f64)> {
    let mut sorted = step.latencies_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let all = sorted.len();
    if all == 0 {
        // A step read back from JSON keeps only its percentiles.
        let p = step.restore_ms;
        let known = [(p.p50, 50.0), (p.p90, 90.0), (p.p99, 99.0), (p.max, 100.0)];
        return known
            .map(|(ms, percent)| (ms.max(LEAST_MS), percent))
            .to_vec();
    }
    let stride = all.div_ceil(MOST_POINTS);
    let percent = |rank: usize| 100.0 * count(rank as u64) / count(all as u64);
    // The slowest are always drawn: the tail is what people look for.
    (0..all)
        .filter(|i| i % stride == 0 || all - i <= 20)
        .map(|i| (sorted[i].max(LEAST_MS), percent(i + 1)))
        .collect()
}

/// The distribution rises at each sample and is level between two.
fn staircase(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut height = 0.0;
    let mut points = Vec::with_capacity(2 * curve.len());
    for (ms, percent) in curve {
        points.push((*ms, height));
        points.push((*ms, *percent));
        height = *percent;
    }
    points
}
