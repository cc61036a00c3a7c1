//! What a client is told, character by character: models whose next token depends on the last alone, so
//! that they say what a test wants to hear.

use std::{collections::HashMap, path::Path};

use candle_core::{Device as Where, Tensor};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

/// Special tokens, then one for each byte, then words.
const SPECIAL: [&str; 2] = ["<s>", "</s>"];
const WORDS: [&str; 5] = ["\u{2581}", "a", "\u{2581}ok", "!", "b"];
const END: u32 = 1;

fn byte(byte: u8) -> u32 {
    SPECIAL.len() as u32 + u32::from(byte)
}

fn bytes(text: &[u8]) -> Vec<u32> {
    text.iter().map(|&one| byte(one)).collect()
}

fn word(word: &str) -> u32 {
    let at = WORDS.iter().position(|known| *known == word).unwrap();
    (SPECIAL.len() + 256 + at) as u32
}

/// The tokenizer: SentencePiece's with byte fallback, or byte-level.
fn tokenizer(pieces: bool) -> Value {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    };
    SPECIAL.iter().for_each(|token| add((*token).to_owned()));
    let mut others = (0x100..).filter_map(char::from_u32);
    for byte in 0..=u8::MAX {
        add(match byte {
            _ if pieces => format!("<0x{byte:02X}>"),
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => others.next().unwrap().to_string(),
        });
    }
    if pieces {
        WORDS.iter().for_each(|token| add((*token).to_owned()));
    }
    let added = SPECIAL.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let added: Vec<Value> = added.collect();
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let (normalizer, pre_tokenizer, decoder) = match pieces {
        true => (
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]}),
            Value::Null,
            json!({"type": "Sequence", "decoders": [replace("\u{2581}", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        ),
        false => (Value::Null, bytes.clone(), bytes),
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "added_tokens": added,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": pieces, "unk_token": if pieces { json!("<s>") } else { Value::Null }, "fuse_unk": true},
    })
}

/// A model that says the rest of `chain` after its first token, with its folder.
fn model(chain: &[u32], pieces: bool) -> (Engine, TempDir) {
    let (size, folder) = (272, tempfile::tempdir().unwrap());
    let write =
        |name: &str, json: &Value| std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    write("tokenizer.json", &tokenizer(pieces));
    write(
        "config.json",
        &json!({
            "model_type": "llama", "hidden_size": size, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 17, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": size,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "eos_token_id": END, "hidden_act": "silu", "rope_theta": 10000.0,
        }),
    );
    let matrix = |rows: usize, cols: usize, ones: &mut dyn Iterator<Item = (usize, usize)>| {
        let mut values = vec![0f32; rows * cols];
        ones.for_each(|(row, col)| values[row * cols + col] = 1.0);
        Tensor::from_vec(values, (rows, cols), &Where::Cpu).unwrap()
    };
    let nothing = |rows, cols| matrix(rows, cols, &mut std::iter::empty());
    let ones = || Tensor::from_vec(vec![1f32; size], size, &Where::Cpu).unwrap();
    let mut follows = chain.windows(2).map(|pair| (pair[1] as usize, pair[0] as usize));
    let block = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors: HashMap<String, Tensor> = [
        ("model.embed_tokens.weight".to_owned(), matrix(size, size, &mut (0..size).map(|at| (at, at)))),
        ("lm_head.weight".to_owned(), matrix(size, size, &mut follows)),
        ("model.norm.weight".to_owned(), ones()),
        (block("input_layernorm"), ones()),
        (block("post_attention_layernorm"), ones()),
        (block("self_attn.q_proj"), nothing(size, size)),
        (block("self_attn.k_proj"), nothing(16, size)),
        (block("self_attn.v_proj"), nothing(16, size)),
        (block("self_attn.o_proj"), nothing(size, size)),
        (block("mlp.gate_proj"), nothing(16, size)),
        (block("mlp.up_proj"), nothing(16, size)),
        (block("mlp.down_proj"), nothing(size, 16)),
    ]
    .into();
    candle_core::safetensors::save(&tensors, Path::new(folder.path()).join("model.safetensors")).unwrap();
    (load(folder.path().to_str().unwrap()), folder)
}

fn continued(prompt: Prompt, max_tokens: usize) -> Request {
    Request { max_tokens: Some(max_tokens), logprobs: Some(1), ..Request::new(prompt) }
}

