//! Products against sums in f64, for shapes that fit no vector.

use bytes::Bytes;
use proptest::prelude::*;

use super::{matrix::widen, *};

/// The same product, one element after the other, in f64.
fn naive(weight: &[f32], x: &[f32], m: usize, n: usize, k: usize) -> Vec<f64> {
    let element = |i: usize, j: usize| -> f64 {
        (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(weight[j * k + l])).sum()
    };
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

fn bytes_of(float: Float, values: &[f32]) -> Vec<u8> {
    match float {
        Float::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Float::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

/// Numbers that look random and are not.
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| ((at + 7 * seed) * 2_654_435_761 % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// In pieces of `piece_rows` rows, each `shift` bytes past an aligned place.
fn matrix(
    float: Float,
    values: &[f32],
    n: usize,
    k: usize,
    piece_rows: usize,
    shift: usize,
) -> (Matrix, Vec<f32>) {
    let bytes = bytes_of(float, values);
    let mut widened = vec![0.0; n * k];
    widen(float, &bytes, &mut widened);
    let piece = |bytes: &[u8]| Bytes::from([&vec![0; shift], bytes].concat()).slice(shift..);
    let pieces = bytes.chunks(piece_rows * k * float.size()).map(piece).collect();
    (Matrix::new(float, n, k, pieces).expect("pieces of whole rows"), widened)
}

fn check(float: Float, (m, n, k): (usize, usize, usize), piece_rows: usize, shift: usize) {
    let (weight, widened) = matrix(float, &numbers(1, n * k), n, k, piece_rows, shift);
    let x = numbers(2, m * k);
    let expected = naive(&widened, &x, m, n, k);
    for (got, expected) in matmul(&weight, &x, m).iter().zip(&expected) {
        assert!(
            (f64::from(*got) - expected).abs() <= 1e-6 * k as f64 + 1e-6,
            "{float:?} {m} {n} {k}: {got} {expected}"
        );
    }
    let mut row = Vec::new();
    weight.read_row(n - 1, &mut row).unwrap();
    assert_eq!(row, widened[(n - 1) * k..]);
    assert!(weight.read_row(n, &mut row).is_none());
}

#[test]
fn products_of_odd_sizes_are_right_in_every_precision() {
    for float in [Float::F32, Float::F16, Float::Bf16] {
        for m in [1, 2, 3, 4, 5, 8, 9, 33] {
            for (n, k) in [(1, 1), (3, 2), (5, 31), (4, 32), (7, 33), (66, 64), (130, 257), (9, 1030)] {
                check(float, (m, n, k), 3, 0);
                check(float, (m, n, k), 64, 1);
            }
        }
    }
}

#[test]
fn widening_is_exact() {
    for bits in 0..=u16::MAX {
        for (float, expected) in [
            (Float::Bf16, half::bf16::from_bits(bits).to_f32()),
            (Float::F16, half::f16::from_bits(bits).to_f32()),
        ] {
            let mut got = [0.0];
            widen(float, &bits.to_le_bytes(), &mut got);
            assert!(got[0] == expected || expected.is_nan() && got[0].is_nan(), "{float:?} {bits:04x}");
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
        for float in [Float::F32, Float::F16, Float::Bf16] {
            check(float, (m, n, k), piece, shift);
        }
    }
}
