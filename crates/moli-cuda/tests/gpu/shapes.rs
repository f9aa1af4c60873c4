//! Shapes that don't fit, each of which is an error that names what was measured.

use moli_cuda::{Angles, Buffer, Cache, CudaError, Function, Gpu, KvKind, Matrix, Rows, Shape};
use moli_format::TensorType;
use moli_kernels::{KvSlot, RopeAngles, RopeStyle};

use crate::common::{buffer, empty, gpu, gpu_for, read, shape, tensor};

fn zeros(gpu: &Gpu, rows: usize, cols: usize) -> Buffer {
    let mut x = Buffer::new(gpu, rows, cols).unwrap();
    gpu.zero(&mut x, rows, cols).unwrap();
    x
}

fn matrix(gpu: &Gpu, ttype: TensorType, rows: usize, cols: usize) -> Matrix {
    let bytes = vec![0; ttype.row_bytes(cols).unwrap() * rows];
    Matrix::new(gpu, &tensor(ttype, rows, cols, bytes)).unwrap()
}

#[test]
fn matrices() {
    let gpu = gpu();
    let new = |ttype, rows, cols, bytes| Matrix::new(&gpu, &tensor(ttype, rows, cols, vec![0; bytes]));
    let bytes = "bytes of a matrix";
    assert_eq!(shape(new(TensorType::Q8_0, 3, 64, 203)), (bytes, 204, 203));
    assert_eq!(shape(new(TensorType::F32, 3, 5, 64)), (bytes, 60, 64));
    // Part of a block, and more bytes than there can be.
    assert_eq!(shape(new(TensorType::Q4K, 1, 257, 288)), (bytes, usize::MAX, 288));
    assert_eq!(shape(new(TensorType::F32, usize::MAX, 8, 0)), (bytes, usize::MAX, 0));
    assert_eq!(shape(new(TensorType::F32, 1 << 40, 0, 0)), ("rows of a matrix", i32::MAX as usize, 1 << 40));
    for ttype in TensorType::ALL.iter().copied().filter(|ttype| !moli_kernels::is_supported(*ttype)) {
        let error = new(ttype, 1, ttype.block_len(), ttype.block_bytes()).err();
        assert_eq!(error, Some(CudaError::UnsupportedType { ttype }));
    }
    let fits = new(TensorType::Q6K, 3, 512, 3 * 2 * 210).unwrap();
    assert_eq!((fits.rows(), fits.cols()), (3, 512));
}

#[test]
fn products() {
    let mut gpu = gpu_for(9, 256);
    let weights = matrix(&gpu, TensorType::Q4_0, 20, 256);
    let mut out = empty(&gpu);
    let bias = gpu.vector(&[0.0; 19]).unwrap();
    for rows in [1, 9] {
        let x = zeros(&gpu, rows, 256);
        let mut project = |x: &Buffer, bias| gpu.project(x, std::iter::once((&weights, bias, &mut out)));
        assert_eq!(shape(project(&x, Some(&bias))), ("elements of a bias", 20, 19));
        project(&x, None).unwrap();
    }
    let x = zeros(&gpu, 1, 255);
    let found = gpu.project(&x, std::iter::once((&weights, None, &mut out)));
    assert_eq!(shape(found), ("columns of a matrix", 255, 256));
    // No rows at all, of activations or of weights.
    let none = matrix(&gpu, TensorType::Q4_0, 0, 256);
    for (rows, weights) in [(0, &weights), (1, &none), (9, &none)] {
        let x = zeros(&gpu, rows, 256);
        gpu.project(&x, std::iter::once((weights, None, &mut out))).unwrap();
        assert_eq!((out.rows(), out.cols(), read(&gpu, &out)), (rows, weights.rows(), Vec::new()));
    }
    // More rows than there is room for.
    let x = zeros(&gpu, 10, 256);
    let found = gpu.project(&x, std::iter::once((&weights, None, &mut out)));
    assert_eq!(shape(found), ("groups of activations", 9 * 8, 10 * 8));
    // Floats need none.
    let floats = matrix(&gpu, TensorType::BF16, 20, 256);
    gpu.project(&x, std::iter::once((&floats, None, &mut out))).unwrap();
}

