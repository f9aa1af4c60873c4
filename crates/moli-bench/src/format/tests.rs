use serde_json::Value;

use super::*;
use crate::compare::{self, compare};
use crate::report::{Gpu, Test};
use crate::samples;

fn written(format: Format) -> String {
    let mut out = Vec::new();
    write(&samples::report(), format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn lines(format: Format) -> Vec<Value> {
    written(format).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn formats_have_names() {
    for (name, format) in Format::NAMES {
        assert_eq!(name.parse(), Ok(format));
    }
    assert!("xml".parse::<Format>().unwrap_err().contains("\"xml\"; there are table, json"));
}

#[test]
fn a_table_says_what_people_look_for() {
    let table = written(Format::Table);
    for text in [
        "pp512 @ d4096",
        "b8 tg128",
        "83% of the memory limit",
        "57% of the int8 peak",
        "c2 pp64+tg32 server",
        "random weights",
        "GB/s read",
        "energy: not readable: no powercap",
        "1200 (1300)",
        "outliers: from 5 repetitions on",
        "note: Another process",
        "up to 72 °C",
    ] {
        assert!(table.contains(text), "{text} is not in\n{table}");
    }
}

#[test]
fn names_reach_a_terminal_without_control_characters() {
    let mut report = samples::report();
    let model = report.models.pop_first().unwrap().1;
    report.models.insert("evil\u{1b}[2J".to_owned(), model);
    report.rows.iter_mut().for_each(|row| row.case.model = "evil\u{1b}[2J".to_owned());
    report.notes.push("\u{7}".to_owned());
    for format in [Format::Table, Format::Md] {
        let mut out = Vec::new();
        write(&report, format, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(|character| character.is_control() && character != '\n'));
    }
}

#[test]
fn json_is_the_report() {
    assert_eq!(crate::read::parse(written(Format::Json).as_bytes()).unwrap(), samples::report());
}

#[test]
fn a_line_has_the_row_and_where_it_comes_from() {
    let lines = lines(Format::Jsonl);
    assert_eq!(lines.len(), samples::report().rows.len());
    for (line, row) in lines.iter().zip(samples::report().rows) {
        assert_eq!(line["schema"], crate::report::SCHEMA);
        assert_eq!(line["model_is"]["architecture"], "qwen2");
        assert_eq!(line["machine"]["isa"], "avx2");
        let row = serde_json::to_value(row).unwrap();
        for (field, value) in row.as_object().unwrap() {
            assert_eq!(&line[field], value);
        }
    }
}

#[test]
fn csv_has_as_many_fields_in_each_line() {
    let text = written(Format::Csv);
    let mut reader = ::csv::Reader::from_reader(text.as_bytes());
    let heads = reader.headers().unwrap().clone();
    let at = |name| heads.iter().position(|head| head == name).unwrap();
    let records: Vec<_> = reader.records().map(Result::unwrap).collect();
    let rows = samples::report().rows;
    assert_eq!(records.len(), rows.len());
    for (record, row) in records.iter().zip(rows) {
        assert_eq!(record[at("tokens_per_second")].parse::<f64>().unwrap(), row.rate.median);
        assert_eq!(&record[at("test")], row.case.work.to_string());
        assert_eq!(record[at("ttft_p50_seconds")].is_empty(), row.latency.is_none());
        assert_eq!(&record[at("cpu")], "A Processor, 4 cores \"X\"");
    }
}

#[test]
fn llama_benchs_fields_name_the_gpu_that_computed() {
    let mut report = samples::report();
    report.machine.gpu = Some(Gpu {
        name: "A GPU".to_owned(),
        device: "cuda:0".to_owned(),
        capability: "9.0".to_owned(),
        multiprocessors: 132,
        memory_bytes: 1 << 30,
    });
    let mut out = Vec::new();
    write(&report, Format::LlamaBenchJsonl, &mut out).unwrap();
    let line: Value = serde_json::from_str(String::from_utf8(out).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!((&line["gpu_info"], &line["backends"]), (&"A GPU".into(), &"CUDA".into()));
    assert_eq!(line["n_gpu_layers"], 99);
}

/// A parser of what llama-bench documents: the fields of the JSON in its README, and the types that they have there.
mod llama_bench {
    use super::*;

    const TEXTS: [&str; 14] = [
        "build_commit",
        "cpu_info",
        "gpu_info",
        "backends",
        "model_filename",
        "model_type",
        "cpu_mask",
        "type_k",
        "type_v",
        "split_mode",
        "devices",
        "tensor_split",
        "tensor_buft_overrides",
        "test_time",
    ];
    const INTEGERS: [&str; 20] = [
        "build_number",
        "model_size",
        "model_n_params",
        "n_batch",
        "n_ubatch",
        "n_threads",
        "poll",
        "n_gpu_layers",
        "n_cpu_moe",
        "main_gpu",
        "flash_attn",
        "no_op_offload",
        "fit_target",
        "fit_min_ctx",
        "n_prompt",
        "n_gen",
        "n_depth",
        "avg_ns",
        "stddev_ns",
        "samples_ns",
    ];
    const TRUTHS: [&str; 5] = ["cpu_strict", "no_kv_offload", "embeddings", "no_host", "repack"];
    const NUMBERS: [&str; 3] = ["avg_ts", "stddev_ts", "samples_ts"];
    /// Truths that are documented, and the texts that llama-bench's present source has in their place.
    const OLDER: [&str; 2] = ["use_mmap", "use_direct_io"];
    const NEWER: [&str; 2] = ["load_mode", "lazy_mode"];

    fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
    }

    fn accept(line: &Value) {
        let fields = line.as_object().unwrap();
        for (field, value) in fields {
            let each = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            assert_eq!(value.is_array(), field.starts_with("samples_"), "{field}");
            let name = field.as_str();
            for value in each {
                assert!(
                    (TEXTS.contains(&name) || NEWER.contains(&name)) && value.is_string()
                        || INTEGERS.contains(&name) && value.is_i64()
                        || (TRUTHS.contains(&name) || OLDER.contains(&name)) && value.is_boolean()
                        || NUMBERS.contains(&name) && value.is_number(),
                    "{field}: {value}"
                );
            }
        }
        for field in TEXTS.iter().chain(&INTEGERS).chain(&TRUTHS).chain(&NUMBERS) {
            assert!(fields.contains_key(*field), "{field}");
        }
        assert!(
            [OLDER, NEWER].iter().any(|pair| pair.iter().all(|field| fields.contains_key(*field))),
            "how it is loaded"
        );
        let [ns, ts] = ["samples_ns", "samples_ts"].map(|field| numbers(&line[field]));
        let tokens = (line["n_prompt"].as_f64().unwrap() + line["n_gen"].as_f64().unwrap()) * 1e9;
        assert!(tokens > 0.0 && ns.len() == ts.len());
        assert!(ns.iter().zip(&ts).all(|(ns, ts)| near(tokens / ns, *ts)), "{line}");
        for (samples, mean, deviation) in [(&ns, "avg_ns", "stddev_ns"), (&ts, "avg_ts", "stddev_ts")] {
            let average = samples.iter().sum::<f64>() / samples.len() as f64;
            let squares: f64 = samples.iter().map(|sample| (sample - average).powi(2)).sum();
            let expected = (squares / (samples.len() as f64 - 1.0)).sqrt();
            // Nanoseconds are whole, so they may be one off; llama-bench writes six digits of speeds.
            let slack = if mean == "avg_ns" { 1.0 } else { 1e-5 };
            assert!(
                (line[mean].as_f64().unwrap() - average).abs() <= 1e-6 * average + slack,
                "{mean} of {line}"
            );
            assert!(
                (line[deviation].as_f64().unwrap() - expected).abs() <= 1e-6 * expected + slack,
                "{line}"
            );
        }
        let time = line["test_time"].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    }

    #[test]
    fn a_parser_of_the_documented_fields_accepts_the_lines() {
        let lines = lines(Format::LlamaBenchJsonl);
        lines.iter().for_each(accept);
        // Readers of either age find what they look for.
        assert!(OLDER.iter().chain(&NEWER).all(|field| lines[0].get(field).is_some()));
        let rows = samples::report().rows;
        let with_a_form = |work: &Test| matches!(work, Test::Prefill { .. } | Test::Decode { batch: 1, .. });
        assert_eq!(lines.len(), rows.iter().filter(|row| with_a_form(&row.case.work)).count());
        let said = left_out(&samples::report(), Format::LlamaBenchJsonl).unwrap();
        assert!(said.contains("b8 tg128") && said.contains("c2 pp64+tg32 server"), "{said}");
        assert_eq!(left_out(&samples::report(), Format::Csv), None);
    }

    /// The parser can refuse: one line of llama-bench's own is accepted, and broken in each field it is not.
    #[test]
    fn the_parser_is_no_rubber_stamp() {
        let line: Value = serde_json::from_str(include_str!("../../tests/llama-bench.jsonl")).unwrap();
        accept(&line);
        for field in line.as_object().unwrap().keys() {
            let mut without = line.clone();
            without.as_object_mut().unwrap().remove(field);
            assert!(std::panic::catch_unwind(|| accept(&without)).is_err(), "without {field}");
            let mut other = line.clone();
            other[field] = Value::Null;
            assert!(std::panic::catch_unwind(|| accept(&other)).is_err(), "{field} of null");
        }
        let mut faster = line.clone();
        faster["samples_ts"][0] = Value::from(1e6);
        assert!(std::panic::catch_unwind(|| accept(&faster)).is_err());
    }
}

#[test]
fn a_comparison_is_written_for_people_and_programs() {
    let (a, mut b) = (samples::report(), samples::report());
    b.rows[0].seconds.iter_mut().for_each(|seconds| *seconds *= 1.2);
    b.machine.isa = "scalar".to_owned();
    let comparison = compare(&a, &b, &compare::Options::default()).unwrap();
    let written = |format| {
        let mut out = Vec::new();
        write_comparison(&comparison, format, &mut out).map(|()| String::from_utf8(out).unwrap())
    };
    for format in [Format::Table, Format::Md] {
        let text = written(format).unwrap();
        for part in [
            "0.833",
            "slower",
            "no difference shown",
            "differs: isa: avx2 in A, scalar in B",
            "95% confidence",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
    let json: Value = serde_json::from_str(&written(Format::Json).unwrap()).unwrap();
    assert_eq!(json["rows"][0]["verdict"], "slower");
    assert_eq!(json["rows"][1]["verdict"], "no difference shown");
    assert!(written(Format::Csv).is_err());
}

#[test]
fn an_output_that_fails_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::StorageFull, "full"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for (_, format) in Format::NAMES {
        assert!(write(&samples::report(), format, &mut Full).is_err(), "{format:?}");
    }
}
