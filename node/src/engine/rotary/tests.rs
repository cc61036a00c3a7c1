//! Every kind against what transformers 5.23 computes, and what is refused.

use serde_json::{Value, json};

use super::*;

fn spelled(config: &Value, head_dim: usize, spelling: &Spelling<'_>) -> Result<Rotary, EngineError> {
    Rotary::read(&Fields::new(config.as_object().unwrap()), head_dim, spelling)
}

fn rotary(config: &Value, head_dim: usize) -> Result<Rotary, EngineError> {
    spelled(config, head_dim, &Spelling::default())
}

fn assert_close(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() <= 1e-6 * expected, "{got} {expected}");
    }
}

fn assert_speeds(rotary: &Rotary, length: usize, scale: f64, speeds: &[f64]) {
    assert_close(&rotary.speeds.of(length), speeds);
    assert_close(&[rotary.scale], &[scale]);
}

#[test]
fn default_speeds_fall_geometrically() {
    // 10000^(-2i/8)
    let expected = [1.0, 0.1, 0.01, 0.001];
    for config in [
        json!({}),
        json!({"rope_theta": 10000.0, "rope_scaling": null}),
        json!({"rope_theta": 10000.0, "rope_scaling": {}, "rope_parameters": {"rope_type": "default"}}),
    ] {
        assert_speeds(&rotary(&config, 8).unwrap(), 5, 1.0, &expected);
    }
    let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 16.0}});
    assert_speeds(&rotary(&new, 8).unwrap(), 5, 1.0, &[1.0, 0.5, 0.25, 0.125]);
}

/// The numbers of this and the next three tests are what `ROPE_INIT_FUNCTIONS` gives for a
/// `LlamaConfig` with these settings.
#[test]
fn linear_divides_every_speed() {
    let expected =
        [0.25, 0.11496582, 0.05286856, 0.024312312, 0.01118034, 0.0051414282, 0.002364354, 0.0010872796];
    for config in [
        json!({"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        json!({"rope_scaling": {"rope_type": "linear", "factor": 4}, "rope_theta": 500.0}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
    ] {
        assert_speeds(&rotary(&config, 16).unwrap(), 5, 1.0, &expected);
    }
}

#[test]
fn dynamic_speeds_fall_with_the_length() {
    let config =
        json!({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}});
    let rotary = rotary(&config, 16).unwrap();
    let within = [1.0, 0.31622776, 0.1, 0.031622779, 0.01, 0.0031622779, 0.001, 0.00031622779];
    let at_65 =
        [1.0, 0.3148407, 0.099124663, 0.031208478, 0.009825699, 0.00309353, 0.00097396917, 0.00030664512];
    let at_256 = [
        1.0,
        0.23948137,
        0.057351321,
        0.013734572,
        0.0032891738,
        0.00078769587,
        0.00018863847,
        4.5175395e-05,
    ];
    for (length, speeds) in [(1, within), (64, within), (65, at_65), (256, at_256)] {
        assert_speeds(&rotary, length, 1.0, &speeds);
    }
    assert_eq!((rotary.context(64), rotary.context(200)), (128, 200));
}

#[test]
fn llama3_goes_over_smoothly() {
    let config = json!({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}});
    let expected = [
        1.0,
        0.19392276,
        0.027344134,
        0.00091158313,
        0.00017677668,
        3.4281024e-05,
        6.6478697e-06,
        1.2891732e-06,
    ];
    assert_speeds(&rotary(&config, 16).unwrap(), 5, 1.0, &expected);
}

#[test]
fn yarn_with_each_of_its_options() {
    let yarn = |outer: Value, scaling: Value, scale: f64, speeds: [f64; 8]| {
        let mut config = json!({"max_position_embeddings": 64, "rope_scaling": scaling});
        config["rope_scaling"]["rope_type"] = "yarn".into();
        for (name, value) in outer.as_object().unwrap() {
            config[name] = value.clone();
        }
        assert_speeds(&rotary(&config, 16).unwrap(), 5, scale, &speeds);
    };
    yarn(
        json!({}),
        json!({"factor": 4.0, "original_max_position_embeddings": 32}),
        1.138629436111989,
        [1.0, 0.19764236, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05],
    );
    yarn(
        json!({"rope_theta": 1000000.0}),
        json!({"factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 0.5}),
        1.1557219901962608,
        [1.0, 0.17782794, 0.021345375, 0.0019681945, 2.5e-05, 4.4456983e-06, 7.905694e-07, 1.4058533e-07],
    );
    yarn(
        json!({}),
        json!({"factor": 8.0, "original_max_position_embeddings": 1000, "beta_fast": 16, "beta_slow": 2,
            "truncate": false}),
        1.2079441541679836,
        [1.0, 0.31622776, 0.09977717, 0.016232725, 0.00125, 0.00039528473, 0.000125, 3.9528473e-05],
    );
    yarn(
        json!({}),
        json!({"factor": 8.0, "original_max_position_embeddings": 1000, "attention_factor": 1.5,
            "mscale": 0.7, "beta_fast": 0}),
        1.5,
        [1.0, 0.31622776, 0.078125, 0.017787812, 0.0034375, 0.00039528473, 0.000125, 3.9528473e-05],
    );
    // The factor is the ratio of the contexts, and what stands outside counts.
    yarn(
        json!({"original_max_position_embeddings": 16}),
        json!({"factor": null, "original_max_position_embeddings": 1000}),
        1.138629436111989,
        [1.0, 0.079056941, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05],
    );
}

/// As for a `Phi3Config`.
#[test]
fn longrope_has_factors_for_short_and_for_long() {
    let config = |kind: &str| {
        json!({"max_position_embeddings": 256, "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.5, "rope_scaling": {"type": kind,
                "short_factor": [1.0, 1.1, 1.25, 1.5], "long_factor": [1.5, 2.0, 4.0, 8.0]}})
    };
    let spelling = Spelling { longrope: &["longrope", "su"], ..Spelling::default() };
    let (short, long) =
        ([1.0, 0.090909094, 0.008, 0.00066666666], [0.66666669, 0.050000001, 0.0025, 0.000125]);
    for kind in ["longrope", "su"] {
        let rotary = spelled(&config(kind), 16, &spelling).unwrap();
        for (length, speeds) in [(1, short), (32, short), (33, long), (256, long)] {
            assert_speeds(&rotary, length, 1.2649110640673518, &speeds);
        }
    }
    assert!(rotary(&config("su"), 16).is_err());
    let error = spelled(&config("su"), 32, &spelling).unwrap_err().to_string();
    assert!(error.contains("short_factor has 4 factors for 8 pairs"), "{error}");
}

#[test]
fn settings_may_be_by_layer_type() {
    let config = json!({"rope_theta": 16.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 81.0}}});
    let full = Spelling { layer_type: Some("full_attention"), ..Spelling::default() };
    let sliding = Spelling { layer_type: Some("sliding_attention"), scaled: false, ..Spelling::default() };
    assert_speeds(&spelled(&config, 4, &full).unwrap(), 5, 1.0, &[0.5, 0.125]);
    assert_speeds(&spelled(&config, 4, &sliding).unwrap(), 5, 1.0, &[1.0, 1.0 / 9.0]);
}

