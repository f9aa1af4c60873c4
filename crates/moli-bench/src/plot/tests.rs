use super::*;
use crate::report::Test;
use crate::samples;

fn titles(report: &Report) -> Vec<String> {
    panels::charts(report).into_iter().map(|chart| chart.title).collect()
}

#[test]
fn a_full_report_has_every_chart() {
    let titles = titles(&samples::report());
    for part in [
        "Roofline",
        "processing by depth",
        "Generation by threads",
        "between two tokens",
        "Sustained",
        "Temperature",
    ] {
        assert!(titles.iter().any(|title| title.contains(part)), "{part} is not in {titles:?}");
    }
}

/// As they do where nobody asks for one.
#[test]
fn contexts_that_follow_the_depth_part_no_line() {
    let mut report = samples::report();
    let whole = titles(&report);
    for row in &mut report.rows {
        if let Test::Prefill { tokens, depth } | Test::Decode { tokens, depth, .. } = row.case.work {
            row.case.context = tokens + depth;
        }
    }
    assert_eq!(titles(&report), whole);
}

#[test]
fn there_are_no_charts_without_their_data() {
    let mut report = samples::report();
    report.limits.clear();
    report.sustained.truncate(1);
    report.rows.retain(|row| row.case.threads == 1);
    let titles = titles(&report);
    assert!(titles.iter().all(|title| title.contains("by depth")), "{titles:?}");
    report.rows.truncate(1);
    assert!(matches!(write(&report, Path::new("a.svg")), Err(PlotError::Nothing)));
}

#[test]
fn one_file_of_each_kind_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let report = samples::report();
    let read = |name: &str| {
        let path = folder.path().join(name);
        write(&report, &path).unwrap();
        std::fs::read(path).unwrap()
    };
    let svg = String::from_utf8(read("a.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.len() < 200_000, "{} bytes", svg.len());
    let bytes = read("a.PNG");
    let mut image = ::png::Decoder::new(io::Cursor::new(&bytes)).read_info().unwrap();
    let mut pixels = vec![0; image.output_buffer_size().unwrap()];
    let info = image.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (1920, 880 * titles(&report).len() as u32));
    // Something dark was drawn in every chart.
    let chart = pixels.len() / titles(&report).len();
    assert!(
        pixels.chunks_exact(chart).all(|chart| chart.iter().filter(|value| **value < 100).count() > 5000)
    );
    let html = String::from_utf8(read("a.html")).unwrap();
    assert_eq!(html.matches("<svg").count(), titles(&report).len());
    assert!(!html.contains("<script") && !html.contains("http-equiv") && !html.contains("src="));
}

#[test]
fn a_path_that_cannot_be_is_refused() {
    let report = samples::report();
    assert!(matches!(write(&report, Path::new("a.gif")), Err(PlotError::Extension(_))));
    assert!(matches!(check(Path::new("svg")), Err(PlotError::Extension(_))));
    let error = write(&report, Path::new("/nonexistent/a.svg")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/a.svg"), "{error}");
}

#[test]
fn names_are_no_markup() {
    let evil = "</title></text><script>alert('1')</script>\u{1b}\" onload=\"x";
    let mut report = samples::report();
    let model = report.models.pop_first().unwrap().1;
    report.models.insert("plain".to_owned(), model.clone());
    report.models.insert(evil.to_owned(), model);
    report.rows.iter_mut().skip(1).for_each(|row| row.case.model = evil.to_owned());
    report.rows[0].case.model = "plain".to_owned();
    report.machine.cpu = Some(evil.to_owned());
    report.notes.push(evil.to_owned());
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.svg", "a.html"] {
        let path = folder.path().join(name);
        write(&report, &path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("&lt;script"));
        assert!(!text.contains("<script") && !text.contains("\" onload") && !text.contains('\u{1b}'));
    }
}

#[test]
fn numbers_that_are_none_do_no_harm() {
    let mut report = samples::report();
    for row in &mut report.rows {
        row.rate.median = f64::NAN;
        row.rate.max = f64::INFINITY;
        if let Some(bound) = &mut row.bound {
            bound.of_memory = 0.0;
        }
        if let Some(latency) = &mut row.latency {
            latency.histogram.iter_mut().for_each(|bin| bin.to = f64::INFINITY);
        }
    }
    report.sustained.iter_mut().for_each(|moment| moment.rate = f64::NAN);
    let folder = tempfile::tempdir().unwrap();
    // Whatever is left to draw is drawn, and nothing ends in a panic.
    let _ = write(&report, &folder.path().join("a.png"));
}
