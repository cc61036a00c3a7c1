//! What computes the large products: our own kernels in host memory, or candle on a device.
//!
//! A device has memory of its own. A weight is brought there when a product first needs it (`upload`), and
//! stays as long as what was made of its group, if the group is one that stays and there is room; any other
//! is brought anew for each product. Activations come from the host and go back to it: what
//! is between products (norms, positions, attention, routing) is the business of our kernels, and
//! [`Remote`] is a type of its own so that the two sides cannot be confused.
//!
//! To candle a CPU is a device like any other, so all of this runs in tests on machines without a GPU.
//!
//! What is not here yet: bringing weights while something else computes. It belongs into [`Place`], whose
//! upload knows one matrix and nothing of layers or passes: whoever is to be early calls it from a thread
//! and on a stream of its own, and the product finds the weight there.

mod precision;
mod upload;

#[cfg(test)]
pub(super) use tests::devices;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use candle_core::{Device, Tensor};

use self::{
    precision::Products,
    upload::{Slab, Upload},
};
use super::{
    EngineError,
    budget::{MemoryBudget, Reservation},
    error::in_a_line,
    host,
    kernels::Activation,
    linear::Weight,
};
use crate::config;

/// What computes products.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    /// Our kernels, with weights as they came.
    Host(Arc<Rounding>),
    /// Candle, with weights on its device.
    Device(Arc<Accelerator>),
}

/// Whether activations are rounded before products on the host: to what the weights' type asks for.
#[derive(Debug)]
pub(crate) struct Rounding {
    /// As configured.
    ever: bool,
    /// For the pass that runs now. Only who runs passes changes it.
    now: AtomicBool,
}

/// Who computes with a weight.
#[derive(Clone, Debug)]
pub(crate) enum Product {
    /// Our kernels.
    Host(Arc<Rounding>),
    /// A device, at this place.
    Device(Arc<Place>),
}

/// A device, and how much of its memory is left for weights. The engine that made it is the only one to
/// start work on it.
#[derive(Debug)]
pub(crate) struct Accelerator {
    name: String,
    device: Device,
    products: Products,
    room: Arc<MemoryBudget>,
    /// Elements of a weight that are brought, and widened, at once.
    slab_elements: usize,
}

/// Elements of a weight that are brought, and widened, at once: what is widened beside a weight is not
/// counted, so it must be little beside a device's memory. All of a block's matrices are smaller; only the
/// heads of large vocabularies are cut.
const SLAB_ELEMENTS: usize = 64 << 20;

/// Where one weight is to be on a device.
#[derive(Debug)]
pub(crate) struct Place {
    on: Arc<Accelerator>,
    /// Whether its group stays in memory.
    stays: bool,
    kept: OnceLock<Kept>,
}

/// A weight on a device.
#[derive(Debug)]
struct Kept {
    slabs: Vec<Slab>,
    bias: Option<Tensor>,
    _held: Reservation,
}

/// Activations on a device, `[tokens, size]` in f32.
#[derive(Clone, Debug)]
pub(crate) struct Remote(Tensor);

impl Compute {
    /// What computes as `config` says, in this build and on this machine.
    pub(crate) fn of(config: &config::Engine) -> Result<Self, EngineError> {
        match config.device {
            config::Device::Cpu => Self::host(config),
            config::Device::Cuda(number) => cuda(number, config),
            // A GPU that is not there, or that this build cannot use, is none.
            config::Device::Auto => cuda(0, config).or_else(|_| Self::host(config)),
        }
    }

    fn host(config: &config::Engine) -> Result<Self, EngineError> {
        match config.dtype {
            config::Precision::Auto => Ok(Self::on_host(true)),
            config::Precision::F32 => Ok(Self::on_host(false)),
            config::Precision::Bf16 | config::Precision::F16 => {
                Err(EngineError::Device("a CPU computes in f32; leave the dtype to auto".to_owned()))
            }
        }
    }

    /// Our kernels, which round activations or not.
    pub(crate) fn on_host(rounded: bool) -> Self {
        Self::Host(Arc::new(Rounding { ever: rounded, now: AtomicBool::new(rounded) }))
    }

    /// Candle on `device`, with weights in at most `room` bytes of its memory.
    pub(crate) fn on(name: String, device: Device, dtype: config::Precision, room: u64) -> Self {
        Self::Device(Arc::new(Accelerator {
            name,
            device,
            products: Products::of(dtype),
            room: MemoryBudget::new(room),
            slab_elements: SLAB_ELEMENTS,
        }))
    }

