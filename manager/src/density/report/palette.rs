//! Palette of the plots, for light and dark pages.
//!
//! Plots are drawn in the light colours, which every SVG viewer shows. On a dark page a style sheet,
//! made from the same table, replaces each colour by its dark counterpart.

use std::fmt::Write;

use plotters::{
    chart::MeshStyle,
    coord::{Shift, ranged1d::Ranged},
    prelude::*,
};

use super::DrawError;

/// Behind a plot that stands alone; its reader's page may be of either kind.
const CARD: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Text.
pub(super) const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Axes and what is less important.
pub(super) const MUTED: RGBColor = RGBColor(0x59, 0x63, 0x6e);
/// Grid lines.
pub(super) const GRID: RGBColor = RGBColor(0xe3, 0xe7, 0xec);
/// brood itself.
pub(super) const BROOD: RGBColor = RGBColor(0x0b, 0x5f, 0xd3);
/// The reference.
pub(super) const REFERENCE: RGBColor = RGBColor(0xc4, 0x4e, 0x11);
/// Guests that share nothing.
pub(super) const UNSHARED: RGBColor = RGBColor(0x8a, 0x93, 0x9e);

/// Colours of things that stand side by side, told apart by people with any colour vision as far
/// as nine can be; the last is for what is left over.
pub(super) const SERIES: [RGBColor; 9] = [
    BROOD,
    RGBColor(0xe0, 0x8a, 0x00),
    RGBColor(0x1a, 0x94, 0x7c),
    RGBColor(0xb8, 0x3d, 0x8c),
    RGBColor(0x5b, 0xb0, 0xea),
    RGBColor(0xc9, 0x3c, 0x3c),
    RGBColor(0x7d, 0x5f, 0xc9),
    RGBColor(0x7c, 0x8f, 0x1d),
    RGBColor(0xa4, 0xac, 0xb6),
];

/// Each colour above with its counterpart on a dark page.
const DARK: [(RGBColor, &str); 15] = [
    (CARD, "#151b23"),
    (INK, "#e6edf3"),
    (MUTED, "#9aa4b0"),
    (GRID, "#2b323b"),
    (BROOD, "#58a6ff"),
    (REFERENCE, "#ff9057"),
    (UNSHARED, "#7d8794"),
    (SERIES[1], "#f0b343"),
    (SERIES[2], "#3fc9aa"),
    (SERIES[3], "#e77fc0"),
    (SERIES[4], "#a5d6ff"),
    (SERIES[5], "#ff7b72"),
    (SERIES[6], "#b39bf5"),
    (SERIES[7], "#bccf56"),
    (SERIES[8], "#6b7480"),
];

/// What a plot is drawn on.
pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a plot of this size.
pub(super) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let mut svg = String::new();
    draw(&SVGBackend::with_string(&mut svg, size).into_drawing_area())?;
    Ok(svg)
}

/// Gives a plot's axes and grid their colours and letters.
pub(super) fn style<X: Ranged, Y: Ranged>(mesh: &mut MeshStyle<'_, '_, X, Y, SVGBackend<'_>>) {
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(MUTED)
        .label_style(("sans-serif", 16).into_font().color(&MUTED))
        .axis_desc_style(("sans-serif", 17).into_font().color(&INK));
}

/// A colour as the drawing library writes it.
pub(super) fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// The style sheet that turns plots dark where the reader prefers that.
pub(super) fn dark_css() -> String {
    let mut css = String::from("@media (prefers-color-scheme: dark) {\n");
    for (light, dark) in DARK {
        let light = hex(light);
        let _ = writeln!(
            css,
            "svg [fill=\"{light}\"] {{ fill: {dark} }} svg [stroke=\"{light}\"] {{ stroke: {dark} }}"
        );
    }
    css + "}\n"
}

/// A plot with the style sheet and a background inside, to stand alone.
pub(super) fn themed(svg: &str) -> String {
    let Some((open, rest)) = svg.split_once('>') else {
        return svg.to_owned();
    };
    let (css, card) = (dark_css(), hex(CARD));
    format!(
        "{open}>\n<style>\n{css}</style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"10\" fill=\"{card}\"/>{rest}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_has_one_dark_counterpart() {
        let mut seen: Vec<_> = DARK.iter().map(|(light, _)| hex(*light)).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(
            seen.len(),
            DARK.len(),
            "two names for one colour cannot be told apart in CSS"
        );
    }
}
