//! Who may drive the node.
//!
//! The RPC of a node on loopback is open to every program of this machine, and so to every page in
//! its browser, were it not for two checks. A page that is not ours sends an `Origin` of its own.
//! A page that has made its own name point at 127.0.0.1 (DNS rebinding) is of the same origin, but
//! then the `Host` is that name, so only addresses and `localhost` are accepted there. Whoever
//! presents the token is no such page, and may call the node by any name.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::{ApiError, code};

/// Routes that say nothing about the node but that it is there, for probes that have no token.
const OPEN_ROUTES: &[&str] = &["/healthz", "/readyz"];

/// What is asked of every request.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// Hashed, so that comparing takes the same time whatever was sent.
    token: Option<blake3::Hash>,
}

impl Guard {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(|token| blake3::hash(token.as_bytes())) }
    }

    /// Refuses a request for `path` with these `headers`, or does not.
    pub(super) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let authority = host(headers)?;
        let known = match &self.token {
            Some(token) => presented(headers).is_some_and(|text| blake3::hash(text) == *token),
            None => false,
        };
        if self.token.is_some() && !known && !OPEN_ROUTES.contains(&path) {
            let message = "this node asks for a token: send it as `Authorization: Bearer …`";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, code::UNAUTHORIZED, message));
        }
        if !known && !is_literal(&authority) {
            return Err(forbidden(format!(
                "Host {authority:?} is neither an IP address nor localhost; a web page may be behind this"
            )));
        }
        match headers.get(header::ORIGIN) {
            Some(origin) if !is_same(origin.as_bytes(), &authority) => {
                Err(forbidden("this page is of another origin than the node"))
            }
            _ => Ok(()),
        }
    }
}

/// Lets only those requests through that [`Guard::admit`] does.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.admit(request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message)
}

/// The one `Host`, parsed.
fn host(headers: &HeaderMap) -> Result<Authority, ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host
            .to_str()
            .ok()
            .filter(|host| !host.contains('@'))
            .and_then(|host| host.parse().ok())
            .ok_or_else(|| forbidden("the Host header is not a host")),
        (None, _) => Err(forbidden("a Host header is missing")),
        (Some(_), Some(_)) => Err(forbidden("there is more than one Host header")),
    }
}

fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn is_literal(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a page of `origin` was loaded from `authority`.
fn is_same(origin: &[u8], authority: &Authority) -> bool {
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let Ok(from) = rest.parse::<Authority>() else { return false };
    let port_default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let port = |of: &Authority| of.port_u16().unwrap_or(port_default);
    from.host().eq_ignore_ascii_case(authority.host()) && port(&from) == port(authority)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn verdict(token: Option<&str>, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Guard::new(token).admit(path, &map).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_addresses_and_localhost_are_hosts() {
        for host in
            ["127.0.0.1:8471", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8471", "192.168.0.7:8471"]
        {
            assert_eq!(verdict(None, "/", &[("host", host)]), 200, "{host}");
        }
        for host in
            ["evil.example:8471", "127.0.0.1.evil.example", "localhost.evil.example", "me@127.0.0.1", ""]
        {
            assert_eq!(verdict(None, "/", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(verdict(None, "/", &[]), 403);
        assert_eq!(verdict(None, "/", &[("host", "localhost"), ("host", "evil.example")]), 403);
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let from = |origin| verdict(None, "/", &[("host", "127.0.0.1:8471"), ("origin", origin)]);
        assert_eq!(from("http://127.0.0.1:8471"), 200);
        for origin in
            ["null", "http://127.0.0.1", "http://127.0.0.1:8472", "http://evil.example", "file://", ""]
        {
            assert_eq!(from(origin), 403, "{origin}");
        }
        let plain = [("host", "localhost"), ("origin", "http://localhost:80")];
        assert_eq!(verdict(None, "/", &plain), 200);
    }

    #[test]
    fn a_token_is_asked_for_but_by_probes() {
        let with =
            |value| verdict(Some("secret"), "/metrics", &[("host", "127.0.0.1"), ("authorization", value)]);
        assert_eq!(with("Bearer secret"), 200);
        assert_eq!(with("bearer  secret "), 200);
        for value in ["", "Bearer", "Bearer ", "Bearer secret2", "Bearer secre", "Basic secret", "secret"] {
            assert_eq!(with(value), 401, "{value}");
        }
        assert_eq!(verdict(Some("secret"), "/v1/models", &[("host", "127.0.0.1")]), 401);
        assert_eq!(verdict(Some("secret"), "/healthz", &[("host", "127.0.0.1")]), 200);
    }

    #[test]
    fn the_token_allows_any_name_but_no_foreign_page() {
        let named = ("host", "gpu.example:8471");
        let token = ("authorization", "Bearer secret");
        assert_eq!(verdict(Some("secret"), "/v1/models", &[named, token]), 200);
        let foreign = ("origin", "http://evil.example");
        assert_eq!(verdict(Some("secret"), "/v1/models", &[named, token, foreign]), 403);
        assert_eq!(verdict(Some("secret"), "/healthz", &[named]), 403);
    }
}
