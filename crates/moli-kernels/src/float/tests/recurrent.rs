//! The recurrent layers: the same bits however a text is cut, on every instruction set and any number of threads; and near f64.

use super::*;

/// Inputs of both operations.
struct Case {
    shape: DeltaShape,
    rows: usize,
    mixed: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    slope: Vec<f32>,
    bias: Vec<f32>,
    taps: Vec<f32>,
}

const TAPS: usize = 4;

impl Case {
    fn new(shape: DeltaShape, rows: usize) -> Self {
        let mut random = Random(rows as u64 + 11);
        let heads = shape.value_heads;
        Self {
            mixed: random.floats(rows * shape.mixed(), 1.0),
            a: random.floats(rows * heads, 2.0),
            b: random.floats(rows * heads, 2.0),
            slope: random.floats(heads, 1.0).into_iter().map(|x| -x.abs()).collect(),
            bias: random.floats(heads, 1.0),
            taps: random.floats(TAPS * shape.mixed(), 0.7),
            shape,
            rows,
        }
    }

    /// Both operations, the rows in pieces that end at `cuts`; of each piece the state comes from another slot than it goes to.
    fn run(&self, kernels: &Kernels, pool: &Pool, cuts: &[usize]) -> [Vec<f32>; 4] {
        let (width, heads) = (self.shape.mixed(), self.shape.value_heads);
        let mut convs = vec![9.0; 3 * (TAPS - 1) * width];
        let mut states = vec![9.0; 3 * self.shape.state()];
        let (mut convolved, mut found) = (Vec::new(), Vec::new());
        let (mut from, mut start) = (None, 0);
        for (piece, &end) in cuts.iter().chain([&self.rows]).enumerate() {
            let rows = end - start;
            // A row before and one behind, which belong to nobody.
            let pad = |values: &[f32], width: usize| {
                [&vec![7.0; width], &values[start * width..end * width], &vec![7.0; width]].concat()
            };
            let to = if piece % 2 == 0 { 2 } else { 1 };
            let runs = [StateRun { first: 1, rows, from, to }];
            let mut mixed = pad(&self.mixed, width);
            let mut out = vec![5.0; mixed.len()];
            let taps = (self.taps.as_slice(), width);
            kernels.short_conv(pool, &mixed, taps, &mut convs, &runs, &mut out).unwrap();
            convolved.extend_from_slice(&out[width..(rows + 1) * width]);
            let (mut a, mut b) = (pad(&self.a, heads), pad(&self.b, heads));
            let values = heads * self.shape.value_dim;
            let mut out = vec![5.0; (rows + 2) * values];
            kernels
                .delta_rule(
                    pool,
                    &self.shape,
                    &mut mixed,
                    (&mut a, &mut b),
                    (&self.slope, &self.bias),
                    &mut states,
                    &runs,
                    &mut out,
                )
                .unwrap();
            assert!(out[..values].iter().chain(&out[(rows + 1) * values..]).all(|&x| x == 5.0));
            found.extend_from_slice(&out[values..(rows + 1) * values]);
            (from, start) = (Some(to), end);
        }
        let slot = from.unwrap() as usize;
        let (conv, state) = ((TAPS - 1) * width, self.shape.state());
        [
            convolved,
            convs[slot * conv..(slot + 1) * conv].to_vec(),
            found,
            states[slot * state..(slot + 1) * state].to_vec(),
        ]
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let shape = |key_heads, value_heads, key_dim, value_dim, tiled| DeltaShape {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
        tiled,
    };
    let shapes = [
        shape(1, 1, 1, 1, false),
        shape(3, 6, 6, 10, false),
        shape(3, 6, 6, 10, true),
        shape(2, 2, 17, 31, true),
        shape(1, 4, 32, 33, false),
        shape(2, 6, 40, 79, true),
        shape(2, 4, 128, 128, false),
    ];
    shapes.into_iter().flat_map(|shape| [1, 2, 3, 9].map(|rows| Case::new(shape, rows)))
}

#[test]
fn cuts_threads_and_instruction_sets() {
    let (plain, others) = kernels();
    let pools = [Pool::new(1), Pool::new(3)];
    for case in cases() {
        let want = case.run(&plain, &pools[0], &[]);
        let singly: Vec<usize> = (1..case.rows).collect();
        for kernels in others.iter().chain([&plain]) {
            for pool in &pools {
                for cuts in [&[][..], &singly, &singly[singly.len() / 2..]] {
                    let got = case.run(kernels, pool, cuts);
                    for (want, got) in want.iter().zip(&got) {
                        assert_same(
                            want,
                            got,
                            &format!("{:?}, cut at {cuts:?}, {:?}", case.shape, kernels.isa()),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn several_sequences_in_one_batch() {
    let (plain, _) = kernels();
    let pool = Pool::new(2);
    let case =
        Case::new(DeltaShape { key_heads: 1, value_heads: 2, key_dim: 5, value_dim: 12, tiled: false }, 7);
    let alone = case.run(&plain, &pool, &[]);
    // The first four rows and the last three as sequences that begin: each is what it is alone.
    let width = case.shape.mixed();
    let runs = [
        StateRun { first: 0, rows: 4, from: None, to: 1 },
        StateRun { first: 4, rows: 3, from: None, to: 0 },
    ];
    let mut convs = vec![0.0; 2 * (TAPS - 1) * width];
    let mut out = vec![0.0; 7 * width];
    plain.short_conv(&pool, &case.mixed, (&case.taps, width), &mut convs, &runs, &mut out).unwrap();
    assert_same(&out[..4 * width], &alone[0][..4 * width], "the first sequence");
    let second = Case { rows: 3, mixed: case.mixed[4 * width..].to_vec(), ..Case::new(case.shape, 7) };
    assert_same(&out[4 * width..], &second.run(&plain, &pool, &[])[0], "the second sequence");
}

#[test]
fn both_are_near_f64() {
    let (plain, _) = kernels();
    for case in cases() {
        let [convolved, _, found, state] = case.run(&plain, &Pool::new(1), &[]);
        let (shape, width) = (case.shape, case.shape.mixed());
        for row in 0..case.rows {
            for channel in 0..width {
                let want: f64 = (0..TAPS)
                    .filter(|tap| row + tap + 1 >= TAPS)
                    .map(|tap| {
                        let input = case.mixed[(row + tap + 1 - TAPS) * width + channel];
                        f64::from(case.taps[tap * width + channel]) * f64::from(input)
                    })
                    .sum();
                assert!(
                    (f64::from(convolved[row * width + channel]) - want).abs() < 2e-6 * want.abs().max(1.0)
                );
            }
        }
        let keys = shape.key_heads * shape.key_dim;
        for head in 0..shape.value_heads {
            let key_head =
                if shape.tiled { head % shape.key_heads } else { head * shape.key_heads / shape.value_heads };
            let mut s = vec![vec![0f64; shape.value_dim]; shape.key_dim];
            for row in 0..case.rows {
                let unit = |first: usize, factor: f64| -> Vec<f64> {
                    let at = row * width + first + key_head * shape.key_dim;
                    let x: Vec<f64> = case.mixed[at..at + shape.key_dim].iter().map(|&x| x.into()).collect();
                    let size = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    x.iter().map(|x| x * factor / size).collect()
                };
                let (q, k) = (unit(0, (shape.key_dim as f64).sqrt().recip()), unit(keys, 1.0));
                let gate = row * shape.value_heads + head;
                let a = f64::from(case.a[gate]) + f64::from(case.bias[head]);
                let decay = (f64::from(case.slope[head]) * a.exp().ln_1p()).exp();
                let rate = 1.0 / (1.0 + (-f64::from(case.b[gate])).exp());
                for column in 0..shape.value_dim {
                    s.iter_mut().for_each(|s| s[column] *= decay);
                    let held: f64 = s.iter().zip(&k).map(|(s, k)| s[column] * k).sum();
                    let value = case.mixed[row * width + 2 * keys + head * shape.value_dim + column];
                    let delta = rate * (f64::from(value) - held);
                    s.iter_mut().zip(&k).for_each(|(s, k)| s[column] += k * delta);
                    let want: f64 = s.iter().zip(&q).map(|(s, q)| s[column] * q).sum();
                    let got = found[gate * shape.value_dim + column];
                    assert!((f64::from(got) - want).abs() < 4e-6 * want.abs().max(1.0), "{got} and {want}");
                }
            }
            let at = head * shape.key_dim * shape.value_dim;
            for (got, want) in state[at..].iter().zip(s.iter().flatten()) {
                assert!((f64::from(*got) - want).abs() < 4e-6 * want.abs().max(1.0), "{got} and {want}");
            }
        }
    }
}

#[test]
fn runs_that_do_not_fit_are_refused() {
    let (plain, _) = kernels();
    let pool = Pool::new(1);
    let run = StateRun { first: 0, rows: 2, from: None, to: 0 };
    let conv = |run: StateRun, taps: usize| {
        let (mut states, mut out) = (vec![0.0; 2 * 3], vec![0.0; 2 * 3]);
        plain.short_conv(&pool, &[1.0; 6], (&vec![1.0; taps], 3), &mut states, &[run], &mut out)
    };
    assert_eq!(conv(run, 6), Ok(()));
    for wrong in [StateRun { rows: 3, ..run }, StateRun { first: usize::MAX, ..run }] {
        assert!(matches!(conv(wrong, 6), Err(KernelError::Length { what: "rows of a run", .. })));
    }
    for wrong in [StateRun { to: 2, ..run }, StateRun { from: Some(2), ..run }] {
        assert!(matches!(conv(wrong, 6), Err(KernelError::Limit { what: "slot", limit: 2, actual: 2 })));
    }
    for taps in [0, 2, 7] {
        assert!(matches!(conv(run, taps), Err(KernelError::Length { what: "taps", .. })));
    }
    let shape = DeltaShape { key_heads: 2, value_heads: 3, key_dim: 1, value_dim: 1, tiled: false };
    let mut empty = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let [a, b, states, out] = &mut empty;
    let error = plain.delta_rule(&pool, &shape, &mut [], (a, b), (&[], &[]), states, &[], out);
    assert!(matches!(error, Err(KernelError::Limit { what: "key heads", limit: 3, actual: 2 })));
}
