//! Charts as lines, marks and texts on any of plotters' backends.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::names::printable;

use super::chart::{Axis, Chart, Series, number};

/// Size of a chart, pixels, before scaling.
pub(super) const WIDTH: u32 = 960;
pub(super) const HEIGHT: u32 = 440;
/// Of which the legend has these at the right.
const LEGEND: u32 = 300;
/// Lines of a legend, and characters of each.
const ENTRIES: usize = 16;
const CHARACTERS: usize = 44;

const FAMILY: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const PALE: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Told apart by the colour-blind, and dark enough for thin lines.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(150, 105, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 60, 150),
];

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// An axis as plotters wants it.
struct Coordinate {
    axis: Axis,
    labelled: Vec<f64>,
}

impl Coordinate {
    fn new(axis: &Axis, most: usize) -> Self {
        Self { labelled: axis.labelled(most), axis: axis.clone() }
    }
}

impl Ranged for Coordinate {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + (self.axis.place(*value) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Between the labelled ones there are none.
        if hint.weight().allow_light_points() { Vec::new() } else { self.labelled.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.axis.from..self.axis.to
    }
}

/// Draws the charts below each other, each as high as the others.
pub(super) fn draw<DB: DrawingBackend>(
    charts: &[Chart],
    area: &DrawingArea<DB, Shift>,
    scale: u32,
) -> Drawn<DB> {
    area.fill(&WHITE)?;
    for (part, chart) in area.split_evenly((charts.len(), 1)).iter().zip(charts) {
        one(chart, part, scale)?;
    }
    area.present()
}

fn one<DB: DrawingBackend>(chart: &Chart, area: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
    let pixels = |size: u32| size * scale;
    let text = |size: u32, colour: &RGBColor| (FAMILY, pixels(size)).into_font().color(colour);
    let at = |x: u32, y: u32| (pixels(x) as i32, pixels(y) as i32);
    area.draw(&Text::new(chart.title.clone(), at(16, 12), text(19, &INK)))?;
    area.draw(&Text::new(cut(&chart.subtitle, 150), at(16, 37), text(12, &PALE)))?;
    let (_, below) = area.split_vertically(pixels(54));
    let (left, right) = below.split_horizontally(pixels(WIDTH - LEGEND));
    let mut context = ChartBuilder::on(&left)
        .margin(pixels(10))
        .x_label_area_size(pixels(42))
        .y_label_area_size(pixels(64))
        .build_cartesian_2d(Coordinate::new(&chart.x, 9), Coordinate::new(&chart.y, 7))?;
    context
        .configure_mesh()
        .x_desc(chart.x.label)
        .y_desc(chart.y.label)
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&|value| number(*value))
        .label_style(text(13, &INK))
        .axis_desc_style(text(14, &INK))
        .axis_style(PALE)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (index, series) in chart.references.iter().enumerate() {
        let style = reference(index).stroke_width(pixels(2));
        context.draw_series(DashedLineSeries::new(series.points.clone(), pixels(7), pixels(4), style))?;
    }
    for (index, series) in chart.series.iter().enumerate() {
        let colour = colour(index);
        if series.joined {
            context.draw_series(LineSeries::new(
                series.points.iter().copied(),
                colour.stroke_width(pixels(2)),
            ))?;
        }
        let bars =
            series.points.iter().zip(&series.ranges).map(|((x, _), [low, high])| [(*x, *low), (*x, *high)]);
        context.draw_series(bars.map(|bar| PathElement::new(bar, colour.stroke_width(pixels(1)))))?;
        if series.marked {
            for point in &series.points {
                mark(context.plotting_area(), *point, index, pixels(4) as i32)?;
            }
        }
    }
    legend(chart, &right, scale)
}

/// At the right of the chart, where it hides nothing.
fn legend<DB: DrawingBackend>(chart: &Chart, area: &DrawingArea<DB, Shift>, scale: u32) -> Drawn<DB> {
    let named: Vec<(usize, &Series, bool)> =
        entries(&chart.series, false).chain(entries(&chart.references, true)).collect();
    let style = (FAMILY, 12 * scale).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    let scaled = |value: usize| (value * scale as usize) as i32;
    for (line, (index, series, is_reference)) in named.iter().take(ENTRIES).enumerate() {
        let y = scaled(20 + 20 * line);
        let across = [(scaled(6), y), (scaled(30), y)];
        if *is_reference {
            let dash = reference(*index).stroke_width(2 * scale);
            for part in [[across[0], (scaled(15), y)], [(scaled(21), y), across[1]]] {
                area.draw(&PathElement::new(part, dash))?;
            }
        } else {
            if series.joined {
                area.draw(&PathElement::new(across, colour(*index).stroke_width(2 * scale)))?;
            }
            if series.marked {
                mark(area, (scaled(18), y), *index, scaled(4))?;
            }
        }
        area.draw(&Text::new(cut(&series.name, CHARACTERS), (scaled(38), y + scaled(2)), style.clone()))?;
    }
    if let Some(more) = named.len().checked_sub(ENTRIES).filter(|more| *more > 0) {
        area.draw(&Text::new(format!("and {more} more"), (scaled(38), scaled(20 + 20 * ENTRIES)), style))?;
    }
    Ok(())
}

/// The series that have a name, with their places.
fn entries(series: &[Series], references: bool) -> impl Iterator<Item = (usize, &Series, bool)> {
    let named = series.iter().enumerate().filter(|(_, series)| !series.name.is_empty());
    named.map(move |(index, series)| (index, series, references))
}

fn colour(index: usize) -> RGBColor {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or(INK)
}

fn reference(index: usize) -> RGBColor {
    // Pairs of a darker and a lighter grey: what one number of threads can do, with either kind of numbers.
    let level = 60 + 45 * (index % 4) as u8;
    RGBColor(level, level, level)
}

/// A mark whose form changes where the colours begin anew.
fn mark<DB, CT>(area: &DrawingArea<DB, CT>, at: CT::From, index: usize, size: i32) -> Drawn<DB>
where
    DB: DrawingBackend,
    CT: CoordTranslate,
    CT::From: Clone,
{
    let style = colour(index).filled();
    match index / COLOURS.len() % 3 {
        0 => area.draw(&Circle::new(at, size, style)),
        1 => area.draw(&TriangleMarker::new(at, size + size / 2, style)),
        _ => area.draw(&Cross::new(at, size, style.stroke_width(2))),
    }
}

/// Texts of a report's names may be as long as somebody likes.
fn cut(text: &str, most: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
