//! Products with many rows of activations: 16 weight rows are unpacked to tiles, which all activations meet.

use std::arch::x86_64::*;

use super::{
    SimpleQuants, SuperQuants,
    few::{offset, pairs},
    sixteen_scales,
};
use crate::{
    activation::{By32, By256},
    out::Out,
    tile::{SimpleTile, SuperTile},
};

/// Weight rows whose tiles are there at a time.
const ROWS: usize = 16;

/// Rows of activations that meet a tile in registers.
const TOKENS: usize = 4;

/// How many sums of two products may be added in 16 bits.
const fn added(quant_max: u8) -> usize {
    match quant_max {
        ..=15 => 8,
        16..=31 => 4,
        32..=63 => 2,
        64.. => 1,
    }
}

/// Weight rows of blocks of 256 times `m` rows of activations.
///
/// # Safety
///
/// The rows are as long as the activations, and `out` has room for all results.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn many_supers<F: SuperQuants>(
    rows: &[&[u8]],
    x: &[By256],
    m: usize,
    out: Out,
    tiles: &mut Vec<SuperTile>,
) {
    unsafe {
        let blocks = x.len() / m;
        if tiles.len() < blocks {
            tiles.resize(blocks, SuperTile::ZERO);
        }
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let mut starts: [*const u8; 16] = std::array::from_fn(|at| rows[at.min(rows.len() - 1)].as_ptr());
            for tile in &mut tiles[..blocks] {
                unpack_super::<F>(tile, &starts);
                starts.iter_mut().for_each(|start| *start = start.add(F::BYTES));
            }
            let mut j = 0;
            while j < m {
                let (x, out) = (&x[j * blocks..], out.from(j, group * ROWS));
                j += match m - j {
                    TOKENS.. => supers::<F, TOKENS>(&tiles[..blocks], x, rows.len(), out),
                    2.. => supers::<F, 2>(&tiles[..blocks], x, rows.len(), out),
                    _ => supers::<F, 1>(&tiles[..blocks], x, rows.len(), out),
                };
            }
        }
    }
}

/// Sums of `WORDS` words from `word` on, of two halves of a tile and `N` rows of activations.
#[inline(always)]
unsafe fn dots<const N: usize>(
    quants: &[[u32; 16]; 64],
    words: std::ops::Range<usize>,
    quant_max: u8,
    x: impl Fn(usize, usize) -> i32,
) -> [[__m256i; N]; 2] {
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut dots = [[_mm256_setzero_si256(); N]; 2];
        let mut word = words.start;
        while word < words.end {
            let end = words.end.min(word + added(quant_max));
            let mut sums = [[_mm256_setzero_si256(); N]; 2];
            for word in word..end {
                let weights = quants[word].as_ptr().cast::<__m256i>();
                let weights = [_mm256_load_si256(weights), _mm256_load_si256(weights.add(1))];
                for j in 0..N {
                    let x = _mm256_set1_epi32(x(j, word));
                    for half in 0..2 {
                        let pairs = pairs(weights[half], x, quant_max);
                        sums[half][j] = _mm256_add_epi16(sums[half][j], pairs);
                    }
                }
            }
            for half in 0..2 {
                for j in 0..N {
                    let sums = _mm256_madd_epi16(sums[half][j], ones);
                    dots[half][j] = _mm256_add_epi32(dots[half][j], sums);
                }
            }
            word = end;
        }
        dots
    }
}

