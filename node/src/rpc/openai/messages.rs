//! The conversation of a chat request, as the model's template is to see it.
//!
//! A template sees who says what, in text. What else a message holds would change the prompt for some
//! templates and be lost for others, so it is refused by name.

use serde_json::{Map, Value};

use super::fields::is_empty;
use crate::{engine::Message, rpc::error::ApiError};

/// Roles of messages, and what templates call them. `developer` is OpenAI's later word for `system`; most
/// templates know only the older.
const ROLES: &[(&str, &str)] =
    &[("assistant", "assistant"), ("developer", "system"), ("system", "system"), ("user", "user")];

/// Fields of messages, and of parts of their content, that are about billing and display alone.
const HARMLESS: &[&str] = &["annotations", "cache_control"];

/// Reads `messages`.
pub(super) fn messages(written: Vec<Map<String, Value>>) -> Result<Vec<Message>, ApiError> {
    if written.is_empty() {
        return Err(ApiError::param("messages", "messages is empty"));
    }
    written.into_iter().enumerate().map(|(at, message)| read(at, message)).collect()
}

fn read(at: usize, mut written: Map<String, Value>) -> Result<Message, ApiError> {
    let refused = |what: String| ApiError::param("messages", format!("messages[{at}]{what}"));
    let role = match written.remove("role") {
        Some(Value::String(role)) => role,
        Some(_) => return Err(refused(".role is no text".to_owned())),
        None => return Err(refused(".role is missing".to_owned())),
    };
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == role) else {
        let known = ROLES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        return Err(refused(format!(".role is {role:?}, which is not supported; known are {known}")));
    };
    let content = text(at, written.remove("content").unwrap_or_default())?;
    match written.iter().find(|(name, value)| !HARMLESS.contains(&name.as_str()) && !is_empty(value)) {
        Some((name, _)) => Err(refused(format!(".{name} is not supported"))),
        None => Ok(Message { role: (*role).to_owned(), content }),
    }
}

/// The text that `content` is, or that its parts are together.
fn text(at: usize, content: Value) -> Result<String, ApiError> {
    let refused = |what: &str| ApiError::param("messages", format!("messages[{at}].content{what}"));
    let parts = match content {
        Value::Null => return Ok(String::new()),
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(refused(" is neither text nor a list of parts")),
    };
    let mut whole = String::new();
    for (place, part) in parts.into_iter().enumerate() {
        let Value::Object(mut part) = part else {
            return Err(refused(&format!("[{place}] is no object")));
        };
        match part.remove("type") {
            Some(Value::String(kind)) if kind == "text" => (),
            Some(Value::String(kind)) => {
                return Err(refused(&format!("[{place}] is of type {kind:?}; only text is understood")));
            }
            _ => return Err(refused(&format!("[{place}].type is missing"))),
        }
        match part.remove("text") {
            Some(Value::String(text)) => whole.push_str(&text),
            _ => return Err(refused(&format!("[{place}].text is missing"))),
        }
        let other = part.iter().find(|(name, value)| !HARMLESS.contains(&name.as_str()) && !is_empty(value));
        if let Some((name, _)) = other {
            return Err(refused(&format!("[{place}].{name} is not supported")));
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(messages: Value) -> Result<Vec<Message>, String> {
        super::messages(serde_json::from_value(messages).unwrap()).map_err(|error| {
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("messages")));
            error.message
        })
    }

    fn one(message: Value) -> Result<(String, String), String> {
        parse(json!([message])).map(|mut all| {
            let message = all.remove(0);
            (message.role, message.content)
        })
    }

    #[test]
    fn roles_are_those_that_templates_know() {
        for (role, seen) in
            [("user", "user"), ("system", "system"), ("assistant", "assistant"), ("developer", "system")]
        {
            assert_eq!(one(json!({"role": role, "content": "x"})), Ok((seen.into(), "x".into())));
        }
        for role in ["tool", "function", "ipython", "User", "", "moderator"] {
            let error = one(json!({"role": role, "content": "x"})).unwrap_err();
            assert!(error.contains("messages[0].role") && error.contains(&format!("{role:?}")), "{error}");
        }
        for bad in [json!({"content": "x"}), json!({"role": 7, "content": "x"}), json!({"role": null})] {
            assert!(one(bad).unwrap_err().contains("role"));
        }
    }

    #[test]
    fn what_a_message_holds_besides_text_is_refused_by_name() {
        let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        for (name, value) in [
            ("tool_calls", call),
            ("function_call", json!({"name": "f"})),
            ("tool_call_id", json!("1")),
            ("reasoning_content", json!("hm")),
            ("refusal", json!("no")),
            ("audio", json!({"id": "a"})),
            ("prefix", json!(true)),
            ("name", json!("alice")),
            ("images", json!(["x"])),
            ("unknown", json!(0)),
        ] {
            let error = one(json!({"role": "assistant", "content": "x", name: value})).unwrap_err();
            assert!(error.contains(&format!("messages[0].{name} ")), "{error}");
        }
        // As our own answers are, when they are sent back.
        let own = json!({"role": "assistant", "content": "x", "refusal": null, "tool_calls": [], "annotations": [],
            "function_call": null, "audio": null});
        assert_eq!(one(own), Ok(("assistant".into(), "x".into())));
    }

    #[test]
    fn content_is_text_or_parts_of_text() {
        let content = |content: Value| one(json!({"role": "user", "content": content})).map(|one| one.1);
        assert_eq!(content(json!("x")), Ok("x".into()));
        assert_eq!(content(Value::Null), Ok(String::new()));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "e"}}]);
        assert_eq!(content(parts), Ok("ab".into()));
        for (part, said) in [
            (json!({"type": "image_url", "image_url": {}}), "image_url"),
            (json!({"type": "input_audio"}), "input_audio"),
            (json!({"type": "refusal", "refusal": "no"}), "refusal"),
            (json!({"type": "text"}), "text"),
            (json!({"type": "text", "text": 7}), "text"),
            (json!({"type": "text", "text": "x", "lang": "en"}), "lang"),
            (json!({"text": "x"}), "type"),
            (json!("x"), "object"),
        ] {
            let error = content(json!([part])).unwrap_err();
            assert!(error.contains("messages[0].content[0]") && error.contains(said), "{error}");
        }
        assert!(content(json!(7)).is_err() && content(json!({"text": "x"})).is_err());
    }
}
