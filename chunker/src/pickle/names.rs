//! All that a table of tensors may name. Any other name ends the reading, whatever is done with it.

use surf_protocol::Dtype;

/// What may be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// `collections.OrderedDict`
    Table,
    /// `torch._utils._rebuild_tensor_v2`, and `_v3`, which says the type too.
    Tensor,
    /// `torch._utils._rebuild_parameter`
    Parameter,
    /// `torch.Size`
    Size,
    /// A class of storages, or a type of elements; without one: any bytes.
    Element(Option<Element>),
}

/// A type of elements, and the bytes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// None, if PyTorch knows it and manifests do not.
    pub(super) dtype: Option<Dtype>,
    pub(super) bytes: u64,
}

impl Element {
    fn of(dtype: Dtype) -> Self {
        Self { dtype: Some(dtype), bytes: dtype.block().bytes }
    }

    fn unknown(bytes: u64) -> Self {
        Self { dtype: None, bytes }
    }
}

/// What `module.name` is, if a table of tensors may need it.
pub(super) fn named(module: &str, name: &str) -> Option<Name> {
    let dtype = |dtype| Some(Name::Element(Some(Element::of(dtype))));
    let unknown = |bytes| Some(Name::Element(Some(Element::unknown(bytes))));
    match (module, name) {
        ("collections", "OrderedDict") => Some(Name::Table),
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => Some(Name::Tensor),
        ("torch._utils", "_rebuild_parameter") => Some(Name::Parameter),
        ("torch", "Size") => Some(Name::Size),
        ("torch.storage", "UntypedStorage") => Some(Name::Element(None)),
        ("torch", "BoolStorage" | "bool") => dtype(Dtype::Bool),
        ("torch", "ByteStorage" | "uint8") => dtype(Dtype::U8),
        ("torch", "CharStorage" | "int8") => dtype(Dtype::I8),
        ("torch", "uint16") => dtype(Dtype::U16),
        ("torch", "ShortStorage" | "int16") => dtype(Dtype::I16),
        ("torch", "uint32") => dtype(Dtype::U32),
        ("torch", "IntStorage" | "int32") => dtype(Dtype::I32),
        ("torch", "uint64") => dtype(Dtype::U64),
        ("torch", "LongStorage" | "int64") => dtype(Dtype::I64),
        ("torch", "float8_e4m3fn") => dtype(Dtype::F8E4M3),
        ("torch", "float8_e5m2") => dtype(Dtype::F8E5M2),
        ("torch", "HalfStorage" | "float16") => dtype(Dtype::F16),
        ("torch", "BFloat16Storage" | "bfloat16") => dtype(Dtype::Bf16),
        ("torch", "FloatStorage" | "float32") => dtype(Dtype::F32),
        ("torch", "DoubleStorage" | "float64") => dtype(Dtype::F64),
        ("torch", "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e8m0fnu") => unknown(1),
        ("torch", "complex32") => unknown(4),
        ("torch", "ComplexFloatStorage" | "complex64") => unknown(8),
        ("torch", "ComplexDoubleStorage" | "complex128") => unknown(16),
        _ => None,
    }
}
