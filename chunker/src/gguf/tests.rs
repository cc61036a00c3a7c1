//! Files that are sound, damaged and hostile.

use proptest::prelude::*;

use super::*;

/// Writes what a GGUF file begins with.
#[derive(Clone, Default)]
struct File {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// `shape` as it is written: innermost first.
    fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let shape_bytes: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
        let rank = (shape.len() as u32).to_le_bytes();
        let rest = [&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat();
        self.tensors.push([&text(name)[..], &rank, &shape_bytes, &rest].concat());
        self
    }

    /// With `data` bytes after the header.
    fn bytes(&self, version: u32, data: usize) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.entries.len() as u64].map(u64::to_le_bytes).concat();
        let mut bytes = [b"GGUF", &version.to_le_bytes()[..], &counts].concat();
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
        bytes
    }
}

fn two() -> File {
    File::default()
        .entry("general.architecture", TEXT, &text("llama"))
        .entry("llama.block_count", 4, &4u32.to_le_bytes())
        .tensor("blk.0.attn_q.weight", &[64, 3], 2, 0)
        .tensor("output_norm.weight", &[3], 0, 128)
}

fn parsed(bytes: &[u8]) -> Result<Header, Stop> {
    parse(bytes, bytes.len() as u64)
}

fn fault(file: &File, data: usize) -> (String, TensorFault) {
    match parsed(&file.bytes(3, data)) {
        Err(Stop::Fault(FileFault::Tensor { tensor, fault })) => (tensor, fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_come_with_their_places_and_shapes() {
    for version in [2, 3] {
        let bytes = two().bytes(version, 140);
        let header = parsed(&bytes).unwrap();
        let [q, norm] = &header.tensors[..] else { panic!("{header:?}") };
        let data = bytes.len() as u64 - 140;
        assert_eq!(
            (&*q.name, q.dtype.as_str(), &q.shape[..], q.block),
            ("blk.0.attn_q.weight", "ggml:2", &[3, 64][..], Some(32))
        );
        assert_eq!((q.offset, q.size), (data, 3 * 2 * 18));
        assert_eq!((norm.offset, norm.size), (data + 128, 12));
    }
}

#[test]
fn metadata_is_read_by_name() {
    let numbers = [&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7u32.to_le_bytes(), &8u32.to_le_bytes()];
    let words = [&TEXT.to_le_bytes()[..], &2u64.to_le_bytes(), &text("ab"), &text("")].concat();
    let file = two()
        .entry("numbers", LIST, &numbers.concat())
        .entry("words", LIST, &words)
        .entry("yes", 7, &[1])
        .entry("real", 6, &0.5f32.to_le_bytes())
        .entry("below", 5, &(-3i32).to_le_bytes());
    let bytes = file.bytes(3, 140);
    let metadata = Metadata::read(&bytes).unwrap();
    let find = |key: &str| metadata.find(key).unwrap();
    assert_eq!(find("general.architecture").as_str(), Some("llama"));
    assert_eq!(find("llama.block_count").as_u64(), Some(4));
    assert_eq!((find("below").as_u64(), find("below").as_f64()), (None, Some(-3.0)));
    assert_eq!((find("yes").as_bool(), find("real").as_f64()), (Some(true), Some(0.5)));
    let list: Vec<_> = find("numbers").as_list().unwrap().iter().map(|value| value.as_u64()).collect();
    assert_eq!(list, [Some(7), Some(8)]);
    let list: Vec<_> = find("words").as_list().unwrap().iter().map(|value| value.as_str()).collect();
    assert_eq!(list, [Some("ab"), Some("")]);
    assert_eq!(metadata.find("nothing"), None);
}

#[test]
fn what_is_newer_than_the_format_is_told_apart() {
    assert_eq!(parsed(&two().bytes(1, 140)).unwrap_err(), Stop::Unknown);
    assert_eq!(parsed(&two().bytes(4, 140)).unwrap_err(), Stop::Unknown);
    assert_eq!(parsed(&two().bytes(3u32.swap_bytes(), 140)).unwrap_err(), Stop::Unknown);
    let nested = [&LIST.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    assert_eq!(parsed(&two().entry("nested", LIST, &nested).bytes(3, 140)).unwrap_err(), Stop::Unknown);
    assert_eq!(parsed(&two().entry("odd", 13, &[]).bytes(3, 140)).unwrap_err(), Stop::Unknown);
}

#[test]
fn a_tensor_of_a_type_without_a_size_reaches_to_the_next() {
    let sizes = |file: &File, data: usize| -> Vec<(String, u64, Option<u64>)> {
        let header = parsed(&file.bytes(3, data)).unwrap();
        header
            .tensors
            .into_iter()
            .map(|tensor| (tensor.name.to_string(), tensor.size, tensor.block))
            .collect()
    };
    let new = |name: &str, size| (name.to_owned(), size, None);
    let file = File::default()
        .tensor("last", &[256], 99, 96)
        .tensor("empty", &[0], 98, 32)
        .tensor("first", &[9, 9], 77, 0)
        .tensor("known", &[3], 0, 64);
    let expected = [new("first", 32), new("empty", 0), ("known".to_owned(), 12, Some(1)), new("last", 45)];
    assert_eq!(sizes(&file, 141), expected);
    // At one place with another of which the same is not known.
    assert!(matches!(fault(&file.tensor("twin", &[1], 99, 0), 140).1, TensorFault::Overlap(_)));
    let past = File::default().tensor("past", &[1], 99, 160);
    assert!(matches!(fault(&past, 140).1, TensorFault::PastEnd { .. }));
}

#[test]
fn a_damaged_tensor_is_named() {
    let odd = |shape: &[u64], kind, offset| fault(&two().tensor("odd", shape, kind, offset), 140).1;
    assert_eq!(odd(&[8], 0, 96), TensorFault::Overlap("blk.0.attn_q.weight".to_owned()));
    assert_eq!(odd(&[8], 0, 100), TensorFault::Alignment { offset: 100, alignment: 32 });
    assert_eq!(odd(&[8], 0, 160), TensorFault::PastEnd { end: 192, data: 140 });
    assert_eq!(odd(&[1], 0, u64::MAX - 31), TensorFault::PastEnd { end: u64::MAX - 27, data: 140 });
    let blocks =
        |dtype: &str, shape: &[u64]| TensorFault::Blocks { dtype: dtype.to_owned(), shape: shape.to_vec() };
    assert_eq!(odd(&[48], 2, 0), blocks("ggml:2", &[48]));
    assert_eq!(odd(&[1 << 40, 1 << 40], 0, 0), blocks("ggml:0", &[1 << 40, 1 << 40]));
    assert_eq!(odd(&[1; 5], 0, 0), TensorFault::Dimensions(5));
    assert_eq!(fault(&two().tensor("output_norm.weight", &[1], 0, 0), 140).1, TensorFault::Twice);
}

#[test]
fn absurd_counts_and_lengths_are_refused_at_once() {
    let good = two().bytes(3, 140);
    let size = good.len() as u64;
    let with = |at: usize, number: u64| {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        parsed(&bytes).unwrap_err()
    };
    for count in [1 << 60, u64::MAX, 1 << 33] {
        let counted = |what| Stop::from(HeaderFault::Count { what, count, size });
        assert_eq!(with(8, count), counted("tensors"));
        assert_eq!(with(16, count), counted("entries of metadata"));
        // The length of the first key, and of its value.
        assert_eq!(with(24, count), Stop::from(HeaderFault::Cut { size }));
        assert_eq!(with(24 + 8 + 20 + 4, count), Stop::from(HeaderFault::Cut { size }));
    }
    for kind in [0u32, 4, TEXT, 12] {
        let list = [&kind.to_le_bytes()[..], &(1u64 << 62).to_le_bytes()].concat();
        let stop = parsed(&two().entry("list", LIST, &list).bytes(3, 140)).unwrap_err();
        assert!(
            matches!(
                stop,
                Stop::Fault(FileFault::Header(HeaderFault::Count { count: 0x4000_0000_0000_0000, .. }))
            ),
            "{stop:?}"
        );
    }
    // More than fits in memory, in a file that could hold it.
    let mut many = good.clone();
    many[8..16].copy_from_slice(&(1u64 << 30).to_le_bytes());
    assert!(matches!(
        parse(&many, 1 << 50),
        Err(Stop::Fault(FileFault::Header(HeaderFault::TooMany { .. })))
    ));
    for alignment in [0u32, 3, 1 << 20] {
        let stop = parsed(&two().entry("general.alignment", 4, &alignment.to_le_bytes()).bytes(3, 140));
        assert_eq!(stop.unwrap_err(), Stop::from(HeaderFault::Alignment(alignment.into())));
    }
    assert_eq!(parsed(b"GGML\x03\0\0\0").unwrap_err(), Stop::from(HeaderFault::Magic));
    assert_eq!(parsed(b"version https://git-lfs").unwrap_err(), Stop::from(HeaderFault::Pointer));
    assert_eq!(parsed(b"GGUF").unwrap_err(), Stop::from(HeaderFault::Short { size: 4 }));
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let good = two().bytes(3, 140);
    for end in 0..good.len() {
        let cut = parsed(&good[..end]);
        assert!(matches!(cut, Err(Stop::Fault(_))), "{end}: {cut:?}");
        // The same bytes as the head of the whole file are only too few.
        let head = parse(&good[..end], good.len() as u64);
        assert!(matches!(head, Err(Stop::Short)) || good.len() - 172 <= end, "{end}: {head:?}");
    }
}

proptest! {
    #[test]
    fn mutated_files_are_sound_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        size in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let mut bytes = two().bytes(3, 140);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let size = size.unwrap_or(bytes.len() as u64);
        let _ = Metadata::read(&bytes);
        if let Ok(header) = parse(&bytes, size) {
            let mut end = 0;
            for tensor in &header.tensors {
                assert!(tensor.size == 0 || end <= tensor.offset);
                end = end.max(tensor.offset + tensor.size);
            }
            assert!(end <= size || header.tensors.iter().all(|tensor| tensor.size == 0));
        }
    }
}