#[test]
fn rows_too_long() {
    // Room for many short rows, of which a few are long.
    let mut gpu = gpu_for(2000, 256);
    let long = matrix(&gpu, TensorType::Q8_0, 1, 33_024);
    let x = zeros(&gpu, 9, 33_024);
    let mut out = empty(&gpu);
    let found = gpu.project(&x, std::iter::once((&long, None, &mut out)));
    let (what, room, columns) = shape(found);
    assert_eq!((what, columns), ("columns of a matrix", 33_024));
    assert!(room < columns, "{room}");
    let mut found = empty(&gpu);
    let rows = [0; 128];
    assert_eq!(shape(gpu.look_up(&long, &rows, 1.0, &mut found)), ("unpacked rows", 127, 128));

    // Sums of one row fill shared memory.
    let most = (48 << 10) / 4 * 256;
    for (cols, fits) in [(most, true), (most + 1, false)] {
        let long = matrix(&gpu, TensorType::F16, 1, cols);
        let x = zeros(&gpu, 1, cols);
        let found = gpu.project(&x, std::iter::once((&long, None, &mut out)));
        if fits {
            found.unwrap();
            assert_eq!(read(&gpu, &out), [0.0]);
        } else {
            assert_eq!(shape(found), ("columns of a matrix", most, cols));
        }
    }
}

#[test]
fn row_numbers() {
    let mut gpu = gpu_for(4, 64);
    let table = matrix(&gpu, TensorType::F32, 3, 64);
    let mut out = empty(&gpu);
    assert_eq!(shape(gpu.look_up(&table, &[0, 3], 1.0, &mut out)), ("a row of a table", 3, 3));
    assert_eq!(
        shape(gpu.look_up(&table, &[u32::MAX], 1.0, &mut out)),
        ("a row of a table", 3, u32::MAX as usize)
    );
    let room = "elements of device memory";
    assert_eq!(shape(gpu.look_up(&table, &[0; 5], 1.0, &mut out)), (room, 4, 5));
    gpu.look_up(&table, &[], 1.0, &mut out).unwrap();
    assert_eq!((out.rows(), out.cols()), (0, 64));

    let x = zeros(&gpu, 3, 64);
    assert_eq!(shape(gpu.select(&x, &[2, 3], &mut out)), ("a row of a buffer", 3, 3));
    assert_eq!(shape(gpu.select(&x, &[0; 5], &mut out)), (room, 4, 5));

    let mut to = zeros(&gpu, 7, 64);
    let weights = gpu.vector(&[1.0; 3]).unwrap();
    assert_eq!(shape(gpu.scatter_add(&x, &[0, 1, 7], &weights, &mut to)), ("a row of a buffer", 7, 7));
    assert_eq!(shape(gpu.scatter_add(&x, &[0, 1], &weights, &mut to)), ("added rows", 2, 3));
    let few = gpu.vector(&[1.0; 2]).unwrap();
    assert_eq!(shape(gpu.scatter_add(&x, &[0, 1, 2], &few, &mut to)), ("weights of added rows", 3, 2));
    let mut narrow = zeros(&gpu, 7, 63);
    assert_eq!(
        shape(gpu.scatter_add(&x, &[0, 1, 2], &weights, &mut narrow)),
        ("columns of added rows", 63, 64)
    );
    assert_eq!(read(&gpu, &to), vec![0.0; 7 * 64]);
}

