//! Models with an encoder: hidden states, logits and tokens against what transformers recorded.

use super::*;

/// Compares with the record in the model's folder, streamed and resident.
async fn agrees(name: &str) {
    let folder = fixture(name);
    let expected = std::fs::read(format!("{folder}/expected.safetensors")).unwrap();
    for resident in [false, true] {
        let weights = FileWeights::open(&folder);
        let (engine, ..) = load_with(&folder, if resident { weights.all_resident() } else { weights });
        let report = engine.check(&expected, 1e-3).await.unwrap();
        assert!(report.pass && 0 < report.compared, "{name}: {report:?}");
        let agree = match engine.shape.kind {
            Kind::Encoder { .. } => None,
            Kind::Causal | Kind::Seq2Seq { .. } => Some(1.0),
        };
        assert_eq!(report.argmax_agree, agree, "{name}: {report:?}");
        assert!(report.greedy_agree.is_none_or(|share| share == 1.0), "{name}: {report:?}");
    }
}

macro_rules! agree_with_transformers {
    ($($test:ident: $name:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            agrees($name).await;
        }
    )*};
}

agree_with_transformers! {
    bert_agrees: "bert";
    t5_agrees: "t5";
    t5_v1_1_agrees: "t5-v1.1";
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
    let encoder = ["encoder block 0", "encoder block 1", "encoder block 2", "encoder norm"];
    let decoder = ["block 0", "block 1", "block 2", "head", "embed"];
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
        prompts.iter().map(|prompt| engine.generate(tokens(prompt.clone(), 20)).unwrap()).collect();
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
    let error = encoder.generate(tokens([5], 1)).unwrap_err().to_string();
    assert!(error.contains("is an encoder"), "{error}");
    let error = seq2seq.generate(Request { echo: true, ..tokens([5], 1) }).unwrap_err().to_string();
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
