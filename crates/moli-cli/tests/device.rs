//! `--device`: one binary that starts everywhere, and says in one line what computes and why. The GPU is the mock driver's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};

use moli_format::TensorType;
use moli_testkit::{TinyModel, mock_cuda_folder};
use support::{Ran, World};

const GPU: &str = "Mock of a CUDA device";

/// The command with a driver of this folder, and what the mock is told.
fn command(world: &World, driver: &Path, told: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = world.command(arguments);
    command.env("LD_LIBRARY_PATH", driver).envs(told.iter().copied());
    command
}

fn run(world: &World, driver: &Path, told: &[(&str, &str)], arguments: &[&str]) -> Ran {
    Ran::new(command(world, driver, told, arguments).output().unwrap())
}

/// What succeeded.
#[track_caller]
fn good(ran: Ran) -> Ran {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

/// A library of that name without a single function.
fn empty_driver(world: &World) -> std::path::PathBuf {
    let folder = world.path("empty");
    let source = world.file("empty/empty.c", "");
    for name in ["libcuda.so", "libcuda.so.1"] {
        let made = Command::new("cc").args(["-shared", "-o"]).arg(folder.join(name)).arg(&source).status();
        assert!(made.unwrap().success());
    }
    folder
}

#[test]
fn a_machine_without_a_gpu_computes_on_the_processor_and_says_why() {
    let world = World::new();
    let model = world.chat_model();
    let (mock, empty) = (mock_cuda_folder().unwrap(), empty_driver(&world));
    let run_on = |device: &str, driver: &Path, told: &[(&str, &str)]| {
        run(&world, driver, told, &["run", &model, "--device", device, "-p", "a", "-n", "2", "--temp", "0"])
    };
    type Case<'a> = (&'a Path, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 6] = [
        (&empty, &[], "no NVIDIA driver: libcuda.so has no cuInit"),
        (&mock, &[("MOLI_MOCK_DEVICES", "0")], "no GPU: the NVIDIA driver says CUDA_ERROR_NO_DEVICE"),
        (&mock, &[("MOLI_MOCK_INIT", "999")], "no GPU: the NVIDIA driver says CUDA_ERROR_UNKNOWN"),
        (&mock, &[("MOLI_MOCK_CAPABILITY", "75")], "has compute capability 7.5, and Moli's kernels need 8.0"),
        (&mock, &[("MOLI_MOCK_DRIVER", "11080")], "supports CUDA 11.8, and Moli's kernels need 12.0"),
        // Enough for the model's header alone.
        (&mock, &[("MOLI_MOCK_MEMORY", "3000000")], "that cuda:0 has to spare"),
    ];
    let plain = good(run_on("cpu", &mock, &[]));
    assert_eq!(plain.stderr, "");
    for (driver, told, reason) in cases {
        let auto = good(run_on("auto", driver, told));
        assert_eq!(auto.stdout, plain.stdout, "{reason}");
        let lines: Vec<&str> = auto.stderr.lines().collect();
        assert!(
            matches!(lines[..], [line] if line.starts_with("computing on the CPU: ") && line.contains(reason)),
            "{reason}: {}",
            auto.stderr
        );
        run_on("cuda", driver, told).fails(1, &[reason]);
    }
    run_on("cuda:1", &mock, &[]).fails(1, &["there is no cuda:1: this machine has 1 GPU, from cuda:0 on"]);
    run_on("gpu", &mock, &[]).fails(2, &["there is no device `gpu`"]);
}

