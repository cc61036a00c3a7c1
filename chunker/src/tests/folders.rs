//! What is in a folder, and where it is cut.

use std::os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener};

use surf_protocol::manifest::ManifestError;

use crate::plan;

use super::*;

fn paths(manifest: &Manifest) -> Vec<&str> {
    manifest.files().iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn odd_files_are_published_as_they_are() {
    let folder = folder(&[
        (".gitattributes", b"*.bin lfs"),
        ("empty", b""),
        ("one two/Grüße 波.txt", b"surf"),
        ("one-two", b"sorts between"),
        (".git/config", b"not this"),
        (".cache/huggingface/x", b"nor this"),
        (".surf-export-abc123", b"nor this, which a node was writing"),
        ("sub/.git/config", b"nor this"),
        ("unread.bin", &noise("unread", plan::MAX as usize + 5)),
    ]);
    fs::create_dir_all(folder.path().join("nothing/in here")).unwrap();
    symlink("one two/Grüße 波.txt", folder.path().join("link")).unwrap();
    symlink("one two", folder.path().join("linked folder")).unwrap();
    let manifest = manifest(folder.path());
    assert_eq!(
        paths(&manifest),
        [
            ".gitattributes",
            "empty",
            "link",
            "linked folder/Grüße 波.txt",
            "one two/Grüße 波.txt",
            "one-two",
            "unread.bin"
        ]
    );
    assert_eq!(manifest.file("empty").unwrap().chunks, []);
    assert_eq!(manifest.file("link").unwrap().chunks, manifest.file("one two/Grüße 波.txt").unwrap().chunks);
    let sizes: Vec<u32> =
        manifest.file("unread.bin").unwrap().chunks.iter().map(|chunk| chunk.size).collect();
    assert_eq!(sizes, [plan::MAX as u32, 5]);
}

#[test]
fn a_manifest_does_not_depend_on_where_the_folder_is() {
    let files: &[(&str, &[u8])] =
        &[("a/b", b"1"), ("c", b"2"), ("model.safetensors", &safetensors(&[("t", 2, 3)]))];
    let (one, two) = (folder(files), folder(files));
    let link = one.path().with_extension("link");
    symlink(one.path(), &link).unwrap();
    assert_eq!(manifest(one.path()).id(), manifest(two.path()).id());
    assert_eq!(manifest(one.path()).id(), manifest(&link).id());
    fs::remove_file(link).unwrap();
    // Manifests like this are out there. If this fails, raise `FORMAT`; do not edit the expectation.
    assert_eq!(manifest(one.path()).id().to_hex(), GOLDEN);
}

const GOLDEN: &str = "cf74a28b6eaa7b99eb7ea6b88c7552b9e28bebcf903c3b5cebcc43473a00ae59";

#[test]
fn a_file_is_published_under_its_name() {
    let folder = folder(&[("model.safetensors.index.json", b"{\"weight_map\":{\"a\":\"b\"}}")]);
    let manifest = manifest(&folder.path().join("model.safetensors.index.json"));
    assert_eq!(paths(&manifest), ["model.safetensors.index.json"]);
}

#[test]
fn links_out_of_the_folder_are_refused_unless_followed() {
    let outside = folder(&[("secret", b"key"), ("sub/x", b"y")]);
    for target in ["secret", "sub"] {
        let folder = folder(&[("a", b"1")]);
        symlink(outside.path().join(target), folder.path().join("link")).unwrap();
        let error = refused(folder.path());
        assert!(matches!(&error, CutError::LinkLeaves { link, .. } if *link == folder.path().join("link")));
        let followed = cut(folder.path(), &Options { follow_links: true }, &Nothing).unwrap();
        assert_eq!(paths(&followed)[1], if target == "sub" { "link/x" } else { "link" });
    }
}

#[test]
fn a_snapshot_in_a_hugging_face_cache_works() {
    let cache = folder(&[
        ("models--org--name/blobs/abc", b"{}"),
        ("models--org--name/blobs/def", b"weights"),
        ("models--org--other/blobs/abc", b"not ours"),
        ("models--org--name/refs/main", b"rev"),
    ]);
    let snapshot = cache.path().join("models--org--name/snapshots/rev");
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    symlink("../../blobs/abc", snapshot.join("config.json")).unwrap();
    symlink("../../../blobs/def", snapshot.join("sub/weights.bin")).unwrap();
    assert_eq!(paths(&manifest(&snapshot)), ["config.json", "sub/weights.bin"]);
    assert_eq!(paths(&manifest(&snapshot.join("sub"))), ["weights.bin"]);
    assert_eq!(paths(&manifest(&snapshot.join("config.json"))), ["config.json"]);
    // Only its own blobs.
    for target in ["../../../models--org--other/blobs/abc", "../../refs/main"] {
        symlink(target, snapshot.join("odd")).unwrap();
        assert!(matches!(refused(&snapshot), CutError::LinkLeaves { .. }), "{target}");
        fs::remove_file(snapshot.join("odd")).unwrap();
    }
}

#[test]
fn what_cannot_be_published_is_named() {
    let refused = |make: &dyn Fn(&Path)| {
        let folder = folder(&[("sub/a", b"1")]);
        let path = folder.path().join("sub/odd");
        make(&path);
        let error = refused(folder.path());
        assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
        error
    };
    let error = refused(&|path| symlink("nowhere", path).unwrap());
    assert!(matches!(error, CutError::LinkBroken { .. }));
    let error = refused(&|path| symlink("odd", path).unwrap());
    assert!(matches!(error, CutError::LinkBroken { .. }));
    let error = refused(&|path| symlink("../sub", path).unwrap());
    assert!(matches!(error, CutError::LinkLoop { .. }));
    let error = refused(&|path| drop(UnixListener::bind(path).unwrap()));
    assert!(matches!(error, CutError::Special { .. }));

    let odd = folder(&[("a", b"1")]);
    fs::write(odd.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), b"").unwrap();
    assert!(matches!(super::refused(odd.path()), CutError::NotUtf8 { .. }));
    assert!(matches!(super::refused(folder(&[("a\\b", b"")]).path()), CutError::Name { .. }));
    assert!(matches!(super::refused(Path::new("/no/such/model")), CutError::Io { .. }));
}

