//! Files that PyTorch wrote beside what it says of them in safetensors, and files that mean harm.

use std::{collections::BTreeMap, fs, io::Cursor};

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::checkpoint::dtype;

const PICKLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pickles");

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!("{PICKLES}/{name}")).unwrap()
}

fn parsed(file: &[u8]) -> Result<Header, Stop> {
    read(&mut Cursor::new(file), file.len() as u64)
}

fn refused(file: &[u8]) -> HeaderFault {
    match parsed(file) {
        Err(Stop::Fault(FileFault::Header(fault))) => fault,
        other => panic!("{other:?}"),
    }
}

fn faulty(name: &str) -> (String, TensorFault) {
    match parsed(&fixture(name)) {
        Err(Stop::Fault(FileFault::Tensor { tensor, fault })) => (tensor, fault),
        other => panic!("{name}: {other:?}"),
    }
}

/// Names, types, shapes and bytes of the tensors of a file.
type Table = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

fn table(file: &[u8]) -> Table {
    let header = parsed(file).unwrap();
    let tensor = |tensor: Tensor| {
        let bytes = file[tensor.offset as usize..(tensor.offset + tensor.size) as usize].to_vec();
        let stored = dtype::single(tensor.dtype.as_str()).and_then(dtype::stored).unwrap();
        (tensor.name.to_string(), (stored.to_owned(), tensor.shape, bytes))
    };
    header.tensors.into_iter().map(tensor).collect()
}

fn every() -> Table {
    let file = fixture("every.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().iter().map(|&n| n as u64).collect();
        (name, (view.dtype().to_string(), shape, view.data().to_vec()))
    };
    tensors.tensors().into_iter().map(tensor).collect()
}

#[test]
fn tensors_are_what_safetensors_say_they_are() {
    for name in ["every.pt", "protocol4.pt", "nested.pt"] {
        assert_eq!(table(&fixture(name)), every(), "{name}");
    }
}

#[test]
fn what_is_tied_is_one_tensor() {
    assert_eq!(table(&fixture("tied.pt")).into_keys().collect::<Vec<_>>(), ["other", "tied.1"]);
}

#[test]
fn types_that_cannot_be_computed_with_have_a_size_all_the_same() {
    let header = parsed(&fixture("complex.pt")).unwrap();
    let tags: Vec<&str> = header.tensors.iter().map(|tensor| tensor.dtype.as_str()).collect();
    assert!(tags.contains(&"torch.complex64"), "{tags:?}");
}

#[test]
fn what_cannot_be_listed_is_refused_by_name() {
    assert_eq!(faulty("transposed.pt"), ("transposed".to_owned(), TensorFault::Strided));
    assert_eq!(faulty("columns.pt"), ("columns".to_owned(), TensorFault::Strided));
    assert_eq!(faulty("overlapping.pt"), ("part".to_owned(), TensorFault::Overlap("whole".to_owned())));
    let (tensor, fault) = faulty("no-storage.pt");
    assert!(
        tensor == "a" && matches!(&fault, TensorFault::Storage(entry) if entry.ends_with("/data/0")),
        "{fault}"
    );
    assert_eq!(faulty("short-storage.pt"), ("a".to_owned(), TensorFault::PastEnd { end: 48, data: 40 }));
    let global = HeaderFault::Global("posix.system".to_owned());
    assert!(global.to_string().contains("\"posix.system\""));
    assert_eq!(refused(&fixture("evil.pt")), global);
    assert_eq!(refused(&fixture("legacy.pt")), HeaderFault::Legacy);
    assert_eq!(refused(&fixture("big-endian.pt")), HeaderFault::BigEndian);
    assert!(
        matches!(refused(&fixture("compressed.pt")), HeaderFault::Zip(why) if why.contains("compressed"))
    );
    assert!(matches!(refused(&fixture("list.pt")), HeaderFault::Malformed(_)));
    assert_eq!(refused(b"version https://git-lfs"), HeaderFault::Pointer);
    assert_eq!(refused(b"whatever else"), HeaderFault::Magic);
    assert_eq!(refused(b"PK\x03\x04"), HeaderFault::Short { size: 4 });
}

