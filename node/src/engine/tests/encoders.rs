//! Models with an encoder: hidden states, logits and tokens against what transformers recorded.

use super::{swarm::Published, *};

/// Compares with the record in the model's folder: with room for two blocks, and with room for all.
async fn agrees(name: &str) {
    let folder = fixture(name);
    let expected = std::fs::read(format!("{folder}/expected.safetensors")).unwrap();
    let published = Published::open(&folder);
    for memory in [published.two_blocks(), u64::MAX] {
        let (weights, journal) = (published.weights(memory), Arc::new(Journal::default()));
        let engine = Engine::load(&files(&folder), weights, &CONFIG, journal).unwrap();
        let report = engine.check(&expected, 1e-3).await.unwrap();
        assert!(report.pass && 0 < report.compared, "{name}: {report:?}");
        let agree = match engine.shape.kind {
            Kind::Encoder { .. } => None,
            Kind::Causal | Kind::Seq2Seq { .. } => Some(1.0),
        };
        assert_eq!((report.argmax_agree, report.greedy_agree), (agree, agree), "{name}: {report:?}");
    }
}

macro_rules! agree_with_transformers {
    ($($test:ident: $name:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            agrees($name).await;
        }
    )*};
}

agree_with_transformers! {
    bert_agrees: "bert";
    bert_with_three_heads_and_a_prefix_agrees: "bert-odd";
    roberta_agrees: "roberta";
    xlm_roberta_agrees: "xlm-roberta";
    distilbert_agrees: "distilbert";
    bert_as_pytorch_saved_it_agrees: "bert-pickled";
    t5_agrees: "t5";
    t5_v1_1_agrees: "t5-v1.1";
    t5_with_a_gate_and_a_tied_head_agrees: "t5-tied-gated";
    t5_with_a_head_of_its_own_agrees: "t5-untied";
    t5_without_a_decoder_agrees: "t5-encoder";
}

fn recorded(path: &str) -> std::collections::HashMap<String, candle_core::Tensor> {
    let bytes = std::fs::read(path).unwrap();
    candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap()
}

fn ids(tensor: &candle_core::Tensor) -> Vec<Vec<u32>> {
    let rows = tensor.to_vec2::<i64>().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect()
}

fn rows(recorded: &std::collections::HashMap<String, candle_core::Tensor>) -> Vec<Row> {
    let masks = ids(&recorded["attention_mask"]);
    let decoders = recorded.get("decoder_input_ids").map(ids);
    let tokens = ids(&recorded["input_ids"]).into_iter().enumerate();
    let row = |(at, tokens): (usize, Vec<u32>)| Row {
        tokens,
        mask: Some(masks[at].iter().map(|&counts| counts != 0).collect()),
        decoder: decoders.as_ref().map(|decoders| decoders[at].clone()),
    };
    tokens.map(row).collect()
}

/// A batch of five, padded left and right, in one call: what counts is as recorded, the rest is zero.
#[tokio::test]
async fn padded_batches_agree_with_transformers() {
    let llama = fixture("../llama.padded.expected.safetensors");
    let own = |name: &str| fixture(&format!("{name}/expected.safetensors"));
    for (name, path) in [
        ("llama", llama),
        ("bert-odd", own("bert-odd")),
        ("roberta", own("roberta")),
        ("t5-tied-gated", own("t5-tied-gated")),
        ("t5-encoder", own("t5-encoder")),
    ] {
        let recorded = recorded(&path);
        let rows = rows(&recorded);
        assert_eq!(rows.len(), 5);
        let engine = load(&fixture(name));
        let outputs = engine.forward(rows.clone()).await.unwrap();
        let expected = recorded[outputs[0].what.name()].to_vec3::<f32>().unwrap();
        for ((row, output), expected) in rows.iter().zip(&outputs).zip(expected) {
            let positions = output.values.chunks_exact(output.width).zip(expected);
            for (at, (got, expected)) in positions.enumerate() {
                let counts = row.decoder.is_some() || row.mask.as_ref().unwrap()[at];
                let close = |(got, expected): (&f32, &f32)| {
                    if counts { (got - expected).abs() < 2e-3 } else { *got == 0.0 }
                };
                assert!(got.iter().zip(&expected).all(close), "{name} at {at}");
            }
        }
    }
    // And `check` takes such a record as it is.
    let expected = std::fs::read(fixture("../llama.padded.expected.safetensors")).unwrap();
    let report = load(&fixture("llama")).check(&expected, 1e-3).await.unwrap();
    assert_eq!(
        (report.pass, report.argmax_agree, report.greedy_agree),
        (true, Some(1.0), None),
        "{report:?}"
    );
}

