//! The tensors of a file that PyTorch's `torch.save` wrote: a zip of stored entries, of which one is a pickle that says
//! what the others are. Read without running anything.
//!
//! - `zip`: which entries there are, and where their bytes begin.
//! - `machine`: the few operations of pickles that tables of tensors are made of, and none that could do
//!   anything else. `names`: all that they may name.
//! - Here: from what the pickle says to tensors with places in the file.
//!
//! A tensor's elements lie one behind the other. Two names for the very same elements (weights that are
//! tied) are one tensor, under the name that comes first, as safetensors files have it. A file whose tensors lie
//! over each other in any other way is not read. What is read and what is not is part of the manifest's format.

mod machine;
mod names;
mod zip;

use std::{
    collections::HashSet,
    io::{Read, Seek, SeekFrom},
};

use crate::{
    FileFault, HeaderFault, TensorFault,
    format::Stop,
    header::{Header, Tensor},
};
use machine::{Storage, Value, Values, View};
use zip::Zip;

/// Bytes of a pickle. That of a mixture of experts with 91,000 tensors has some 20 MB.
const PICKLE_SIZE_MAX: u64 = 32 << 20;

/// Under what the weights stand in a checkpoint that holds more than them, and how often one may lie in another.
const WITHIN: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
const WITHIN_MAX: usize = 4;

/// What every file begins with that `torch.save` writes since version 1.6, and before.
pub(crate) const ZIP: &[u8] = b"PK\x03\x04";
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9";

/// The tensors of a file of `size` bytes.
pub(crate) fn read(file: &mut (impl Read + Seek), size: u64) -> Result<Header, Stop> {
    check_begin(file, size)?;
    let zip = Zip::read(file, size)?;
    let (folder, pickle) = zip.pickle(file)?;
    if pickle.size() > PICKLE_SIZE_MAX {
        return Err(HeaderFault::TooLarge { header: pickle.size() }.into());
    }
    if let Some(order) = zip.find(file, &format!("{folder}byteorder"))?
        && bytes(file, order.start, order.size().min(8))? != b"little"
    {
        return Err(HeaderFault::BigEndian.into());
    }
    let pickle = bytes(file, pickle.start, pickle.size())?;
    let values = Values::of(&pickle)?;
    let mut tensors = Vec::new();
    let (mut names, mut places) = (HashSet::new(), HashSet::new());
    for (name, view) in views(&values)? {
        let fault = |fault| Stop::from(FileFault::tensor(name, fault));
        if !names.insert(name) {
            return Err(fault(TensorFault::Twice));
        }
        let storage = values.storage(view);
        let key = format!("{folder}data/{}", storage.key);
        let entry = zip.find(file, &key)?.ok_or_else(|| fault(TensorFault::Storage(key)))?;
        let tensor = placed(name, view, storage, entry.start, entry.size()).map_err(fault)?;
        // What is tied comes under its first name only.
        if tensor.size == 0 || places.insert((tensor.offset, tensor.dtype, tensor.shape.clone())) {
            tensors.push(tensor);
        }
    }
    Ok(Header::sorted(tensors)?)
}

/// Whether a file that begins with `head` may be one that `torch.save` wrote.
pub(crate) fn begins(head: &[u8]) -> bool {
    head.starts_with(ZIP) || head.starts_with(LEGACY)
}

fn check_begin(file: &mut (impl Read + Seek), size: u64) -> Result<(), Stop> {
    if size < LEGACY.len() as u64 {
        return Err(HeaderFault::Short { size }.into());
    }
    let head = bytes(file, 0, LEGACY.len() as u64)?;
    match head {
        head if head.starts_with(ZIP) => Ok(()),
        head if head.starts_with(LEGACY) => Err(HeaderFault::Legacy.into()),
        head if head.starts_with(b"version ") => Err(HeaderFault::Pointer.into()),
        _ => Err(HeaderFault::Magic.into()),
    }
}

/// `count` bytes from `start`, which are few and in the file.
fn bytes(file: &mut (impl Read + Seek), start: u64, count: u64) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0; count as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Names and tensors of the model, wherever in a checkpoint it is.
fn views<'a, 'v>(values: &'v Values<'a>) -> Result<Vec<(&'a str, &'v View)>, HeaderFault> {
    let no_table = || HeaderFault::Malformed("it holds no table of tensors".to_owned());
    let mut table = values.root();
    for _ in 0..WITHIN_MAX {
        let Value::Table(entries) = table else { return Err(no_table()) };
        let mut found = Vec::new();
        for (key, value) in entries {
            if let (Value::Text(name), Value::Tensor(view)) = (values.at(*key), values.at(*value)) {
                found.push((*name, &**view));
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let within = |name: &&str| {
            let is = |key: &u32| matches!(values.at(*key), Value::Text(text) if text == name);
            let (_, value) = entries.iter().find(|(key, value)| is(key) && values.is_table(*value))?;
            Some(values.at(*value))
        };
        match WITHIN.iter().find_map(within) {
            Some(inner) => table = inner,
            None if entries.is_empty() => return Ok(Vec::new()),
            None => return Err(no_table()),
        }
    }
    Err(no_table())
}

/// A tensor of elements of a storage that takes `room` bytes from `start`.
fn placed(
    name: &str,
    view: &View,
    storage: &Storage<'_>,
    start: u64,
    room: u64,
) -> Result<Tensor, TensorFault> {
    let element = view.element.or(storage.element);
    let element = element.ok_or_else(|| TensorFault::Malformed("its type is not said".to_owned()))?;
    let elements = view.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let size = |count: u64| count.checked_mul(element.bytes);
    let misfit =
        |size: u64| TensorFault::Size { dtype: element.dtype.to_owned(), shape: view.shape.clone(), size };
    let elements = elements.ok_or_else(|| misfit(room))?;
    if elements != 0 && !is_contiguous(&view.shape, &view.strides) {
        return Err(TensorFault::Strided);
    }
    let taken = size(elements).ok_or_else(|| misfit(room))?;
    let offset = size(view.offset).ok_or_else(|| misfit(room))?;
    match offset.checked_add(taken) {
        Some(end) if end <= room => (),
        end => return Err(TensorFault::PastEnd { end: end.unwrap_or(u64::MAX), data: room }),
    }
    let (name, shape) = (name.into(), view.shape.clone());
    let dtype = element.dtype.parse().map_err(TensorFault::Tag)?;
    Ok(Tensor { name, dtype, shape, block: Some(1), offset: start + offset, size: taken })
}

/// Whether the elements of a tensor lie one behind the other, rows by rows.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&count, &stride)| {
            // A dimension of one element goes nowhere.
            let fits = count == 1 || stride == expected;
            expected = expected.saturating_mul(count);
            fits
        })
}

#[cfg(test)]
#[path = "pickle/tests.rs"]
mod tests;
