//! The rules of `tidy.rs`, each shown a breach and its absence: a rule that cannot complain is no rule.

use super::*;

/// The complaints about `code` in a file that says what it is for.
fn complaints(name: &str, code: &str) -> Vec<String> {
    rust(name, &format!("//! A file.\n{code}\n"), false)
}

#[track_caller]
fn refused(name: &str, code: &str, why: &str) {
    let broken = complaints(name, code);
    assert!(broken.len() == 1 && broken[0].contains(why), "{name}: {code}\n{broken:?} has no {why:?}");
}

#[track_caller]
fn accepted(name: &str, code: &str) {
    assert_eq!(complaints(name, code), Vec::<String>::new(), "{name}: {code}");
}

#[test]
fn imports_go_downward() {
    refused("node/src/fetch/mod.rs", "use crate::swarm::Handle;", "`swarm`, which is not below `fetch`");
    refused("node/src/fetch/task.rs", "use crate::{\n    source::Urgency, engine,\n};", "imports `engine`");
    refused("node/src/weights/mod.rs", "use super::fetch::Peer;", "imports `fetch`");
    refused("node/src/weights/a/b.rs", "use super::super::super::store;", "imports `store`");
    refused("node/src/identity.rs", "use self::super::{config, store::Store};", "imports `store`");
    refused("node/src/store/mod.rs", "fn f() -> crate::fetch::Peer {}", "imports `fetch`");
    refused("node/src/node.rs", "use crate::rpc::api;", "imports `rpc`");
    refused("node/src/rpc/mod.rs", "use crate::cli;", "imports `cli`");
    refused("node/src/publish/mod.rs", "use crate::Node;", "imports `Node`");
    refused("node/src/config.rs", "use crate::journal;", "imports `journal`");
    refused("node/src/novel.rs", "", "in no layer");
    accepted("node/src/fetch/task.rs", "use super::{Peer, schedule};\nuse crate::{source, store::Store};");
    accepted("node/src/engine/mod.rs", "use crate::{weights::{Tensors, Weights}, journal, Config};");
    accepted("node/src/cli/mod.rs", "use crate::{Node, rpc, node, publish, engine};");
    accepted("node/src/weights/plan.rs", "// use crate::cli;\nconst A: &str = \"use crate::cli;\";");
    accepted("node/src/source/mod.rs", "fn f<'a>() -> impl Sized + use<'a> {}");
    accepted("node/src/source/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store;\n}");
}

#[test]
fn crates_go_downward() {
    assert_eq!(crate_directions("chunker", "[dependencies]\nsurf-protocol.workspace = true\n").len(), 0);
    for line in ["surf-node.workspace = true", "surf-node = { path = \"..\" }", "[dependencies.surf-node]"] {
        assert_eq!(crate_directions("chunker", line).len(), 1, "{line}");
    }
    assert_eq!(members("[workspace]\nmembers = [\"protocol\", \"novel\"]\n").len(), 1);
}

#[test]
fn dependencies_have_owners() {
    let breaches = [
        ("node/src/fetch/mod.rs", "use libp2p::PeerId;"),
        ("node/src/swarm/mod.rs", "fn f(c: quinn::Connection) {}"),
        ("node/src/fetch/mod.rs", "use ::sled;"),
        ("node/src/weights/mod.rs", "use {std::fmt, candle_core as candle};"),
        ("node/src/weights/mod.rs", "fn f() { gemm::gemm() }"),
        ("node/src/rpc/mod.rs", "use tokenizers::Tokenizer;"),
        ("node/src/rpc/mod.rs", "use minijinja_contrib::pycompat;"),
        ("node/src/node.rs", "use axum::Router;"),
        ("node/src/config.rs", "#[derive(clap::Args)]\nstruct A;"),
        ("node/src/fetch/mod.rs", "use object_store::ObjectStore;"),
        ("node/src/store/mod.rs", "use bincode::config;"),
        ("protocol/src/manifest.rs", "use bincode::config;"),
        ("node/src/engine/mod.rs", "use safetensors::SafeTensors;"),
    ];
    breaches.iter().for_each(|(name, code)| refused(name, code, "which only"));
    accepted("node/src/identity.rs", "use libp2p::identity;\nuse quinn::rustls;");
    accepted("sim/src/bench/transfer.rs", "use clap::Parser;\nuse quinn::Endpoint;");
    accepted("node/src/main.rs", "use clap::Parser;");
    accepted("protocol/src/wire.rs", "fn f() { bincode::config::standard() }");
    accepted("tests/three_nodes.rs", "use safetensors::SafeTensors;");
}

