//! What counts against the memory budget: activations, keys and values, results. What does not fit is
//! refused in a sentence; what fits in parts comes in parts and is the same.

use serde_json::{Value, json};

use super::*;
use crate::engine::{cache::CacheShape, memory::Shares};

/// A configuration with some fields replaced.
fn changed(folder: &str, changes: &[(&str, Value)]) -> Files {
    let mut files = files(folder);
    let mut config = files.object("config.json").unwrap();
    config.extend(changes.iter().map(|(field, value)| ((*field).to_owned(), value.clone())));
    files.0.insert("config.json".to_owned(), Value::Object(config).to_string().into());
    files
}

/// An engine for a llama with a long context, with `work` bytes beside its weights.
fn within(work: u64, context: usize) -> (Engine, Arc<FileWeights>) {
    let folder = fixture("llama");
    let files = changed(&folder, &[("max_position_embeddings", json!(context))]);
    let (weights, journal) = (Arc::new(FileWeights::open(&folder)), Arc::new(Journal::default()));
    let architecture = arch::read(&files, weights.checkpoint()).unwrap();
    let working = Working::new(&architecture.shape(), architecture.widths(), work, 2).unwrap();
    let engine = Engine::load_in(Compute::on_host(true), working, &files, weights.clone(), journal);
    (engine.unwrap(), weights)
}

/// How often the model was run.
fn passes(weights: &FileWeights) -> usize {
    weights.asked().iter().filter(|asked| asked.contains("layer 0")).count()
}

