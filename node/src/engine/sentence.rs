//! From the vectors of a text's tokens to one of the text, as repositories of sentence-transformers
//! say: `modules.json` names the steps, each with a folder for its settings.
//!
//! Without it, the mean of all tokens, of length one.

use serde_json::{Map, Value};
use surf_chunker::json;

use super::{EngineError, fields::Fields, files::Files};

/// How texts become vectors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sentence {
    /// Vectors that are put one behind the other.
    pooling: Vec<Pooling>,
    normalize: bool,
    lower_case: bool,
    tokens_max: Option<usize>,
}

/// One vector of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first.
    First,
    /// The largest of each element.
    Max,
    Mean,
    /// The sum, by the root of how many there are.
    Root,
    /// The mean, in which the n-th counts n times.
    Weighted,
    Last,
}

/// What each may be called: as a setting of its own, and as the value of `pooling_mode`. In the order
/// in which they are put behind each other.
const POOLING: [(&str, &str, Pooling); 6] = [
    ("pooling_mode_cls_token", "cls", Pooling::First),
    ("pooling_mode_max_tokens", "max", Pooling::Max),
    ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::Root),
    ("pooling_mode_weightedmean_tokens", "weightedmean", Pooling::Weighted),
    ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
];

/// Steps that a repository may name. No model has more than a few.
const MODULES_MAX: usize = 16;

/// One step.
struct Module {
    /// The last part of its type.
    kind: String,
    /// Where its settings are.
    file: String,
}

/// The files of settings that `modules.json` names. What is wrong with it is told when it is read.
pub(crate) fn files(files: &Files) -> Vec<String> {
    let modules = modules(files).ok().flatten().unwrap_or_default();
    modules.into_iter().filter(|module| module.kind == "Pooling").map(|module| module.file).collect()
}

impl Sentence {
    /// What the repository says.
    pub(crate) fn read(files: &Files) -> Result<Self, EngineError> {
        let settings = files.object("sentence_bert_config.json")?;
        let settings = Fields::new(&settings);
        let tokenizer = files.object("tokenizer_config.json")?;
        // Where no one knows a limit, a very large number is written, not always a whole one.
        let longest = tokenizer.get("model_max_length").and_then(Value::as_u64);
        let longest =
            longest.and_then(|longest| usize::try_from(longest).ok()).filter(|&longest| 0 < longest);
        let wrong = |error: EngineError| EngineError::file("sentence_bert_config.json", error);
        let said = settings.limit_if("max_seq_length", 1..=1 << 24).map_err(wrong)?;
        let mut sentence = Self {
            pooling: vec![Pooling::Mean],
            normalize: true,
            lower_case: settings.flag("do_lower_case").map_err(wrong)?.unwrap_or(false),
            tokens_max: said.or(longest),
        };
        if let Some(modules) = modules(files)? {
            sentence.normalize = false;
            for module in modules {
                sentence.add(&module, files)?;
            }
        }
        Ok(sentence)
    }

    fn add(&mut self, module: &Module, files: &Files) -> Result<(), EngineError> {
        match module.kind.as_str() {
            "Transformer" => (),
            "Pooling" => {
                files.required(&module.file)?;
                self.pooling = pooling(&files.object(&module.file)?)
                    .map_err(|reason| EngineError::file(&module.file, reason))?;
            }
            "Normalize" => self.normalize = true,
            other => {
                let reason = format!("names {other:?}; supported are Transformer, Pooling and Normalize");
                return Err(EngineError::file("modules.json", reason));
            }
        }
        Ok(())
    }

    /// Tokens that a text is cut to, if it is said.
    pub(crate) fn tokens_max(&self) -> Option<usize> {
        self.tokens_max
    }

    /// Elements of a text's vector, where a token's has so many.
    pub(crate) fn width(&self, of_token: usize) -> usize {
        self.pooling.len() * of_token
    }

    /// `text` as the tokenizer is to see it.
    pub(crate) fn prepared(&self, text: &str) -> String {
        let text = text.trim();
        if self.lower_case { text.to_lowercase() } else { text.to_owned() }
    }

    /// One vector of those of all tokens, each of `width` elements.
    pub(crate) fn pooled(&self, tokens: &[f32], width: usize) -> Vec<f32> {
        let mut vector: Vec<f32> = self.pooling.iter().flat_map(|one| one.of(tokens, width)).collect();
        if self.normalize {
            normalize(&mut vector);
        }
        vector
    }
}

impl Pooling {
    /// Of `tokens`, each of `width` elements.
    pub(crate) fn of(self, tokens: &[f32], width: usize) -> Vec<f32> {
        let rows = || tokens.chunks_exact(width);
        let sum = |weight: fn(usize) -> f32, by: f32| {
            let mut sum = vec![0.0; width];
            for (at, row) in rows().enumerate() {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * weight(at));
            }
            sum.iter_mut().for_each(|sum| *sum /= by);
            sum
        };
        let count = rows().len().max(1) as f32;
        match self {
            Self::First => rows().next().unwrap_or_default().to_vec(),
            Self::Last => rows().next_back().unwrap_or_default().to_vec(),
            Self::Max => {
                let mut max = vec![f32::NEG_INFINITY; width];
                rows().for_each(|row| max.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(*x)));
                max
            }
            Self::Mean => sum(|_| 1.0, count),
            Self::Root => sum(|_| 1.0, count.sqrt()),
            Self::Weighted => sum(|at| (at + 1) as f32, count * (count + 1.0) / 2.0),
        }
    }
}

