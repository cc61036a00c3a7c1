//! The fields of a configuration, bounded.
//!
//! `config.json` comes from strangers; every number that sizes something is read through here, and
//! an error names the field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::EngineError;

/// One object of a configuration, and where it is. `null` counts as absent.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The fields of the outermost object.
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, path: String::new() }
    }

    /// The whole number `name`, which must be there.
    pub(crate) fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, EngineError> {
        self.count_if(name, range)?.ok_or_else(|| self.invalid(name, "is missing"))
    }

    /// The whole number `name`, if it is there.
    pub(crate) fn count_if(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, EngineError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => {
                let bounds = format!("must be a whole number from {} to {}", range.start(), range.end());
                Err(self.invalid(name, format!("is {value}; it {bounds}")))
            }
        }
    }

    /// The whole number `name`, if it is there, which bounds something. One beyond the range, be it
    /// infinite, bounds no more than its end.
    pub(crate) fn limit_if(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, EngineError> {
        match self.value(name).and_then(Value::as_f64) {
            Some(number) if (*range.end() as f64) < number => Ok(Some(*range.end())),
            _ => self.count_if(name, range),
        }
    }

    /// The number `name`, if it is there.
    pub(crate) fn real(&self, name: &str) -> Result<Option<f64>, EngineError> {
        self.typed(name, "a number", Value::as_f64)
    }

    /// The truth value `name`, if it is there.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, EngineError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// The text `name`, if it is there.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, EngineError> {
        self.typed(name, "text", Value::as_str)
    }

    /// The list `name`, if it is there.
    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, EngineError> {
        self.typed(name, "a list", Value::as_array)
    }

    /// The object `name`, if it is there.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, EngineError> {
        let object = self.typed(name, "an object", Value::as_object)?;
        Ok(object.map(|object| Fields { object, path: format!("{}{name}.", self.path) }))
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// Whether `name` is there, be it `null`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The error that `name` is not as it must be.
    pub(crate) fn invalid(&self, name: &str, reason: impl ToString) -> EngineError {
        EngineError::config(format!("{}{name}", self.path), reason)
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        what: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.invalid(name, format!("must be {what}")))
    }
}
