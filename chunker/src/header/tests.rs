//! Headers that are sound, damaged and hostile.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// Parses a header over `data` bytes.
fn parsed(json: &str, data: u64) -> Result<Vec<Tensor>, FileFault> {
    let start = LENGTH_SIZE + json.len() as u64;
    parse(json.as_bytes(), start, start + data).map(|header| header.tensors)
}

fn fault(json: &str, data: u64) -> (String, TensorFault) {
    match parsed(json, data) {
        Err(FileFault::Tensor { tensor, fault }) => (tensor, fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_come_in_the_order_of_their_bytes() {
    let json = format!(
        r#"{{"__metadata__":{{"format":"pt"}},"b":{},"a":{},"z":{}}}  "#,
        entry("F32", "[2]", 0, 8),
        entry("BF16", "[2,2]", 8, 16),
        entry("I64", "[0,7]", 8, 8),
    );
    let tensors = parsed(&json, 16).unwrap();
    assert_eq!(tensors.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(), ["b", "z", "a"]);
    assert_eq!(tensors[2].offset, LENGTH_SIZE + json.len() as u64 + 8);
    assert_eq!((tensors[2].dtype.as_str(), tensors[2].size), ("BF16", 8));
}

/// What a type is, and how many bytes it takes, is not asked: sizes are those of the offsets.
#[test]
fn any_type_and_shape_is_read() {
    let of = |dtype: &str, shape: &str| parsed(&format!(r#"{{"a":{}}}"#, entry(dtype, shape, 0, 8)), 8);
    for (dtype, shape) in [("F4", "[16]"), ("F33", "[2]"), ("F32", "[3]"), ("F16", "[4294967296,4294967296]")]
    {
        let tensor = &of(dtype, shape).unwrap()[0];
        assert_eq!((tensor.dtype.as_str(), tensor.size), (dtype, 8));
    }
    for dtype in ["", &"F".repeat(24)] {
        assert!(
            matches!(of(dtype, "[2]"), Err(FileFault::Tensor { fault: TensorFault::Tag(_), .. })),
            "{dtype}"
        );
    }
    let deep = format!("[{}]", ["1"; 17].join(","));
    assert!(matches!(of("F32", &deep), Err(FileFault::Tensor { fault: TensorFault::Rank(17), .. })));
    let long = format!(r#"{{"{}":{}}}"#, "n".repeat(1025), entry("U8", "[8]", 0, 8));
    assert!(matches!(parsed(&long, 8), Err(FileFault::Tensor { fault: TensorFault::LongName, .. })));
}

#[test]
fn a_damaged_tensor_is_named() {
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let a = || entry("F32", "[2]", 0, 8);
    let b = || entry("F32", "[2]", 8, 16);
    let cases = [
        (two(a(), entry("F32", "[2]", 4, 12)), TensorFault::Overlap("a".to_owned())),
        (two(a(), entry("F32", "[2]", 12, 20)), TensorFault::Hole(4)),
        (two(a(), entry("F32", "[4]", 8, 24)), TensorFault::PastEnd { end: 24, data: 20 }),
        (two(a(), entry("F32", "[2]", 16, 8)), TensorFault::Backwards { begin: 16, end: 8 }),
        (two(a(), b()).replace("\"a\"", "\"b\""), TensorFault::Twice),
    ];
    for (json, expected) in cases {
        assert_eq!(fault(&json, 20), ("b".to_owned(), expected), "{json}");
    }
    for malformed in [
        "[1,2]",
        r#"["F32",[2],[8,16]]"#,
        r#"{"dtype":"F32"}"#,
        &entry("F32", "[-1]", 8, 16),
        &entry("F32", "3", 8, 16),
    ] {
        let (tensor, fault) = fault(&two(a(), malformed.to_owned()), 16);
        assert!(tensor == "b" && matches!(fault, TensorFault::Malformed(_)), "{malformed}");
    }
}

#[test]
fn the_metadata_says_what_bytes_are() {
    // The metadata may stand behind the tensors: some programs sort.
    let tag = |metadata: &str| {
        let json = format!(r#"{{"a":{},"__metadata__":{metadata}}}"#, entry("U8", "[2,18]", 0, 36));
        parsed(&json, 36).map(|tensors| tensors[0].dtype.to_string())
    };
    for (metadata, expected) in [
        (r#"{"format":"pt","ggml_type.a":"Q4_0"}"#, "U8:Q4_0"),
        // What the type is, is not asked.
        (r#"{"ggml_type.a":"IQ9_Z"}"#, "U8:IQ9_Z"),
        (r#"{"ggml_type.a":"Q4_0","ggml_type.a":"Q8_0"}"#, "U8:Q8_0"),
        (r#"{"ggml_type.b":"Q4_0","ggml_type.":"Q4_0","x":[1,{}]}"#, "U8"),
        (r#"{"ggml_type.a":"a name that is no tag any more"}"#, "U8"),
        ("null", "U8"),
    ] {
        assert_eq!(tag(metadata).as_deref(), Ok(expected), "{metadata}");
    }
    for metadata in
        ["[]", "3", "\"x\"", r#"{"ggml_type.a":3}"#, r#"{"ggml_type.a":null}"#, "{},\"__metadata__\":{}"]
    {
        assert!(matches!(tag(metadata), Err(FileFault::Header(HeaderFault::Malformed(_)))), "{metadata}");
    }
}

#[test]
fn a_damaged_header_is_told_apart() {
    for json in ["", "[]", "{", "{}x", "null", " {}", "\u{fffd}"] {
        let header = Err(FileFault::Header(HeaderFault::Malformed(String::new())));
        assert_eq!(parsed(json, 0).map_err(without_text), header, "{json}");
    }
    assert_eq!(parsed("{}", 3), Err(FileFault::Header(HeaderFault::Trailing(3))));
    assert_eq!(parsed("{}", 0), Ok(Vec::new()));
}

fn without_text(damage: FileFault) -> FileFault {
    match damage {
        FileFault::Header(HeaderFault::Malformed(_)) => {
            FileFault::Header(HeaderFault::Malformed(String::new()))
        }
        other => other,
    }
}

#[test]
fn a_header_fits_its_file_and_the_limit() {
    let length = |n: u64| n.to_le_bytes();
    assert_eq!(check_length(length(92), 100), Ok(92));
    assert_eq!(check_length(length(93), 100), Err(HeaderFault::PastEnd { header: 93, size: 100 }));
    assert_eq!(
        check_length(length(u64::MAX), 100),
        Err(HeaderFault::PastEnd { header: u64::MAX, size: 100 })
    );
    let over = HEADER_SIZE_MAX + 1;
    assert_eq!(check_length(length(over), u64::MAX), Err(HeaderFault::TooLarge { header: over }));
    assert_eq!(check_length(*b"version ", 130), Err(HeaderFault::Pointer));
}

/// Whatever is accepted fills the file without overlap; and whatever the reference implementation accepts is
/// accepted.
fn accepted_is_sound(json: &[u8], data: u64) {
    let start = LENGTH_SIZE + json.len() as u64;
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    file.resize((start + data) as usize, 0);
    let reference = SafeTensors::deserialize(&file).map(|reference| reference.len());
    let Ok(Header { tensors }) = parse(json, start, start + data) else {
        assert!(reference.is_err(), "{}", String::from_utf8_lossy(json));
        return;
    };
    let mut end = start;
    for tensor in &tensors {
        assert_eq!(tensor.offset, end, "{tensor:?}");
        end += tensor.size;
    }
    assert_eq!(end, start + data);
    if let Ok(count) = reference {
        assert_eq!(count, tensors.len(), "{}", String::from_utf8_lossy(json));
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..40u64, Just(u64::MAX), Just(1 << 63), Just(1 << 32), any::<u64>()]
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(json in prop::collection::vec(any::<u8>(), 0..200), end in any::<u64>()) {
        let start = LENGTH_SIZE + json.len() as u64;
        let _ = parse(&json, start, end.max(start));
    }

    #[test]
    fn mutated_headers_are_sound_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        data in prop_oneof![Just(16u64), 0..32u64],
    ) {
        let json = format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[1,2]", 0, 8), entry("I16", "[4]", 8, 16));
        let mut json = json.into_bytes();
        for (at, byte) in changes {
            let at = at.index(json.len());
            json[at] = byte;
        }
        accepted_is_sound(&json, data);
    }

    #[test]
    fn any_numbers_are_sound_or_refused(
        tensors in prop::collection::vec(
            (prop::sample::select(vec!["U8", "F32", "F4", "F6_E3M2", "I64"]),
             prop::collection::vec(number(), 0..3), number(), number()), 0..4),
        data in 0..64u64,
    ) {
        let entries: Vec<String> = tensors.iter().enumerate().map(|(at, (dtype, shape, begin, end))| {
            format!(r#""t{at}":{}"#, entry(dtype, &format!("{shape:?}"), *begin, *end))
        }).collect();
        accepted_is_sound(format!("{{{}}}", entries.join(",")).as_bytes(), data);
    }
}

/// A header over no data, of `count` empty tensors whose names have `size` bytes.
fn many(count: usize, size: usize) -> String {
    let member = |at: usize| format!(r#""{at:0size$}":{}"#, entry("U8", "[0]", 0, 0));
    format!("{{{}}}", (0..count).map(member).collect::<Vec<_>>().join(","))
}

#[test]
fn the_tensors_of_a_file_and_their_names_have_a_limit() {
    let too_many = |json: &str| match parsed(json, 0) {
        Err(FileFault::Header(HeaderFault::TooMany { what, .. })) => what,
        other => panic!("{:?}", other.map(|tensors| tensors.len())),
    };
    assert_eq!(too_many(&many(TENSORS_MAX + 1, 6)), "tensors");
    assert_eq!(too_many(&many(NAMES_SIZE_MAX / 1000 + 1, 1000)), "bytes of names");
    assert_eq!(parsed(&many(NAMES_SIZE_MAX / 1000, 1000), 0).map(|tensors| tensors.len()), Ok(33_554));
    let types = vec![r#""ggml_type.a":"Q4_0""#; TENSORS_MAX + 1].join(",");
    let metadata = parsed(&format!(r#"{{"__metadata__":{{{types}}}}}"#), 0);
    assert!(matches!(metadata, Err(FileFault::Header(HeaderFault::Malformed(_)))));
}
