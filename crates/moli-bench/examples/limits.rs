//! Prints what the machine can do at most with so many threads: bytes read per second, 8-bit and f32 multiply-adds per second.
//! `scripts/check-limits.sh` compares it with a C program.

use std::process::ExitCode;

use moli_bench::limits::{Meter, Sample};
use moli_kernels::Isa;

const USAGE: &str = "usage: limits THREADS | limits isa | limits buffer";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let threads = if argument == "buffer" { Ok(1) } else { argument.parse() };
    match (argument.as_str(), threads.map(Meter::new)) {
        ("isa", _) => println!("{}", Isa::detect()),
        ("buffer", Ok(Ok(meter))) => println!("{}", meter.buffer_bytes()),
        (_, Ok(Ok(mut meter))) => {
            let Sample { read, int8, f32 } = meter.measure();
            println!("{read:.4e} {:.4e} {f32:.4e}", int8.unwrap_or(0.0));
        }
        (_, Ok(Err(error))) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        (_, Err(_)) => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