fn said(answer: &Answer) -> Vec<u8> {
    answer.tokens.iter().flat_map(|token| token.bytes.clone()).collect()
}

#[tokio::test]
async fn characters_in_bytes_are_shown_after_any_prompt() {
    for prompt in ["가", "가각", "가각간", "a가각간", "가각간갇갈"] {
        let mut chain = vec![byte(*prompt.as_bytes().last().unwrap())];
        chain.extend(bytes("힣".as_bytes()));
        chain.extend([word("\u{2581}ok"), word("!"), END]);
        let (engine, _folder) = model(&chain, true);
        let answer = ask(&engine, continued(Prompt::Text(prompt.to_owned()), 9)).await;
        assert_eq!(answer.text, "힣 ok!", "{prompt}");
        assert_eq!(said(&answer), "힣 ok!".as_bytes(), "{prompt}");
        let offsets: Vec<usize> = answer.tokens.iter().map(|token| token.offset).collect();
        assert_eq!(offsets, [0, 0, 0, 1, 4], "{prompt}");
    }
}

#[tokio::test]
async fn a_prompt_may_end_inside_a_character() {
    let mut chain = vec![byte(b'A')];
    chain.extend(bytes("🦭bc".as_bytes()));
    chain.push(END);
    let (engine, _folder) = model(&chain, false);
    for cut in 1..=4 {
        let answer = ask(&engine, continued(Prompt::Tokens(chain[..cut].to_vec()), 9)).await;
        assert_eq!((answer.text.as_str(), said(&answer)), ("🦭bc", "🦭bc".as_bytes()[cut - 1..].to_vec()));
        let echo = Request { echo: true, ..continued(Prompt::Tokens(chain[..cut].to_vec()), 9) };
        let echoed = ask(&engine, echo).await;
        let prompt: String = echoed.prompt.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(prompt + &echoed.text, "A🦭bc");
        let offsets = echoed.prompt.iter().map(|token| token.offset);
        assert_eq!(offsets.collect::<Vec<_>>(), [0, 1, 1, 1][..cut]);
    }
    // An answer that is cut off inside a character goes on where it was.
    for cut in 0..=6 {
        let first = ask(&engine, continued(Prompt::Text("A".to_owned()), cut)).await;
        let second = ask(&engine, continued(Prompt::Tokens(chain[..=cut].to_vec()), 9)).await;
        assert_eq!(first.text + &second.text, "🦭bc", "{cut}");
    }
}

#[tokio::test]
async fn half_a_character_is_shown_as_broken_once_it_is_certain() {
    let broken = |chain: Vec<u32>, pieces: bool| async move {
        let (engine, _folder) = model(&chain, pieces);
        ask(&engine, continued(Prompt::Tokens(chain[..1].to_vec()), 9)).await.text
    };
    assert_eq!(broken(vec![byte(b'A'), byte(0xf0), byte(0x9f), byte(b'b'), END], false).await, "\u{fffd}b");
    assert_eq!(broken(vec![byte(b'A'), byte(0xf0), byte(0x9f), END], false).await, "\u{fffd}");
    assert_eq!(
        broken(vec![byte(b'A'), byte(0xf0), byte(0x9f), word("!"), END], true).await,
        "\u{fffd}\u{fffd}!"
    );
    assert_eq!(broken(vec![word("a"), word("\u{2581}ok"), word("b"), END], true).await, " okb");
    assert_eq!(broken(vec![0, word("\u{2581}ok"), word("b"), END], true).await, "okb");
}

#[tokio::test]
async fn stop_strings_are_found_across_bytes() {
    let mut chain = vec![byte(b'A')];
    chain.extend(bytes("xé🦭y".as_bytes()));
    chain.push(END);
    let (engine, _folder) = model(&chain, false);
    for (stop, expected) in [("é", "x"), ("🦭", "xé"), ("é🦭", "x"), ("🦭z", "xé🦭y"), ("\u{fffd}", "xé🦭y")]
    {
        let request = continued(Prompt::Text("A".to_owned()), 20);
        let answer = ask(&engine, Request { stop: vec![stop.to_owned()], ..request }).await;
        assert_eq!(answer.text, expected, "{stop}");
    }
}
