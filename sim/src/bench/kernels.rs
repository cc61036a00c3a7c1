//! How fast weights of each format are multiplied, on one thread and out of its caches: what the arithmetic alone
//! can do.

use std::{fmt, hint::black_box, time::Duration};

use serde::Serialize;
use surf_kernels::{Activations, Format, Level, Part, product};
use tokio::time::Instant;

/// Elements of a row, and rows: what a task of a layer is about.
const SHAPE: [usize; 2] = [2048, 256];

/// Rows of activations.
const ROWS: [usize; 6] = [1, 2, 4, 8, 64, 256];

/// How long each is measured, at least.
const LEAST: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// By format and level.
    pub products: Vec<Measured>,
}

/// One format at one level.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// How the weights are stored.
    pub format: String,
    /// Which instructions multiply them.
    pub level: String,
    /// The shortest of many runs, by rows of activations.
    pub by_rows: Vec<Speed>,
}

/// A speed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Rows of activations.
    pub rows: usize,
    /// Bytes of weights, 10^9 a second.
    pub gb_s: f64,
    /// Products that are added, 10^9 a second.
    pub gmac_s: f64,
}

/// Measures formats whose name contains `format`, at every level that the processor has; portable code too, if
/// `portable`.
pub fn run(format: &str, portable: bool) -> Report {
    let formats = Format::ALL.into_iter().filter(|it| format!("{it:?}").to_lowercase().contains(format));
    let levels = || Level::available().filter(|level| portable || *level != Level::Portable);
    let measured = |format| levels().map(move |level| measure(format, level));
    Report { products: formats.flat_map(measured).collect() }
}

fn measure(format: Format, level: Level) -> Measured {
    let [k, n] = SHAPE;
    let size = n * format.row_bytes(k).expect("the rows are whole blocks");
    let element = if format.block_elements() == 1 { format.block_bytes() } else { usize::MAX };
    // The last byte of a float has the sign and the exponent: of ordinary numbers, as weights are.
    let ordinary = |at: usize, byte: u8| if at % element == element - 1 { byte | 0x38 } else { byte };
    let weight = (0..size).map(|at| ordinary(at, ((at * 2_654_435_761) >> 7) as u8 & 0x3b));
    let weight: Vec<u8> = weight.collect();
    let by_rows = ROWS.map(|rows| {
        let x: Vec<f32> = (0..rows * k).map(|at| (at * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
        let x = Activations::of(&x, k, format.precision());
        let mut y = vec![0.0; n * rows];
        let (began, mut shortest) = (Instant::now(), f64::INFINITY);
        while began.elapsed() < LEAST {
            let start = Instant::now();
            product(level, format, black_box(&weight), &x, Part::whole(&mut y, n));
            shortest = shortest.min(start.elapsed().as_secs_f64());
        }
        let [gb_s, gmac_s] = [size as f64, (n * k * rows) as f64].map(|amount| amount / shortest / 1e9);
        Speed { rows, gb_s, gmac_s }
    });
    Measured { format: format!("{format:?}"), level: level.to_string(), by_rows: by_rows.to_vec() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "One thread. GB/s of weights for 1 to 8 rows of activations, GMAC/s for more.")?;
        write!(f, "{:<8}{:<13}", "format", "level")?;
        ROWS.iter().try_for_each(|rows| write!(f, "{rows:>8}"))?;
        for Measured { format, level, by_rows } in &self.products {
            write!(f, "\n{format:<8}{level:<13}")?;
            for Speed { rows, gb_s, gmac_s } in by_rows {
                write!(f, "{:>8.1}", if *rows <= 8 { gb_s } else { gmac_s })?;
            }
        }
        Ok(())
    }
}