    /// As configurations write it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Host(_) => "cpu",
            Self::Device(on) => &on.name,
        }
    }

    /// Who computes with a weight; `stays` says whether its group does.
    pub(crate) fn product(&self, stays: bool) -> Product {
        match self {
            Self::Host(rounding) => Product::Host(Arc::clone(rounding)),
            Self::Device(on) => {
                Product::Device(Arc::new(Place { on: Arc::clone(on), stays, kept: OnceLock::new() }))
            }
        }
    }

    /// Has the next pass computed in f32 throughout, or as configured.
    pub(crate) fn set_exact(&self, exact: bool) {
        if let Self::Host(rounding) = self {
            rounding.now.store(rounding.ever && !exact, Ordering::Relaxed);
        }
    }
}

impl Rounding {
    /// Whether activations are rounded in the pass that runs.
    pub(crate) fn rounds(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }
}

impl Place {
    /// `x`, `[tokens, size]` on the host, on this device.
    pub(crate) fn bring(&self, x: &Tensor) -> Result<Remote, EngineError> {
        let size = x.dims2()?;
        // Only what `x` shows, not all that it is a part of.
        Ok(Remote(host::read(x, |x| Tensor::from_slice(x, size, &self.on.device))??))
    }

    /// `x · weightᵀ + bias`, with the weight that this place is for.
    pub(crate) fn product(
        &self,
        weight: &Weight,
        bias: Option<&[f32]>,
        x: &Remote,
    ) -> Result<Remote, EngineError> {
        if let Some(kept) = self.kept.get() {
            let parts = kept.slabs.iter().map(|slab| slab.product(&x.0, self.on.products));
            return Ok(Remote(joined(parts.collect::<Result<_, _>>()?, kept.bias.as_ref())?));
        }
        let upload = Upload::of(weight, self.on.products);
        let biases = bias.map_or(0, |bias| size_of_val(bias) as u64);
        let held = self.stays.then(|| self.on.room.reserve(upload.bytes() + biases)).flatten();
        let (mut slabs, mut parts) = (Vec::new(), Vec::new());
        for part in upload.parts(self.on.slab_elements) {
            let slab = part.bring(&self.on.device)?;
            parts.push(slab.product(&x.0, self.on.products)?);
            // Without a reservation, one slab at a time is there.
            slabs.extend(held.is_some().then_some(slab));
        }
        let bias = bias.map(|bias| Tensor::from_slice(bias, bias.len(), &self.on.device)).transpose()?;
        let y = joined(parts, bias.as_ref())?;
        if let Some(held) = held {
            // It is empty: nobody else computes with this engine's weights.
            let _ = self.kept.set(Kept { slabs, bias, _held: held });
        }
        Ok(Remote(y))
    }
}

/// Some columns each, side by side.
fn joined(mut parts: Vec<Tensor>, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
    let y = match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(&parts, 1)?,
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

impl Remote {
    /// The same on the host. Waits until it is computed.
    pub(crate) fn home(&self) -> Result<Tensor, EngineError> {
        let (rows, cols) = self.0.dims2()?;
        host::tensor(self.0.flatten_all()?.to_vec1()?, rows, cols)
    }

    /// Each element behind `activation`.
    pub(crate) fn activated(&self, activation: Activation) -> Result<Self, EngineError> {
        let x = &self.0;
        Ok(Self(match activation {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
            Activation::Relu => x.relu(),
            Activation::Tanh => x.tanh(),
        }?))
    }

    /// Element by element.
    pub(crate) fn times(&self, other: &Self) -> Result<Self, EngineError> {
        Ok(Self((&self.0 * &other.0)?))
    }
}

/// The GPU of this number, with as many bytes of weights as `config` allows and as it has room for.
fn cuda(number: usize, config: &config::Engine) -> Result<Compute, EngineError> {
    let unusable = |error: candle_core::Error| {
        EngineError::Device(if cfg!(feature = "cuda") {
            format!("device cuda:{number} cannot be used: {}", in_a_line(&error))
        } else {
            format!("this build has no CUDA, so device cuda:{number} cannot compute; use the CPU")
        })
    };
    // Not the stream that each thread has: the threads of a pool take turns in starting work.
    let device = Device::new_cuda_with_stream(number).map_err(unusable)?;
    let room = weights_max(config.memory, free_bytes(&device).map_err(unusable)?);
    Ok(Compute::on(config::Device::Cuda(number).to_string(), device, config.dtype, room))
}

/// Of the bytes that are free on a device, how many go to weights that stay, if `memory` is the most: what
/// is brought for one product, what is widened beside it, and activations need room too.
fn weights_max(memory: u64, free: u64) -> u64 {
    /// Enough for all of that.
    const APART: u64 = 2 << 30;
    memory.min(free - APART.min(free / 4))
}

/// Bytes of a GPU's memory that nobody has taken.
#[cfg(feature = "cuda")]
fn free_bytes(device: &Device) -> candle_core::Result<u64> {
    let stream = device.as_cuda_device()?.cuda_stream();
    let (free, _) = stream.context().mem_get_info().map_err(candle_core::Error::wrap)?;
    Ok(free as u64)
}

#[cfg(not(feature = "cuda"))]
fn free_bytes(_: &Device) -> candle_core::Result<u64> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}
