//! What a block does between its products: norms, softmax, activations.
//!
//! Written so that the compiler can turn each loop into vectors of whatever width the machine has:
//! sums run in [`LANES`] partial sums, and `exp` has no branch and no table.

use pulp::Arch;
use surf_kernels::team;

/// Partial sums side by side.
const LANES: usize = 16;

/// Elements in one task of a loop that is shared between threads.
const TASK_ELEMENTS: usize = 1 << 15;

/// What an MLP puts between its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// x · Φ(x)
    Gelu,
    /// The approximation of that by tanh.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
}

impl Activation {
    /// The activation that transformers calls `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Some(Self::GeluTanh)
            }
            "relu" => Some(Self::Relu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }
}

/// `activation(x)`, into `x`.
pub(crate) fn activate(activation: Activation, x: &mut [f32]) {
    team::for_each_chunk(x, TASK_ELEMENTS, |_, x| {
        Arch::new().dispatch(|| match activation {
            Activation::Silu => each(x, silu),
            Activation::Gelu => each(x, gelu),
            Activation::GeluTanh => each(x, gelu_tanh),
            Activation::Relu => each(x, relu),
            Activation::Tanh => each(x, tanh),
        });
    });
}

/// `activation(gate) · up`, into `gate`.
pub(crate) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    team::for_each_chunk(gate, TASK_ELEMENTS, |at, gate| {
        let up = &up[at * TASK_ELEMENTS..][..gate.len()];
        Arch::new().dispatch(|| match activation {
            Activation::Silu => gate_with(gate, up, silu),
            Activation::Gelu => gate_with(gate, up, gelu),
            Activation::GeluTanh => gate_with(gate, up, gelu_tanh),
            Activation::Relu => gate_with(gate, up, relu),
            Activation::Tanh => gate_with(gate, up, tanh),
        });
    });
}

/// Presses each number between `-cap` and `cap`, smoothly: `cap · tanh(x / cap)`.
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    team::for_each_chunk(x, TASK_ELEMENTS, |_, x| {
        Arch::new().dispatch(|| each(x, |x| cap * tanh(x / cap)));
    });
}

#[inline(always)]
fn each(x: &mut [f32], function: impl Fn(f32) -> f32) {
    for x in x {
        *x = function(*x);
    }
}

#[inline(always)]
fn gate_with(gate: &mut [f32], up: &[f32], activation: impl Fn(f32) -> f32) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = activation(*gate) * up;
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // 0.5 (1 + tanh(y)) = sigmoid(2y)
    let y = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * y))
}

/// tanh within a few units in the last place. Near zero it is a polynomial, since what is left there
/// of a quotient close to one has few digits.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the constants as published (Cephes)")]
fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let square = x * x;
    let mut p = -5.704_988_727_45e-3;
    p = p * square + 2.063_908_879_54e-2;
    p = p * square - 5.373_971_555_31e-2;
    p = p * square + 1.333_144_220_36e-1;
    p = p * square - 3.333_328_194_22e-1;
    let near = p * square * size + size;
    (if size < 0.625 { near } else { far }).copysign(x)
}

/// Adds `more` to `to`.
pub(crate) fn add(to: &mut [f32], more: &[f32]) {
    for (to, more) in to.iter_mut().zip(more) {
        *to += more;
    }
}

/// Adds `scale` times `more` to `to`.
pub(crate) fn add_scaled(to: &mut [f32], more: &[f32], scale: f32) {
    for (to, more) in to.iter_mut().zip(more) {
        *to += scale * more;
    }
}

/// Elements of a task, in whole rows of `width`.
fn whole_rows(width: usize) -> usize {
    width.max(TASK_ELEMENTS / width * width)
}

/// Scales each row of `x`, as long as `weight`, to mean square one, then by `weight`.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    team::for_each_chunk(x, whole_rows(weight.len()), |_, rows| {
        Arch::new().dispatch(|| {
            for row in rows.chunks_exact_mut(weight.len()) {
                let mean = sum_of_squares(row) / row.len() as f32;
                let scale = 1.0 / (mean + eps).sqrt();
                for (x, weight) in row.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
        });
    });
}

/// Shifts and scales each row of `x`, as long as `weight`, to mean zero and variance one, then by
/// `weight` and `bias`.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    team::for_each_chunk(x, whole_rows(weight.len()), |_, rows| {
        Arch::new().dispatch(|| {
            for row in rows.chunks_exact_mut(weight.len()) {
                let mean = sum_of(row, |x| x) / row.len() as f32;
                row.iter_mut().for_each(|x| *x -= mean);
                let scale = 1.0 / (sum_of_squares(row) / row.len() as f32 + eps).sqrt();
                for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                    *x = *x * scale * weight + bias;
                }
            }
        });
    });
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    sum_of(x, |x| x * x)
}

#[inline(always)]
fn sum_of(x: &[f32], function: impl Fn(f32) -> f32) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            sums[lane] += function(vector[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| function(*x)).sum::<f32>()
}

