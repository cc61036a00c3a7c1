//! Compared with `tokenizers`, which makes a text of all tokens at once.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Tokens of the tokenizers below that come after its bytes.
const WORDS: [&str; 12] = [
    "\u{2581}",
    "\u{2581}ok",
    "a",
    "b</w>",
    "##c",
    "!",
    "é",
    " ,",
    "\u{2581}\u{2581}b",
    "n't",
    "x<0x41>y",
    "</s>",
];

/// The letter that byte-level tokenizers write `byte` with.
fn letter(byte: u8) -> String {
    static LETTERS: LazyLock<HashMap<u8, String>> = LazyLock::new(|| {
        let letters =
            ('!'..='\u{143}').map(|letter| (letters::bytes(&letter.to_string()), letter.to_string()));
        letters.filter(|(bytes, _)| bytes.len() == 1).map(|(bytes, letter)| (bytes[0], letter)).collect()
    });
    LETTERS[&byte].clone()
}

/// `<0xNN>` for every byte, GPT-2's letters for every byte, [`WORDS`], and two tokens that were added,
/// of which the first is special.
fn tokenizer(decoder: &Value) -> Tokenizer {
    let fallback = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let letters = (0..=u8::MAX).map(letter);
    let words = WORDS.map(str::to_owned);
    let mut vocab = serde_json::Map::new();
    for token in fallback.chain(letters).chain(words) {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    }
    let added = |id: usize, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    let next = vocab.len();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [added(next, "<|im_end|>", true), added(next + 1, "<think> \u{2581}", false)],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn sequence(decoders: &[Value]) -> Value {
    json!({"type": "Sequence", "decoders": decoders})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true})
}

/// Decoders as models have them, and as nobody should.
fn decoders() -> Vec<Value> {
    let space = || replace("\u{2581}", " ");
    let (fallback, fuse) = (|| json!({"type": "ByteFallback"}), || json!({"type": "Fuse"}));
    let strip =
        |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    vec![
        sequence(&[space(), fallback(), fuse(), strip(1, 0)]),
        sequence(&[space(), fallback(), fuse()]),
        sequence(&[fallback(), metaspace("always")]),
        sequence(&[sequence(&[fallback(), fuse()]), space(), strip(2, 0)]),
        sequence(&[space(), strip(1, 0)]),
        byte_level.clone(),
        sequence(&[byte_level, strip(1, 0), replace("a", "<a>")]),
        metaspace("always"),
        metaspace("first"),
        metaspace("never"),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": false}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "\u{2581}", "cleanup": true}),
        json!({"type": "Replace", "pattern": {"Regex": "[ab!]+"}, "content": "$0-"}),
        fuse(),
        Value::Null,
    ]
}

fn ids(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
    tokens.iter().map(|token| tokenizer.token_to_id(token).unwrap()).collect()
}

fn detokenizer(tokenizer: &Tokenizer) -> Option<Arc<Detokenizer>> {
    Some(Arc::new(Detokenizer::of(tokenizer).unwrap()))
}

/// All that `decoder` shows of `ids`.
fn shown(mut decoder: Decoder, ids: &[u32]) -> (String, Vec<Piece>) {
    let pieces: Vec<Piece> = ids.iter().map(|id| decoder.push(*id)).collect();
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    (text + &decoder.finish(true), pieces)
}