#[test]
fn what_is_hashed_sees_no_families() {
    let why = "on which no model's id may depend";
    refused("chunker/src/cut.rs", "use crate::families::Families;", why);
    refused("chunker/src/plan.rs", "use crate::{header::Header, checkpoint};", why);
    refused("chunker/src/pickle/names.rs", "fn f() -> surf_protocol::Dtype {}", why);
    refused("protocol/src/manifest/check.rs", "use crate::Dtype;", why);
    accepted("chunker/src/checkpoint/choose.rs", "use crate::families::Families;");
    accepted("chunker/src/cut.rs", "use crate::{format, plan};");
}

#[test]
fn pure_crates_stay_pure() {
    refused("protocol/src/id.rs", "use std::{fmt, fs};", "`std::fs`");
    refused("protocol/src/id.rs", "use std::time::Instant;", "`std::time::Instant`");
    refused("chunker/src/hash.rs", "use tokio::fs;", "`tokio::fs`");
    accepted("chunker/src/hash.rs", "use std::{fs::File, thread};");
}

#[test]
fn files_say_what_they_are_for_and_end() {
    let broken = |text: &str| rust("sim/src/lib.rs", text, false);
    assert!(broken("fn f() {}\n")[0].contains("does not open"));
    assert!(broken("//!\nfn f() {}\n")[0].contains("does not open"));
    assert!(broken(&format!("//! x\n{}", "\n".repeat(LINES_MAX)))[0].contains("601 lines"));
    assert!(broken(&format!("//! x\n{}", "\n".repeat(LINES_MAX - 1))).is_empty());
}

#[test]
fn some_words_are_not_said() {
    refused("node/src/fetch/mod.rs", "fn f() { mpsc::unbounded_channel() }", "mod.rs:2: has `unbounded`");
    refused("node/src/fetch/mod.rs", "fn f() { a.unwrap() }", "`.unwrap()`");
    refused("sim/src/lib.rs", "fn f() { todo!() }", "`todo!`");
    refused("sim/src/lib.rs", "fn f() { unimplemented!() }", "`unimplemented!`");
    refused("tests/harness.rs", "fn f() { dbg!(1) }", "`dbg!`");
    refused("sim/src/lib.rs", "#[cfg(test)]\nmod t { }\nfn f() { a.unwrap() }", "lib.rs:4: has `.unwrap()`");
    accepted("sim/src/lib.rs", "#[cfg(test)]\nmod t { fn f() { a.unwrap() } }\nfn g() { a.expect(\"b\") }");
    accepted("sim/src/lib.rs", "#[cfg(test)]\nfn f(a: [u8; 4]) { a.unwrap() }");
    accepted("tests/three_nodes.rs", "fn f() { a.unwrap() }");
    accepted(
        "sim/src/lib.rs",
        "/// Not `.unwrap()`.\n/* dbg! /* */ todo! */ const A: &str = r#\"\".unwrap()\"#;",
    );
    accepted("sim/src/lib.rs", "const A: (char, char, &str) = ('\"', '\\'', \" \\\" todo!() \");");
    assert_eq!(rust("node/src/fetch/tests.rs", "//! x\nfn f() { a.unwrap() }\n", true), Vec::<String>::new());
}

#[test]
fn only_commands_read_the_environment() {
    refused("node/src/store/mod.rs", "fn f() { std::env::var(\"A\") }", "environment");
    refused("node/src/store/mod.rs", "use std::env::{self, var_os};", "environment");
    accepted("node/src/store/mod.rs", "fn f() { std::env::temp_dir(); env!(\"A\"); }");
    accepted("node/src/cli/settings.rs", "fn f() { std::env::var_os(\"A\") }");
}

#[test]
fn text_has_no_stray_space() {
    let broken = whitespace("docs/a.md", "one \ntwo\tthree\nfour");
    assert_eq!(broken.len(), 3, "{broken:?}");
    assert_eq!(whitespace("docs/a.md", "one\n\n").len(), 0);
    assert_eq!(whitespace("node/assets/tiny/README.md", "one \n").len(), 0);
}

#[test]
fn test_modules_in_their_own_files_are_found() {
    let files = [
        (
            "node/src/fetch/mod.rs",
            "#[cfg(test)]\npub(crate) mod conformance;\n#[cfg(test)]\nmod inline {}\nmod task;",
        ),
        ("protocol/src/manifest.rs", "#[cfg(test)]\nmod tests;\n"),
    ];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let found = test_files(&files);
    let is_test = |name: &str| found.iter().any(|place| within(name, place));
    assert!(is_test("node/src/fetch/conformance.rs") && is_test("protocol/src/manifest/tests.rs"));
    assert!(is_test("node/tests/store.rs"));
    assert!(!is_test("node/src/fetch/inline.rs") && !is_test("node/src/fetch/task.rs"));
}
