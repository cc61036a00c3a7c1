//! Products against sums in f64, for shapes that fit no vector.

use bytes::Bytes;
use proptest::prelude::*;
use safetensors::SafeTensors;
use surf_protocol::Dtype;

use super::{widen::widen, *};

/// The same product, one element after the other, in f64.
fn naive(weight: &[f32], x: &[f32], m: usize, n: usize, k: usize) -> Vec<f64> {
    let element = |i: usize, j: usize| -> f64 {
        (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(weight[j * k + l])).sum()
    };
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

/// Types of which every element has its own bytes.
const SINGLES: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::F8E4M3, Dtype::F8E5M2];

/// Elements of `dtype` near `values`, which are at most one.
fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        // Whichever numbers these are: those of E4M3 that are at most one.
        _ => values.iter().map(|&v| ((v.abs() * 56.0) as u8) | if v < 0.0 { 0x80 } else { 0 }).collect(),
    }
}

/// Numbers that look random and are not.
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| ((at + 7 * seed) * 2_654_435_761 % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// In pieces of `piece_rows` rows, each `shift` bytes past an aligned place.
fn matrix(
    dtype: Dtype,
    values: &[f32],
    n: usize,
    k: usize,
    piece_rows: usize,
    shift: usize,
) -> (Matrix, Vec<f32>) {
    let bytes = bytes_of(dtype, values);
    let mut widened = vec![0.0; n * k];
    widen(dtype, &bytes, &mut widened);
    let float = Float::of(dtype).unwrap();
    let piece = |bytes: &[u8]| Bytes::from([&vec![0; shift], bytes].concat()).slice(shift..);
    let pieces = bytes.chunks(piece_rows * float.row_bytes(k).unwrap()).map(piece).collect();
    (Matrix::new(float, n, k, pieces).expect("pieces of whole rows"), widened)
}

fn check(dtype: Dtype, (m, n, k): (usize, usize, usize), piece_rows: usize, shift: usize) {
    let (weight, widened) = matrix(dtype, &numbers(1, n * k), n, k, piece_rows, shift);
    let x = numbers(2, m * k);
    let expected = naive(&widened, &x, m, n, k);
    for (got, expected) in matmul(&weight, &x, m).iter().zip(&expected) {
        assert!(
            (f64::from(*got) - expected).abs() <= 1e-6 * k as f64 + 1e-6,
            "{dtype:?} {m} {n} {k}: {got} {expected}"
        );
    }
    let mut row = Vec::new();
    weight.read_row(n - 1, &mut row).unwrap();
    assert_eq!(row, widened[(n - 1) * k..]);
    assert!(weight.read_row(n, &mut row).is_none());
}

#[test]
fn products_of_odd_sizes_are_right_in_every_precision() {
    for float in SINGLES {
        for m in [1, 2, 3, 4, 5, 8, 9, 33] {
            for (n, k) in [(1, 1), (3, 2), (5, 31), (4, 32), (7, 33), (66, 64), (130, 257), (9, 1030)] {
                check(float, (m, n, k), 3, 0);
                check(float, (m, n, k), 64, 1);
            }
        }
    }
}

#[test]
fn products_along_columns_are_right_in_every_precision() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for m in [1, 2, 5, 33] {
            for (k, n) in [(1, 1), (2, 3), (31, 5), (64, 66), (257, 130), (1030, 99)] {
                let (weight, widened) = matrix(dtype, &numbers(1, n * k), k, n, 3, 1);
                let x = numbers(2, m * k);
                for columns in [0..n, n / 3..n - n / 4] {
                    let transposed: Vec<f32> = columns
                        .clone()
                        .flat_map(|j| (0..k).map(move |l| (l, j)))
                        .map(|(l, j)| widened[l * n + j])
                        .collect();
                    let expected = naive(&transposed, &x, m, columns.len(), k);
                    let got = matmul_columns(&weight, columns, &x, m);
                    assert_eq!(got.len(), expected.len());
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!(
                            (f64::from(*got) - expected).abs() <= 1e-6 * k as f64 + 1e-6,
                            "{dtype:?} {m} {n} {k}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn widening_is_exact() {
    for bits in 0..=u16::MAX {
        for (float, expected) in [
            (Dtype::Bf16, half::bf16::from_bits(bits).to_f32()),
            (Dtype::F16, half::f16::from_bits(bits).to_f32()),
        ] {
            let mut got = [0.0];
            widen(float, &bits.to_le_bytes(), &mut got);
            assert!(got[0] == expected || expected.is_nan() && got[0].is_nan(), "{float:?} {bits:04x}");
        }
    }
}

/// Blocks of random bytes, and what the package `gguf` dequantises them to; all float8 numbers, and
/// what torch says they are. See `make_formats.py`.
#[test]
fn what_others_have_packed_is_widened_to_the_same_bits() {
    use Dtype::{F8E4M3, F8E5M2, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    compare_packed(
        "packed",
        |dtype| format!("{dtype:?}"),
        &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, F8E4M3, F8E5M2],
    );
    let name = |dtype| match dtype {
        Iq4Nl => "IQ4_NL".to_owned(),
        Iq4Xs => "IQ4_XS".to_owned(),
        _ => "MXFP4".to_owned(),
    };
    compare_packed("packed-iq", name, &[Iq4Nl, Iq4Xs, Mxfp4]);
}

/// Compares what we make of the blocks in a file with the values beside them.
fn compare_packed(file: &str, name: impl Fn(Dtype) -> String, dtypes: &[Dtype]) {
    let file = format!("{}/../tests/fixtures/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(file).unwrap();
    let recorded = SafeTensors::deserialize(&file).unwrap();
    for &dtype in dtypes {
        let packed = recorded.tensor(&format!("{}.packed", name(dtype))).unwrap();
        let values = recorded.tensor(&format!("{}.values", name(dtype))).unwrap();
        let mut expected = vec![0.0; values.data().len() / 4];
        widen(Dtype::F32, values.data(), &mut expected);
        assert_eq!(dtype.size_of(&[expected.len() as u64]), Some(packed.data().len() as u64));
        let mut got = vec![7.0; expected.len()];
        widen(dtype, packed.data(), &mut got);
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same || got == expected, "{dtype:?} {at}: {got} {expected}");
        }
        assert!(expected.iter().any(|value| value.abs() > 1e-3), "{dtype:?}");
    }
}

#[test]
fn blocks_are_multiplied_in_pieces_of_whole_rows() {
    let (n, k) = (13, 96);
    let row_bytes = Dtype::Q8_0.size_of(&[k as u64]).unwrap() as usize;
    let block = |at: usize| -> Vec<u8> {
        let quants = (0..32).map(|quant| (at * 31 + quant * 7) as u8);
        half::f16::from_f32(0.01).to_le_bytes().into_iter().chain(quants).collect()
    };
    let bytes: Vec<u8> = (0..n * k / 32).flat_map(block).collect();
    let mut widened = vec![0.0; n * k];
    widen(Dtype::Q8_0, &bytes, &mut widened);
    let float = Float::of(Dtype::Q8_0).unwrap();
    let pieces = bytes.chunks(5 * row_bytes).map(Bytes::copy_from_slice).collect();
    let weight = Matrix::new(float, n, k, pieces).unwrap();
    for m in [1, 3, 9] {
        let x = numbers(4, m * k);
        for (got, expected) in matmul(&weight, &x, m).iter().zip(naive(&widened, &x, m, n, k)) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{m}: {got} {expected}");
        }
    }
    // Rows that are no whole blocks, and pieces that are no whole rows.
    assert!(Matrix::new(float, n, 48, vec![Bytes::from(bytes.clone())]).is_none());
    let odd = bytes.chunks(row_bytes + 34).map(Bytes::copy_from_slice).collect();
    assert!(Matrix::new(float, n, k, odd).is_none());
}

#[test]
fn every_tile_is_multiplied_by_its_scale() {
    for dtype in SINGLES {
        for (n, k, tile) in [(7, 33, [3, 8]), (64, 40, [16, 16]), (5, 9, [1, 9]), (5, 9, [128, 128])] {
            let [high, wide] = tile;
            let (weight, mut widened) = matrix(dtype, &numbers(1, n * k), n, k, 2, 0);
            let across = k.div_ceil(wide);
            let values = numbers(3, n.div_ceil(high) * across);
            for (at, value) in widened.iter_mut().enumerate() {
                *value *= values[at / k / high * across + at % k / wide];
            }
            let scales = Scales { values: values.clone().into(), tile };
            let weight = weight.scaled(scales).unwrap();
            for m in [1, 6] {
                let x = numbers(2, m * k);
                for (got, expected) in matmul(&weight, &x, m).iter().zip(naive(&widened, &x, m, n, k)) {
                    assert!((f64::from(*got) - expected).abs() < 1e-4, "{dtype:?} {n} {k}");
                }
            }
            let mut row = Vec::new();
            weight.read_row(n - 1, &mut row).unwrap();
            assert_eq!(row, widened[(n - 1) * k..]);
            let few = Scales { values: values[1..].into(), tile };
            assert!(weight.scaled(few).is_none());
        }
    }
}

#[test]
fn pieces_must_be_whole_rows_that_add_up() {
    let bytes = |len: usize| Bytes::from(vec![0; len]);
    assert!(Matrix::new(Float::F32, 2, 3, vec![bytes(12), bytes(12)]).is_some());
    assert!(Matrix::new(Float::F32, 2, 3, vec![bytes(10), bytes(14)]).is_none());
    assert!(Matrix::new(Float::F32, 3, 3, vec![bytes(24)]).is_none());
    assert!(Matrix::new(Float::F32, 0, 3, vec![]).is_none());
    assert!(Matrix::new(Float::F32, 2, 0, vec![]).is_none());
    assert!(Matrix::new(Float::F32, 2, usize::MAX / 2, vec![bytes(24)]).is_none());
}

#[test]
#[should_panic(expected = "the view is inside its data")]
fn a_view_past_its_data_is_refused() {
    View::new(&[0.0; 5], 2, 3, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_product_is_right(m in 1..20usize, n in 1..70usize, k in 1..200usize, piece in 1..20usize, shift in 0..4usize) {
        for float in SINGLES {
            check(float, (m, n, k), piece, shift);
        }
    }
}
