//! All weights of a model as candle asks for them: one tensor after the other, by name, in f32.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};
use surf_chunker::Group;
use surf_protocol::Dtype;

use crate::{
    engine::{EngineError, parts},
    weights::{RawTensor, Tensors, Weights},
};

/// Where [`candle_nn::VarBuilder`] takes tensors from.
pub(super) struct AllWeights {
    weights: Arc<dyn Weights>,
    groups: HashMap<String, Group>,
    /// What tensors are called, by what they would be called below a root.
    stored: HashMap<String, String>,
    /// The group that was asked for last: its other tensors come next.
    last: Mutex<Option<(Group, Arc<Tensors>)>>,
    failed: Arc<Mutex<Option<EngineError>>>,
}

impl AllWeights {
    pub(super) fn new(weights: Arc<dyn Weights>) -> Self {
        let manifest = weights.checkpoint();
        let (mut groups, mut stored) = (HashMap::new(), HashMap::new());
        for entry in manifest.groups() {
            for tensor in manifest.group(&entry.group).into_iter().flatten() {
                // A decoder that was saved alone has no root; candle asks by the names of a whole model.
                let name = tensor.name.to_string();
                let rooted = format!("model.{name}");
                if manifest.tensor(&rooted).is_none() && !name.starts_with("lm_head.") {
                    stored.insert(rooted, name.clone());
                }
                groups.insert(name, entry.group.clone());
            }
        }
        Self { weights, groups, stored, last: Mutex::default(), failed: Arc::default() }
    }

    /// Where it is put why a tensor could not be had.
    pub(super) fn failed(&self) -> Arc<Mutex<Option<EngineError>>> {
        Arc::clone(&self.failed)
    }

    /// What the tensor that candle calls `name` is called.
    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }

    fn tensor(&self, name: &str, device: &Device) -> std::result::Result<Tensor, EngineError> {
        let name = self.stored(name);
        let missing = || EngineError::tensor(name, "is missing from the model");
        let group = self.groups.get(name).ok_or_else(missing)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let tensors = match &*last {
            Some((known, tensors)) if known == group => Arc::clone(tensors),
            _ => self.weights.group(group)?,
        };
        *last = Some((group.clone(), Arc::clone(&tensors)));
        let Some(raw) = tensors.tensors.get(name) else {
            let runs = tensors.runs.get(name).ok_or_else(missing)?;
            return self.in_runs(name, runs, device);
        };
        Ok(Tensor::from_slice(&values(name, raw)?, raw.shape.as_slice(), device)?)
    }

    /// A large table, as it comes.
    fn in_runs(
        &self,
        name: &str,
        runs: &[Range<usize>],
        device: &Device,
    ) -> std::result::Result<Tensor, EngineError> {
        let (mut all, mut cols) = (Vec::new(), 0);
        for rows in runs {
            let raw = self.weights.run(name, rows)?;
            cols = raw.shape.get(1).copied().unwrap_or(0);
            all.extend_from_slice(&values(name, &raw)?);
        }
        Ok(Tensor::from_vec(all, (runs.last().map_or(0, |last| last.end), cols), device)?)
    }
}

fn values(name: &str, raw: &RawTensor) -> std::result::Result<Arc<[f32]>, EngineError> {
    match raw.dtype {
        Dtype::F8E4M3 | Dtype::F8E5M2 => {
            let reason = "is float8, of which only models that are streamed know the scales";
            Err(EngineError::tensor(name, reason))
        }
        _ => parts::values(name, raw),
    }
}

impl SimpleBackend for AllWeights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            let reason = format!("is {:?}, not {:?}", tensor.dims(), shape.dims());
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(EngineError::tensor(name, reason));
            return Err(Error::UnexpectedShape {
                msg: name.to_owned(),
                expected: shape,
                got: tensor.shape().clone(),
            });
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.tensor(name, device) {
            Ok(tensor) => tensor.to_dtype(dtype),
            Err(error) => {
                let said = error.to_string();
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(Error::Msg(said))
            }
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.groups.contains_key(self.stored(name))
    }
}
