//! Rules of the house that neither the compiler nor clippy knows; `docs/architecture.md` gives the reasons.
//!
//! Every file of the workspace is read as text: comments and literals are blanked first, so a rule
//! sees code only, and code under `#[cfg(test)]` is told apart (`tidy/code.rs`). Each rule is a function from
//! text to complaints, and is shown a breach of itself (`tidy/breaches.rs`).

#[path = "tidy/breaches.rs"]
mod breaches;
#[path = "tidy/code.rs"]
mod code;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use code::{Named, blanked, depth, from_root, paths, without_tests};

/// The crates, each with those it may import. A workspace member is in this list.
const CRATES: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("chunker", &["surf-protocol"]),
    ("node/kernels", &[]),
    ("node", &["surf-protocol", "surf-chunker", "surf-kernels"]),
    ("sim", &["surf-protocol", "surf-chunker", "surf-kernels", "surf-node"]),
    ("tests", &["surf-protocol", "surf-chunker", "surf-node", "surf-sim"]),
];

/// Crates that are no members of the workspace, each with those it may import.
const OUTSIDE: &[(&str, &[&str])] = &[("tests/fuzz", &["surf-protocol", "surf-chunker"])];

/// What other programs write into our folders; git ignores it, and so do the rules.
const WRITTEN: &[&str] =
    &["tests/fuzz/target", "tests/fuzz/corpus", "tests/fuzz/artifacts", "tests/fuzz/coverage"];

/// Modules of `node` that put parts together. Each may import what follows it here, and any of [`LAYERS`].
const ASSEMBLY: &[&str] = &["cli", "rpc", "node", "publish"];

/// The other modules of `node`, each with those it may import. There are no cycles.
const LAYERS: &[(&str, &[&str])] = &[
    ("engine", &["weights"]),
    ("weights", &["source"]),
    ("swarm", &["fetch", "identity", "members"]),
    ("transfer", &["fetch", "source", "identity", "members"]),
    ("fetch", &["source", "store"]),
    ("store", &["source"]),
    ("origin", &["source"]),
    ("source", &[]),
    ("identity", &["secret"]),
    ("members", &["secret"]),
    ("secret", &[]),
    ("allocator", &[]),
    ("api", &[]),
    ("config", &["members"]),
    ("journal", &[]),
];

/// Modules of `node` that hold values only, and that every other may import.
const COMMON: &[&str] = &["config", "journal"];

/// Dependencies, and the only places whose code may name them. A place is a folder, a file or a module.
const OWNERS: &[(&[&str], &[&str])] = &[
    (&["libp2p"], &["node/src/swarm", "node/src/identity"]),
    (&["quinn", "quinn_proto"], &["node/src/transfer", "node/src/identity", "sim"]),
    (&["hmac"], &["node/src/transfer/proof"]),
    (&["sled", "memmap2"], &["node/src/store"]),
    (&["libc"], &["node/src/store", "node/src/allocator"]),
    (
        &["candle_core", "gemm", "fancy_regex", "tokenizers", "minijinja", "minijinja_contrib"],
        &["node/src/engine"],
    ),
    (&["axum"], &["node/src/rpc"]),
    (&["clap", "clap_complete"], &["node/src/cli", "node/src/main", "sim"]),
    (&["object_store"], &["node/src/origin"]),
    (&["bincode"], &["protocol/src/wire"]),
    (&["safetensors"], &["chunker", "node/src/rpc", "sim"]),
];

/// What a crate's code must not name, so that it stays what it is.
const PURE: &[(&str, &[&str])] = &[
    (
        "protocol",
        &["std::fs", "std::env", "std::thread", "std::process", "std::time", "tokio", "futures", "rand"],
    ),
    ("chunker", &["std::env", "tokio", "futures", "rand"]),
];

/// Modules of `chunker` that make manifests, and what they must not see: what is known of families and types
/// changes, and nothing that is hashed may depend on it.
const BLIND: (&[&str], &[&str]) = (
    &[
        "chunker/src/cut",
        "chunker/src/format",
        "chunker/src/gguf",
        "chunker/src/hash",
        "chunker/src/header",
        "chunker/src/list",
        "chunker/src/pickle",
        "chunker/src/plan",
        "protocol/src/manifest",
        "protocol/src/stem",
    ],
    &["families", "checkpoint", "Families", "Family", "Checkpoint", "Group", "Dtype"],
);

/// Where the environment may be read.
const ENVIRONMENT: &[&str] = &["node/src/cli", "node/src/main", "sim", "tests"];

/// Text that other programs made, kept as it came.
const FOREIGN: &[&str] = &["tests/fixtures/models", "node/assets"];

const LINES_MAX: usize = 600;