#[test]
fn elements() {
    let mut gpu = gpu_for(2, 64);
    let (x, mut y, mut out) = (zeros(&gpu, 2, 64), zeros(&gpu, 2, 63), empty(&gpu));
    let gain = gpu.vector(&[1.0; 63]).unwrap();
    let right = gpu.vector(&[1.0; 64]).unwrap();
    let norm = "elements of a norm";
    assert_eq!(shape(gpu.rms_norm(&x, &gain, 0.0, &mut out)), (norm, 64, 63));
    assert_eq!(shape(gpu.layer_norm(&x, &gain, None, 0.0, &mut out)), (norm, 64, 63));
    assert_eq!(
        shape(gpu.layer_norm(&x, &right, Some(&gain), 0.0, &mut out)),
        ("elements of a norm's bias", 64, 63)
    );
    let pieces = "columns of pieces that are normed";
    let five = gpu.vector(&[1.0; 5]).unwrap();
    let none = gpu.vector(&[]).unwrap();
    assert_eq!(shape(gpu.rms_norm_pieces(&mut y, &five, 0.0)), (pieces, 63, 60));
    assert_eq!(shape(gpu.rms_norm_pieces(&mut y, &right, 0.0)), (pieces, 63, 0));
    assert_eq!(shape(gpu.rms_norm_pieces(&mut y, &none, 0.0)), (pieces, 63, 0));
    assert_eq!(shape(gpu.gated(&mut y, &x, Function::Silu)), ("gated elements", 126, 128));
    assert_eq!(shape(gpu.add(&mut y, &x)), ("added elements", 126, 128));

    assert_eq!(shape(gpu.copy_columns(&x, 60, &mut y, 0, 5)), ("copied columns", 64, 65));
    assert_eq!(shape(gpu.copy_columns(&x, 0, &mut y, 60, 4)), ("columns that are copied to", 63, 64));
    let mut three = zeros(&gpu, 3, 64);
    assert_eq!(shape(gpu.copy_columns(&x, 0, &mut three, 0, 4)), ("copied rows", 2, 3));

    let mut angles = RopeAngles::new(34, 1e4, None);
    angles.set(&[0, 1, 2]);
    let mut on_device = Angles::new(&gpu).unwrap();
    gpu.angles(&angles, &mut on_device).unwrap();
    let rope = |x: &mut Buffer, dim| gpu.rope(x, &on_device, RopeStyle::Halves, dim);
    assert_eq!(shape(rope(&mut three, 48)), ("columns of heads", 64, 48));
    assert_eq!(shape(rope(&mut three, 0)), ("columns of heads", 64, 0));
    assert_eq!(shape(rope(&mut three, 32)), ("rotated elements", 32, 34));
    rope(&mut three, 64).unwrap();
    let mut x = x;
    assert_eq!(shape(gpu.rope(&mut x, &on_device, RopeStyle::Halves, 64)), ("rows of angles", 2, 3));

    // Nothing is nothing, whatever is done with it.
    let mut nothing = buffer(&mut gpu, 2, &[]);
    let other = empty(&gpu);
    gpu.add(&mut nothing, &other).unwrap();
    gpu.scale(&mut nothing, 2.0).unwrap();
    gpu.activate(&mut nothing, Function::Silu).unwrap();
    gpu.soft_cap(&mut nothing, 2.0).unwrap();
    gpu.rms_norm(&nothing, &none, 1.0, &mut out).unwrap();
    gpu.layer_norm(&nothing, &none, None, 1.0, &mut out).unwrap();
    assert_eq!((out.rows(), out.cols(), read(&gpu, &nothing)), (2, 0, Vec::new()));
}

const NO_ROWS: Rows<'_> = Rows { positions: &[], sequences: &[], lengths: None, tables: &[], slots: &[] };

