//! Errors as answers: OpenAI's shape, an HTTP status, and a code for programs.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    api::{ErrorBody, ErrorDetail, sentence},
    node::NodeError,
};

/// Codes that clients act on. `surf-node` itself turns them into exit statuses.
pub mod code {
    /// No such model, name or chunk, or nobody reachable holds a needed chunk.
    pub const NOT_FOUND: &str = "not_found";
    /// The request makes no sense.
    pub const INVALID: &str = "invalid";
    /// Too much is going on; try again later.
    pub const BUSY: &str = "busy";
    /// It was tried and did not work.
    pub const FAILED: &str = "failed";
    /// The node has no such route.
    pub const UNKNOWN_ROUTE: &str = "unknown_route";
    /// The route exists, for other methods.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// The token is missing or wrong.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// The request comes from a web page of somewhere else.
    pub const FORBIDDEN: &str = "forbidden";
    /// The body is larger than the route accepts.
    pub const TOO_LARGE: &str = "too_large";
    /// The body did not come in time.
    pub const TIMEOUT: &str = "timeout";
    /// The node is stopping; what was asked for is not done, or not to its end.
    pub const STOPPING: &str = "stopping";
    /// The name means another model, and nobody said that it may move.
    pub const NAME_TAKEN: &str = "name_taken";
}

/// An answer that says what went wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl AsRef<str>) -> Self {
        Self { status, code, message: sentence(message.as_ref()), param: None }
    }

    /// The request makes no sense.
    pub(super) fn invalid(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID, message)
    }

    /// The parameter `param` makes no sense.
    pub(super) fn param(param: &str, message: impl AsRef<str>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    /// There is no such thing.
    pub(super) fn not_found(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    }

    /// It was tried and did not work.
    pub(super) fn failed(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::FAILED, message)
    }

    /// The node was told to stop.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::STOPPING, "the node is stopping")
    }

    pub(super) fn body(&self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                kind: kind.to_owned(),
                param: self.param.clone(),
                code: Some(self.code.to_owned()),
            },
        }
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::NotFound { .. } => Self::not_found(message),
            NodeError::Invalid { .. } => Self::invalid(message),
            NodeError::NameTaken { .. } => Self::new(StatusCode::CONFLICT, code::NAME_TAKEN, message),
            NodeError::Busy { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, code::BUSY, message),
            NodeError::Failed { .. } => Self::failed(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_shape_that_clients_of_openai_read() {
        let body = serde_json::to_value(ApiError::param("top_p", "top_p is at most 1").body()).unwrap();
        let expected = serde_json::json!({"error": {
            "message": "top_p is at most 1", "type": "invalid_request_error", "param": "top_p", "code": "invalid",
        }});
        assert_eq!(body, expected);
    }
}