/// Compares with what `tokenizers` makes of prompt and continuation at once, wherever `ids` are cut.
fn compare(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), TestCaseError> {
    let all = detokenizer(tokenizer);
    let is_shown = |id: &u32, skips: bool| {
        let token = tokenizer.id_to_token(*id);
        token.is_some_and(|token| !skips || !tokenizer.get_added_vocabulary().is_special_token(&token))
    };
    // Without tokens, some decoders of `tokenizers` panic.
    let reference = |ids: &[u32], skips: bool| match ids.iter().any(|id| is_shown(id, skips)) {
        true => tokenizer.decode(ids, skips).unwrap(),
        false => String::new(),
    };
    let whole = reference(ids, true);
    prop_assert_eq!(&shown(Decoder::new(all.clone(), false), ids).0, &whole);
    prop_assert_eq!(shown(Decoder::new(all.clone(), true), ids).0, reference(ids, false));
    for cut in 0..=ids.len() {
        let (text, pieces) = shown(Decoder::after(all.clone(), &ids[..cut], false), &ids[cut..]);
        // What a prompt shows of a character that it does not complete is no part of the whole.
        let told = (0..=cut).map(|cut| reference(&ids[..cut], true));
        let after = |told: &str| whole.strip_prefix(told).map(str::to_owned);
        let rest = told.filter_map(|told| after(&told).or_else(|| after(told.trim_end_matches('\u{FFFD}'))));
        let rest = rest.min_by_key(String::len);
        // Bytes that the prompt ends with, and that become no character, may be told as the prompt's.
        let rest = rest.map(|rest| match rest.trim_start_matches('\u{FFFD}') {
            shorter if shorter == text => shorter.to_owned(),
            _ => rest,
        });
        prop_assert_eq!(Some(&text), rest.as_ref(), "cut at {}", cut);
        for piece in pieces.iter().filter(|piece| !piece.text.is_empty()) {
            // A token of whole characters stands where it is said to, and they are its bytes.
            let own = std::str::from_utf8(&piece.bytes);
            if let Some(own) = own.ok().filter(|own| piece.text.ends_with(*own)) {
                let there: String = text.chars().skip(piece.offset).take(own.chars().count()).collect();
                prop_assert_eq!(there, own);
            }
        }
    }
    Ok(())
}

