//! What the fixtures are cut into. Models like these are out there: whatever changes in the program, these ids stay.
//!
//! If this fails, the change breaks the promise that a model's id depends on its files alone: undo it, or raise
//! [`FORMAT`](surf_protocol::manifest::FORMAT). Do not edit `golden.txt` for any other reason. To write it anew, set
//! `SURF_WRITE_GOLDEN`.

use super::*;

/// The id of each folder or file, and for each file of weights how it is cut.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn every_fixture_has_the_id_that_it_always_had() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = String::new();
    for path in fixtures(&root) {
        let manifest = manifest(&root.join(&path));
        found += &format!("{path} {}\n", manifest.id().to_hex());
        for (at, file) in manifest.files().iter().enumerate() {
            let tensors = manifest.tensors_of(at as u32);
            if !tensors.is_empty() {
                found += &format!("  {} {} tensors: {}\n", file.path, tensors.len(), runs(file));
            }
        }
    }
    let golden = root.join("chunker/src/tests/golden.txt");
    if option_env!("SURF_WRITE_GOLDEN").is_some() {
        fs::write(golden, &found).unwrap();
    }
    for (found, golden) in found.lines().zip(GOLDEN.lines()) {
        assert_eq!(found, golden);
    }
    assert_eq!(found.lines().count(), GOLDEN.lines().count());
}

/// Folders of models, and files that are models by themselves, by their path from the root.
fn fixtures(root: &Path) -> Vec<String> {
    let within = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| format!("{folder}/{name}")).collect::<Vec<_>>()
    };
    let mut paths =
        vec!["node/assets/tiny-surfer".to_owned(), "tests/fixtures/packed.safetensors".to_owned()];
    for folder in ["models", "models/variants", "pickles", "gguf"] {
        paths.extend(within(&format!("tests/fixtures/{folder}")));
    }
    let is_model = |path: &String| !path.ends_with("/variants") && !path.ends_with(".json");
    paths.retain(is_model);
    paths.sort();
    paths
}

/// Sizes of chunks, those that follow each other and are equal as one.
fn runs(file: &surf_protocol::FileEntry) -> String {
    let mut runs: Vec<(u32, usize)> = Vec::new();
    for chunk in &file.chunks {
        match runs.last_mut().filter(|(size, _)| *size == chunk.size) {
            Some((_, count)) => *count += 1,
            None => runs.push((chunk.size, 1)),
        }
    }
    let run = |(size, count): &(u32, usize)| match count {
        1 => size.to_string(),
        count => format!("{size}x{count}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(" ")
}