/// Turns scores into shares that add up to one.
pub(crate) fn softmax(x: &mut [f32]) {
    Arch::new().dispatch(|| {
        let max = max_of(x);
        let mut sums = [0.0; LANES];
        let (vectors, rest) = x.as_chunks_mut::<LANES>();
        for vector in vectors {
            for lane in 0..LANES {
                vector[lane] = exp(vector[lane] - max);
                sums[lane] += vector[lane];
            }
        }
        let mut sum = sums.iter().sum::<f32>();
        for x in rest {
            *x = exp(*x - max);
            sum += *x;
        }
        let scale = 1.0 / sum;
        for x in x.iter_mut() {
            *x *= scale;
        }
    });
}

#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    for vector in vectors {
        for lane in 0..LANES {
            max[lane] = if max[lane] < vector[lane] { vector[lane] } else { max[lane] };
        }
    }
    max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// eˣ within two units in the last place; flat beyond ±87.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the constants as published (Cephes)")]
fn exp(x: f32) -> f32 {
    /// Adding it leaves a number's integer part in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_40e-4;
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_95e-3;
    p = p * r + 8.333_451_9e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_55e-1;
    p = p * r + 5.000_000_1e-1;
    p = p * r * r + r + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        for step in -8600..8600 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= 3e-7 * expected, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn softmax_of_anything_adds_up() {
        for len in [1, 2, 15, 16, 17, 100] {
            let mut x: Vec<f32> = (0..len).map(|at| (at * 37 % 11) as f32 * 20.0 - 100.0).collect();
            let exact: Vec<f64> = x.iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = exact.iter().sum();
            softmax(&mut x);
            for (x, exact) in x.iter().zip(exact) {
                assert!((f64::from(*x) - exact / sum).abs() < 1e-6);
            }
        }
    }

    /// Values of `torch.nn.functional`, to six digits.
    #[test]
    fn activations_are_torch_s() {
        let known = [
            (Activation::Silu, [-0.238_406, 0.731_059, 1.761_594]),
            (Activation::Gelu, [-0.045_5, 0.841_345, 1.954_5]),
            (Activation::GeluTanh, [-0.045_402, 0.841_192, 1.954_598]),
            (Activation::Relu, [0.0, 1.0, 2.0]),
            (Activation::Tanh, [-0.964_028, 0.761_594, 0.964_028]),
        ];
        for (activation, expected) in known {
            let (mut gate, mut x) = ([-2.0, 1.0, 2.0], [-2.0, 1.0, 2.0]);
            gated(activation, &mut gate, &[-3.0; 3]);
            activate(activation, &mut x);
            for ((gate, x), expected) in gate.iter().zip(x).zip(expected) {
                assert!((x - expected).abs() < 2e-6, "{activation:?}: {x} {expected}");
                assert!((gate + 3.0 * expected).abs() < 6e-6, "{activation:?}: {gate} {expected}");
            }
        }
    }

    #[test]
    fn tanh_is_close_near_zero_and_far() {
        for step in -4000..4000 {
            let x = step as f32 / 400.0;
            for x in [x, x / 1000.0] {
                let expected = f64::from(x).tanh();
                assert!((f64::from(tanh(x)) - expected).abs() <= 4e-7 * expected.abs(), "{x}");
            }
        }
        let mut x = [1e9, -1e9, 0.0, 15.0];
        soft_cap(&mut x, 30.0);
        assert_eq!(x[..3], [30.0, -30.0, 0.0]);
        assert!((f64::from(x[3]) - 30.0 * 0.5f64.tanh()).abs() < 1e-5);
    }

    #[test]
    fn layer_norm_is_its_formula() {
        let (weight, bias) = ([1.0, -2.0, 0.5], [0.0, 1.0, -1.0]);
        let mut x = [3.0, 4.0, 5.0, 1.0, 1.0, 1.0];
        layer_norm(&mut x, &weight, &bias, 1e-5);
        let scale = 1.0 / (2.0f64 / 3.0 + 1e-5).sqrt();
        let expected = [-scale, 1.0, 0.5 * scale - 1.0, 0.0, 1.0, -1.0];
        for (x, expected) in x.iter().zip(expected) {
            assert!((f64::from(*x) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn rms_norm_is_its_formula() {
        let (weight, eps) = ([1.0, -2.0, 0.5], 1e-5);
        let mut x = [3.0, 4.0, 0.0, 1.0, 1.0, 1.0];
        rms_norm(&mut x, &weight, eps);
        let scale = 1.0 / (25.0f64 / 3.0 + 1e-5).sqrt();
        let one = 1.0 / (1.0f64 + 1e-5).sqrt();
        let expected = [3.0 * scale, -8.0 * scale, 0.0, one, -2.0 * one, 0.5 * one];
        for (x, expected) in x.iter().zip(expected) {
            assert!((f64::from(*x) - expected).abs() < 1e-6);
        }
    }
}