#[test]
fn the_same_model_gives_the_same_answer_on_a_gpu() {
    let world = World::new();
    let mock = mock_cuda_folder().unwrap();
    let model = world.path("float.gguf");
    TinyModel { matrix: TensorType::F32, embedding: TensorType::F32, ..TinyModel::new("llama") }
        .write(&model)
        .unwrap();
    let model = model.to_str().unwrap();
    let on = |device: &str, arguments: &[&str]| {
        let all =
            [&["run", model, "--device", device, "-p", "abc", "-n", "12", "--temp", "0"], arguments].concat();
        good(run(&world, &mock, &[], &all))
    };
    let (cpu, gpu) = (on("cpu", &[]), on("cuda", &["--stats"]));
    assert_eq!(cpu.stdout, gpu.stdout);
    assert!(gpu.stderr.contains(GPU), "{}", gpu.stderr);
    assert_eq!(on("auto", &[]).stdout, cpu.stdout);
    // Work that is done later, or in another order, changes nothing.
    for told in ["MOLI_MOCK_LAZY", "MOLI_MOCK_REVERSE"] {
        let arguments = ["run", model, "--device", "cuda", "-p", "abc", "-n", "12", "--temp", "0"];
        assert_eq!(good(run(&world, &mock, &[(told, "1")], &arguments)).stdout, cpu.stdout, "{told}");
    }
    let bench = |nvml: &str| -> serde_json::Value {
        let told = [("MOLI_MOCK_MEMORY", "200000000"), ("MOLI_MOCK_NVML", nvml)];
        let arguments =
            ["bench", model, "--device", "cuda", "-p", "16", "-n", "2", "-r", "1", "--format", "json"];
        serde_json::from_str(&good(run(&world, &mock, &told, &arguments)).stdout).unwrap()
    };
    let report = bench("counter");
    assert_eq!(report["machine"]["gpu"]["name"], GPU);
    assert!(report["limits"][0]["int8_macs_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);

    // The mock takes 50 W and is 44 °C warm, whether it counts or not; the processor's energy is not that of its tokens.
    for (nvml, report) in [("counter", report), ("power", bench("power"))] {
        let sensors = &report["machine"]["sensors"];
        assert_eq!(sensors["energy"]["from"], "NVML: the GPU at 0000:01:00.0", "{nvml}");
        for row in report["rows"].as_array().unwrap() {
            let conditions = &row["conditions"];
            let watts = conditions["joules"].as_f64().unwrap() / conditions["wall_seconds"].as_f64().unwrap();
            assert!((45.0..55.0).contains(&watts), "{nvml}: {conditions}");
            assert_eq!(conditions["temperature"], 44.0, "{nvml}");
        }
    }
    let report = bench("none");
    let why = report["machine"]["sensors"]["energy"]["not"].as_str().unwrap();
    assert!(why.starts_with("NVML: "), "{why}");
    assert!(report["rows"][0]["conditions"]["joules"].is_null());
}

/// A server on the mock GPU.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    /// `None` where it ends before it serves.
    fn start(world: &World, mock: &Path, told: &[(&str, &str)], model: &str) -> Option<Self> {
        let arguments = ["serve", model, "--device", "cuda", "--port", "0", "--parallel", "2"];
        let mut child = command(world, mock, told, &arguments).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("://") {
            line.clear();
            if log.read_line(&mut line).unwrap() == 0 {
                // Without a panic: the error is one line.
                assert_eq!(child.wait().unwrap().code(), Some(1));
                return None;
            }
        }
        // It is read to its end, so that the server never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let mut server = Self { child, address: line.trim().rsplit_once("://").unwrap().1.to_owned() };
        // The model is loaded now.
        loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(1));
                return None;
            }
            if server.status("GET /ready", "") == Some(200) {
                return Some(server);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The status of an answer.
    fn ask(&self) -> u16 {
        let body = r#"{"model": "chat", "max_tokens": 3, "messages": [{"role": "user", "content": "abc"}]}"#;
        self.status("POST /v1/chat/completions", body).unwrap()
    }

    /// `None` where there is no answer.
    fn status(&self, head: &str, body: &str) -> Option<u16> {
        let mut socket = TcpStream::connect(&self.address).ok()?;
        let length = body.len();
        let head =
            format!("{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}");
        write!(socket, "{head}\r\n\r\n{body}").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_allocation_that_fails_in_a_request_fails_that_request_only() {
    let world = World::new();
    let model = world.chat_model();
    let mock = mock_cuda_folder().unwrap();
    let start =
        |n: u32| Served::start(&world, &mock, &[("MOLI_MOCK_FAIL_ALLOCATION", &n.to_string())], &model);
    // The allocations of loading, counted by halving.
    let (mut fails, mut loads) = (0u32, 512);
    while loads - fails > 1 {
        let middle = fails.midpoint(loads);
        if start(middle).is_some() { loads = middle } else { fails = middle }
    }
    // The next one is the first of a request.
    let server = start(loads).unwrap();
    assert_eq!([server.ask(), server.ask(), server.ask()], [500, 200, 200]);
}

#[test]
fn a_fault_of_the_device_is_an_error_and_no_crash() {
    let world = World::new();
    let model = world.chat_model();
    let mock = mock_cuda_folder().unwrap();
    for n in ["1", "3", "20", "33"] {
        let arguments = ["run", &model, "--device", "cuda", "-p", "a", "-n", "4", "--temp", "0"];
        run(&world, &mock, &[("MOLI_MOCK_FAIL_LAUNCH", n)], &arguments)
            .fails(1, &["on the GPU: CUDA_ERROR_"]);
    }
}