#[test]
fn batches() {
    let mut gpu = gpu_for(2, 64);
    let slots = [KvSlot { page: 0, token: 0 }, KvSlot { page: 0, token: 1 }];
    let right =
        Rows { positions: &[0, 1], sequences: &[0, 0], lengths: None, tables: &[&[0]], slots: &slots };
    assert_eq!(shape(gpu.begin(&Rows { sequences: &[0], ..right })), ("sequences of a batch", 2, 1));
    assert_eq!(shape(gpu.begin(&Rows { slots: &slots[..1], ..right })), ("slots of a batch", 2, 1));
    assert_eq!(shape(gpu.begin(&Rows { lengths: Some(&[2, 2]), ..right })), ("lengths of sequences", 1, 2));
    assert_eq!(shape(gpu.begin(&Rows { sequences: &[0, 1], ..right })), ("a sequence of a batch", 1, 1));
    gpu.begin(&right).unwrap();

    let mut cache = Cache::new(&gpu, &[(2, 16)], 1, KvKind::F32).unwrap();
    let (kv, narrow, long) = (zeros(&gpu, 2, 32), zeros(&gpu, 2, 31), zeros(&gpu, 3, 32));
    let columns = "columns of keys or values";
    assert_eq!(shape(gpu.store(&mut cache, 1, &kv, &kv)), ("layers of the KV cache", 2, 1));
    assert_eq!(shape(gpu.store(&mut cache, 0, &narrow, &kv)), (columns, 32, 31));
    assert_eq!(shape(gpu.store(&mut cache, 0, &kv, &narrow)), (columns, 32, 31));
    assert_eq!(shape(gpu.store(&mut cache, 0, &long, &kv)), ("rows of keys or values", 2, 3));
    gpu.store(&mut cache, 0, &kv, &kv).unwrap();

    let right = Shape { heads: 4, kv_heads: 2, head_dim: 16, scale: 1.0, soft_cap: None, window: None };
    let mut out = empty(&gpu);
    let (q, narrow, long) = (zeros(&gpu, 2, 64), zeros(&gpu, 2, 63), zeros(&gpu, 3, 64));
    let five = zeros(&gpu, 2, 80);
    let sinks = gpu.vector(&[0.0; 3]).unwrap();
    let mut attend =
        |q: &Buffer, sinks, layer, shape| gpu.attention(q, sinks, &cache, layer, &shape, &mut out);
    assert_eq!(shape(attend(&q, None, 0, Shape { kv_heads: 1, ..right })), ("key heads", 2, 1));
    assert_eq!(shape(attend(&q, None, 0, Shape { head_dim: 32, ..right })), ("elements of a head", 16, 32));
    assert_eq!(shape(attend(&narrow, None, 0, right)), ("columns of queries", 64, 63));
    assert_eq!(shape(attend(&long, None, 0, right)), ("rows of queries", 2, 3));
    assert_eq!(shape(attend(&q, Some(&sinks), 0, right)), ("sinks", 4, 3));
    assert_eq!(shape(attend(&q, None, 1, right)), ("layers of the KV cache", 2, 1));
    assert_eq!(shape(attend(&five, None, 0, Shape { heads: 5, ..right })), ("query heads", 4, 5));
    attend(&q, None, 0, right).unwrap();

    // A batch of nothing.
    gpu.begin(&NO_ROWS).unwrap();
    let none = zeros(&gpu, 0, 32);
    gpu.store(&mut cache, 0, &none, &none).unwrap();
    let none = zeros(&gpu, 0, 64);
    gpu.attention(&none, None, &cache, 0, &right, &mut out).unwrap();
    assert_eq!((out.rows(), out.cols(), read(&gpu, &out)), (0, 64, Vec::new()));
}

#[test]
fn heads_too_wide() {
    let gpu = gpu();
    for (head_dim, fits) in [(608, true), (609, false)] {
        match Cache::new(&gpu, &[(1, head_dim)], 1, KvKind::F16) {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert_eq!((error, fits), (CudaError::HeadTooWide { head_dim, widest: 608 }, false))
            }
        }
    }
}

/// A grid has so many blocks in its second direction.
#[test]
fn more_rows_than_a_grid_has() {
    let mut gpu = gpu_for(1, 32);
    let count = 65_536;
    let mut cache = Cache::new(&gpu, &[(1, 1)], count / 32, KvKind::F32).unwrap();
    let positions: Vec<u32> = (0..count as u32).collect();
    let slots: Vec<KvSlot> = positions.iter().map(|p| KvSlot { page: p / 32, token: p % 32 }).collect();
    let pages: Vec<u32> = (0..count as u32 / 32).collect();
    let rows = Rows {
        positions: &positions,
        sequences: &vec![0; count],
        lengths: None,
        tables: &[&pages],
        slots: &slots,
    };
    gpu.begin(&rows).unwrap();
    let x = zeros(&gpu, count, 1);
    assert_eq!(shape(gpu.store(&mut cache, 0, &x, &x)), ("blocks of a launch", 65_535, count));
}