/// Writes a zip file with stored entries, as plain as can be.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (size, length) = ((data.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let at = (file.len() as u32).to_le_bytes();
        // What both headers have: flags to checksum, sizes, lengths of the name and of extra fields.
        let common = [&[0; 12][..], &size, &size, &length, &[0; 2]].concat();
        file.extend([&b"PK\x03\x04\0\0"[..], &common, name.as_bytes(), data].concat());
        directory.extend([&b"PK\x01\x02\0\0\0\0"[..], &common, &[0; 10], &at, name.as_bytes()].concat());
    }
    let start = (file.len() as u32).to_le_bytes();
    let count = (entries.len() as u16).to_le_bytes();
    let size = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06"[..], &[0; 4], &count, &count, &size, &start, &[0; 2]].concat());
    file
}

fn text(text: &str) -> Vec<u8> {
    [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [&[b'J'][..], &number.to_le_bytes()].concat()
}

/// The operations that make a tensor of four floats in entry `0`, of this shape.
fn tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let numbers = |numbers: &[i32]| {
        [b"(", &numbers.iter().flat_map(|&n| int(n)).collect::<Vec<_>>()[..], b"t"].concat()
    };
    [
        &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x04tQ",
        &int(offset),
        &numbers(shape),
        &numbers(strides),
        b"\x89}tR",
    ]
    .concat()
}

fn file(pickle: &[u8]) -> Vec<u8> {
    zip(&[("m/data.pkl", pickle), ("m/data/0", &[1; 16])])
}

/// A table with one tensor called `a`.
fn one(tensor: &[u8]) -> Vec<u8> {
    file(&[b"\x80\x02}(", &text("a")[..], tensor, b"u."].concat())
}

#[test]
fn numbers_are_checked_against_the_bytes_that_are_there() {
    let sound = parsed(&one(&tensor(1, &[3], &[1]))).unwrap();
    assert_eq!((sound.tensors[0].size, &sound.tensors[0].shape[..]), (12, &[3][..]));
    let fault = |tensor: &[u8]| match parsed(&one(tensor)) {
        Err(Stop::Fault(FileFault::Tensor { tensor, fault })) if tensor == "a" => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&tensor(2, &[3], &[1])), TensorFault::PastEnd { end: 20, data: 16 });
    assert_eq!(fault(&tensor(0, &[2, 2], &[1, 2])), TensorFault::Strided);
    assert_eq!(fault(&tensor(0, &[2, 2], &[2])), TensorFault::Strided);
    assert_eq!(fault(&tensor(0, &[4], &[0])), TensorFault::Strided);
    assert!(matches!(fault(&tensor(0, &[i32::MAX; 4], &[0; 4])), TensorFault::Size { .. }));
    assert!(parsed(&one(&tensor(0, &[1, 4], &[99, 1]))).is_ok());
    assert!(parsed(&one(&tensor(4, &[0, 9], &[5, 5]))).is_ok());
    for strange in [tensor(-1, &[3], &[1]), tensor(0, &[-3], &[1]), tensor(0, &[1; 17], &[1; 17])] {
        assert!(matches!(
            parsed(&one(&strange)),
            Err(Stop::Fault(FileFault::Header(HeaderFault::Malformed(_))))
        ));
    }
    let twice =
        [b"\x80\x02}(", &text("a")[..], &tensor(0, &[1], &[1]), &text("a"), &tensor(1, &[1], &[1]), b"u."];
    assert!(matches!(
        parsed(&file(&twice.concat())),
        Err(Stop::Fault(FileFault::Tensor { fault: TensorFault::Twice, .. }))
    ));
}

