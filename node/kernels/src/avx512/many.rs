//! Products with many rows of activations: 32 weight rows are unpacked to tiles, which all activations meet.

use std::arch::x86_64::*;

use super::{
    SimpleQuants, SuperQuants,
    tile::{unpack_simple, unpack_super},
};
use crate::{
    activation::{By32, By256},
    out::Out,
    tile::{SimpleTile, SuperTile},
};

/// Weight rows whose tiles are there at a time.
const ROWS: usize = 32;

/// Rows of activations that meet a tile in registers.
const TOKENS: usize = 6;

/// Weight rows of blocks of 256 times `m` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn many_supers<F: SuperQuants>(
    rows: &[&[u8]],
    x: &[By256],
    m: usize,
    out: Out,
    tiles: &mut Vec<SuperTile>,
) {
    unsafe {
        let blocks = x.len() / m;
        if tiles.len() < 2 * blocks {
            tiles.resize(2 * blocks, SuperTile::ZERO);
        }
        let (first, last) = tiles[..2 * blocks].split_at_mut(blocks);
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            for (half, tiles) in [&mut *first, &mut *last].into_iter().enumerate() {
                let mut starts: [*const u8; 16] =
                    std::array::from_fn(|at| rows[(half * 16 + at).min(rows.len() - 1)].as_ptr());
                for tile in tiles {
                    unpack_super::<F>(tile, &starts);
                    starts.iter_mut().for_each(|start| *start = start.add(F::BYTES));
                }
            }
            let mut j = 0;
            while j < m {
                let (x, out) = (&x[j * blocks..], out.from(j, group * ROWS));
                j += match m - j {
                    TOKENS.. => supers::<F, TOKENS>(first, last, x, rows.len(), out),
                    4.. => supers::<F, 4>(first, last, x, rows.len(), out),
                    2.. => supers::<F, 2>(first, last, x, rows.len(), out),
                    _ => supers::<F, 1>(first, last, x, rows.len(), out),
                };
            }
        }
    }
}

/// Two rows of tiles times `N` rows of activations. Returns `N`.
#[inline(always)]
unsafe fn supers<F: SuperQuants, const N: usize>(
    first: &[SuperTile],
    last: &[SuperTile],
    x: &[By256],
    rows: usize,
    out: Out,
) -> usize {
    unsafe {
        let blocks = first.len();
        let runs = 256 / F::RUN;
        let x = x.as_ptr();
        let mut acc = [[_mm512_setzero_ps(); N]; 2];
        for at in 0..blocks {
            let tiles = [&*first.as_ptr().add(at), &*last.as_ptr().add(at)];
            let mut scaled = [[_mm512_setzero_si512(); N]; 2];
            for run in 0..runs {
                let mut dots = [[_mm512_setzero_si512(); N]; 2];
                for word in 0..F::RUN / 4 {
                    let word = run * F::RUN / 4 + word;
                    let weights = [
                        _mm512_load_si512(tiles[0].quants[word].as_ptr().cast()),
                        _mm512_load_si512(tiles[1].quants[word].as_ptr().cast()),
                    ];
                    for j in 0..N {
                        let quants = (*x.add(j * blocks + at)).quants.as_ptr().cast::<i32>().add(word);
                        let quants = _mm512_set1_epi32(quants.read());
                        dots[0][j] = _mm512_dpbusd_epi32(dots[0][j], weights[0], quants);
                        dots[1][j] = _mm512_dpbusd_epi32(dots[1][j], weights[1], quants);
                    }
                }
                for half in 0..2 {
                    let scales = tiles[half].scales[run * F::RUN / 16].as_ptr();
                    let scales = _mm512_load_si512(scales.cast());
                    for j in 0..N {
                        let dot = _mm512_mullo_epi32(dots[half][j], scales);
                        scaled[half][j] = _mm512_add_epi32(scaled[half][j], dot);
                    }
                }
            }
            for half in 0..2 {
                let d = _mm512_load_ps(tiles[half].d.as_ptr());
                for j in 0..N {
                    let x = &*x.add(j * blocks + at);
                    let mut least = _mm512_setzero_si512();
                    for pair in 0..8 {
                        let sums = x.sums.as_ptr().cast::<i32>().add(pair).read();
                        let others = _mm512_load_si512(tiles[half].others[pair].as_ptr().cast());
                        least = _mm512_dpwssd_epi32(least, others, _mm512_set1_epi32(sums));
                    }
                    let value = if F::HAS_MINIMUM {
                        let value = _mm512_mul_ps(d, _mm512_cvtepi32_ps(scaled[half][j]));
                        let dmin = _mm512_load_ps(tiles[half].dmin.as_ptr());
                        _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(least), value)
                    } else {
                        let offset = _mm512_mullo_epi32(least, _mm512_set1_epi32(i32::from(F::OFFSET)));
                        let dot = _mm512_sub_epi32(scaled[half][j], offset);
                        _mm512_mul_ps(d, _mm512_cvtepi32_ps(dot))
                    };
                    acc[half][j] = _mm512_fmadd_ps(value, _mm512_set1_ps(x.scale), acc[half][j]);
                }
            }
        }
        put(acc, rows, out);
        N
    }
}