/// A row of tiles times `N` rows of activations. Returns `N`.
#[inline(always)]
unsafe fn supers<F: SuperQuants, const N: usize>(
    tiles: &[SuperTile],
    x: &[By256],
    rows: usize,
    out: Out,
) -> usize {
    unsafe {
        let blocks = tiles.len();
        let x = x.as_ptr();
        let mut acc = [[_mm256_setzero_ps(); N]; 2];
        for (at, tile) in tiles.iter().enumerate() {
            let word_of = |j: usize, word: usize| {
                (*x.add(j * blocks + at)).quants.as_ptr().cast::<i32>().add(word).read()
            };
            let mut scaled = [[_mm256_setzero_si256(); N]; 2];
            for run in 0..256 / F::RUN {
                let words = run * F::RUN / 4..(run + 1) * F::RUN / 4;
                let dots = dots::<N>(&tile.quants, words, F::QUANT_MAX, word_of);
                for half in 0..2 {
                    let scales = tile.scales[run * F::RUN / 16].as_ptr().cast::<__m256i>().add(half);
                    for j in 0..N {
                        let dot = _mm256_mullo_epi32(dots[half][j], _mm256_load_si256(scales));
                        scaled[half][j] = _mm256_add_epi32(scaled[half][j], dot);
                    }
                }
            }
            for half in 0..2 {
                let d = _mm256_load_ps(tile.d.as_ptr().add(8 * half));
                for j in 0..N {
                    let x = &*x.add(j * blocks + at);
                    let mut least = _mm256_setzero_si256();
                    for pair in 0..8 {
                        let sums = _mm256_set1_epi32(x.sums.as_ptr().cast::<i32>().add(pair).read());
                        let others = tile.others[pair].as_ptr().cast::<__m256i>().add(half);
                        let dot = _mm256_madd_epi16(_mm256_load_si256(others), sums);
                        least = _mm256_add_epi32(least, dot);
                    }
                    let value = if F::HAS_MINIMUM {
                        let value = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scaled[half][j]));
                        let dmin = _mm256_load_ps(tile.dmin.as_ptr().add(8 * half));
                        _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(least), value)
                    } else {
                        let offset = _mm256_set1_epi32(offset(F::OFFSET, F::QUANT_MAX));
                        let dot = _mm256_sub_epi32(scaled[half][j], _mm256_mullo_epi32(least, offset));
                        _mm256_mul_ps(d, _mm256_cvtepi32_ps(dot))
                    };
                    acc[half][j] = _mm256_fmadd_ps(value, _mm256_set1_ps(x.scale), acc[half][j]);
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
#[target_feature(enable = "avx2,fma,f16c")]
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
        if tiles.len() < all {
            tiles.resize(all, SimpleTile::ZERO);
        }
        for (group, rows) in rows.chunks(ROWS).enumerate() {
            let row = |at: usize| rows[at.min(rows.len() - 1)];
            let mut starts: [*const u8; 16] = std::array::from_fn(|at| row(at).as_ptr());
            for tile in &mut tiles[..whole] {
                unpack_simple::<F>(tile, &starts);
                starts.iter_mut().for_each(|start| *start = start.add(8 * F::BYTES));
            }
            if whole < all {
                // Blocks after the last are zeros: they meet activations that are zeros, and add nothing.
                let mut tail = [[0u8; 8 * 34]; 16];
                for (at, tail) in tail.iter_mut().enumerate() {
                    let rest = &row(at)[whole * 8 * F::BYTES..];
                    tail[..rest.len()].copy_from_slice(rest);
                    starts[at] = tail.as_ptr();
                }
                unpack_simple::<F>(&mut tiles[whole], &starts);
            }
            let mut j = 0;
            while j < m {
                let (x, out) = (&x[j * all..], out.from(j, group * ROWS));
                j += match m - j {
                    TOKENS.. => simples::<F, TOKENS>(&tiles[..all], x, rows.len(), out),
                    2.. => simples::<F, 2>(&tiles[..all], x, rows.len(), out),
                    _ => simples::<F, 1>(&tiles[..all], x, rows.len(), out),
                };
            }
        }
    }
}

/// A row of tiles times `N` rows of activations. Returns `N`.
#[inline(always)]
unsafe fn simples<F: SimpleQuants, const N: usize>(
    tiles: &[SimpleTile],
    x: &[By32],
    rows: usize,
    out: Out,
) -> usize {
    unsafe {
        let blocks = tiles.len();
        let x = x.as_ptr();
        let mut acc = [[_mm256_setzero_ps(); N]; 2];
        for (at, tile) in tiles.iter().enumerate() {
            let word_of = |j: usize, word: usize| {
                (*x.add(j * blocks + at)).quants.as_ptr().cast::<i32>().add(word).read()
            };
            for block in 0..8 {
                let dots = dots::<N>(&tile.quants, block * 8..block * 8 + 8, F::QUANT_MAX, word_of);
                for half in 0..2 {
                    let scales = _mm256_load_ps(tile.scales[block].as_ptr().add(8 * half));
                    let minimums = _mm256_load_ps(tile.minimums[block].as_ptr().add(8 * half));
                    for j in 0..N {
                        let x = &*x.add(j * blocks + at);
                        let offset = offset(F::OFFSET, F::QUANT_MAX) * x.sums[block];
                        let dot = _mm256_sub_epi32(dots[half][j], _mm256_set1_epi32(offset));
                        let scale = _mm256_set1_ps(x.scales[block]);
                        let factor = _mm256_mul_ps(scales, scale);
                        acc[half][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, acc[half][j]);
                        if F::HAS_MINIMUM {
                            let sum = _mm256_set1_ps(x.sums[block] as f32);
                            let factor = _mm256_mul_ps(minimums, scale);
                            acc[half][j] = _mm256_fmadd_ps(sum, factor, acc[half][j]);
                        }
                    }
                }
            }
        }
        put(acc, rows, out);
        N
    }
}