#[test]
fn a_pickle_that_does_anything_else_is_refused() {
    let malformed = |pickle: &[u8]| match refused(&file(pickle)) {
        HeaderFault::Malformed(_) => (),
        other => panic!("{other}"),
    };
    for pickle in [
        &b""[..],
        b".",
        b"}",
        b"R.",
        b")R.",
        b"h\x00.",
        b"t.",
        b"}(KKu.",
        b"}(K\x01u.",
        b"]K\x01K\x02s.",
        b"Q.",
        b"c",
    ] {
        malformed(pickle);
    }
    malformed(b"X\xff\xff\xff\xff.");
    malformed(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.");
    for (name, pickle) in [
        ("os.system", &b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R."[..]),
        ("builtins.eval", b"cbuiltins\neval\n."),
        ("torch.storage._load_from_bytes", b"ctorch.storage\n_load_from_bytes\n."),
        ("torch.load", b"\x8c\x05torch\x8c\x04load\x93."),
    ] {
        assert_eq!(refused(&file(pickle)), HeaderFault::Global(name.to_owned()));
    }
    // INST, OBJ, NEWOBJ, EXT1, PERSID: ways to make objects that tables of tensors do without.
    for operation in [b'i', b'o', 0x81, 0x82, b'P', 0x92] {
        assert_eq!(refused(&file(&[operation, b'.'])), HeaderFault::Operation(operation));
    }
    let long = format!("c{}\nx\n.", "m".repeat(5000));
    assert!(refused(&file(long.as_bytes())).to_string().len() < 400);
}

#[test]
fn bombs_are_cheap() {
    // A list in a list in a list; a list of itself, many times over; a table of tables, each the one before twice.
    assert!(parsed(&file(&[vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat())).is_err());
    let doubled = |times: usize| {
        let step = |_| b"q\x00](h\x00h\x00e".to_vec();
        [b"]".to_vec(), (0..times).flat_map(step).collect(), b".".to_vec()].concat()
    };
    assert!(parsed(&file(&doubled(100_000))).is_err());
    let table = |_| [b"q\x00}(", &text("model")[..], b"h\x00", &text("x"), b"h\x00u"].concat();
    let tables = [b"}".to_vec(), (0..50_000).flat_map(table).collect(), b".".to_vec()].concat();
    assert!(parsed(&file(&tables)).is_err());
    // The same long list made a table again and again.
    let pair = b"K\x01K\x02\x86";
    let pairs = [&b"]("[..], pair, b"q\x02", &b"h\x02".repeat(200_000), b"eq\x00"].concat();
    let again =
        [&b"ccollections\nOrderedDict\nq\x03"[..], &b"h\x03h\x00\x85R".repeat(100_000), b"."].concat();
    let places = refused(&file(&[pairs, again].concat()));
    assert!(matches!(places, HeaderFault::TooMany { what: "places of values", .. }), "{places}");
    // More values than there may be.
    let many = refused(&file(&[vec![b'N'; 5_000_000], vec![b'.']].concat()));
    assert!(matches!(many, HeaderFault::TooMany { what: "values", .. }), "{many}");
    // Notes are numbered as they are taken; a few with great numbers would make room for all below.
    let notes = refused(&file(b"Nr\xff\xff\xff\xff."));
    assert!(matches!(notes, HeaderFault::TooMany { what: "notes", .. }), "{notes}");
}

#[test]
fn a_cut_or_damaged_zip_is_refused() {
    let good = fixture("every.pt");
    for end in 0..good.len() {
        assert!(parsed(&good[..end]).is_err(), "{end}");
    }
    let good = one(&tensor(0, &[4], &[1]));
    let size = good.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parsed(&file)
    };
    assert!(with(0, b"PK").is_ok());
    let is_zip = |outcome| {
        matches!(
            outcome,
            Err(Stop::Fault(FileFault::Header(HeaderFault::Zip(_) | HeaderFault::Count { .. })))
        )
    };
    // Count, size and place of the directory, and the length of the comment.
    for (from_end, bytes) in
        [(12, &[255u8, 255][..]), (10, &[200]), (10, &[255; 4]), (6, &[255; 4]), (2, &[1])]
    {
        assert!(is_zip(with(size - from_end, bytes)), "{from_end}");
    }
    // In the directory, before the record at the end, 46 bytes and the name for each entry; where the first lies.
    let entries = size - 22 - 2 * 46 - "m/data.pklm/data/0".len();
    for bytes in [[255; 4], [200, 0, 0, 0], [1, 0, 0, 0]] {
        assert!(is_zip(with(entries + 42, &bytes)), "{bytes:?}");
    }
    // Its size, before and after compression.
    assert!(is_zip(with(entries + 20, &[255, 255, 255, 0, 255, 255, 255, 0])));
    assert!(is_zip(with(entries + 10, &[8])));
    assert!(is_zip(with(entries + 8, &[1])));
    assert!(is_zip(parsed(&zip(&[("m/data/0", &[1; 16])]))));
    assert!(is_zip(parsed(&zip(&[("m/data.pkl", b"}."), ("n/data.pkl", b"}.")]))));
    assert!(is_zip(parsed(&zip(&[("m/data.pkl", b"}."), ("m/data.pkl", b"}.")]))));
}

proptest! {
    #[test]
    fn mutated_files_are_sound_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        name in prop::sample::select(vec!["every.pt", "protocol4.pt", "tied.pt"]),
    ) {
        let mut file = fixture(name);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(header) = parsed(&file) {
            let mut end = 0;
            for tensor in &header.tensors {
                assert!(tensor.size == 0 || end <= tensor.offset);
                end = end.max(tensor.offset + tensor.size);
            }
            assert!(end <= file.len() as u64);
        }
    }
}
