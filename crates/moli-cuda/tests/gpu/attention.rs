//! Attention beside softmax in f64, and the same bits in every batch.

use moli_cuda::KvKind;

use crate::common::{Random, bits};
use crate::heads::{Row, Sequences, Spec};

const KINDS: [KvKind; 3] = [KvKind::F32, KvKind::F16, KvKind::Q8_0];

fn rows(sequence: u32, positions: impl IntoIterator<Item = u32>) -> Vec<Row> {
    positions.into_iter().map(|position| (sequence, position)).collect()
}

/// Every form of the kernel, at its edges and between.
#[test]
fn every_width() {
    let mut random = Random::new(40);
    let heads = [(4, 1), (6, 2), (32, 2), (5, 5)];
    for (n, dim) in [16, 20, 64, 72, 128, 160, 256, 300, 576, 608].into_iter().enumerate() {
        let (heads, kv_heads) = heads[n % heads.len()];
        for kind in KINDS {
            let mut all = Sequences::new(kind, kv_heads, dim, &[67], &mut random);
            all.check(&rows(0, [0, 1, 30, 31, 32, 33, 63, 64, 65, 66]), &Spec::new(heads));
        }
    }
}

/// All numbers of heads to a key head, of which some don't fill a tile and some fill several.
#[test]
fn every_group_of_heads() {
    let mut random = Random::new(41);
    for (heads, kv_heads) in [(1, 1), (4, 1), (6, 2), (7, 1), (32, 2), (5, 5), (17, 1), (40, 2)] {
        for dim in [16, 256] {
            let mut all = Sequences::new(KvKind::F16, kv_heads, dim, &[40, 35], &mut random);
            let rows = [rows(0, 28..37), rows(1, 0..3), rows(0, 37..40), rows(1, 33..35)].concat();
            all.check(&rows, &Spec::new(heads));
        }
    }
}

#[test]
fn windows_caps_and_sinks() {
    let mut random = Random::new(42);
    let sinks = vec![-1.0, 0.0, 4.0, -30.0, 30.0, 0.5];
    for kind in KINDS {
        let mut all = Sequences::new(kind, 2, 36, &[130, 3, 64], &mut random);
        for window in [None, Some(1), Some(5), Some(32), Some(33), Some(64), Some(1000), Some(usize::MAX)] {
            for (soft_cap, sinks) in [(None, None), (Some(2.0), Some(sinks.clone()))] {
                let spec = Spec { window, soft_cap, sinks, ..Spec::new(6) };
                let rows = [rows(0, [0, 31, 32, 63, 64, 95, 96, 128, 129]), rows(1, 0..3), rows(2, 62..64)];
                all.check(&rows.concat(), &spec);
            }
        }
    }
}

#[test]
fn whole_sequences() {
    let mut random = Random::new(43);
    let mut all = Sequences::new(KvKind::F16, 2, 24, &[1, 100, 32, 33], &mut random);
    for window in [None, Some(1), Some(4), Some(32), Some(70)] {
        let spec = Spec { window, whole: true, ..Spec::new(4) };
        let rows = [rows(0, 0..1), rows(1, (0..100).step_by(11)), rows(2, 0..32), rows(3, [0, 31, 32])];
        all.check(&rows.concat(), &spec);
    }
    let mut long = Sequences::new(KvKind::F32, 1, 16, &[1100], &mut random);
    for window in [None, Some(300)] {
        long.check(&rows(0, [0, 511, 512, 1099]), &Spec { window, whole: true, ..Spec::new(2) });
    }
}

/// Positions around the ends of pages and of spans.
const BORDERS: [u32; 16] = [0, 31, 32, 33, 480, 510, 511, 512, 513, 544, 1023, 1024, 1025, 1536, 1598, 1599];

/// A long sequence whose spans have blocks of their own, where a batch leaves the device idle, and none where it has enough to do:
/// the same bits, and those that they should be.
#[test]
fn long_sequences_in_every_batch() {
    let mut random = Random::new(44);
    for kind in [KvKind::F16, KvKind::Q8_0] {
        let mut all = Sequences::new(kind, 1, 16, &[1600, 40, 700], &mut random);
        for window in [None, Some(600)] {
            for sinks in [None, Some(vec![0.5, -2.0, 3.0, 1.0])] {
                let spec = Spec { window, sinks, ..Spec::new(4) };
                let own = rows(0, BORDERS);
                let expected = all.check(&own, &spec);
                let width = expected.len() / own.len();
                let same = |found: &[f32], at: usize, what: &str| {
                    let expected = &expected[at * width..][..found.len()];
                    assert_eq!(bits(found), bits(expected), "{what}, {kind:?}, {spec:?}");
                };
                for (at, row) in own.iter().enumerate() {
                    same(&all.attend(&[*row], &spec), at, "one row");
                }
                for (chunk, rows) in own.chunks(7).enumerate() {
                    same(&all.attend(rows, &spec), 7 * chunk, "seven rows");
                }
                // Enough for all multiprocessors: the spans of a tile are done by one block. Its rows lie among strangers, too.
                let strangers = [rows(1, 0..24), rows(2, [699, 512])].concat();
                let many = [&strangers[..5], &own, &strangers[5..]].concat();
                let found = all.attend(&many, &spec);
                same(&found[5 * width..][..own.len() * width], 0, "among strangers");
                let mixed: Vec<Row> = own.iter().flat_map(|row| [*row, (1, 39), (2, 600)]).collect();
                let found = all.attend(&mixed, &spec);
                for at in 0..own.len() {
                    same(&found[3 * at * width..][..width], at, "rows alternate");
                }
            }
        }
    }
}

