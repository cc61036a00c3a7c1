//! Products on a device against our own kernels', which have tests of their own. The device is a CPU, and
//! a GPU where this is built for one.

use bytes::Bytes;
use candle_core::{
    DType,
    quantized::{GgmlDType, QTensor},
};
use surf_protocol::Dtype;

use super::*;
use crate::{
    config::Precision,
    engine::kernels::{Float, Matrix, Scales, activate, matmul, matmul_columns},
};

/// What there is to test on: a CPU, and the first GPU where this is built for one and there is one.
pub(crate) fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(Device::new_cuda_with_stream(0).ok()).collect()
}

/// Numbers that look random and are not.
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| ((at + 7 * seed) * 2_654_435_761 % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// Elements of `dtype` near `values`, which are at most one.
fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let blocks = |kind| {
        let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        QTensor::quantize(&tensor, kind).unwrap().data().unwrap().to_vec()
    };
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Q4_0 => blocks(GgmlDType::Q4_0),
        Dtype::Q4_1 => blocks(GgmlDType::Q4_1),
        Dtype::Q5_0 => blocks(GgmlDType::Q5_0),
        Dtype::Q5_1 => blocks(GgmlDType::Q5_1),
        Dtype::Q8_0 => blocks(GgmlDType::Q8_0),
        Dtype::Q2K => blocks(GgmlDType::Q2K),
        Dtype::Q3K => blocks(GgmlDType::Q3K),
        Dtype::Q4K => blocks(GgmlDType::Q4K),
        Dtype::Q5K => blocks(GgmlDType::Q5K),
        Dtype::Q6K => blocks(GgmlDType::Q6K),
        // Whichever numbers these are: those of E4M3 that are at most one.
        _ => values.iter().map(|&v| ((v.abs() * 56.0) as u8) | if v < 0.0 { 0x80 } else { 0 }).collect(),
    }
}

/// Of `rows` by `cols`, in pieces of five rows that lie at no aligned place.
fn matrix(dtype: Dtype, rows: usize, cols: usize) -> Matrix {
    let float = Float::of(dtype).unwrap();
    let piece = |bytes: &[u8]| Bytes::from([&[0; 3], bytes].concat()).slice(3..);
    let bytes = bytes_of(dtype, &numbers(1, rows * cols));
    let pieces = bytes.chunks(5 * float.row_bytes(cols).unwrap()).map(piece).collect();
    Matrix::new(float, rows, cols, pieces).unwrap()
}

fn on_cpu(products: Products, room: u64, slab_elements: usize) -> Arc<Accelerator> {
    on(Device::Cpu, products, room, slab_elements)
}

fn on(device: Device, products: Products, room: u64, slab_elements: usize) -> Arc<Accelerator> {
    Arc::new(Accelerator {
        name: "test".to_owned(),
        device,
        products,
        room: MemoryBudget::new(room),
        slab_elements,
    })
}

fn place(on: &Arc<Accelerator>, stays: bool) -> Arc<Place> {
    match Compute::Device(Arc::clone(on)).product(stays) {
        Product::Device(place) => place,
        Product::Host(_) => unreachable!("a device computes"),
    }
}

/// `x · weightᵀ + bias`, there and back.
fn product(place: &Place, weight: &Weight, bias: &[f32], x: &[f32]) -> Vec<f32> {
    let inputs = match weight {
        Weight::Rows(matrix) => matrix.cols(),
        Weight::Columns(matrix, _) => matrix.rows(),
    };
    let x = host::tensor(x.to_vec(), x.len() / inputs, inputs).unwrap();
    let y = place.product(weight, Some(bias), &place.bring(&x).unwrap()).unwrap();
    host::copy(&y.home().unwrap()).unwrap()
}

