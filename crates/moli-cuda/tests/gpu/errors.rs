//! Why a GPU can't be used, and what fails on one: each in a process of its own, since the driver is there once in each.

use std::path::{Path, PathBuf};
use std::process::Command;

use moli_cuda::{Buffer, Cache, CudaError, Gpu, KvKind, Matrix, Rows, Shape, devices};
use moli_format::TensorType;
use moli_kernels::{KvSlot, PAGE_TOKENS};
use moli_testkit::mock_cuda_folder;

use crate::common::{Random, even_blocks, tensor};
use crate::process::{is_child, tell, told};

/// What is said of the GPU `index`.
fn opened(variables: &[(&str, &str)], folder: &Path) -> Vec<String> {
    told("errors::why_a_gpu_cannot_be_used", variables, folder)
}

/// A folder with a library under the driver's names, made by `make`.
fn library(name: &str, make: impl Fn(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        make(&folder.join(name));
    }
    folder
}

#[test]
fn why_a_gpu_cannot_be_used() {
    if is_child() {
        let index = std::env::var("MOLI_TEST_INDEX").map_or(0, |index| index.parse().unwrap());
        match Gpu::open(index) {
            Ok(gpu) => tell(&format!("{:?}", gpu.info())),
            Err(error) => {
                tell(&format!("{error:?}"));
                tell(&error.to_string());
            }
        }
        match devices() {
            Ok(all) => all.iter().for_each(|device| tell(&format!("{device:?}"))),
            Err(error) => tell(&format!("{error:?}")),
        }
        return;
    }
    let mock = mock_cuda_folder().unwrap();
    let device = |index: usize| {
        let bus = index + 1;
        format!(
            "DeviceInfo {{ index: {index}, name: \"Mock of a CUDA device\", pci_bus_id: \"0000:{bus:02x}:00.0\", capability: (8, 0), total_bytes: 4294967296, free_bytes: 4294967296, multiprocessors: 4 }}"
        )
    };
    let first = device(0);
    for (variables, expected) in [
        (vec![("MOLI_MOCK_DEVICES", "2"), ("MOLI_TEST_INDEX", "1")], vec![&*device(1), &first, &device(1)]),
        (
            vec![("MOLI_MOCK_DEVICES", "0")],
            vec![
                "NoDevice { code: \"CUDA_ERROR_NO_DEVICE\", message: \"no CUDA-capable device is detected\" }",
                "no GPU: the NVIDIA driver says CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)",
                "NoDevice { code: \"CUDA_ERROR_NO_DEVICE\", message: \"no CUDA-capable device is detected\" }",
            ],
        ),
        (
            vec![("MOLI_MOCK_INIT", "999")],
            vec![
                "NoDevice { code: \"CUDA_ERROR_UNKNOWN\", message: \"unknown error\" }",
                "no GPU: the NVIDIA driver says CUDA_ERROR_UNKNOWN (unknown error)",
                "NoDevice { code: \"CUDA_ERROR_UNKNOWN\", message: \"unknown error\" }",
            ],
        ),
        (
            vec![("MOLI_TEST_INDEX", "3")],
            vec![
                "DeviceIndex { index: 3, count: 1 }",
                "there is no cuda:3: this machine has 1 GPU, from cuda:0 on",
                &first,
            ],
        ),
        (
            vec![("MOLI_MOCK_CAPABILITY", "75")],
            vec![
                "Capability { name: \"Mock of a CUDA device\", found: (7, 5), needed: (8, 0) }",
                "Mock of a CUDA device has compute capability 7.5, and Moli's kernels need 8.0",
                &first.replace("(8, 0)", "(7, 5)"),
            ],
        ),
        (
            vec![("MOLI_MOCK_DRIVER", "11080")],
            vec![
                "DriverTooOld { found: 11080, needed: 12000 }",
                "the NVIDIA driver supports CUDA 11.8, and Moli's kernels need 12.0: update the driver",
                &first,
            ],
        ),
        (
            vec![("MOLI_MOCK_PTX", "7.8")],
            vec![
                "Driver { what: \"loading the kernels\", code: \"CUDA_ERROR_UNSUPPORTED_PTX_VERSION\", message: \"the provided PTX was compiled with an unsupported toolchain.\" }",
                "loading the kernels failed on the GPU: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the provided PTX was compiled with an unsupported toolchain.)",
                &first,
            ],
        ),
        // Less than the grids take.
        (
            vec![("MOLI_MOCK_MEMORY", "10000")],
            vec![
                "OutOfMemory { what: \"the grids of quantised formats\", wanted: 33792, free: 10000 }",
                "the grids of quantised formats needs 33792 bytes of the GPU's memory, of which 10000 are free",
                &first.replace("4294967296", "10000"),
            ],
        ),
    ] {
        assert_eq!(opened(&variables, &mock), expected, "{variables:?}");
    }
    // The newest architectures take what is made for the oldest.
    let newest = opened(&[("MOLI_MOCK_CAPABILITY", "120")], &mock);
    assert_eq!(newest, vec![first.replace("(8, 0)", "(12, 0)"); 2]);
}