#[test]
fn a_shared_tensor_has_the_same_chunks_wherever_it_stands() {
    let (shared, large) = (("shared.1.w", 300, 1000), ("shared.2.w", 5, 3 << 18));
    let alone = folder(&[(
        "model.safetensors",
        &safetensors(&[("a.0.bias", 1, 10), shared, ("b.7.w", 9, 9999), large]),
    )]);
    let sharded = folder(&[
        ("model-00001-of-00002.safetensors", &safetensors(&[large, ("other.0.w", 3, 77)])),
        ("model-00002-of-00002.safetensors", &safetensors(&[("other.1.norm.bias.long", 1, 11), shared])),
        (
            "model.safetensors.index.json",
            br#"{"weight_map": {"shared.2.w": "model-00001-of-00002.safetensors",
                "other.0.w": "model-00001-of-00002.safetensors",
                "other.1.norm.bias.long": "model-00002-of-00002.safetensors",
                "shared.1.w": "model-00002-of-00002.safetensors"}}"#,
        ),
    ]);
    let (alone, sharded) = (manifest(alone.path()), manifest(sharded.path()));
    for (name, chunks) in [("shared.1.w", 1), ("shared.2.w", 3)] {
        let pieces = |manifest: &Manifest| -> Vec<_> {
            let tensor = manifest.tensors().iter().find(|tensor| &*tensor.name == name).unwrap();
            manifest.tensor_pieces(tensor).collect()
        };
        assert_eq!(pieces(&alone), pieces(&sharded));
        assert_eq!(pieces(&alone).len(), chunks);
        assert!(pieces(&alone).iter().all(|piece| piece.range == (0..piece.chunk.size)));
    }
}

/// The same bytes are cut the same way, whatever they are called and whatever lies beside them.
#[test]
fn a_file_is_cut_by_its_bytes_alone() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let read = |path: &str| fs::read(fixtures.join(path)).unwrap();
    let (gguf, pickle) =
        (read("gguf/llama-q8_0.gguf"), read("models/llama-pickled/pytorch_model-00001-of-00002.bin"));
    let weights = safetensors(&[("model.layers.0.w", 300, 1000), ("model.layers.0.b", 1, 10)]);
    let alone = |path: &str, bytes: &[u8]| {
        let folder = folder(&[(path, bytes)]);
        let manifest = manifest(folder.path());
        assert!(!manifest.tensors().is_empty(), "{path}");
        (manifest.files()[0].chunks.clone(), manifest.tensors().to_vec())
    };
    for (path, bytes) in [("a.safetensors", &weights), ("a.gguf", &gguf), ("a.bin", &pickle)] {
        let (chunks, tensors) = alone(path, bytes);
        for other in ["sha256-0a1b", "a.txt", "sub/a.safetensors"] {
            assert_eq!(alone(other, bytes), (chunks.clone(), tensors.clone()), "{other}");
        }
        let beside = folder(&[
            ("model.safetensors", &weights),
            ("config.json", br#"{"model_type":"llama"}"#),
            ("x/file", bytes),
            ("y.gguf", &gguf),
        ]);
        assert_eq!(manifest(beside.path()).file("x/file").unwrap().chunks, chunks, "{path}");
        let mut from_memory = Vec::new();
        let (entry, again) =
            cut_file("x/file", bytes.len() as u64, &mut Cursor::new(bytes), |chunk, offset| {
                from_memory.push((chunk.bytes().len() as u32, offset));
                Ok::<_, io::Error>(())
            })
            .unwrap();
        assert_eq!((&entry, again.len()), (manifest(beside.path()).file("x/file").unwrap(), tensors.len()));
        assert_eq!(from_memory.len(), chunks.len());
    }
}

#[test]
fn an_embedding_in_bytes_of_blocks_is_cut_at_its_rows() {
    let bytes =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/packed.safetensors")).unwrap();
    let folder = folder(&[("model.safetensors", &bytes)]);
    let checkpoint = open(folder.path(), &Options::default(), &Nothing).unwrap();
    assert_eq!(checkpoint.fault(), None);
    for (tensor, listed) in checkpoint.tensors().iter().zip(checkpoint.manifest().tensors()) {
        assert_eq!(*tensor.name, *listed.name);
        let is_packed = listed.dtype.as_str().starts_with("U8:");
        assert_eq!(is_packed, 1 < tensor.dtype.block().elements, "{}", tensor.name);
    }
}

/// Each file could be listed; all together could not, and are not held in memory to find out.
#[test]
fn names_of_all_files_together_have_a_limit() {
    let member = |at: usize| format!(r#""{at:01000}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let json = format!("{{{}}}", (0..30_000).map(member).collect::<Vec<_>>().join(","));
    let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let folder = folder(&[("a", &file), ("b", &file), ("c", &file)]);
    let error = refused(folder.path());
    assert!(matches!(error, CutError::Manifest(ManifestError::TooLarge)), "{error}");
    fs::remove_file(folder.path().join("c")).unwrap();
    assert_eq!(manifest(folder.path()).tensors().len(), 60_000);
}
