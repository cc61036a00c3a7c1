//! Every level against the definition, by equality of bits, and the definition against sums in f64.

use crate::*;

/// Numbers that look random and are not.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Rows of `format` with any quants, and scales that are mostly ordinary numbers.
fn weights(format: Format, n: usize, k: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut next = random(seed);
    let row_bytes = format.row_bytes(k).unwrap();
    (0..n)
        .map(|_| {
            let mut row: Vec<u8> = (0..row_bytes).map(|_| (next() >> 32) as u8).collect();
            match format {
                Format::F32 => row.as_chunks_mut::<4>().0.iter_mut().for_each(|b| {
                    *b = ((next() >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes();
                }),
                Format::F16 => row.as_chunks_mut::<2>().0.iter_mut().for_each(|b| {
                    *b = half::f16::from_f32((next() >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes();
                }),
                Format::Bf16 => row.as_chunks_mut::<2>().0.iter_mut().for_each(|b| {
                    *b = half::bf16::from_f32((next() >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes();
                }),
                _ => row.chunks_exact_mut(format.block_bytes()).for_each(|block| {
                    let half =
                        half::f16::from_f32((next() >> 40) as f32 / (1 << 23) as f32 / 64.0).to_le_bytes();
                    for at in scales(format) {
                        block[at..at + 2].copy_from_slice(&half);
                    }
                    if format == Format::Mxfp4 {
                        block[0] = 120 + (next() >> 61) as u8;
                    }
                }),
            }
            row
        })
        .collect()
}

/// Where the halves of a block are.
fn scales(format: Format) -> Vec<usize> {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Mxfp4 => vec![],
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => vec![0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => vec![0, 2],
        Format::Q2K => vec![80, 82],
        Format::Q3K => vec![108],
        Format::Q6K => vec![208],
    }
}

fn activations(m: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut next = random(seed);
    (0..m * k).map(|_| (next() >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
}

fn bits(results: &[f32]) -> Vec<u32> {
    results.iter().map(|result| result.to_bits()).collect()
}

fn computed(level: Level, format: Format, rows: &[Vec<u8>], x: &[f32], k: usize, shift: usize) -> Vec<f32> {
    let x = Activations::of(x, k, format.precision());
    let mut to = vec![0.5; rows.len() * x.rows()];
    // Nothing is aligned.
    let bytes = [&vec![0xa5; shift][..], &rows.concat()].concat();
    product(level, format, &bytes[shift..], &x, Part::whole(&mut to, rows.len()));
    to
}

fn check(format: Format, m: usize, n: usize, k: usize, seed: u64) {
    let (rows, x) = (weights(format, n, k, seed), activations(m, k, seed + 1));
    let expected = computed(Level::Portable, format, &rows, &x, k, 0);
    for level in Level::available().skip(1) {
        let found = computed(level, format, &rows, &x, k, (seed % 7) as usize);
        assert_eq!(bits(&found), bits(&expected), "{format:?} {level} {m} {n} {k}");
    }
}

/// Sizes of rows that `format` can have.
fn sizes(format: Format) -> &'static [usize] {
    match format.block_elements() {
        1 => &[1, 2, 15, 16, 17, 31, 32, 33, 64, 257, 1030],
        32 => &[32, 64, 96, 224, 256, 288, 512, 1056],
        _ => &[256, 512, 768, 2048],
    }
}

#[test]
fn every_level_gives_the_same_bits() {
    for format in Format::ALL {
        let mut seed = 0;
        for &k in sizes(format) {
            for m in [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 18, 40] {
                for n in [1, 3, 4, 8, 9, 31, 32, 33, 67] {
                    seed += 1;
                    check(format, m, n, k, seed);
                }
            }
        }
    }
}

#[test]
fn a_result_depends_on_its_two_rows_alone() {
    for format in Format::ALL {
        let k = *sizes(format).last().unwrap();
        let (rows, x) = (weights(format, 37, k, 5), activations(11, k, 6));
        for level in Level::available() {
            let all = computed(level, format, &rows, &x, k, 0);
            for (at, row) in rows.iter().enumerate() {
                for j in [0, 3, 10] {
                    let one = computed(level, format, std::slice::from_ref(row), &x[j * k..][..k], k, 3);
                    assert_eq!(bits(&one), bits(&all[j * 37 + at..][..1]), "{format:?} {level}");
                }
            }
        }
    }
}

/// Numbers at the ends of what there is, as weights' scales and as activations.
const ODD: [f32; 12] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    65504.0,
    6e-8,
    1e-38,
    -1e-45,
    f32::MAX,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

#[test]
fn extremes_give_the_same_bits_and_nothing_panics() {
    for format in Format::ALL {
        let k = if format.block_elements() == 1 { 96 } else { 512 };
        let row_bytes = format.row_bytes(k).unwrap();
        let mut rows: Vec<Vec<u8>> = Vec::new();
        for quants in [0x00, 0xff, 0x80, 0x7f, 0x55, 0x88] {
            for odd in ODD {
                let mut row = vec![quants; row_bytes];
                let half = half::f16::from_f32(odd).to_le_bytes();
                for block in row.chunks_exact_mut(format.block_bytes()) {
                    match format {
                        Format::F32 => block.copy_from_slice(&odd.to_le_bytes()),
                        Format::F16 => block.copy_from_slice(&half),
                        Format::Bf16 => block.copy_from_slice(&half::bf16::from_f32(odd).to_le_bytes()),
                        _ => {
                            scales(format).into_iter().for_each(|at| block[at..at + 2].copy_from_slice(&half))
                        }
                    }
                }
                rows.push(row);
            }
        }
        for odd in ODD {
            for (other, at) in [(1.0, 0), (0.0, 17), (odd, 95), (-odd, 0)] {
                let one: Vec<f32> = (0..k).map(|i| if i % 64 == at % 64 { odd } else { other }).collect();
                for m in [1, 4, 9] {
                    let x = one.repeat(m);
                    let expected = computed(Level::Portable, format, &rows, &x, k, 0);
                    assert!(expected.iter().all(|y| !y.is_nan() || y.to_bits() == f32::NAN.to_bits()));
                    for level in Level::available().skip(1) {
                        let found = computed(level, format, &rows, &x, k, 1);
                        assert_eq!(bits(&found), bits(&expected), "{format:?} {level} {m} {odd} {other}");
                    }
                }
            }
        }
    }
}

/// A row as numbers, by the description of its blocks.
fn widened(format: Format, row: &[u8]) -> Vec<f64> {
    fn supers<F: crate::blocks::Super>(row: &[u8]) -> Vec<f64> {
        let block = |block: &[u8]| {
            let (quants, scales, minimums) = (F::quants(block), F::scales(block), F::minimums(block));
            let (d, dmin) = (f64::from(F::d(block)), f64::from(F::dmin(block)));
            let one = move |at: usize| {
                let quant = f64::from(quants[at]) - f64::from(F::OFFSET);
                d * f64::from(scales[at / 16]) * quant - dmin * f64::from(minimums[at / 16])
            };
            (0..256).map(one).collect::<Vec<_>>()
        };
        row.chunks_exact(F::BYTES).flat_map(block).collect()
    }
    fn simples<F: crate::blocks::Simple>(row: &[u8]) -> Vec<f64> {
        let block = |block: &[u8]| {
            let (scale, minimum) = (f64::from(F::scale(block)), f64::from(F::minimum(block)));
            let one = |quant: u8| scale * (f64::from(quant) - f64::from(F::OFFSET)) + minimum;
            F::quants(block).map(one)
        };
        row.chunks_exact(F::BYTES).flat_map(block).collect()
    }
    use crate::blocks::*;
    match format {
        Format::F32 => row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        Format::F16 => row.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).into()).collect(),
        Format::Bf16 => row.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).into()).collect(),
        Format::Q4_0 => simples::<Q4_0>(row),
        Format::Q4_1 => simples::<Q4_1>(row),
        Format::Q5_0 => simples::<Q5_0>(row),
        Format::Q5_1 => simples::<Q5_1>(row),
        Format::Q8_0 => simples::<Q8_0>(row),
        Format::Iq4Nl => simples::<Iq4Nl>(row),
        Format::Mxfp4 => simples::<Mxfp4>(row),
        Format::Q2K => supers::<Q2K>(row),
        Format::Q3K => supers::<Q3K>(row),
        Format::Q4K => supers::<Q4K>(row),
        Format::Q5K => supers::<Q5K>(row),
        Format::Q6K => supers::<Q6K>(row),
        Format::Iq4Xs => supers::<Iq4Xs>(row),
    }
}

/// What activations are after rounding.
fn rounded(x: &[f32], precision: Precision) -> Vec<f64> {
    let activations = Activations::of(x, x.len(), precision);
    let quants = |quants: &[i8], scale: f32| -> Vec<f64> {
        quants.iter().map(|&quant| f64::from(quant) * f64::from(scale)).collect()
    };
    let mut all: Vec<f64> = match precision {
        Precision::F32 => x.iter().map(|&x| x.into()).collect(),
        Precision::Bf16 => x.iter().map(|&x| half::bf16::from_f32(x).into()).collect(),
        Precision::Int8By256 => {
            activations.by_256().iter().flat_map(|block| quants(&block.quants, block.scale)).collect()
        }
        Precision::Int8By32 => {
            let runs = |block: &crate::activation::By32| -> Vec<f64> {
                (0..8).flat_map(|at| quants(&block.quants[at * 32..][..32], block.scales[at])).collect()
            };
            activations.by_32().iter().flat_map(runs).collect()
        }
    };
    all.truncate(x.len());
    all
}

#[test]
fn results_are_near_sums_in_f64() {
    for format in Format::ALL {
        for &k in sizes(format) {
            let (rows, x) = (weights(format, 5, k, 11), activations(2, k, 12));
            let found = computed(Level::best(), format, &rows, &x, k, 0);
            for (j, x) in x.chunks_exact(k).enumerate() {
                let exact = rounded(x, format.precision());
                // Eight bits and bfloat16 are near what they stand for.
                let allowed = if format.precision() == Precision::F32 { 0.0 } else { 2.0 / 127.0 };
                assert!(exact.iter().zip(x).all(|(a, b)| (a - f64::from(*b)).abs() <= allowed));
                for (n, row) in rows.iter().enumerate() {
                    let products = widened(format, row).into_iter().zip(&exact).map(|(w, x)| w * x);
                    let size: f64 = products.clone().map(f64::abs).sum();
                    let (found, expected) = (f64::from(found[j * 5 + n]), products.sum::<f64>());
                    assert!((found - expected).abs() <= 1e-5 * size, "{format:?} {k}: {found} {expected}");
                }
            }
        }
    }
}