#[test]
fn the_house_is_tidy() {
    let files = committed(root());
    assert!(files.contains_key("protocol/src/lib.rs") && files.contains_key("tests/tidy.rs"), "read what?");
    let only_tests = test_files(&files);
    let mut broken = members(&files["Cargo.toml"]);
    for (name, text) in &files {
        broken.extend(whitespace(name, text));
        if let Some(folder) = name.strip_suffix("/Cargo.toml") {
            broken.extend(crate_directions(folder, text));
        }
        if name.ends_with(".rs") {
            let is_test = only_tests.iter().any(|place| within(name, place));
            broken.extend(rust(name, text, is_test));
        }
    }
    assert!(broken.is_empty(), "{} breaches of house rules:\n{}", broken.len(), broken.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests have a folder in the workspace")
}

/// What a page quotes of a file, and says so before the block, is all of that file.
#[test]
fn quoted_files_are_as_they_are() {
    let files = committed(root());
    let mut quoted = 0;
    for (page, text) in files.iter().filter(|(name, _)| name.ends_with(".md")) {
        for part in text.split("<!-- file: ").skip(1) {
            let (name, rest) = part.split_once(" -->\n```rust\n").expect("a block of Rust follows");
            let (block, _) = rest.split_once("\n```").expect("the block ends");
            assert_eq!(block, files[name].trim_end(), "{page} quotes {name}");
            quoted += 1;
        }
    }
    assert!(0 < quoted);
}

/// Every rule about one Rust file. `is_test` if all of it is test code.
fn rust(name: &str, text: &str, is_test: bool) -> Vec<String> {
    let all = blanked(text);
    let code = if is_test || within(name, "tests") { String::new() } else { without_tests(&all) };
    let paths = paths(&code);
    let mut broken = shape(name, text);
    broken.extend(words(name, &all, &["unbounded", "todo!", "unimplemented!", "dbg!"]));
    broken.extend(words(name, &code, &[".unwrap()"]));
    broken.extend(environment(name, &paths));
    broken.extend(owners(name, &paths));
    broken.extend(purity(name, &paths));
    broken.extend(blindness(name, &paths));
    broken.extend(layers(name, &paths));
    // One `use` may name many things of one place.
    broken.dedup();
    broken
}

// The rules.

fn members(manifest: &str) -> Vec<String> {
    let list = manifest.split("\nmembers = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("");
    let members: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    if members == CRATES.iter().map(|(name, _)| *name).collect() {
        return Vec::new();
    }
    vec![format!("Cargo.toml: members are {members:?}; say in tests/tidy.rs what each may import")]
}

fn crate_directions(folder: &str, manifest: &str) -> Vec<String> {
    let below =
        CRATES.iter().chain(OUTSIDE).find(|(name, _)| *name == folder).map_or(&[][..], |(_, below)| below);
    let ours = manifest.lines().filter_map(|line| {
        let name = line.split(['.', '=', ' ', ']']).next()?;
        let table = line.split("dependencies.").nth(1).and_then(|rest| rest.split(']').next());
        table.or(Some(name)).filter(|name| name.starts_with("surf-"))
    });
    ours.filter(|name| !below.contains(name))
        .map(|name| format!("{folder}/Cargo.toml: depends on `{name}`, which is not below `{folder}`"))
        .collect()
}

fn whitespace(name: &str, text: &str) -> Vec<String> {
    if FOREIGN.iter().any(|place| within(name, place)) {
        return Vec::new();
    }
    let mut broken = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.contains('\t') {
            broken.push(format!("{name}:{}: has a tab", at + 1));
        }
        if line.ends_with([' ', '\r']) {
            broken.push(format!("{name}:{}: ends in a space", at + 1));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        broken.push(format!("{name}: does not end its last line"));
    }
    broken
}

fn shape(name: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if !text.starts_with("//! ") {
        broken.push(format!("{name}: does not open with `//!` and what it is for"));
    }
    let lines = text.lines().count();
    if LINES_MAX < lines {
        broken.push(format!("{name}: has {lines} lines; with more than {LINES_MAX} readers get lost"));
    }
    broken
}

fn words(name: &str, code: &str, forbidden: &[&str]) -> Vec<String> {
    let lines = code.lines().enumerate();
    let found = lines.flat_map(|(at, line)| {
        forbidden.iter().filter(|word| line.contains(**word)).map(move |word| (at + 1, *word))
    });
    found.map(|(line, word)| format!("{name}:{line}: has `{word}`")).collect()
}

fn environment(name: &str, paths: &[Named]) -> Vec<String> {
    if ENVIRONMENT.iter().any(|place| within(name, place)) {
        return Vec::new();
    }
    let reads = |path: &&Named| path.parts.windows(2).any(|two| two[0] == "env" && two[1].starts_with("var"));
    let complain = |path: &Named| format!("{name}:{}: reads the environment; take a setting", path.line);
    paths.iter().filter(reads).map(complain).collect()
}

fn owners(name: &str, paths: &[Named]) -> Vec<String> {
    let mut broken = Vec::new();
    for (dependencies, places) in OWNERS {
        if places.iter().any(|place| within(name, place)) {
            continue;
        }
        for path in paths.iter().filter(|path| dependencies.contains(&path.parts[0].as_str())) {
            let (line, dependency) = (path.line, &path.parts[0]);
            broken.push(format!("{name}:{line}: names `{dependency}`, which only {places:?} may"));
        }
    }
    broken
}

fn purity(name: &str, paths: &[Named]) -> Vec<String> {
    let mut broken = Vec::new();
    for (place, forbidden) in PURE.iter().filter(|(place, _)| within(name, place)) {
        for path in paths {
            let whole = path.parts.join("::");
            if forbidden.iter().any(|start| whole == *start || whole.starts_with(&format!("{start}::"))) {
                broken.push(format!("{name}:{}: names `{whole}`, which is not for `{place}`", path.line));
            }
        }
    }
    broken
}

fn blindness(name: &str, paths: &[Named]) -> Vec<String> {
    let (places, unseen) = BLIND;
    if !places.iter().any(|place| within(name, place)) {
        return Vec::new();
    }
    let sees = |path: &&Named| path.parts.iter().any(|part| unseen.contains(&part.as_str()));
    let complain = |path: &Named| {
        format!("{name}:{}: names `{}`, on which no model's id may depend", path.line, path.parts.join("::"))
    };
    paths.iter().filter(sees).map(complain).collect()
}

fn layers(name: &str, paths: &[Named]) -> Vec<String> {
    let Some(inside) = name.strip_prefix("node/src/") else { return Vec::new() };
    let module = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if inside == "lib.rs" || inside == "main.rs" {
        return Vec::new();
    }
    let Some(below) = below(module) else {
        return vec![format!("{name}: `{module}` is in no layer; give it one in tests/tidy.rs")];
    };
    let mut broken = Vec::new();
    for path in paths {
        let Some(root) = from_root(path, depth(inside)) else { continue };
        // `crate::Config` is `crate::config::Config`, and so on.
        let imported = root.to_lowercase();
        if imported != module && !below.contains(&imported.as_str()) {
            broken.push(format!("{name}:{}: imports `{root}`, which is not below `{module}`", path.line));
        }
    }
    broken
}

/// The modules that `module` may import.
fn below(module: &str) -> Option<Vec<&'static str>> {
    let layers = LAYERS.iter().map(|(name, _)| *name);
    if let Some(at) = ASSEMBLY.iter().position(|name| *name == module) {
        return Some(ASSEMBLY[at + 1..].iter().copied().chain(layers).collect());
    }
    let (_, below) = LAYERS.iter().find(|(name, _)| *name == module)?;
    let common = COMMON.iter().filter(|_| !COMMON.contains(&module));
    Some(below.iter().chain(common).copied().collect())
}

// Reading the workspace.

/// Our own text files: those of the root, of the members, of `docs` and of `.ci`, by their path.
fn committed(root: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let folders = CRATES.iter().map(|(name, _)| *name).chain(["docs", ".ci"]);
    let mut to_read: Vec<PathBuf> =
        folders.map(|name| root.join(name)).filter(|path| path.is_dir()).collect();
    let mut add = |path: &Path| {
        let name =
            path.strip_prefix(root).expect("found under the root").to_string_lossy().replace('\\', "/");
        let ours = [".rs", ".toml", ".md", ".py", ".sh", ".ci/run", ".gitignore"]
            .iter()
            .any(|end| name.ends_with(end));
        if ours || name.starts_with("LICENSE") {
            let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"));
            files.insert(name, text);
        }
    };
    entries(root).iter().filter(|path| path.is_file()).for_each(|path| add(path));
    while let Some(folder) = to_read.pop() {
        for path in entries(&folder) {
            // A link may lead anywhere, also back.
            match path.symlink_metadata().expect("was just listed") {
                meta if meta.is_dir() && !WRITTEN.iter().any(|written| path.ends_with(written)) => {
                    to_read.push(path);
                }
                meta if meta.is_file() => add(&path),
                _ => (),
            }
        }
    }
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("a readable folder").path()).collect()
}

/// Whether the file `name` is `place`, or in the folder or module `place`.
fn within(name: &str, place: &str) -> bool {
    let rest = name.strip_prefix(place);
    rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}

/// The modules in files of their own that are compiled for tests only, as places.
fn test_files(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".rs")) {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let own = match file.trim_end_matches(".rs") {
            "mod" | "lib" | "main" => folder.to_owned(),
            stem => format!("{folder}/{stem}"),
        };
        let code = blanked(text);
        for after in code.split("#[cfg(test)]").skip(1) {
            let item = after.split([';', '{']).next().unwrap_or("");
            let mut words = item.split_whitespace().skip_while(|word| *word != "mod").skip(1);
            if let Some(module) = words.next().filter(|_| after[item.len()..].starts_with(';')) {
                found.push(format!("{own}/{module}"));
            }
        }
    }
    // Cargo's own folders for tests, benchmarks and examples.
    let folders = CRATES
        .iter()
        .flat_map(|(name, _)| ["tests", "benches", "examples"].map(|kind| format!("{name}/{kind}")));
    found.extend(folders);
    found
}