/// Scales `vector` to length one, unless it is zero.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
}

fn modules(files: &Files) -> Result<Option<Vec<Module>>, EngineError> {
    let wrong = |reason: &str| EngineError::file("modules.json", reason);
    let Some(text) = files.0.get("modules.json") else { return Ok(None) };
    let list: Vec<Map<String, Value>> =
        json::read(text).map_err(|error| EngineError::file("modules.json", error))?;
    if MODULES_MAX < list.len() {
        return Err(wrong("names too many modules"));
    }
    let module = |module: &Map<String, Value>| {
        let kind = module.get("type")?.as_str()?;
        let kind = kind.rsplit('.').next().unwrap_or(kind).to_owned();
        let path = module.get("path")?.as_str()?;
        let file = if path.is_empty() { "config.json".to_owned() } else { format!("{path}/config.json") };
        Some(Module { kind, file })
    };
    let modules: Option<Vec<Module>> = list.iter().map(module).collect();
    modules.map(Some).ok_or_else(|| wrong("has a module without type or path"))
}

fn pooling(settings: &Map<String, Value>) -> Result<Vec<Pooling>, String> {
    if let Some(mode) = settings.get("pooling_mode").filter(|mode| !mode.is_null()) {
        let modes = match mode {
            Value::String(mode) => vec![mode.as_str()],
            Value::Array(modes) => modes.iter().map(|mode| mode.as_str().unwrap_or("")).collect(),
            _ => vec![""],
        };
        let known = |mode: &&str| POOLING.iter().find(|(_, name, _)| name == mode).map(|(_, _, one)| *one);
        let known: Option<Vec<Pooling>> = modes.iter().map(known).collect();
        return known.filter(|known| !known.is_empty()).ok_or(format!("pooling_mode {mode} is not known"));
    }
    let mut chosen = Vec::new();
    for (name, _, one) in POOLING {
        match settings.get(name) {
            Some(Value::Bool(true)) => chosen.push(one),
            Some(Value::Bool(false) | Value::Null) => (),
            Some(_) => return Err(format!("{name} must be true or false")),
            // As sentence-transformers has it.
            None if one == Pooling::Mean => chosen.push(one),
            None => (),
        }
    }
    if chosen.is_empty() {
        return Err("chooses no way of pooling that is supported".to_owned());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(with: &[(&str, &str)]) -> Result<Sentence, EngineError> {
        let file = |(name, text): &(&str, &str)| (name.to_string(), text.to_string().into());
        Sentence::read(&Files(with.iter().map(file).collect()))
    }

    const MODULES: &str = r#"[
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;

    fn pooled(settings: &str) -> Vec<f32> {
        let sentence = sentence(&[("modules.json", MODULES), ("1_Pooling/config.json", settings)]).unwrap();
        sentence.pooled(&[1.0, -2.0, 3.0, 6.0], 2)
    }

    #[test]
    fn vectors_are_pooled_as_the_repository_says() {
        let only = |name: &str| pooled(&format!(r#"{{"pooling_mode_mean_tokens": false, "{name}": true}}"#));
        assert_eq!(pooled("{}"), [2.0, 2.0]);
        assert_eq!(only("pooling_mode_cls_token"), [1.0, -2.0]);
        assert_eq!(only("pooling_mode_lasttoken"), [3.0, 6.0]);
        assert_eq!(only("pooling_mode_max_tokens"), [3.0, 6.0]);
        assert_eq!(only("pooling_mode_mean_sqrt_len_tokens"), [4.0 / 2f32.sqrt(); 2]);
        assert_eq!(only("pooling_mode_weightedmean_tokens"), [7.0 / 3.0, 10.0 / 3.0]);
        assert_eq!(pooled(r#"{"pooling_mode_cls_token": true}"#), [1.0, -2.0, 2.0, 2.0]);
        assert_eq!(pooled(r#"{"pooling_mode": "cls"}"#), [1.0, -2.0]);
    }

    #[test]
    fn without_a_word_it_is_the_mean_of_length_one() {
        let plain = sentence(&[("tokenizer_config.json", r#"{"model_max_length": 1e30}"#)]).unwrap();
        assert_eq!((plain.tokens_max(), plain.prepared(" A ")), (None, "A".to_owned()));
        let vector = plain.pooled(&[3.0, 0.0, 3.0, 8.0], 2);
        assert_eq!(vector, [0.6, 0.8]);
        let limits = [
            ("tokenizer_config.json", r#"{"model_max_length": 512}"#),
            ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": true}"#),
        ];
        let limited = sentence(&limits).unwrap();
        assert_eq!((limited.tokens_max(), limited.prepared("Ä ")), (Some(256), "ä".to_owned()));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refused = |with: &[(&str, &str)]| sentence(with).unwrap_err().to_string();
        let dense = r#"[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
        assert!(refused(&[("modules.json", dense)]).contains("\"Dense\""));
        assert!(refused(&[("modules.json", MODULES)]).contains("1_Pooling/config.json"));
        let none = ("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": false}"#);
        assert!(refused(&[("modules.json", MODULES), none]).contains("no way of pooling"));
        assert!(refused(&[("modules.json", "{}")]).starts_with("modules.json"));
        let files = [("modules.json", MODULES), ("tokenizer.json", "{}")];
        let files = Files(files.map(|(name, text)| (name.to_owned(), text.into())).into());
        assert_eq!(files.named(), ["1_Pooling/config.json"]);
    }
}
