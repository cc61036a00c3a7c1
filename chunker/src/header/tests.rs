//! Headers that are sound, damaged and hostile.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// Parses a header over `data` bytes.
fn parsed(json: &str, data: u64) -> Result<Vec<Tensor>, Damage> {
    let start = LENGTH_SIZE + json.len() as u64;
    parse(json.as_bytes(), start, start + data)
}

fn fault(json: &str, data: u64) -> (String, TensorFault) {
    match parsed(json, data) {
        Err(Damage::Tensor(tensor, fault)) => (tensor, fault),
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
    assert_eq!((tensors[2].dtype, tensors[2].size), (Some(Dtype::Bf16), 8));
    assert!(Header { tensors }.understood());
}

#[test]
fn types_of_the_format_that_we_lack_are_no_damage() {
    let json = format!(r#"{{"a":{},"b":{}}}"#, entry("F4", "[16]", 0, 8), entry("F8_E8M0", "[8]", 8, 16));
    let tensors = parsed(&json, 16).unwrap();
    assert!(!Header { tensors }.understood());
}

#[test]
fn a_damaged_tensor_is_named() {
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let a = || entry("F32", "[2]", 0, 8);
    let b = || entry("F32", "[2]", 8, 16);
    let size = |dtype: &str, shape: &[u64], size| TensorFault::Size {
        dtype: dtype.to_owned(),
        shape: shape.to_vec(),
        size,
    };
    let cases = [
        (two(a(), entry("F32", "[2]", 4, 12)), TensorFault::Overlap("a".to_owned())),
        (two(a(), entry("F32", "[2]", 12, 20)), TensorFault::Hole(4)),
        (two(a(), entry("F32", "[4]", 8, 24)), TensorFault::PastEnd { end: 24, data: 20 }),
        (two(a(), entry("F32", "[2]", 16, 8)), TensorFault::Backwards { begin: 16, end: 8 }),
        (two(a(), entry("F16", "[2]", 8, 16)), size("F16", &[2], 8)),
        (two(a(), entry("F32", "[3]", 8, 16)), size("F32", &[3], 8)),
        (two(a(), entry("F6_E2M3", "[3]", 8, 11)), size("F6_E2M3", &[3], 3)),
        (two(a(), entry("F32", "[4294967296,4294967296]", 8, 16)), size("F32", &[1 << 32, 1 << 32], 8)),
        (two(a(), entry("F33", "[2]", 8, 16)), TensorFault::Dtype("F33".to_owned())),
        (two(a(), b()).replace("\"a\"", "\"b\""), TensorFault::Twice),
    ];
    for (json, expected) in cases {
        assert_eq!(fault(&json, 20), ("b".to_owned(), expected), "{json}");
    }
    for malformed in ["[1,2]", r#"{"dtype":"F32"}"#, &entry("F32", "[-1]", 8, 16), &entry("F32", "3", 8, 16)]
    {
        let (tensor, fault) = fault(&two(a(), malformed.to_owned()), 16);
        assert!(tensor == "b" && matches!(fault, TensorFault::Malformed(_)), "{malformed}");
    }
}

#[test]
fn bytes_that_the_metadata_calls_blocks_are_blocks() {
    // The metadata may stand behind the tensors: some programs sort.
    let packed = |metadata: &str, dtype: &str, shape: &str| {
        format!(r#"{{"a":{},"__metadata__":{{"format":"pt",{metadata}}}}}"#, entry(dtype, shape, 0, 36))
    };
    let q4 = r#""ggml_type.a":"Q4_0""#;
    let tensors = parsed(&packed(q4, "U8", "[2,18]"), 36).unwrap();
    assert_eq!(
        (tensors[0].dtype, &tensors[0].shape[..], tensors[0].size),
        (Some(Dtype::Q4_0), &[2, 32][..], 36)
    );
    let misfit = |shape: &[u64]| TensorFault::Packed { dtype: "Q4_0".to_owned(), shape: shape.to_vec() };
    let cases = [
        (packed(q4, "U8", "[18,2]"), "a", misfit(&[18, 2])),
        (packed(q4, "U8", "[4,9]"), "a", misfit(&[4, 9])),
        (packed(q4, "I8", "[2,18]"), "a", misfit(&[2, 18])),
        (packed(q4, "F32", "[9]"), "a", misfit(&[9])),
        (packed(r#""ggml_type.b":"Q4_0""#, "U8", "[36]"), "b", TensorFault::Absent),
        (packed(r#""ggml_type.":"Q4_0""#, "U8", "[36]"), "", TensorFault::Absent),
        (packed(r#""ggml_type.a":"IQ9_Z""#, "U8", "[36]"), "a", TensorFault::Packing("IQ9_Z".to_owned())),
        // Twice: the second time it is no bytes any more.
        (packed(&format!("{q4},{q4}"), "U8", "[36]"), "a", misfit(&[64])),
    ];
    for (json, tensor, expected) in cases {
        let (name, found) = fault(&json, 36);
        assert_eq!((&*name, &found), (tensor, &expected), "{json}");
        assert!(!found.to_string().contains('\n'));
    }
    for metadata in ["[]", "3", "\"x\"", r#"{"ggml_type.a":3}"#, r#"{"ggml_type.a":null}"#] {
        let json = format!(r#"{{"a":{},"__metadata__":{metadata}}}"#, entry("U8", "[36]", 0, 36));
        assert!(matches!(parsed(&json, 36), Err(Damage::Header(HeaderFault::Malformed(_)))), "{json}");
    }
    let json = format!(r#"{{"__metadata__":null,"a":{}}}"#, entry("U8", "[36]", 0, 36));
    assert_eq!(parsed(&json, 36).unwrap()[0].dtype, Some(Dtype::U8));
}

#[test]
fn a_damaged_header_is_told_apart() {
    for json in ["", "[]", "{", "{}x", "null", "\u{fffd}"] {
        let header = Err(Damage::Header(HeaderFault::Malformed(String::new())));
        assert_eq!(parsed(json, 0).map_err(without_text), header, "{json}");
    }
    assert_eq!(parsed("{}", 3), Err(Damage::Header(HeaderFault::Trailing(3))));
    assert_eq!(parsed("{}", 0), Ok(Vec::new()));
}

fn without_text(damage: Damage) -> Damage {
    match damage {
        Damage::Header(HeaderFault::Malformed(_)) => Damage::Header(HeaderFault::Malformed(String::new())),
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

/// Whatever is accepted fills the file without overlap, and the reference implementation accepts it too.
fn accepted_is_sound(json: &[u8], data: u64) {
    let start = LENGTH_SIZE + json.len() as u64;
    let Ok(tensors) = parse(json, start, start + data) else { return };
    let mut end = start;
    for tensor in &tensors {
        assert_eq!(tensor.offset, end, "{tensor:?}");
        end += tensor.size;
    }
    assert_eq!(end, start + data);
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    file.resize((start + data) as usize, 0);
    let reference = SafeTensors::deserialize(&file).map(|reference| reference.len());
    assert_eq!(reference.ok(), Some(tensors.len()), "{}", String::from_utf8_lossy(json));
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
