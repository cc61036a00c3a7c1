//! All that a table of tensors may name. Any other name ends the reading, whatever is done with it.

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

/// A type of elements: what a manifest calls it, and the bytes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) dtype: &'static str,
    pub(super) bytes: u64,
}

/// What `module.name` is, if a table of tensors may need it.
pub(super) fn named(module: &str, name: &str) -> Option<Name> {
    let of = |dtype, bytes| Some(Name::Element(Some(Element { dtype, bytes })));
    match (module, name) {
        ("collections", "OrderedDict") => Some(Name::Table),
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => Some(Name::Tensor),
        ("torch._utils", "_rebuild_parameter") => Some(Name::Parameter),
        ("torch", "Size") => Some(Name::Size),
        ("torch.storage", "UntypedStorage") => Some(Name::Element(None)),
        ("torch", "BoolStorage" | "bool") => of("torch.bool", 1),
        ("torch", "ByteStorage" | "uint8") => of("torch.uint8", 1),
        ("torch", "CharStorage" | "int8") => of("torch.int8", 1),
        ("torch", "uint16") => of("torch.uint16", 2),
        ("torch", "ShortStorage" | "int16") => of("torch.int16", 2),
        ("torch", "uint32") => of("torch.uint32", 4),
        ("torch", "IntStorage" | "int32") => of("torch.int32", 4),
        ("torch", "uint64") => of("torch.uint64", 8),
        ("torch", "LongStorage" | "int64") => of("torch.int64", 8),
        ("torch", "float8_e4m3fn") => of("torch.float8_e4m3fn", 1),
        ("torch", "float8_e5m2") => of("torch.float8_e5m2", 1),
        ("torch", "HalfStorage" | "float16") => of("torch.float16", 2),
        ("torch", "BFloat16Storage" | "bfloat16") => of("torch.bfloat16", 2),
        ("torch", "FloatStorage" | "float32") => of("torch.float32", 4),
        ("torch", "DoubleStorage" | "float64") => of("torch.float64", 8),
        ("torch", "float8_e4m3fnuz") => of("torch.float8_e4m3fnuz", 1),
        ("torch", "float8_e5m2fnuz") => of("torch.float8_e5m2fnuz", 1),
        ("torch", "float8_e8m0fnu") => of("torch.float8_e8m0fnu", 1),
        ("torch", "complex32") => of("torch.complex32", 4),
        ("torch", "ComplexFloatStorage" | "complex64") => of("torch.complex64", 8),
        ("torch", "ComplexDoubleStorage" | "complex128") => of("torch.complex128", 16),
        _ => None,
    }
}