fn open_end(prompt: Vec<u32>) -> Request {
    Request { ignore_eos: true, ..Request::new(Prompt::Tokens(prompt)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_contexts_without_a_limit_run_in_the_same_passes() {
    const TOKENS: usize = 40;
    // The whole context of one of them is 32 times what there is.
    let (engine, weights) = within(32 << 20, 1 << 20);
    assert!(32 * engine.limits.bytes < (1 << 20) * engine.shape.cache.token_bytes());
    let alone = ask(&engine, tokens([9, 8, 7], TOKENS)).await.ids();
    let before = passes(&weights);
    let mut asked = Vec::new();
    for _ in 0..4 {
        asked.push(engine.generate(open_end(vec![9, 8, 7])).await.unwrap());
    }
    let read = asked.into_iter().map(|mut events| async move {
        let mut ids = Vec::new();
        while ids.len() < TOKENS {
            match timeout(Duration::from_secs(60), events.recv()).await.expect("no hang").unwrap() {
                Event::Token(token) => ids.push(token.id),
                other => panic!("{other:?}"),
            }
        }
        ids
    });
    // All of them come although none of them ends.
    for ids in futures::future::join_all(read).await {
        assert_eq!(ids, alone);
    }
    // One after the other would be four times as many. Each runs ahead of its reader by some events.
    let passes = passes(&weights) - before;
    assert!(passes < 3 * TOKENS, "{passes} passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_youngest_gives_way_and_says_the_same_later() {
    let (engine, _) = within(2 << 20, 4096);
    let prompts: [Vec<u32>; 2] = [(7..307).collect(), (107..407).collect()];
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(ask(&engine, tokens(prompt.clone(), 400)).await.ids());
    }
    let bytes = engine.shape.cache.bytes(700);
    assert!(bytes < engine.limits.bytes && engine.limits.bytes < 2 * bytes, "only one fits at its end");
    let mut together = Vec::new();
    for prompt in &prompts {
        together.push(engine.generate(tokens(prompt.clone(), 400)).await.unwrap());
    }
    let answers = futures::future::join_all(together.into_iter().map(answer)).await;
    for (answer, alone) in answers.iter().zip(&alone) {
        assert_eq!(answer.done().completion_tokens, 400);
        let same = answer.ids().iter().zip(alone).take_while(|(a, b)| a == b).count();
        assert_eq!(same, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_outgrows_the_budget_alone_ends_with_a_sentence() {
    let (engine, _) = within(2 << 20, 1 << 20);
    let answer = ask(&engine, tokens([9, 8, 7], 1 << 20)).await;
    let error = answer.end.unwrap().unwrap_err().to_string();
    assert!(error.starts_with("keys and values of") && error.contains("(--memory)"), "{error}");
    assert!(300 < answer.tokens.len(), "{}", answer.tokens.len());
    let error = engine.generate(tokens((0..100_000).map(|at| at % 500), 1)).await.unwrap_err().to_string();
    assert!(error.starts_with("the prompt of 100000 tokens takes"), "{error}");
    let error = engine.forward(vec![vec![5; 3000].into()]).await.unwrap_err().to_string();
    assert!(error.contains("3000 tokens takes"), "{error}");
    let error = engine.forward(vec![vec![5; 100].into(); 30]).await.unwrap_err().to_string();
    assert!(error.starts_with("the result of 30 rows takes"), "{error}");
    // And others are served as before.
    assert_eq!(ask(&engine, tokens([9, 8, 7], 5)).await.tokens.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_small_parts_everything_is_the_same() {
    let (ample, _) = within(u64::MAX, 4096);
    let (scant, weights) = within(400 << 10, 4096);
    let prompt: Vec<u32> = (0..120).map(|at| 7 + at * 13 % 500).collect();
    let request = Request { echo: true, logprobs: Some(2), ..tokens(prompt.clone(), 3) };
    let (expected, got) = (ask(&ample, request.clone()).await, ask(&scant, request).await);
    assert!(4 < passes(&weights), "{} passes", passes(&weights));
    assert_eq!((expected.ids(), expected.text.clone()), (got.ids(), got.text.clone()));
    assert_eq!(got.prompt.len(), 120);
    for (expected, got) in expected.prompt.iter().zip(&got.prompt) {
        assert_eq!(expected.logprob.is_some(), got.logprob.is_some());
        let logprob = |token: &Token| token.logprob.as_ref().map_or(0.0, |logprob| logprob.logprob);
        assert!((logprob(expected) - logprob(got)).abs() < 1e-4, "{expected:?} {got:?}");
    }
    let row = || vec![vec![5, 6, 7].into()];
    let (expected, got) = (ample.forward(row()).await.unwrap(), scant.forward(row()).await.unwrap());
    let error = expected[0].values.iter().zip(&got[0].values).map(|(a, b)| (a - b).abs());
    assert!(error.fold(0.0, f32::max) < 1e-4);
    // What a result holds comes back with it.
    let left = || scant.limits.bytes;
    drop((expected, got));
    assert!(scant.forward(row()).await.is_ok() && 0 < left());
}

/// Why a model with these fields cannot be run in `memory` bytes.
fn refused(folder: &str, changes: &[(&str, Value)], memory: u64) -> Option<String> {
    let weights = FileWeights::open(&fixture(folder));
    let files = changed(&fixture(folder), changes);
    let config = config::Engine { memory, ..CONFIG };
    shares(&files, weights.checkpoint(), &config).err().map(|error| error.to_string())
}

#[test]
fn widths_that_do_not_fit_are_refused_by_name() {
    // What every model has beside its budget is all there is.
    const MEMORY: u64 = 0;
    let wide = |folder, changes: &[(&str, Value)], said: &[&str]| {
        let error = refused(folder, changes, MEMORY).unwrap_or_else(|| panic!("{changes:?} fits"));
        assert!(said.iter().all(|said| error.contains(said)), "{changes:?}: {error}");
        assert_eq!(refused(folder, changes, 1 << 40), None, "{changes:?}");
    };
    let beside = "one token takes";
    wide("llama", &[("intermediate_size", json!(1 << 20))], &["intermediate_size is 1048576", beside]);
    wide(
        "llama",
        &[("vocab_size", json!(1 << 22))],
        &["vocab_size is 4194304", beside, "(--memory) leave 32.0 MiB"],
    );
    let heads = json!(1024);
    let many = [("num_attention_heads", heads.clone()), ("num_key_value_heads", heads.clone())];
    let many = [&many[..], &[("head_dim", json!(1024))]].concat();
    wide("llama", &many, &["num_attention_heads is 1024 and head_dim 1024", beside]);
    let deep = [&many[..], &[("num_hidden_layers", json!(1024))]].concat();
    wide("llama", &deep, &["1024 layers keep 8.0 GiB of each token", beside]);
    wide("gpt2", &[("n_inner", json!(1 << 20))], &["n_inner is 1048576", beside]);
    wide("bert", &[("intermediate_size", json!(1 << 20))], &["intermediate size is 1048576", beside]);
    wide("t5", &[("d_ff", json!(1 << 20))], &["d_ff is 1048576", beside]);
    let far = json!(1 << 13);
    wide("t5", &[("num_heads", heads.clone()), ("relative_attention_max_distance", far)], &[beside]);
    let heads = [("num_attention_heads", heads.clone()), ("num_key_value_heads", heads)];
    let latent = [&heads[..], &[("kv_lora_rank", json!(1 << 16))]].concat();
    wide("deepseek-v3", &latent, &["num_attention_heads is 1024, kv_lora_rank 65536", beside]);
    let ranks = [("qk_nope_head_dim", json!(1 << 16)), ("v_head_dim", json!(1 << 16))];
    wide("deepseek-v3", &[&heads[..], &ranks].concat(), &["v_head_dim 65536", beside]);
    wide(
        "deepseek-v3",
        &[("n_shared_experts", json!(64)), ("moe_intermediate_size", json!(1 << 20))],
        &["experts have 1048576 elements inside, 67108864 the shared one"],
    );
    wide("qwen3-moe", &[("moe_intermediate_size", json!(1 << 20))], &["experts have 1048576", beside]);
    wide("mixtral", &[("intermediate_size", json!(1 << 20))], &["experts have 1048576", beside]);
    let large = [("vocab_size", json!(1 << 22))];
    let error = refused("variants/phi", &large, 16 << 20).unwrap();
    assert!(error.contains("vocab_size is 4194304") && error.contains(beside), "{error}");
}

#[test]
fn sizes_that_no_model_has_are_refused_by_field() {
    for (folder, field, value) in [
        ("llama", "max_position_embeddings", json!(1u64 << 31)),
        ("llama", "sliding_window", json!(-1)),
        ("llama", "vocab_size", json!(1u64 << 40)),
        ("llama", "num_hidden_layers", json!(1 << 20)),
        ("mistral", "sliding_window", json!(1u64 << 40)),
        ("bert", "max_position_embeddings", json!(1u64 << 31)),
        ("t5", "relative_attention_num_buckets", json!(1 << 30)),
        ("t5", "relative_attention_max_distance", json!(1 << 30)),
        ("qwen3-moe", "num_experts", json!(1 << 30)),
        ("deepseek-v3", "q_lora_rank", json!(1u64 << 33)),
        ("variants/phi", "max_position_embeddings", json!(1u64 << 31)),
    ] {
        let Some(error) = refused(folder, &[(field, value.clone())], 1 << 40) else { continue };
        assert!(error.starts_with(&format!("config.json: {field} ")), "{folder} {field} {value}: {error}");
    }
    // A limit may be infinite: it is the largest that there is room for.
    assert_eq!(refused("llama", &[("max_position_embeddings", json!(1u64 << 31))], 1 << 40), None);
}

#[test]
fn a_budget_is_shared_so_that_weights_stream_and_the_rest_does_not() {
    let weights = FileWeights::open(&fixture("llama"));
    let architecture = arch::read(&files(&fixture("llama")), weights.checkpoint()).unwrap();
    let sizes = memory::WeightSizes::of(weights.checkpoint());
    let shape = |context| Shape {
        context,
        cache: CacheShape { blocks: 32, heads: 8, elements: 256 },
        ..architecture.shape()
    };
    let share = |context, memory| Shares::new(&shape(context), &architecture.widths(), &sizes, memory, 2);
    // The cache of a long context may take a quarter, and what weights leave.
    for memory in [1u64 << 30, 8 << 30, 64 << 30] {
        let Shares { weights, work } = share(1 << 20, memory).unwrap();
        assert!(memory / 4 * 3 <= weights && weights < memory, "{weights} of {memory}");
        assert!(memory - (4 << 20) < work && work <= memory + (32 << 20), "{work} of {memory}");
    }
    // Little is left for what is small anyway.
    let Shares { weights, work } = share(16, 1 << 20).unwrap();
    assert_eq!((weights, work >> 20), (1 << 20, 32));
    assert_eq!(share(16, u64::MAX).unwrap().work, u64::MAX);
}
