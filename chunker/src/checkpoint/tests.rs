//! What is loaded of folders that hold more, less or something else than one model.

use std::{fs, path::Path};

use crate::{
    Checkpoint, Group, Options,
    Stack::Decoder,
    TensorFault,
    families::*,
    tests::{Nothing, file, folder, manifest, safetensors},
};

fn read(folder: &Path) -> Checkpoint {
    crate::open(folder, &Options::default(), &Nothing).unwrap()
}

fn fault(files: &[(&str, &[u8])]) -> Option<String> {
    read(folder(files).path()).fault().map(str::to_owned)
}

/// Where each parameter is loaded from.
fn places(checkpoint: &Checkpoint) -> Vec<(&str, &str)> {
    let path = |file: u32| &*checkpoint.files()[file as usize].path;
    checkpoint.tensors().iter().map(|tensor| (&*tensor.name, path(tensor.file))).collect()
}

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn of_several_copies_the_one_that_others_load_is_loaded() {
    let folder = folder(&[
        ("model.fp16.safetensors", &safetensors(&[("a.w", 1, 2), ("b.w", 1, 3)])),
        ("model.safetensors", &safetensors(&[("a.w", 1, 4), ("b.w", 1, 6)])),
        ("adapter.safetensors", &safetensors(&[("c.w", 1, 4)])),
        ("half.safetensors", &safetensors(&[("d.w", 1, 2), ("a.w", 1, 4)])),
        // An index beside the file that holds everything is stale, whatever it says.
        (INDEX, br#"{"weight_map": {"a.w": "model-00001-of-00030.safetensors"}}"#),
    ]);
    let checkpoint = read(folder.path());
    let expected =
        [("a.w", "model.safetensors"), ("b.w", "model.safetensors"), ("c.w", "adapter.safetensors")];
    assert_eq!((places(&checkpoint), checkpoint.fault()), (expected.to_vec(), None));
    // The manifest lists them all, and cuts all at their tensors.
    assert_eq!(checkpoint.manifest().tensors().len(), 7);
    assert_eq!(checkpoint.file("model.fp16.safetensors").unwrap().chunks.len(), 3);
}

#[test]
fn the_index_says_which_shard_counts() {
    let (one, two) = (safetensors(&[("a", 1, 2), ("extra", 1, 1)]), safetensors(&[("a", 1, 3), ("b", 1, 2)]));
    let with = |index: &str| {
        let folder = folder(&[(ONE, &one), (TWO, &two), (INDEX, index.as_bytes())]);
        let checkpoint = read(folder.path());
        assert_eq!(checkpoint.fault(), None, "{index}");
        places(&checkpoint)
            .into_iter()
            .map(|(name, path)| (name.to_owned(), path.to_owned()))
            .collect::<Vec<_>>()
    };
    for (shard, other) in [(ONE, TWO), (TWO, ONE)] {
        let index = format!(r#"{{"weight_map": {{"a": "{shard}", "b": "{TWO}", "extra": "{ONE}"}}}}"#);
        assert_eq!(with(&index)[0], ("a".to_owned(), shard.to_owned()), "not {other}");
    }
    // Without one, the first.
    let folder = folder(&[(ONE, &one), (TWO, &two)]);
    assert_eq!(places(&read(folder.path())), [("a", ONE), ("b", TWO), ("extra", ONE)]);
    // What it does not name comes with its shard.
    let index = format!(r#"{{"weight_map": {{"a": "{TWO}", "b": "{TWO}"}}}}"#);
    assert_eq!(with(&index).len(), 2);
    let index = format!(r#"{{"weight_map": {{"a": "{ONE}", "b": "{TWO}"}}}}"#);
    assert_eq!(with(&index).len(), 3);
}

#[test]
fn an_index_that_names_what_is_not_there_is_told() {
    let (one, two) = (safetensors(&[("a", 1, 2)]), safetensors(&[("b", 1, 2)]));
    let with = |index: &str| {
        fault(&[(ONE, &one), (TWO, &two), ("tokenizer.json", b"{}"), (INDEX, index.as_bytes())])
    };
    let naming =
        |shard: &str| with(&format!(r#"{{"weight_map": {{"a": "{ONE}", "b": "{shard}"}}}}"#)).unwrap();
    for shard in ["../x.safetensors", "/etc/passwd", "sub/../../x", ""] {
        assert!(naming(shard).ends_with("which is outside the folder"), "{shard}");
    }
    assert_eq!(
        naming("model-00003-of-00003.safetensors"),
        "model.safetensors.index.json says that tensor \"b\" is in \
         \"model-00003-of-00003.safetensors\", which is not there"
    );
    assert!(naming(ONE).ends_with("which does not have it"));
    assert!(naming("tokenizer.json").ends_with("which holds no weights"));
    for malformed in ["", "[]", "{}", "{\"weight_map\": 1}", "{\"weight_map\": {\"a\": 1}}"] {
        assert!(with(malformed).unwrap().contains("index.json cannot be read"), "{malformed}");
    }
    let many = vec![r#""a":"b""#; surf_protocol::limits::MANIFEST_TENSORS_MAX + 1].join(",");
    assert!(with(&format!(r#"{{"weight_map": {{{many}}}}}"#)).unwrap().contains("at most 524288 tensors"));
    assert_eq!(with(&format!(r#"{{"weight_map": {{"a": "{ONE}", "b": "{TWO}"}}}}"#)), None);
    let lost = fault(&[(ONE, &one)]).unwrap();
    assert!(lost.ends_with("is one of 2 files, of which 1 are here"), "{lost}");
}

#[test]
fn files_that_are_not_what_they_should_be_are_told() {
    let good = safetensors(&[("a", 2, 50)]);
    let says = |path: &str, bytes: &[u8]| fault(&[(path, bytes), ("config.json", b"{}")]).unwrap();
    let cut = &good[..good.len() - 1];
    for (path, bytes, why) in [
        ("model.safetensors", &b""[..], "it ends before its header begins, after 0 bytes"),
        (
            "model.safetensors",
            cut,
            "tensor \"a\": its bytes end at 100, but the file has only 99 bytes of data",
        ),
        ("weights.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        ("model.safetensors", &file("{}", b""), "it holds no tensors"),
        ("model.gguf", b"GGUF", "it ends before its header begins"),
        ("sub/model.safetensors", b"", "after 0 bytes"),
        ("pytorch_model.bin", b"just words", "it does not begin as its format does"),
    ] {
        let said = says(path, bytes);
        assert!(said.starts_with(&format!("{path} cannot be read as weights: ")), "{said}");
        assert!(said.contains(why) && !said.contains('\n'), "{said}");
    }
    let overlapping = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let said = says("model.safetensors", &file(overlapping, b"123456"));
    assert!(said.ends_with(&TensorFault::Overlap("a".to_owned()).to_string()), "{said}");
    // Nothing else takes the place of what would be loaded first.
    let said = fault(&[("model.safetensors", b""), ("other.safetensors", &good)]).unwrap();
    assert!(said.contains("model.safetensors"), "{said}");
    // But what is beside a good model does not matter.
    assert_eq!(fault(&[("model.safetensors", &good), ("other.safetensors", b""), ("x.gguf", b"")]), None);
    assert_eq!(fault(&[("words.bin", b"just words"), ("config.json", b"{}")]), None);
}

#[test]
fn types_that_cannot_be_computed_with_are_told() {
    let header = r#"{"a":{"dtype":"F4","shape":[6],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let said = fault(&[("model.safetensors", &file(header, b"abcd"))]).unwrap();
    assert_eq!(
        said,
        "tensor \"a\" of model.safetensors is of type F4, which this program does not \
         compute with"
    );
    // Where the family is known, what no pass visits is not missed.
    let header = r#"{"model.layers.0.w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"odd.w":{"dtype":"C64","shape":[1],"data_offsets":[1,9]}}"#;
    let files: &[(&str, &[u8])] =
        &[("model.safetensors", &file(header, &[0; 9])), ("config.json", br#"{"model_type":"llama"}"#)];
    assert_eq!(fault(files), None);
    assert_eq!(read(folder(files).path()).tensors().len(), 1);
}

#[test]
fn pytorchs_files_are_loaded_where_there_are_no_others() {
    let pickles = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pickles");
    let read_file = |name: &str| fs::read(pickles.join(name)).unwrap();
    let (sound, evil, legacy) = (read_file("every.pt"), read_file("evil.pt"), read_file("legacy.pt"));
    let loaded = |files: &[(&str, &[u8])]| {
        let folder = folder(files);
        let checkpoint = read(folder.path());
        (checkpoint.tensors().len(), checkpoint.fault().map(str::to_owned))
    };
    let all = (21, None);
    assert_eq!(loaded(&[("every.pt", &sound)]), all);
    assert_eq!(loaded(&[("pytorch_model.bin", &sound), ("training_args.bin", &evil)]), all);
    assert_eq!(loaded(&[("weights.pth", &sound), ("optimizer.pt", &evil), ("words.bin", b"words")]), all);
    assert_eq!(
        loaded(&[("model.safetensors", &safetensors(&[("a", 2, 5)])), ("model.pt", &sound)]),
        (1, None)
    );
    for (path, bytes, why) in [
        ("model.pt", &evil, "posix.system"),
        ("pytorch_model.bin", &evil, "posix.system"),
        ("model.pt", &legacy, "before 1.6"),
        ("pytorch_model.bin", &legacy, "before 1.6"),
    ] {
        let (tensors, fault) = loaded(&[(path, bytes)]);
        let fault = fault.unwrap();
        assert!(tensors == 0 && fault.contains(path) && fault.contains(why), "{fault}");
    }
    let overlapping = read_file("overlapping.pt");
    assert!(loaded(&[("pytorch_model.bin", &overlapping)]).1.unwrap().contains("overlap"));
}

#[test]
fn a_gguf_file_beside_a_known_family_is_a_copy() {
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/llama-q8_0.gguf");
    let gguf = fs::read(gguf).unwrap();
    let known = safetensors(&[("model.layers.0.up.w", 1, 4)]);
    let config = br#"{"model_type": "llama"}"#;
    let one = folder(&[("model.safetensors", &known), ("m.gguf", &gguf), ("config.json", config)]);
    assert_eq!(places(&read(one.path())), [("model.layers.0.up.w", "model.safetensors")]);
    let alone = folder(&[("m.gguf", &gguf), ("config.json", config)]);
    let checkpoint = read(alone.path());
    assert!(
        checkpoint.group(&Group::Layer(Decoder, 0)).is_some() && checkpoint.tensor("output.weight").is_some()
    );
    // Its bytes are cut alike.
    let (beside, alone) = (manifest(one.path()), manifest(alone.path()));
    assert_eq!(beside.file("m.gguf"), alone.file("m.gguf"));
}

/// A family that is made known at run time changes what readers see, and no id.
#[test]
fn a_new_family_changes_groups_and_no_id() {
    const NEW: Family = Family {
        model_types: &[("new", Architecture::Llama)],
        classes: &[],
        roots: &["trunk."],
        rules: &[("table", Part::Embed), ("cell.#", Part::Layer(Stack::Decoder)), ("norm", Part::Head)],
        beside: &[],
    };
    let tensors =
        safetensors(&[("trunk.table.w", 9, 70), ("trunk.cell.0.up.w", 300, 90), ("trunk.cell.0.n.w", 1, 9)]);
    let folder = folder(&[("model.safetensors", &tensors), ("config.json", br#"{"model_type": "new"}"#)]);
    let before = read(folder.path());
    let mut families = Families::default();
    families.0.push(NEW);
    let files = crate::list(folder.path(), &Options::default()).unwrap();
    let again = manifest(folder.path());
    assert_eq!(again.id(), before.manifest().id());
    let after = Checkpoint::read(again.into(), &families, &crate::OnDisk(&files)).unwrap();
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        checkpoint.groups().iter().map(|entry| entry.group.to_string()).collect()
    };
    assert_eq!(names(&before), ["trunk.cell.0", "trunk.table"]);
    assert_eq!(names(&after), ["embed", "layer 0"]);
    let by_names = crate::groups(after.manifest(), &families);
    assert_eq!(by_names.len(), 2);
}