#[test]
fn a_library_that_is_no_driver() {
    let empty = library("empty", |path| {
        let made =
            Command::new("cc").args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(path).status().unwrap();
        assert!(made.success());
    });
    let reason = "NoDriver { reason: \"libcuda.so has no cuInit\" }";
    assert_eq!(opened(&[], &empty), [reason, "no NVIDIA driver: libcuda.so has no cuInit", reason]);

    let none = library("none", |path| std::fs::write(path, "not a library").unwrap());
    let reason = "NoDriver { reason: \"no libcuda is installed\" }";
    assert_eq!(opened(&[], &none), [reason, "no NVIDIA driver: no libcuda is installed", reason]);
}

/// Something of everything that allocates or launches, and its results.
fn all(gpu: &mut Gpu) -> Result<Vec<f32>, CudaError> {
    let (rows, cols, heads) = (9, 64, 2);
    gpu.reserve(rows, cols)?;
    let mut random = Random::new(70);
    let [table, weights] = [TensorType::F16, TensorType::Q4_0]
        .map(|ttype| tensor(ttype, 64, cols, even_blocks(ttype, 64 * cols / ttype.block_len(), &mut random)));
    let (table, weights) = (Matrix::new(gpu, &table)?, Matrix::new(gpu, &weights)?);
    let gain = gpu.vector(&[1.5; 64])?;
    let [mut x, mut y, mut q] =
        [Buffer::new(gpu, rows, cols)?, Buffer::new(gpu, 0, 0)?, Buffer::new(gpu, 0, 0)?];
    let mut cache = Cache::new(gpu, &[(heads, cols / heads)], 20, KvKind::Q8_0)?;
    let mut factors = gpu.vector(&[])?;

    gpu.look_up(&table, &[0, 1, 2, 3, 4, 5, 6, 7, 63], 0.5, &mut x)?;
    gpu.rms_norm(&x, &gain, 1e-5, &mut y)?;
    gpu.project(&y, std::iter::once((&weights, Some(&gain), &mut q)))?;
    let positions: Vec<u32> = (0..9).map(|row| 70 * row).collect();
    let slots: Vec<KvSlot> = positions
        .iter()
        .map(|position| KvSlot { page: position / PAGE_TOKENS as u32, token: position % PAGE_TOKENS as u32 })
        .collect();
    let pages: Vec<u32> = (0..20).collect();
    gpu.begin(&Rows {
        positions: &positions,
        sequences: &[0; 9],
        lengths: None,
        tables: &[&pages],
        slots: &slots,
    })?;
    gpu.store(&mut cache, 0, &q, &y)?;
    // Only one position back has been written.
    let shape =
        Shape { heads, kv_heads: heads, head_dim: cols / heads, scale: 0.2, soft_cap: None, window: Some(1) };
    gpu.attention(&q, None, &cache, 0, &shape, &mut y)?;
    gpu.select(&y, &[8, 0], &mut q)?;
    gpu.write(&mut factors, &[0.5, 2.0])?;
    gpu.scatter_add(&q, &[3, 4], &factors, &mut y)?;
    gpu.project(&q, std::iter::once((&weights, None, &mut x)))?;
    let (mut found, mut rest) = (Vec::new(), Vec::new());
    gpu.download(&y, &mut found)?;
    gpu.download(&x, &mut rest)?;
    found.extend(rest);
    assert!(found.iter().all(|x| x.is_finite()));
    Ok(found)
}

