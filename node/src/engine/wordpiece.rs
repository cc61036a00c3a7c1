//! A tokenizer from BERT's `vocab.txt`, for models that were saved before there was a
//! `tokenizer.json`: one token a line, of which the line's number is the id.

use tokenizers::{
    AddedToken, Tokenizer,
    decoders::wordpiece::WordPiece as Decoder,
    models::{bpe::Vocab, wordpiece::WordPiece},
    normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
    processors::bert::BertProcessing,
};

use super::{EngineError, fields::Fields, files::Files};

/// Tokens with a meaning, which text does not have.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Tokenizers that cut words as BERT's does. A model that does not say has one of them.
const CLASSES: [&str; 4] =
    ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"];

/// The tokenizer, if there is a `vocab.txt` for it.
pub(crate) fn read(files: &Files) -> Result<Option<Tokenizer>, EngineError> {
    let Some(vocab) = files.text("vocab.txt")? else { return Ok(None) };
    let config = files.object("tokenizer_config.json")?;
    let fields = Fields::new(&config);
    if fields.text("tokenizer_class")?.is_some_and(|class| !CLASSES.contains(&class)) {
        return Ok(None);
    }
    let vocab: Vocab = vocab.lines().zip(0..).map(|(token, id)| (token.trim_end().to_owned(), id)).collect();
    let special = |token: &str| {
        let id = vocab.get(token).copied();
        id.ok_or_else(|| EngineError::file("vocab.txt", format!("has no {token}")))
    };
    let around =
        BertProcessing::new(("[SEP]".to_owned(), special("[SEP]")?), ("[CLS]".to_owned(), special("[CLS]")?));
    special("[UNK]")?;
    let added: Vec<AddedToken> = SPECIAL
        .iter()
        .filter(|token| vocab.contains_key(**token))
        .map(|token| AddedToken::from(*token, true))
        .collect();
    let flag = |name, default| Ok::<_, EngineError>(fields.flag(name)?.unwrap_or(default));
    let normalizer = BertNormalizer::new(
        true,
        flag("tokenize_chinese_chars", true)?,
        fields.flag("strip_accents")?,
        flag("do_lower_case", true)?,
    );
    let wrong = |error: tokenizers::Error| EngineError::file("vocab.txt", error);
    let model = WordPiece::builder().vocab(vocab).build().map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(wrong)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(around));
    tokenizer.with_decoder(Some(Decoder::default()));
    tokenizer.add_special_tokens(added).map_err(wrong)?;
    Ok(Some(tokenizer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(config: &str) -> Files {
        let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##aff\n##able\nwaves\n,\nWaves\n机\n";
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned().into());
        Files([file("vocab.txt", vocab), file("tokenizer_config.json", config)].into())
    }

    fn ids(config: &str, text: &str) -> Vec<u32> {
        let tokenizer = read(&files(config)).unwrap().unwrap();
        tokenizer.encode(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn words_are_cut_as_bert_cuts_them() {
        assert_eq!(ids("{}", "Unaffable,  Wavés x [MASK]"), [2, 5, 6, 7, 9, 8, 1, 4, 3]);
        assert_eq!(ids(r#"{"do_lower_case": false}"#, "Waves 机机"), [2, 10, 11, 11, 3]);
    }

    #[test]
    fn other_tokenizers_are_left_alone_and_odd_files_named() {
        assert!(read(&files(r#"{"tokenizer_class": "BertJapaneseTokenizer"}"#)).unwrap().is_none());
        let error = read(&Files([("vocab.txt".to_owned(), "a\nb".into())].into())).unwrap_err();
        assert_eq!(error.to_string(), "vocab.txt: has no [SEP]");
    }
}
