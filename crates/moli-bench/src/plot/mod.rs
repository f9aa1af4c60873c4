//! A report as charts in one file, SVG, PNG or HTML: roofline, speed by depth and by threads, latencies, a long run.

mod chart;
mod draw;
mod panels;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::names::printable;
use crate::report::Report;

use chart::Chart;
use draw::{HEIGHT, WIDTH};

/// Pixels of a PNG for one of the drawing: fine enough to be printed.
const PNG_SCALE: u32 = 2;

/// DejaVu Sans with the characters that charts need. No font of the system is asked for: there may be none.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Why there are no charts.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The file's name ends in something else.
    #[error("{}: a plot is .svg, .png or .html", .0.display())]
    Extension(PathBuf),
    /// The report has no two things to draw a line through.
    #[error(
        "nothing in the report can be drawn: it has no limits with rows, no two depths or threads, no latencies, no long run"
    )]
    Nothing,
    /// The file can't be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What draws gave up.
    #[error("cannot draw: {0}")]
    Draw(String),
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Svg,
    Png,
    Html,
}

/// Whether [`write()`] knows the form that a file's name asks for, to be checked before measuring for an hour.
///
/// # Errors
/// [`PlotError::Extension`].
pub fn check(path: &Path) -> Result<(), PlotError> {
    kind(path).map(|_| ())
}

/// Draws all charts that the report has data for into one file.
///
/// # Errors
/// [`PlotError`]; the file is written whole or not begun.
pub fn write(report: &Report, path: &Path) -> Result<(), PlotError> {
    let charts = panels::charts(report);
    if charts.is_empty() {
        return Err(PlotError::Nothing);
    }
    let models: Vec<&str> = report.models.keys().map(String::as_str).collect();
    let title = format!("moli bench: {}, {}", models.join(", "), report.date);
    let notes: Vec<&str> = report.notes.iter().chain([&report.outlier_rule]).map(String::as_str).collect();
    write_charts(&charts, &title, &notes, path)
}

/// Draws which share of a text's tokens is predicted how differently by a model and a smaller one: `nats`, the divergence at
/// each token, in any order. `subtitle` names the models.
///
/// # Errors
/// As for [`write()`].
pub fn write_divergence(subtitle: &str, nats: &[f64], path: &Path) -> Result<(), PlotError> {
    let chart = panels::divergence(subtitle, nats).ok_or(PlotError::Nothing)?;
    write_charts(&[chart], &format!("moli compare: {subtitle}"), &[], path)
}

fn write_charts(charts: &[Chart], title: &str, notes: &[&str], path: &Path) -> Result<(), PlotError> {
    let kind = kind(path)?;
    register()?;
    let bytes = match kind {
        Kind::Svg => svg(charts)?.into_bytes(),
        Kind::Png => png(charts)?,
        Kind::Html => html(charts, title, notes)?.into_bytes(),
    };
    std::fs::write(path, bytes).map_err(|source| PlotError::Write { path: path.to_owned(), source })
}

fn kind(path: &Path) -> Result<Kind, PlotError> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("svg") => Ok(Kind::Svg),
        Some("png") => Ok(Kind::Png),
        Some("html") => Ok(Kind::Html),
        _ => Err(PlotError::Extension(path.to_owned())),
    }
}

/// Gives plotters the font, once.
fn register() -> Result<(), PlotError> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = DONE.get_or_init(|| register_font("sans-serif", FontStyle::Normal, FONT).is_ok());
    if *done { Ok(()) } else { Err(PlotError::Draw("the font can't be read".to_owned())) }
}

fn svg(charts: &[Chart]) -> Result<String, PlotError> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
    draw::draw(charts, &area, 1).map_err(|error| PlotError::Draw(error.to_string()))?;
    drop(area);
    Ok(text)
}

fn png(charts: &[Chart]) -> Result<Vec<u8>, PlotError> {
    let failed = |error: &dyn std::fmt::Display| PlotError::Draw(error.to_string());
    let [width, height] = [WIDTH, HEIGHT * charts.len() as u32].map(|size| size * PNG_SCALE);
    let mut pixels = vec![0; width as usize * height as usize * 3];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw::draw(charts, &area, PNG_SCALE).map_err(|error| failed(&error))?;
    drop(area);
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(::png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(|error| failed(&error))?;
    writer.write_image_data(&pixels).map_err(|error| failed(&error))?;
    writer.finish().map_err(|error| failed(&error))?;
    Ok(bytes)
}

/// A page with a picture for each chart; it asks for nothing else and runs nothing.
fn html(charts: &[Chart], title: &str, notes: &[&str]) -> Result<String, PlotError> {
    let title = escaped(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body {{ margin: 2em auto; max-width: {WIDTH}px; font-family: sans-serif }} \
         svg {{ width: 100%; height: auto }}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    for chart in charts {
        let picture = svg(std::slice::from_ref(chart))?;
        let _ = writeln!(page, "<figure aria-label=\"{}\">\n{picture}</figure>", escaped(&chart.title));
    }
    page.push_str("<ul>\n");
    for note in notes {
        let _ = writeln!(page, "<li>{}</li>", escaped(note));
    }
    page.push_str("</ul>\n</body>\n</html>\n");
    Ok(page)
}

/// Text that is no markup, in an element or an attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
