//! Pages of keys and values: what is written in them, and how they are copied.

use half::f16;
use moli_cuda::{Cache, Gpu, KvKind, Rows};
use moli_kernels::{KV_BLOCK, KvSlot, PAGE_TOKENS};

use crate::common::{Random, buffer, gpu_for, shape};
use crate::heads::as_bytes;

const LAYERS: usize = 3;
const PAGES: usize = 4;
const HEADS: usize = 2;
const DIM: usize = 40;

fn page(gpu: &Gpu, cache: &Cache, page: u32) -> Vec<u8> {
    let mut bytes = vec![7];
    gpu.read_page(cache, page, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 1 + cache.page_bytes());
    assert_eq!(bytes.remove(0), 7, "bytes are appended");
    bytes
}

/// Keys and values of a page, in all layers, as the cache keeps them.
fn filled(gpu: &mut Gpu, cache: &mut Cache, to: u32, random: &mut Random) -> Vec<u8> {
    let slots: Vec<KvSlot> = (0..PAGE_TOKENS as u32).rev().map(|token| KvSlot { page: to, token }).collect();
    let positions: Vec<u32> = (0..PAGE_TOKENS as u32).collect();
    let sequences = [0; PAGE_TOKENS];
    gpu.begin(&Rows {
        positions: &positions,
        sequences: &sequences,
        lengths: None,
        tables: &[&[to]],
        slots: &slots,
    })
    .unwrap();
    let mut expected = Vec::new();
    for layer in 0..LAYERS {
        let [keys, values] = [(); 2].map(|()| {
            let mut rows = random.floats(PAGE_TOKENS * HEADS * DIM);
            // Zeros, what is too small for a scale, too large for half precision, and at its limits.
            rows[..KV_BLOCK].fill(0.0);
            rows[2 * KV_BLOCK..][..4].copy_from_slice(&[65519.0, 65520.0, -1e30, 6e-8]);
            rows[3 * DIM..4 * DIM].fill(1e-42);
            rows
        });
        for x in [&keys, &values] {
            let token = |slot: usize| &x[(PAGE_TOKENS - 1 - slot) * HEADS * DIM..][..HEADS * DIM];
            let heads: Vec<&[f32]> = (0..HEADS)
                .flat_map(|head| (0..PAGE_TOKENS).map(move |slot| (head, slot)))
                .map(|(head, slot)| &token(slot)[head * DIM..][..DIM])
                .collect();
            match cache.kind() {
                KvKind::F32 => expected.extend(heads.concat().iter().flat_map(|x| x.to_le_bytes())),
                KvKind::F16 => {
                    expected.extend(heads.concat().iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()))
                }
                KvKind::Q8_0 => {
                    let blocks: Vec<_> =
                        heads.iter().flat_map(|head| head.chunks(KV_BLOCK)).map(as_bytes).collect();
                    expected
                        .extend(blocks.iter().flat_map(|(_, bytes)| bytes).map(|byte| byte.cast_unsigned()));
                    expected.extend(blocks.iter().flat_map(|(scale, _)| scale.to_le_bytes()));
                }
            }
        }
        let (keys, values) = (buffer(gpu, PAGE_TOKENS, &keys), buffer(gpu, PAGE_TOKENS, &values));
        gpu.store(cache, layer, &keys, &values).unwrap();
    }
    expected
}

#[test]
fn pages_hold_what_was_stored_and_are_copied() {
    let mut random = Random::new(60);
    for kind in [KvKind::F32, KvKind::F16, KvKind::Q8_0] {
        let mut gpu = gpu_for(PAGE_TOKENS, HEADS * DIM);
        let mut cache = Cache::new(&gpu, &[(HEADS, DIM); LAYERS], PAGES, kind).unwrap();
        let first = filled(&mut gpu, &mut cache, 3, &mut random);
        let second = filled(&mut gpu, &mut cache, 0, &mut random);
        let empty = page(&gpu, &cache, 1);
        assert!(
            page(&gpu, &cache, 3) == first && page(&gpu, &cache, 0) == second && empty != first,
            "{kind:?}"
        );

        // By a thread that has asked nothing of the device before.
        std::thread::scope(|scope| {
            let copied = scope.spawn(|| gpu.copy_page(&mut cache, 3, 2));
            copied.join().unwrap().unwrap();
        });
        gpu.copy_page(&mut cache, 0, 0).unwrap();
        let all: Vec<Vec<u8>> = (0..PAGES as u32).map(|n| page(&gpu, &cache, n)).collect();
        assert!(all == [second.clone(), empty.clone(), first.clone(), first.clone()], "{kind:?}");

        gpu.write_page(&mut cache, 3, &second).unwrap();
        let all: Vec<Vec<u8>> = (0..PAGES as u32).map(|n| page(&gpu, &cache, n)).collect();
        assert!(all == [second.clone(), empty, first, second], "{kind:?}");
    }
}

/// A block with a value that is not finite has no finite element.
#[test]
fn what_is_no_number_is_stored_as_none() {
    let mut random = Random::new(61);
    let mut gpu = gpu_for(2, DIM);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut cache = Cache::new(&gpu, &[(1, DIM)], 1, KvKind::Q8_0).unwrap();
        let mut rows = random.floats(2 * DIM);
        rows[DIM + 35] = odd;
        let slots = [KvSlot { page: 0, token: 5 }, KvSlot { page: 0, token: 6 }];
        let rows = buffer(&mut gpu, 2, &rows);
        gpu.begin(&Rows {
            positions: &[5, 6],
            sequences: &[0, 0],
            lengths: None,
            tables: &[&[0]],
            slots: &slots,
        })
        .unwrap();
        gpu.store(&mut cache, 0, &rows, &rows).unwrap();
        let bytes = page(&gpu, &cache, 0);
        let scales = &bytes[PAGE_TOKENS * DIM..];
        let scale = |token: usize, block: usize| {
            f16::from_le_bytes([scales[4 * token + 2 * block], scales[4 * token + 2 * block + 1]])
        };
        assert!(
            scale(6, 1).is_nan()
                && [scale(5, 0), scale(5, 1), scale(6, 0)].iter().all(|scale| scale.is_finite())
        );
    }
}

#[test]
fn pages_that_do_not_exist() {
    let gpu = gpu_for(1, 1);
    let mut cache = Cache::new(&gpu, &[(1, 8); 2], 3, KvKind::Q8_0).unwrap();
    let bytes = vec![0; cache.page_bytes()];
    assert_eq!(cache.page_bytes(), 2 * 2 * PAGE_TOKENS * (8 + 2));
    let missing = ("a KV page", 3, 3);
    assert_eq!(shape(gpu.copy_page(&mut cache, 0, 3)), missing);
    assert_eq!(shape(gpu.copy_page(&mut cache, 3, 0)), missing);
    assert_eq!(shape(gpu.read_page(&cache, 3, &mut Vec::new())), missing);
    assert_eq!(shape(gpu.write_page(&mut cache, 3, &bytes)), missing);
    assert_eq!(
        shape(gpu.write_page(&mut cache, 2, &bytes[1..])),
        ("bytes of a KV page", bytes.len(), bytes.len() - 1)
    );
}
