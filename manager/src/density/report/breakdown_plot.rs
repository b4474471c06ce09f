//! Breakdown plot: where a guest's host memory goes, one stacked bar for each step.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{
    DrawError,
    figures::{count, measured, whole},
    palette::{Canvas, INK, MUTED, SERIES, style, svg},
};
use crate::density::step::Step;

const SIZE: (u32, u32) = (920, 380);
/// Half a bar's width, where bars stand one apart.
const HALF: f64 = 0.28;

pub(super) fn draw(steps: &[Step]) -> Result<String, DrawError> {
    svg(SIZE, |canvas| draw_on(canvas, steps))
}

fn draw_on(root: &Canvas<'_>, steps: &[Step]) -> Result<(), DrawError> {
    // A part that shrank (such as `other` where parts overlap) has no height; the tables tell it.
    let height = |step: &Step| {
        step.breakdown
            .parts()
            .iter()
            .map(|mib| mib.max(0.0))
            .sum::<f64>()
    };
    let highest = steps.iter().map(height).fold(0.01, f64::max);
    let right = count(steps.len() as u64);

    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(32)
        .y_label_area_size(86)
        .build_cartesian_2d(0.0..right, 0.0..highest * 1.12)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh);
    mesh.disable_x_mesh()
        .x_labels(0)
        .y_labels(6)
        .y_label_formatter(&|mib| measured(*mib))
        .y_desc("host memory per guest (MiB)")
        .draw()?;

    let font = || ("sans-serif", 16).into_font();
    for (i, step) in steps.iter().enumerate() {
        let middle = count(i as u64) + 0.5;
        let mut base = 0.0;
        for (mib, color) in step.breakdown.parts().into_iter().zip(SERIES) {
            let top = base + mib.max(0.0);
            if top > base {
                let bar = [(middle - HALF, base), (middle + HALF, top)];
                chart.draw_series([Rectangle::new(bar, color.filled())])?;
            }
            base = top;
        }
        let above = font().color(&INK).pos(Pos::new(HPos::Center, VPos::Bottom));
        let below = font().color(&MUTED).pos(Pos::new(HPos::Center, VPos::Top));
        let guests = format!("{} guests", whole(step.guests));
        chart.draw_series([
            EmptyElement::at((middle, base)) + Text::new(amount(step), (0, -6), above)
        ])?;
        chart.draw_series([EmptyElement::at((middle, 0.0)) + Text::new(guests, (0, 10), below)])?;
    }
    root.present()
}

fn amount(step: &Step) -> String {
    let noisy = if step.noise.is_some() { " (noise)" } else { "" };
    format!("{}{noisy}", measured(step.per_guest_mib))
}
