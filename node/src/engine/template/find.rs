//! Where a model keeps its chat templates: files of their own, or fields of its configuration, one
//! template or several with names.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::engine::{EngineError, files::Files};

/// The template of a model that has only one, or its default.
const ONE: &str = "chat_template.jinja";

/// A folder of further ones, named by their files.
pub(crate) const FOLDER: &str = "additional_chat_templates/";
pub(crate) const SUFFIX: &str = ".jinja";

/// Configurations that may hold templates. Processors write the second.
const CONFIGURATIONS: [&str; 2] = ["tokenizer_config.json", "chat_template.json"];

/// What the template is called that is used when nothing else is asked for.
const DEFAULT: &str = "default";

/// Special tokens that templates may name.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The template that answers a conversation without tools, and the file that it is in.
pub(super) fn default(files: &Files) -> Result<Option<(String, Cow<'_, str>)>, EngineError> {
    if let Some(source) = files.text(ONE)? {
        return Ok(Some((ONE.to_owned(), source.into())));
    }
    let named = format!("{FOLDER}{DEFAULT}{SUFFIX}");
    if let Some(source) = files.text(&named)? {
        return Ok(Some((named, source.into())));
    }
    for file in CONFIGURATIONS {
        let config = files.object(file)?;
        if let Some(source) = config.get("chat_template").and_then(in_config) {
            return Ok(Some((file.to_owned(), source.into())));
        }
    }
    // One that is not called the default, but is all there is.
    let mut others = files.0.keys().filter(|name| name.starts_with(FOLDER) && name.ends_with(SUFFIX));
    match (others.next(), others.next()) {
        (Some(only), None) => Ok(files.text(only)?.map(|source| (only.clone(), source.into()))),
        _ => Ok(None),
    }
}

/// The template in a configuration: text, or the default of a list or a dictionary of several.
fn in_config(value: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::String(source) => Some(source.clone()),
        Value::Object(named) => named.get(DEFAULT).or_else(|| named.values().next()).and_then(text),
        Value::Array(list) => {
            let is_default = |one: &&Value| one.get("name").and_then(Value::as_str) == Some(DEFAULT);
            let one = list.iter().find(is_default).or_else(|| list.first())?;
            one.get("template").and_then(text)
        }
        _ => None,
    }
}

/// Special tokens by the names that templates have for them.
pub(super) fn special_tokens(files: &Files) -> Result<Vec<(&'static str, String)>, EngineError> {
    let maps: [Map<String, Value>; 2] =
        [files.object(CONFIGURATIONS[0])?, files.object("special_tokens_map.json")?];
    let token = |name: &str| {
        let value = maps.iter().find_map(|map| map.get(name).filter(|value| !value.is_null()))?;
        Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned())
    };
    Ok(SPECIAL.iter().filter_map(|name| Some((*name, token(name)?))).collect())
}
