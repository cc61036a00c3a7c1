//! Panics as errors: a fault of the program ends what it was asked for, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::EngineError;

/// What `work` returns. If it panics, the text of that goes to the log, and `what` failed.
pub(crate) fn caught<R>(
    what: &'static str,
    work: impl FnOnce() -> Result<R, EngineError>,
) -> Result<R, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        tracing::error!(panic = said, "{what} failed because of a fault in this program");
        Err(EngineError::Panicked(what))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_what_failed() {
        assert_eq!(caught("counting", || Ok(3)).unwrap(), 3);
        let numbers: Vec<u8> = Vec::new();
        let error = caught("counting", || Ok(numbers[0])).unwrap_err();
        assert!(error.to_string().starts_with("counting failed because of a fault"), "{error}");
    }
}
