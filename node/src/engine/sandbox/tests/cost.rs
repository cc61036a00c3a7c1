//! What a child costs. A measurement, not a test: it prints, and asserts nothing about time.
//!
//! `cargo test --workspace --lib engine::sandbox::tests::cost -- --ignored --nocapture`

use std::{fs, path::Path};

use tokio::time::Instant;

use super::*;

const QUESTIONS: u32 = 2000;

/// Starts a child, asks it again and again, and prints what each question takes, and the child's memory.
async fn measured(what: What, name: &str, ask: Ask, body: impl Fn(u32) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-surfer");
    let sandbox = sandbox(what, &[(name, fs::read_to_string(folder.join(name)).unwrap())]);
    let begin = Instant::now();
    sandbox.ready().unwrap();
    let started = begin.elapsed();
    let begin = Instant::now();
    for nth in 0..QUESTIONS {
        asked(&sandbox, ask.clone(), &body(nth)).await.unwrap();
    }
    let each = begin.elapsed() / QUESTIONS;
    println!("{what:?}: started in {started:?}, {each:?} a question, {}", children());
}

/// Anonymous memory of the children of this process.
fn children() -> String {
    let own = std::process::id().to_string();
    let folders = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let statuses = folders.filter_map(|folder| fs::read_to_string(folder.join("status")).ok());
    let field = |status: &str, name: &str| {
        status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned())).unwrap_or_default()
    };
    let ours = statuses.filter(|status| field(status, "PPid:") == own);
    let sizes: Vec<String> = ours.map(|status| field(&status, "RssAnon:")).collect();
    format!("memory of its own: {}", sizes.join(", "))
}

#[tokio::test]
#[ignore = "a measurement"]
async fn of_a_question() {
    measured(What::Tokenizer, "tokenizer.json", ENCODE, |nth| format!("{nth} ships upon a sea")).await;
    let talk = |nth| json!({"messages": [{"role": "user", "content": format!("{nth} ships")}]}).to_string();
    let render = Ask::Render { clock: Clock::default() };
    measured(What::Template, "chat_template.jinja", render, talk).await;
}
