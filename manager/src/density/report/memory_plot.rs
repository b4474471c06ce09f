//! Density curve: host memory against guests. Both axes are logarithmic, because guests go from eight
//! to ten thousand and the three lines lie orders of magnitude apart.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    DrawError,
    figures::{count, log_tick, measured},
    palette::{BROOD, Canvas, INK, REFERENCE, UNSHARED, style, svg},
    reference,
};
use crate::density::step::Step;

const SIZE: (u32, u32) = (920, 470);
/// A logarithm needs a bound.
const LEAST_MIB: f64 = 1.0;

pub(super) fn draw(steps: &[Step]) -> Result<String, DrawError> {
    svg(SIZE, |canvas| draw_on(canvas, steps))
}

fn draw_on(root: &Canvas<'_>, steps: &[Step]) -> Result<(), DrawError> {
    // Values of zero or less have no place on a logarithmic axis, and are no cost: the page names
    // them.
    let plotted = || steps.iter().filter(|step| step.host_delta_mib > 0.0);
    let curve: Vec<_> = plotted()
        .map(|step| (count(step.guests), step.host_delta_mib.max(LEAST_MIB)))
        .collect();
    let reference = reference::CURVE.map(|(guests, mib)| (count(guests), mib));
    let memory_mib = steps
        .iter()
        .map(|step| step.memory_mib)
        .fold(LEAST_MIB, f64::max);

    let guests = || curve.iter().chain(&reference).map(|(guests, _)| *guests);
    let (fewest, most) = (
        guests().fold(f64::MAX, f64::min),
        guests().fold(1.0, f64::max),
    );
    let least = curve.iter().map(|(_, mib)| *mib).fold(100.0, f64::min);
    let top = (most * memory_mib).max(10_000.0);

    legend(root, memory_mib)?;
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_top(48)
        .margin_right(28)
        .x_label_area_size(46)
        .y_label_area_size(86)
        .build_cartesian_2d(
            (fewest * 0.8..most * 1.25).log_scale(),
            (least / 4.0..top * 1.6).log_scale(),
        )?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh);
    mesh.x_labels(12)
        .y_labels(12)
        .x_label_formatter(&log_tick)
        .y_label_formatter(&log_tick)
        .x_desc("guests")
        .y_desc("host memory (MiB)")
        .draw()?;

    let unshared = [fewest, most].map(|guests| (guests, guests * memory_mib));
    chart.draw_series(DashedLineSeries::new(
        unshared,
        7,
        5,
        UNSHARED.stroke_width(2),
    ))?;
    chart.draw_series(LineSeries::new(reference, REFERENCE.stroke_width(2)))?;
    chart.draw_series(reference.map(|point| Circle::new(point, 4, REFERENCE.filled())))?;
    chart.draw_series(LineSeries::new(
        curve.iter().copied(),
        BROOD.stroke_width(3),
    ))?;
    chart.draw_series(
        curve
            .iter()
            .map(|point| Circle::new(*point, 5, BROOD.filled())),
    )?;
    // Each point says its amount, where no line can be: above the reference, below brood.
    let label = |position| {
        let label = ("sans-serif", 15).into_font().color(&INK);
        label.pos(Pos::new(HPos::Center, position))
    };
    let (above, label) = (label(VPos::Bottom), label(VPos::Top));
    chart.draw_series(reference.map(|point| {
        EmptyElement::at(point) + Text::new(measured(point.1), (0, -8), above.clone())
    }))?;
    chart.draw_series(plotted().zip(&curve).map(|(step, point)| {
        EmptyElement::at(*point) + Text::new(amount(step), (0, 9), label.clone())
    }))?;
    root.present()
}

fn amount(step: &Step) -> String {
    let noisy = if step.noise.is_some() { " (noise)" } else { "" };
    format!("{}{noisy}", measured(step.host_delta_mib))
}

/// The names of the lines, in one row above the plot.
fn legend(root: &Canvas<'_>, memory_mib: f64) -> Result<(), DrawError> {
    let lines = [
        (98, BROOD, "brood, measured".to_owned()),
        (270, REFERENCE, "reference: bhyve + vmm-vnode".to_owned()),
        (
            590,
            UNSHARED,
            format!("unshared: guests × {} MiB", measured(memory_mib)),
        ),
    ];
    for (x, color, name) in lines {
        root.draw(&PathElement::new(
            [(x, 24), (x + 26, 24)],
            color.stroke_width(3),
        ))?;
        root.draw(&Text::new(
            name,
            (x + 34, 16),
            ("sans-serif", 17).into_font().color(&INK),
        ))?;
    }
    Ok(())
}
