//! What is in a folder, and where it is cut.

use std::os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener};

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

const GOLDEN: &str = "2ed6c14ed942e6372752f3562d3e43baa2ec80883d29b629be56ac64a898a160";

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
            manifest.tensor_pieces(manifest.tensor(name).unwrap()).collect()
        };
        assert_eq!(pieces(&alone), pieces(&sharded));
        assert_eq!(pieces(&alone).len(), chunks);
        assert!(pieces(&alone).iter().all(|piece| piece.range == (0..piece.chunk.size)));
    }
}

#[test]
fn of_several_copies_the_one_that_others_load_is_listed() {
    let folder = folder(&[
        ("model.fp16.safetensors", &safetensors(&[("a.w", 1, 2), ("b.w", 1, 3)])),
        ("model.safetensors", &safetensors(&[("a.w", 1, 4), ("b.w", 1, 6)])),
        ("adapter.safetensors", &safetensors(&[("c.w", 1, 4)])),
        ("half.safetensors", &safetensors(&[("d.w", 1, 2), ("a.w", 1, 4)])),
    ]);
    let manifest = manifest(folder.path());
    assert_eq!(
        manifest.tensors().iter().map(|tensor| &*tensor.name).collect::<Vec<_>>(),
        ["a.w", "b.w", "c.w"]
    );
    assert_eq!(manifest.tensor("a.w").unwrap().size, 4);
    // Cut at its tensors all the same.
    assert_eq!(manifest.file("model.fp16.safetensors").unwrap().chunks.len(), 3);
}

#[test]
fn a_file_with_types_we_lack_is_published_without_its_tensors() {
    let header = r#"{"a":{"dtype":"F4","shape":[6],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let folder = folder(&[("model.safetensors", &file(header, b"abcd"))]);
    let manifest = manifest(folder.path());
    assert_eq!((manifest.tensors().len(), manifest.groups().len()), (0, 0));
    assert_eq!(manifest.files()[0].chunks.len(), 1);
}

#[test]
fn names_without_a_known_family_are_grouped_by_number() {
    let tensors = safetensors(&[("h.10.w", 1, 2), ("h.2.b", 1, 2), ("h.2.w", 1, 2), ("wte.w", 1, 2)]);
    for config in ["", "{\"model_type\":\"new\"}"] {
        let folder = folder(&[("model.safetensors", &tensors), ("config.json", config.as_bytes())]);
        let manifest = manifest(folder.path());
        let groups: Vec<_> =
            manifest.groups().iter().map(|entry| (entry.group.to_string(), entry.tensors.len())).collect();
        let expected = [("h.2", 2), ("h.10", 1), ("wte", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(groups, expected);
    }
}

fn models(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
}

fn groups(manifest: &Manifest) -> Vec<String> {
    manifest.groups().iter().map(|entry| entry.group.to_string()).collect()
}

#[test]
fn files_of_pytorch_are_grouped_and_cut_like_others() {
    let manifest = manifest(&models("llama-pickled"));
    assert_eq!(groups(&manifest)[..4], ["embed", "block 0", "block 1", "head"]);
    let up = manifest.tensor("model.layers.1.mlp.up_proj.weight").unwrap();
    assert_eq!((up.dtype, &up.shape[..]), (surf_protocol::Dtype::F32, &[72, 40][..]));
    assert_eq!(manifest.files()[up.file as usize].path, "pytorch_model-00002-of-00002.bin");
    assert_eq!(
        groups(&self::manifest(&models("bert-pickled")))[..3],
        ["embed", "encoder block 0", "encoder block 1"]
    );
}

#[test]
fn an_index_of_pytorchs_answers_for_its_shards() {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models("llama-pickled")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    fs::remove_file(copy.path().join("pytorch_model-00002-of-00002.bin")).unwrap();
    let error = refused(copy.path());
    assert!(matches!(error, CutError::Index { fault: IndexFault::MissingShard { .. }, .. }), "{error}");
    // Beside safetensors they are just bytes, whole or not.
    fs::write(copy.path().join("model.safetensors"), safetensors(&[("a", 2, 50)])).unwrap();
    let manifest = manifest(copy.path());
    assert!(manifest.tensor("a").is_some() && manifest.tensor("model.embed_tokens.weight").is_none());
}

#[test]
fn a_file_of_pytorchs_is_weights_where_there_are_no_others() {
    let pickles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pickles");
    let read = |name: &str| fs::read(pickles.join(name)).unwrap();
    let (sound, evil, legacy) = (read("every.pt"), read("evil.pt"), read("legacy.pt"));
    let listed = |files: &[(&str, &[u8])]| {
        let folder = folder(files);
        cut(folder.path(), &Options::default(), &Nothing).map(|manifest| manifest.tensors().len())
    };
    let all = listed(&[("every.pt", &sound)]).unwrap();
    assert_eq!(all, 21);
    assert_eq!(listed(&[("pytorch_model.bin", &sound), ("training_args.bin", &evil)]).unwrap(), all);
    assert_eq!(
        listed(&[("weights.pth", &sound), ("optimizer.pt", &evil), ("words.bin", b"words")]).unwrap(),
        all
    );
    assert_eq!(listed(&[("sub/pytorch_model.bin", &evil)]).unwrap(), 0);
    assert_eq!(listed(&[("words.bin", b"just words")]).unwrap(), 0);
    for (name, bytes) in [("model.pt", &evil), ("pytorch_model.bin", &evil)] {
        let error = listed(&[(name, bytes)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("posix.system"), "{error}");
    }
    assert!(listed(&[("a.pt", &legacy)]).unwrap_err().to_string().contains("before 1.6"));
    let error = listed(&[("pytorch_model.bin", b"just words")]).unwrap_err().to_string();
    assert!(error.contains("does not begin as its format does"), "{error}");
}