/// Writes the results of the first `rows` of 16 weight rows.
#[inline(always)]
unsafe fn put<const N: usize>(acc: [[__m256; N]; 2], rows: usize, out: Out) {
    unsafe {
        for j in 0..N {
            let mut results = [0.0f32; ROWS];
            _mm256_storeu_ps(results.as_mut_ptr(), acc[0][j]);
            _mm256_storeu_ps(results.as_mut_ptr().add(8), acc[1][j]);
            out.put(j, 0, &results[..rows]);
        }
    }
}

#[inline(always)]
unsafe fn unpack_super<F: SuperQuants>(tile: &mut SuperTile, rows: &[*const u8; 16]) {
    unsafe {
        for (half, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
            let vectors = array!([[_mm256_setzero_si256(); 8]; 8], |r| F::vectors(rows[r]));
            for c in 0..8 {
                let vectors = array!([_mm256_setzero_si256(); 8], |r| vectors[r][c]);
                transposed(vectors, &mut tile.quants[c * 8..], half * 8);
            }
        }
        for (r, &row) in rows.iter().enumerate() {
            let block = std::slice::from_raw_parts(row, F::BYTES);
            let scales = F::scales(block);
            let others = match F::HAS_MINIMUM {
                true => F::minimums(block).map(i16::from),
                false => scales.map(i16::from),
            };
            for run in 0..16 {
                tile.scales[run][r] = scales[run].into();
            }
            for pair in 0..8 {
                let [first, last] = [others[2 * pair] as u16, others[2 * pair + 1] as u16];
                tile.others[pair][r] = u32::from(first) | u32::from(last) << 16;
            }
            tile.d[r] = F::d(block);
            tile.dmin[r] = F::dmin(block);
        }
    }
}

#[inline(always)]
unsafe fn unpack_simple<F: SimpleQuants>(tile: &mut SimpleTile, rows: &[*const u8; 16]) {
    unsafe {
        for (half, eight) in rows.as_chunks::<8>().0.iter().enumerate() {
            for block in 0..8 {
                let vectors =
                    array!([_mm256_setzero_si256(); 8], |r| F::vector(eight[r].add(block * F::BYTES)));
                transposed(vectors, &mut tile.quants[block * 8..], half * 8);
            }
        }
        sixteen_scales::<F>(tile, rows);
    }
}

/// Writes word `i` of each of eight vectors to `to[i]`, from column `column` on.
#[inline(always)]
unsafe fn transposed(v: [__m256i; 8], to: &mut [[u32; 16]], column: usize) {
    unsafe {
        let mut a = [_mm256_setzero_si256(); 8];
        for i in 0..4 {
            a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
        }
        for half in 0..2 {
            // Words `2 half` and `2 half + 1` of each 128 bits.
            let words = [
                (
                    2 * half,
                    _mm256_unpacklo_epi64(a[half], a[half + 2]),
                    _mm256_unpacklo_epi64(a[half + 4], a[half + 6]),
                ),
                (
                    2 * half + 1,
                    _mm256_unpackhi_epi64(a[half], a[half + 2]),
                    _mm256_unpackhi_epi64(a[half + 4], a[half + 6]),
                ),
            ];
            for (word, low, high) in words {
                let first = _mm256_permute2x128_si256::<0x20>(low, high);
                let last = _mm256_permute2x128_si256::<0x31>(low, high);
                _mm256_storeu_si256(to[word].as_mut_ptr().add(column).cast(), first);
                _mm256_storeu_si256(to[word + 4].as_mut_ptr().add(column).cast(), last);
            }
        }
    }
}