/// Parts of texts as tokens: of the byte-level kind, of the other, and words.
fn part(byte_level: bool) -> impl Strategy<Value = Vec<String>> {
    let one = move |byte: u8| if byte_level { letter(byte) } else { format!("<0x{byte:02X}>") };
    // In a run of `<0xNN>` with a byte that is none, `tokenizers` shows no character at all.
    let any_bytes = move |bytes: Vec<u8>| match byte_level {
        true => bytes.into_iter().map(one).collect(),
        false => {
            let text = bytes.iter().take(1).map(|byte| one(*byte));
            std::iter::once("!".to_owned()).chain(text).chain(["a".to_owned()]).collect::<Vec<_>>()
        }
    };
    let broken = prop::sample::select(vec![0x80, 0xc3, 0xe2, 0xf0, 0x9f, 0xff]);
    prop_oneof![
        "[é€🦭가a ]{1,3}".prop_map(move |text| text.bytes().map(one).collect()),
        prop::collection::vec(broken, 1..4).prop_map(any_bytes),
        prop::sample::select(WORDS.to_vec()).prop_map(|word| vec![word.to_owned()]),
        Just(vec!["<|im_end|>".to_owned()]),
        Just(vec!["<think> \u{2581}".to_owned()]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn wherever_a_prompt_ends_the_text_is_that_of_the_whole(
        (which, parts) in (0..decoders().len()).prop_flat_map(|which| {
            let byte_level = decoders()[which].to_string().contains("ByteLevel");
            (Just(which), prop::collection::vec(part(byte_level), 1..6))
        }),
    ) {
        let tokenizer = tokenizer(&decoders()[which]);
        let tokens: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        compare(&tokenizer, &ids(&tokenizer, &tokens))?;
    }
}

/// What was told of a broken character counts for the stages behind: a space that comes next is not the first letter.
#[test]
fn what_a_prompt_ends_with_is_told_once() {
    let [odd, fallback] = [6, 0].map(|at| tokenizer(&decoders()[at]));
    compare(&odd, &ids(&odd, &["é", " ,"])).unwrap();
    let ids = |bytes: &[u8]| {
        let tokens: Vec<String> = bytes.iter().map(|byte| format!("<0x{byte:02X}>")).collect();
        ids(&fallback, &tokens.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // It is the prompt's, unless it becomes a character.
    for (next, expected) in [(&b"\xac"[..], "€"), (b"\xffc", "\u{fffd}c"), (b"", ""), (b"\xe2\x82\xac", "€")]
    {
        let prompt = ids(b"a\xe2\x82");
        let (text, _) = shown(Decoder::after(detokenizer(&fallback), &prompt, false), &ids(next));
        assert_eq!(text, expected, "{next:x?}");
    }
}

/// Every tokenizer among the fixtures, and that of the bundled model, with texts and with any tokens.
#[test]
fn fixtures_are_decoded_as_tokenizers_decodes_them() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let surfer = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny-surfer").into();
    let mut compared = 0;
    for file in folders.chain([surfer]).map(|folder| folder.join("tokenizer.json")) {
        let Ok(tokenizer) = std::fs::read(&file).map(|json| Tokenizer::from_bytes(json).unwrap()) else {
            continue;
        };
        let mut texts =
            vec!["The node announces", "Zwölf Boxkämpfer 机器学习 🌊🏄!", "  two  spaces\n, isn't"]
                .into_iter()
                .map(|text| tokenizer.encode(text, true).unwrap().get_ids().to_vec())
                .collect::<Vec<_>>();
        let size = tokenizer.get_vocab_size(true) as u32;
        texts.push((0..60u32).map(|at| at * at * 7919 % size).collect());
        for ids in texts {
            compare(&tokenizer, &ids).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        compared += 1;
    }
    assert!(8 < compared, "{compared}");
}

#[test]
fn runs_of_bytes_of_any_length_lose_nothing() {
    let tokenizer = tokenizer(&decoders()[0]);
    let text: String = (0..200).map(|at| char::from_u32(0xac00 + at * 7).unwrap()).collect();
    let tokens: Vec<String> = text.bytes().map(|byte| format!("<0x{byte:02X}>")).collect();
    let ids = ids(&tokenizer, &tokens.iter().map(String::as_str).collect::<Vec<_>>());
    for cut in [0, 1, 2, 3, 299, 300, 301, 599] {
        let mut decoder = Decoder::after(detokenizer(&tokenizer), &ids[..cut], false);
        let pieces: Vec<Piece> = ids[cut..].iter().map(|id| decoder.push(*id)).collect();
        // Each character comes with its last byte, and stands where its first one does.
        let shown: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(shown, text.chars().skip(cut / 3).collect::<String>());
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
        assert_eq!(bytes, text.as_bytes()[cut..]);
        let offsets: Vec<usize> = pieces.iter().map(|piece| piece.offset).collect();
        assert_eq!(offsets, (cut..600).map(|at| at / 3 - cut / 3).collect::<Vec<_>>());
    }
}

#[test]
fn characters_beside_broken_bytes_stay() {
    let spm = tokenizer(&decoders()[0]);
    let run = ["<0xEA>", "<0xB0>", "<0x80>", "<0xFF>", "<0xC3>", "<0xA9>", "a"];
    // As SentencePiece; `tokenizers` makes six U+FFFD of it.
    assert_eq!(shown(Decoder::new(detokenizer(&spm), false), &ids(&spm, &run)).0, "가\u{fffd}éa");
    // What never becomes a character is shown at the end of a text, and not where it is cut off.
    for (ended, expected) in [(true, "a\u{fffd}\u{fffd}"), (false, "a")] {
        let mut decoder = Decoder::new(detokenizer(&spm), false);
        let text: String =
            ids(&spm, &["a", "<0xE2>", "<0x82>"]).iter().map(|id| decoder.push(*id).text).collect();
        assert_eq!(text + &decoder.finish(ended), expected);
    }
    // Half a character of an echoed prompt is shown as broken once that is certain.
    let prompt = ids(&spm, &["a", "<0xE2>"]);
    let next = ids(&spm, &["a"]);
    assert_eq!(shown(Decoder::after(detokenizer(&spm), &prompt, true), &next).0, "\u{fffd}a");
    assert_eq!(shown(Decoder::after(detokenizer(&spm), &prompt, false), &next).0, "a");
}

#[test]
fn broken_bytes_do_not_hold_text_back() {
    for decoder in [0, 5] {
        let tokenizer = tokenizer(&decoders()[decoder]);
        let token = if decoder == 0 { "<0x80>" } else { "\u{122}" };
        let id = ids(&tokenizer, &[token])[0];
        assert_eq!(Detokenizer::of(&tokenizer).unwrap().bytes(id, false), [0x80]);
        let mut decoder = Decoder::new(detokenizer(&tokenizer), false);
        let pieces = (0..40).map(|_| decoder.push(id).text);
        assert!(pieces.into_iter().all(|text| text == "\u{fffd}"));
    }
}

#[test]
fn a_token_by_itself_is_its_bytes() {
    let spm = tokenizer(&decoders()[0]);
    let own = |token: &str, first| Detokenizer::of(&spm).unwrap().bytes(ids(&spm, &[token])[0], first);
    assert_eq!(own("<0xF0>", false), [0xf0]);
    assert_eq!(own("\u{2581}ok", false), b" ok");
    assert_eq!(own("\u{2581}ok", true), b"ok");
    assert_eq!(own("<|im_end|>", true), b"<|im_end|>");
    assert_eq!(Detokenizer::of(&spm).unwrap().bytes(99_999, true), b"");
    let bert = tokenizer(&decoders()[10]);
    let bytes = |token: &str| Detokenizer::of(&bert).unwrap().bytes(ids(&bert, &[token])[0], false);
    assert_eq!((bytes("##c"), bytes("!"), bytes("a")), (b"c".to_vec(), b"!".to_vec(), b" a".to_vec()));
}

/// A decoder comes from strangers: none takes long, grows without bound, or panics.
#[test]
fn decoders_of_strangers_are_bounded() {
    let token = |text: String| [(0, text, false), (1, "é".to_owned(), false), (2, String::new(), false)];
    let run = |text: String, decoder: Value| {
        let detokenizer = Some(Arc::new(Detokenizer::new(token(text), &decoder).unwrap()));
        shown(Decoder::new(detokenizer, false), &[2, 0, 0, 1]).0
    };
    let regex = json!({"type": "Replace", "pattern": {"Regex": r"^(a|a|aa)+(?=\1b)$"}, "content": "x"});
    let long = "a".repeat(4096);
    assert_eq!(run(long.clone(), regex), format!("{long}{long}é"));
    // Looking for what is nowhere, from every letter on, takes the square of the length.
    let square = json!({"type": "Replace", "pattern": {"Regex": "[^b]*b|a"}, "content": "a"});
    assert_eq!(run(long.clone(), square.clone()), format!("{long}{long}é"));
    let growing = [replace("a", &"b".repeat(256)), replace("b", &"c".repeat(256)), replace("c", "dd")];
    for decoder in [json!({"type": "BPEDecoder", "suffix": ""}), sequence(&growing)]
        .into_iter()
        .chain([sequence(&[&[json!({"type": "Fuse"})], &growing[..]].concat())])
    {
        for text in [&long, "a", "aaaa"] {
            let most = Detokenizer::new(token(text.to_owned()), &decoder).unwrap().piece_bytes_max();
            assert!(most <= 8192, "{most}");
            // Two of the four tokens are this one, and what is held comes with the last.
            assert!(run(text.to_owned(), decoder.clone()).len() <= 3 * most, "{decoder}");
        }
    }
    let strip = json!({"type": "Strip", "content": "é", "start": usize::MAX, "stop": usize::MAX});
    assert_eq!(run("éaé".to_owned(), strip.clone()), "aa");
    assert_eq!(run("éaé".to_owned(), sequence(&[json!({"type": "Fuse"}), strip])), "aééa");
    let refused = |decoder: &Value| Detokenizer::new(token("a".to_owned()), decoder).unwrap_err();
    for text in [replace("a", &"b".repeat(257)), replace(&"b".repeat(257), "a")] {
        assert_eq!(refused(&text), "its decoder has a text of 257 bytes; 256 are read");
    }
    let suffix = json!({"type": "BPEDecoder", "suffix": "b".repeat(1 << 20)});
    assert!(refused(&suffix).contains("1048576 bytes"));
    assert_eq!(refused(&sequence(&vec![square; 3])), "its decoder has 3 patterns; it may have 2");
    let huge = Detokenizer::new(token("a".repeat(5000)), &Value::Null).unwrap_err();
    assert_eq!(huge, "token 0 has 5000 bytes; 4096 are read");
    assert!(refused(&sequence(&vec![replace("a", "b"); 17])).contains("more than 16 stages"));
    assert!(
        refused(&json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})).contains("arsing")
    );
}