/// A sum that tells results apart.
fn sum(found: &[f32]) -> u64 {
    found.iter().fold(0, |sum, x| sum.rotate_left(7) ^ u64::from(x.to_bits()))
}

/// The N-th allocation fails: that is said, and what comes next is as ever.
#[test]
fn memory_runs_out() {
    const TEST: &str = "errors::memory_runs_out";
    if is_child() {
        let mut gpu = match Gpu::open(0) {
            Ok(gpu) => gpu,
            Err(error) => return tell(&format!("{error:?}")),
        };
        let found = all(&mut gpu).or_else(|error| {
            tell(&format!("{error:?}"));
            all(&mut gpu)
        });
        tell(&format!("{:x}", sum(&found.unwrap())));
        return;
    }
    let folder = mock_cuda_folder().unwrap();
    let expected = told(TEST, &[], &folder);
    assert_eq!(expected.len(), 1, "{expected:?}");
    let (mut opened, mut what) = (0, Vec::new());
    for n in (1..).step_by(3) {
        let found = told(TEST, &[("MOLI_MOCK_FAIL_ALLOCATION", &n.to_string())], &folder);
        if found == expected {
            break;
        }
        let error = &found[0];
        // Where the device could be taken into use, there are results after the error.
        assert!(found.len() == 1 || found[1..] == expected, "allocation {n}: {found:?}");
        opened += found.len() - 1;
        assert!(
            error.starts_with("OutOfMemory { what: \"") && !error.contains("wanted: 0,"),
            "allocation {n}: {error}"
        );
        what.push(error.clone());
    }
    assert!(what.len() > opened && opened >= 8, "{what:?}");

    // Where there is too little of it from the start, both numbers are told.
    let found = told("errors::a_buffer_that_does_not_fit", &[("MOLI_MOCK_MEMORY", "1000000")], &folder);
    let free = found[1].parse::<u64>().unwrap();
    assert!((800_000..1_000_000).contains(&free), "{free}");
    assert_eq!(
        found[0],
        format!("OutOfMemory {{ what: \"a buffer of activations\", wanted: 4000000, free: {free} }}")
    );
}

#[test]
fn a_buffer_that_does_not_fit() {
    let gpu = crate::common::gpu();
    if is_child() {
        tell(&format!("{:?}", Buffer::new(&gpu, 1000, 1000).err().unwrap()));
        tell(&gpu.free_bytes().unwrap().to_string());
        return;
    }
    // More than there are addresses.
    for (rows, cols) in [(usize::MAX, 2), (1 << 61, 2)] {
        let error = Buffer::new(&gpu, rows, cols).err();
        assert!(
            matches!(
                error,
                Some(CudaError::OutOfMemory { what: "a buffer of activations", wanted: u64::MAX, .. })
            ),
            "{error:?}"
        );
    }
    // One byte more than its memory, where the whole of it is asked for.
    let floats = usize::try_from(gpu.info().total_bytes / 4).unwrap();
    let error = Buffer::new(&gpu, floats + 1, 1).err();
    assert!(
        matches!(error, Some(CudaError::OutOfMemory { wanted, .. }) if wanted == 4 * (floats as u64 + 1)),
        "{error:?}"
    );
}

/// The N-th launch fails, and with it the device: everything after it says so, at once or where it waits.
#[test]
fn a_kernel_fails() {
    const TEST: &str = "errors::a_kernel_fails";
    if is_child() {
        let mut gpu = Gpu::open(0).unwrap();
        for _ in 0..2 {
            match all(&mut gpu) {
                Ok(_) => tell("none"),
                Err(error) => tell(&format!("{error:?}")),
            }
        }
        return;
    }
    let folder = mock_cuda_folder().unwrap();
    for lazy in ["0", "1"] {
        let mut failures = 0;
        for n in [1, 2, 3, 5, 8, 13, 1000] {
            let found =
                told(TEST, &[("MOLI_MOCK_FAIL_LAUNCH", &n.to_string()), ("MOLI_MOCK_LAZY", lazy)], &folder);
            if n == 1000 {
                assert_eq!(found, ["none", "none"]);
                continue;
            }
            for error in &found {
                assert!(error.contains("code: \"CUDA_ERROR_LAUNCH_FAILED\""), "launch {n}: {error}");
            }
            failures += found.len();
        }
        assert_eq!(failures, 12);
    }
}