/// How far products on the device are from those of our kernels, by the largest of these.
fn error(place: &Place, weight: &Weight, tokens: usize) -> f32 {
    let x = |inputs: usize| numbers(2, tokens * inputs);
    let (x, mut expected) = match weight {
        Weight::Rows(matrix) => (x(matrix.cols()), matmul(matrix, &x(matrix.cols()), tokens)),
        Weight::Columns(matrix, columns) => {
            let x = x(matrix.rows());
            let expected = matmul_columns(matrix, columns.clone(), &x, tokens);
            (x, expected)
        }
    };
    let bias = numbers(3, expected.len() / tokens);
    for row in expected.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias);
    }
    let got = product(place, weight, &bias, &x);
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).fold(0.0, f32::max);
    let difference = largest(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
    difference / largest(&mut expected.iter().copied())
}

const ALL: [Dtype; 16] = [
    Dtype::F32,
    Dtype::F64,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q5_0,
    Dtype::Q5_1,
    Dtype::Q8_0,
    Dtype::Q2K,
    Dtype::Q3K,
    Dtype::Q4K,
    Dtype::Q5K,
    Dtype::Q6K,
];

#[test]
fn exact_products_are_what_our_kernels_compute() {
    for device in devices() {
        for dtype in ALL {
            let rows = Weight::Rows(matrix(dtype, 37, 512));
            let columns = Weight::Columns(matrix(dtype, 37, 512), 100..301);
            // Whole, in slabs of several pieces, and in slabs smaller than one.
            for (slab_elements, stays) in
                [(usize::MAX, true), (11 * 512, true), (11 * 512, false), (3 * 512, true), (1, false)]
            {
                let on = on(device.clone(), Products::Exact, 1 << 30, slab_elements);
                for (weight, place) in [(&rows, place(&on, stays)), (&columns, place(&on, stays))] {
                    // Brought for the first, and perhaps there for the second.
                    for tokens in [1, 9] {
                        let error = error(&place, weight, tokens);
                        assert!(error < 1e-5, "{device:?} {dtype:?} {slab_elements} {stays}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn fast_products_are_near_and_not_exact() {
    for device in devices() {
        for dtype in ALL {
            let weight = Weight::Rows(matrix(dtype, 37, 512));
            let place = place(&on(device.clone(), Products::Fast(DType::BF16), 1 << 30, 11 * 512), true);
            for tokens in [1, 9] {
                let error = error(&place, &weight, tokens);
                let rounded = !matches!(dtype, Dtype::F32 | Dtype::F64);
                let expected = if rounded { 1e-5..2e-2 } else { 0.0..1e-5 };
                assert!(expected.contains(&error), "{device:?} {dtype:?}: {error}");
            }
        }
    }
}

#[test]
fn scales_of_tiles_are_multiplied_in() {
    let values: Arc<[f32]> = numbers(4, 3 * 4).iter().map(|scale| scale + 1.5).collect();
    let weight = matrix(Dtype::F8E4M3, 37, 512).scaled(Scales { values, tile: [16, 128] }).unwrap();
    let weight = Weight::Rows(weight);
    for (products, tolerance) in [(Products::Exact, 1e-5), (Products::Fast(DType::F16), 1e-2)] {
        let error = error(&place(&on_cpu(products, 1 << 30, 11 * 512), true), &weight, 3);
        assert!(error < tolerance, "{products:?}: {error}");
    }
}

#[test]
fn what_stays_takes_room_as_long_as_it_is_wanted() {
    let weight = Weight::Rows(matrix(Dtype::Bf16, 37, 512));
    let (bytes, x, bias) = (37 * 512 * 2 + 37 * 4, numbers(2, 512), numbers(3, 37));
    let on = on_cpu(Products::Exact, 2 * bytes + 1, 11 * 512);
    let places: Vec<_> = (0..3).map(|_| place(&on, true)).collect();
    let streamed = place(&on, false);
    assert_eq!(on.room.left(), 2 * bytes + 1, "nothing is brought before it is needed");
    let first = product(&places[0], &weight, &bias, &x);
    for place in places.iter().chain([&streamed, &places[0]]) {
        assert_eq!(product(place, &weight, &bias, &x), first, "wherever the weight is");
    }
    assert_eq!(on.room.left(), 1, "two have found room, once each");
    let mut places = places.into_iter();
    drop(places.next());
    assert_eq!(on.room.left(), bytes + 1);
    // The one that was without goes where the first was.
    let last = places.next_back().unwrap();
    product(&last, &weight, &bias, &x);
    assert_eq!(on.room.left(), 1);
    drop(last);
    assert_eq!(on.room.left(), bytes + 1, "and is gone with its place");
}

#[test]
fn quantised_weights_take_no_more_room_than_they_have_bytes() {
    let fast = Products::Fast(DType::BF16);
    let bytes = |matrix: &Matrix, products| Upload::of(&Weight::Rows(matrix.clone()), products).bytes();
    assert_eq!(bytes(&matrix(Dtype::Q4K, 4, 512), Products::Exact), 4 * 2 * 144);
    assert_eq!(bytes(&matrix(Dtype::F16, 4, 512), fast), 4 * 512 * 2);
    let columns = Weight::Columns(matrix(Dtype::F16, 4, 512), 10..30);
    assert_eq!(Upload::of(&columns, fast).bytes(), 4 * 20 * 2);
    // Float8 alone becomes more.
    let float8 = matrix(Dtype::F8E4M3, 4, 512);
    assert_eq!(bytes(&float8, Products::Exact), 4 * 512 * 2);
    let scaled = float8.scaled(Scales { values: [0.1].into(), tile: [4, 512] }).unwrap();
    assert_eq!(bytes(&scaled, Products::Exact), 4 * 512 * 4);
    assert_eq!(bytes(&scaled, fast), 4 * 512 * 2);
}

#[test]
fn activations_are_the_same_there() {
    let x = numbers(5, 60).iter().map(|x| 4.0 * x).collect::<Vec<_>>();
    for device in devices() {
        let place = place(&on(device, Products::Exact, 0, 1), false);
        let remote = place.bring(&host::tensor(x.clone(), 5, 12).unwrap()).unwrap();
        for activation in
            [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Tanh]
        {
            let mut expected = x.clone();
            activate(activation, &mut expected);
            let got = host::copy(&remote.activated(activation).unwrap().home().unwrap()).unwrap();
            let error = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-5, "{activation:?}: {error}");
        }
        let squares = host::copy(&remote.times(&remote).unwrap().home().unwrap()).unwrap();
        assert_eq!(squares, x.iter().map(|x| x * x).collect::<Vec<_>>());
    }
}

#[test]
fn a_part_of_a_tensor_is_brought_alone() {
    let x = host::tensor(numbers(6, 40), 10, 4).unwrap();
    let part = x.narrow(0, 3, 2).unwrap();
    let place = place(&on_cpu(Products::Exact, 0, 1), false);
    let there = place.bring(&part).unwrap().home().unwrap();
    assert_eq!(host::copy(&there).unwrap(), numbers(6, 40)[12..20]);
}

#[test]
fn weights_leave_room_for_the_rest() {
    const GIB: u64 = 1 << 30;
    assert_eq!(weights_max(u64::MAX, 80 * GIB), 78 * GIB);
    assert_eq!(weights_max(u64::MAX, 4 * GIB), 3 * GIB);
    assert_eq!(weights_max(10 * GIB, 80 * GIB), 10 * GIB);
    assert_eq!(weights_max(u64::MAX, 0), 0);
}

#[test]
fn a_cpu_computes_in_f32_and_by_itself() {
    let config = |device, dtype| config::Engine { memory: 0, device, dtype };
    let cpu = Compute::of(&config(config::Device::Cpu, Precision::F32)).unwrap();
    assert_eq!(cpu.name(), "cpu");
    assert!(matches!(cpu.product(true), Product::Host(rounding) if !rounding.rounds()));
    let error = Compute::of(&config(config::Device::Cpu, Precision::F16)).unwrap_err();
    assert!(error.to_string().contains("f32"), "{error}");
}