/// What a query doesn't see may be no number, there or never written at all.
#[test]
fn what_is_not_seen_leaves_no_trace() {
    let mut random = Random::new(45);
    for kind in KINDS {
        for (window, whole) in [(None, false), (Some(40), false), (Some(20), true)] {
            let mut all = Sequences::new(kind, 1, 40, &[200], &mut random);
            let spec = Spec { window, whole, sinks: Some(vec![0.0, 1.0]), ..Spec::new(2) };
            let own = rows(0, [100, 101, 103]);
            let expected = all.attend(&own, &spec);
            let end = if whole { 103 + 20 } else { 104 };
            let first = window.map_or(0, |window| 101 - window);
            for (token, (keys, values)) in
                all.keys[0].chunks_mut(40).zip(all.values[0].chunks_mut(40)).enumerate()
            {
                if !(first..end).contains(&token) {
                    keys.fill(f32::NAN);
                    values.fill(f32::INFINITY);
                }
            }
            all.store();
            assert_eq!(bits(&all.attend(&own, &spec)), bits(&expected), "{kind:?}, {spec:?}");
            // Each row has its own limits within a tile.
            all.keys[0][103 * 40] = f32::NAN;
            all.values[0][103 * 40] = f32::NAN;
            all.store();
            let found = all.attend(&own, &Spec { whole: false, ..spec.clone() });
            let clean = all.attend(&own[..2], &Spec { whole: false, ..spec.clone() });
            assert_eq!(bits(&found[..clean.len()]), bits(&clean), "{kind:?}, {spec:?}");
            assert!(clean.iter().all(|x| x.is_finite()) && found[clean.len()..].iter().all(|x| x.is_nan()));
        }
    }
}

/// A key that is no number makes its queries' results so, a value its column, and a query its own result: wherever it is, alone or
/// among others, in one block or in several.
#[test]
fn what_is_seen_and_no_number_shows() {
    let mut random = Random::new(46);
    let (kv_heads, dim, heads) = (2, 40, 4);
    for tokens in [1, 60, 600] {
        for others in [0, 31] {
            let spec = Spec::new(heads);
            let last = tokens as u32 - 1;
            let own: Vec<Row> = rows(0, std::iter::repeat_n(last, 1 + others));
            let mut all = Sequences::new(KvKind::F32, kv_heads, dim, &[tokens], &mut random);
            let (keys, values) = (all.keys.clone(), all.values.clone());
            for at in [0, tokens / 2, tokens - 1] {
                for (odd, is_key) in [(f32::NAN, true), (f32::NAN, false), (f32::INFINITY, false)] {
                    // The second key head's; its queries are the last two.
                    let place = (at * kv_heads + 1) * dim + 33;
                    (all.keys, all.values) = (keys.clone(), values.clone());
                    if is_key {
                        all.keys[0][place] = odd
                    } else {
                        all.values[0][place] = odd
                    }
                    all.store();
                    let found = all.attend(&own, &spec);
                    for (n, x) in found.iter().enumerate() {
                        let (head, d) = (n / dim % heads, n % dim);
                        let shows = head >= 2 && (is_key || d == 33);
                        assert_eq!(
                            x.is_finite(),
                            !shows,
                            "{odd} at {at} of {tokens}, key {is_key}: head {head}, {d}"
                        );
                    }
                }
            }
            (all.keys, all.values) = (keys, values);
            all.store();
            let mut queries: Vec<f32> = own.iter().flat_map(|&row| all.query(row, heads)).collect();
            queries[dim] = f32::NAN;
            let found = all.attend_to(&queries, &own, &spec);
            assert!(
                found.iter().enumerate().all(|(n, x)| x.is_nan() == (n / dim == 1)),
                "a query, {tokens} tokens"
            );
        }
    }
}

/// Keys so far away that their weight is nothing, and scores that are minus infinity.
#[test]
fn weights_of_nothing() {
    let mut random = Random::new(47);
    let dim = 16;
    let mut all = Sequences::new(KvKind::F32, 1, dim, &[600], &mut random);
    // One key that all weight goes to, in a span of its own, and the first page's scores minus infinity.
    let query = all.query((0, 599), 1);
    for (key, q) in all.keys[0][555 * dim..][..dim].iter_mut().zip(&query) {
        *key = 1e4 * q;
    }
    for key in all.keys[0].chunks_mut(dim).take(40) {
        key[0] = if query[0] > 0.0 { f32::NEG_INFINITY } else { f32::INFINITY };
    }
    all.store();
    let value = all.values[0][555 * dim..][..dim].to_vec();
    assert_eq!(all.attend(&[(0, 599)], &Spec::new(1)), value);
    let found = all.attend(&vec![(0, 599); 130], &Spec::new(1));
    assert_eq!(found, value.repeat(130));
}