/// Weight rows of blocks of 32 times `m` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn many_simples<F: SimpleQuants>(
    rows: &[&[u8]],
    x: &[By32],
    m: usize,
    out: Out,
    tiles: &mut Vec<SimpleTile>,
) {
    unsafe {
        let all = x.len() / m;
        let whole = rows[0].len() / F::BYTES / 8;
        if tiles.len() < 2 * all {
            tiles.resize(2 * all, SimpleTile::ZERO);
        }
        let (first, last) = tiles[..2 * all].split_at_mut(all);
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            for (half, tiles) in [&mut *first, &mut *last].into_iter().enumerate() {
                let row = |at: usize| rows[(half * 16 + at).min(rows.len() - 1)];
                let mut starts: [*const u8; 16] = std::array::from_fn(|at| row(at).as_ptr());
                for tile in &mut tiles[..whole] {
                    unpack_simple::<F>(tile, &starts);
                    starts.iter_mut().for_each(|start| *start = start.add(8 * F::BYTES));
                }
                if whole < all {
                    let mut tail = [[0u8; 8 * 34]; 16];
                    for (at, tail) in tail.iter_mut().enumerate() {
                        let rest = &row(at)[whole * 8 * F::BYTES..];
                        tail[..rest.len()].copy_from_slice(rest);
                        starts[at] = tail.as_ptr();
                    }
                    unpack_simple::<F>(&mut tiles[whole], &starts);
                }
            }
            let mut j = 0;
            while j < m {
                let (x, out) = (&x[j * all..], out.from(j, group * ROWS));
                j += match m - j {
                    TOKENS.. => simples::<F, TOKENS>(first, last, x, rows.len(), out),
                    4.. => simples::<F, 4>(first, last, x, rows.len(), out),
                    2.. => simples::<F, 2>(first, last, x, rows.len(), out),
                    _ => simples::<F, 1>(first, last, x, rows.len(), out),
                };
            }
        }
    }
}

/// Two rows of tiles times `N` rows of activations. Returns `N`.
#[inline(always)]
unsafe fn simples<F: SimpleQuants, const N: usize>(
    first: &[SimpleTile],
    last: &[SimpleTile],
    x: &[By32],
    rows: usize,
    out: Out,
) -> usize {
    unsafe {
        let blocks = first.len();
        let x = x.as_ptr();
        let mut acc = [[_mm512_setzero_ps(); N]; 2];
        for at in 0..blocks {
            let tiles = [&*first.as_ptr().add(at), &*last.as_ptr().add(at)];
            for block in 0..8 {
                let mut dots = [[_mm512_setzero_si512(); N]; 2];
                if F::OFFSET != 0 {
                    for j in 0..N {
                        let sum = (*x.add(j * blocks + at)).sums[block];
                        dots[0][j] = _mm512_set1_epi32(-i32::from(F::OFFSET) * sum);
                        dots[1][j] = dots[0][j];
                    }
                }
                for word in 0..8 {
                    let word = block * 8 + word;
                    let weights = [
                        _mm512_load_si512(tiles[0].quants[word].as_ptr().cast()),
                        _mm512_load_si512(tiles[1].quants[word].as_ptr().cast()),
                    ];
                    for j in 0..N {
                        let quants = (*x.add(j * blocks + at)).quants.as_ptr().cast::<i32>().add(word);
                        let quants = _mm512_set1_epi32(quants.read());
                        dots[0][j] = _mm512_dpbusd_epi32(dots[0][j], weights[0], quants);
                        dots[1][j] = _mm512_dpbusd_epi32(dots[1][j], weights[1], quants);
                    }
                }
                for half in 0..2 {
                    let scales = _mm512_load_ps(tiles[half].scales[block].as_ptr());
                    for j in 0..N {
                        let x = &*x.add(j * blocks + at);
                        let scale = _mm512_set1_ps(x.scales[block]);
                        let dot = _mm512_cvtepi32_ps(dots[half][j]);
                        acc[half][j] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales, scale), acc[half][j]);
                        if F::HAS_MINIMUM {
                            let minimums = _mm512_load_ps(tiles[half].minimums[block].as_ptr());
                            let sum = _mm512_set1_ps(x.sums[block] as f32);
                            acc[half][j] = _mm512_fmadd_ps(sum, _mm512_mul_ps(minimums, scale), acc[half][j]);
                        }
                    }
                }
            }
        }
        put(acc, rows, out);
        N
    }
}

/// Writes the results of the first `rows` of 32 weight rows.
#[inline(always)]
unsafe fn put<const N: usize>(acc: [[__m512; N]; 2], rows: usize, out: Out) {
    unsafe {
        for j in 0..N {
            let mut results = [0.0f32; ROWS];
            _mm512_storeu_ps(results.as_mut_ptr(), acc[0][j]);
            _mm512_storeu_ps(results.as_mut_ptr().add(16), acc[1][j]);
            out.put(j, 0, &results[..rows]);
        }
    }
}