#[tokio::test]
async fn embeddings_are_the_mean_of_a_text_s_tokens() {
    for name in ["bert", "roberta", "t5-encoder"] {
        let recorded = recorded(&fixture(&format!("{name}/expected.safetensors")));
        let unpadded = rows(&recorded).into_iter().map(|row| {
            let mask = row.mask.unwrap();
            (0..mask.len()).filter(|&at| mask[at]).map(|at| row.tokens[at]).collect()
        });
        let texts: Vec<Prompt> = unpadded.map(Prompt::Tokens).collect();
        let embedded = load(&fixture(name)).embed(&texts).await.unwrap();
        let expected = recorded["mean_pooled"].to_vec2::<f32>().unwrap();
        // Where the padding is on the left, it pushes the positions of BERT's kin on.
        for (at, (got, expected)) in embedded.vectors.iter().zip(expected).enumerate() {
            let close = got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(close || (name == "roberta" && [2, 4].contains(&at)), "{name} {at}");
        }
    }
}

#[tokio::test]
async fn long_texts_are_cut_inside_what_the_tokenizer_puts_around_them() {
    let folder = fixture("bert");
    let mut files = files(&folder);
    files.0.remove("tokenizer.json");
    files.0.insert("vocab.txt".into(), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nwave\n".into());
    files.0.insert("sentence_bert_config.json".into(), r#"{"max_seq_length": 5}"#.into());
    files.0.remove("tokenizer_config.json");
    let weights = Arc::new(FileWeights::open(&folder));
    let engine = Engine::load(&files, weights, &CONFIG, Arc::default()).unwrap();
    let texts = [Prompt::Text("Wave ".repeat(9)), Prompt::Tokens(vec![2, 5, 5, 5, 3])];
    let embedded = engine.embed(&texts).await.unwrap();
    assert_eq!(embedded.tokens, 10);
    assert_eq!(embedded.vectors[0], embedded.vectors[1]);
}

#[tokio::test]
async fn the_encoder_is_visited_once_for_each_prompt() {
    let folder = fixture("t5");
    let (engine, weights, _) = load_with(&folder, FileWeights::open(&folder));
    let answer = ask(&engine, tokens([9, 10, 11], 3)).await;
    assert_eq!(
        (answer.tokens.len(), answer.done().prompt_tokens, answer.done().completion_tokens),
        (3, 3, 3)
    );
    let encoder = ["encoder layer 0", "encoder layer 1", "encoder layer 2", "encoder norm"];
    let decoder = ["layer 0", "layer 1", "layer 2", "head", "embed"];
    let expected: Vec<&str> = encoder.into_iter().chain([decoder; 3].into_iter().flatten()).collect();
    assert_eq!(weights.asked(), expected);
}

#[tokio::test]
async fn prompts_together_are_answered_as_alone() {
    let engine = load(&fixture("t5"));
    let prompts = [vec![9, 8, 7], (7..80).collect(), vec![100; 20], (7..500).collect()];
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(ask(&engine, tokens(prompt.clone(), 20)).await.ids());
    }
    assert_ne!(alone[0], alone[1]);
    let together: Vec<_> =
        prompts.iter().map(|prompt| start(&engine, tokens(prompt.clone(), 20)).unwrap()).collect();
    for (events, alone) in together.into_iter().zip(alone) {
        assert_eq!(answer(events).await.ids(), alone);
    }
}

#[tokio::test]
async fn a_failure_while_encoding_fails_those_who_wait_for_it_and_nothing_else() {
    let folder = fixture("t5");
    let (engine, weights, _) = load_with(&folder, FileWeights::open(&folder));
    let whole = ask(&engine, tokens([9, 10], 20)).await;
    weights.fail(true);
    for _ in 0..2 {
        let error = ask(&engine, tokens([9, 10], 20)).await.end.unwrap().unwrap_err();
        assert!(error.to_string().contains("chunk"), "{error}");
    }
    weights.fail(false);
    assert_eq!(ask(&engine, tokens([9, 10], 20)).await.ids(), whole.ids());
}

#[tokio::test]
async fn what_a_model_cannot_do_is_refused_in_a_sentence() {
    let (encoder, seq2seq) = (load(&fixture("bert")), load(&fixture("t5")));
    let causal = load(&fixture("llama"));
    let error = start(&encoder, tokens([5], 1)).unwrap_err().to_string();
    assert!(error.contains("is an encoder"), "{error}");
    let error = start(&seq2seq, Request { echo: true, ..tokens([5], 1) }).unwrap_err().to_string();
    assert!(error.contains("echo"), "{error}");
    let error = causal.embed(&[Prompt::Tokens(vec![5])]).await.unwrap_err().to_string();
    assert!(error.contains("no encoder"), "{error}");
    let row = Row::from(vec![5, 6]);
    let error = seq2seq.forward(vec![row.clone()]).await.unwrap_err().to_string();
    assert!(error.contains("decoder_input_ids"), "{error}");
    for bad in [
        Row { mask: Some(vec![true]), ..row.clone() },
        Row { mask: Some(vec![false; 2]), ..row.clone() },
        Row { decoder: Some(vec![1]), ..row },
        vec![5; 513].into(),
    ] {
        assert!(encoder.forward(vec![bad]).await.is_err());
    }
}