/// As `GPTNeoXRotaryEmbedding` has it for heads of 20 with `rotary_pct` 0.25.
#[test]
fn an_odd_share_has_a_pair_more() {
    let config = json!({"rotary_pct": 0.25, "rotary_emb_base": 100});
    let spelling =
        Spelling { theta: ("rotary_emb_base", 1e4), share: ("rotary_pct", 1.0), ..Spelling::default() };
    let speeds = [1.0, 100f64.powf(-0.4), 100f64.powf(-0.8)];
    assert_speeds(&spelled(&config, 20, &spelling).unwrap(), 5, 1.0, &speeds);
    assert!(rotary(&json!({}), 5).is_err());
}

#[test]
fn what_is_not_supported_is_named() {
    for (config, expected) in [
        (json!({"rope_scaling": {"type": "mrope", "factor": 4.0}}), "rope_scaling.rope_type is \"mrope\""),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "original_max_position_embeddings"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}), "max_position_embeddings"),
        (
            json!({"max_position_embeddings": 8, "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_slow": -1}}),
            "rope_scaling.beta_slow",
        ),
        (
            json!({"max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 0.5}}),
            "rope_scaling.factor",
        ),
        (json!({"rope_theta": 0.0}), "rope_theta"),
        (json!({"rope_theta": "many"}), "rope_theta"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
    ] {
        let error = rotary(&config, 8).unwrap_err().to_string();
        assert!(error.contains(expected), "{config}: {error}");
    }
}

#[test]
fn pairs_are_turned_by_their_angle() {
    let rotary =
        |pairing| spelled(&json!({"rope_theta": 100.0}), 4, &Spelling { pairing, ..Spelling::default() });
    let runs = [(3..4, 9), (0..1, 1)];
    let (one, two) = ((3f64.cos(), 3f64.sin()), (0.3f64.cos(), 0.3f64.sin()));
    // Pair 0 is turned by 3, pair 1 by 0.3: elements 0 and 2, 1 and 3.
    let mut x = [1.0, 0.0, 0.0, 2.0, 5.0, 6.0, 7.0, 8.0];
    rotary(Pairing::Halves).unwrap().turns(runs.clone()).apply(&mut x, 1, 4);
    let expected = [one.0, -2.0 * two.1, one.1, 2.0 * two.0, 5.0, 6.0, 7.0, 8.0];
    // Or elements 0 and 1, 2 and 3.
    let mut y = [1.0, 0.0, 0.0, 2.0, 5.0, 6.0, 7.0, 8.0];
    rotary(Pairing::Neighbours).unwrap().turns(runs).apply(&mut y, 1, 4);
    let neighbours = [one.0, one.1, -2.0 * two.1, 2.0 * two.0, 5.0, 6.0, 7.0, 8.0];
    for (got, expected) in x.iter().zip(expected).chain(y.iter().zip(neighbours)) {
        assert!((f64::from(*got) - expected).abs() < 1e-6, "{x:?} {y:?}");
    }
}

#[test]
fn a_share_of_the_head_may_stay_as_it_is() {
    for pairing in [Pairing::Halves, Pairing::Neighbours] {
        let spelling = Spelling { pairing, ..Spelling::default() };
        let rotary = spelled(&json!({"partial_rotary_factor": 0.5}), 8, &spelling).unwrap();
        let mut x: Vec<f32> = (0..8).map(|x| x as f32).collect();
        rotary.turns([(9..10, 10)]).apply(&mut x, 1, 8);
        assert_eq!(x[4..], [4.0, 5.0, 6.0, 7.0]);
        assert_ne!(x[..4], [0.0, 1.0, 2.0, 3.0]);
    }
}
