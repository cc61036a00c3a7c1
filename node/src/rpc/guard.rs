//! Who may drive the node.
//!
//! The RPC of a node on loopback is open to every program of this machine, and so to every page in
//! its browser, were it not for these checks. A page that is not ours sends an `Origin` of its own.
//! A page that has made its own name point at 127.0.0.1 (DNS rebinding) is of the same origin, but
//! then the `Host` is that name, so only addresses and `localhost` are accepted there. Whoever
//! presents the token is no such page, and may call the node by any name.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::{ApiError, code};

/// Routes that say nothing about the node but that it is there, for probes that have no token.
const OPEN_ROUTES: &[&str] = &["/healthz", "/readyz"];

/// Routes that a page may cause to be asked: they tell it nothing.
const HARMLESS_ROUTES: &[&str] = &["/healthz"];

/// What browsers say of a request that no page of another site has caused.
const OWN_SITES: &[&[u8]] = &[b"same-origin", b"none"];

/// Content types that a page may send anywhere without asking first, and that no client of ours needs.
/// `application/x-www-form-urlencoded` is what curl says unless told otherwise.
const OF_FORMS: &[&str] = &["text/plain", "multipart/form-data"];

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
    pub(super) fn admit(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let authority = host(headers)?;
        let known = match &self.token {
            Some(token) => presented(headers).is_some_and(|text| blake3::hash(text) == *token),
            None => false,
        };
        if self.token.is_some() && !known && !OPEN_ROUTES.contains(&path) {
            let message = match presented(headers) {
                Some(_) => "this is not the token that this node asks for",
                None => "this node asks for a token: send it as `Authorization: Bearer …`",
            };
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, code::UNAUTHORIZED, message));
        }
        if !known && !is_literal(&authority) {
            return Err(forbidden(format!(
                "Host {authority:?} is neither an IP address nor localhost; a web page may be behind this"
            )));
        }
        if headers.get_all(header::ORIGIN).iter().any(|origin| !is_same(origin.as_bytes(), &authority)) {
            return Err(forbidden("this page is of another origin than the node"));
        }
        let mut sites = headers.get_all("sec-fetch-site").iter();
        if sites.any(|site| !OWN_SITES.contains(&site.as_bytes())) && !HARMLESS_ROUTES.contains(&path) {
            return Err(forbidden("a page of another site caused this request"));
        }
        if *method != Method::GET && is_of_a_form(headers) {
            let message =
                format!("the content type may not be {}; send application/json", OF_FORMS.join(" or "));
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code::INVALID, message));
        }
        Ok(())
    }
}

/// Lets only those requests through that [`Guard::admit`] does.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.admit(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn forbidden(message: impl AsRef<str>) -> ApiError {
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

fn is_of_a_form(headers: &HeaderMap) -> bool {
    let kinds = headers.get_all(header::CONTENT_TYPE).iter().filter_map(|kind| kind.to_str().ok());
    let mut kinds = kinds.filter_map(|kind| kind.split([';', ',']).next());
    kinds.any(|kind| OF_FORMS.iter().any(|form| form.eq_ignore_ascii_case(kind.trim())))
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
        asked(&Method::GET, token, path, headers)
    }

    fn asked(method: &Method, token: Option<&str>, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Guard::new(token).admit(method, path, &map).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
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
    fn what_a_page_of_another_site_causes_is_refused() {
        let token = ("authorization", "Bearer secret");
        let from = |path, site| verdict(None, path, &[("host", "127.0.0.1"), ("sec-fetch-site", site)]);
        for site in ["same-origin", "none"] {
            assert_eq!(from("/surf/v1/models", site), 200, "{site}");
        }
        for site in ["cross-site", "same-site", "Cross-Site", "tomorrow-site", "", "none, cross-site"] {
            assert_eq!(from("/surf/v1/models", site), 403, "{site}");
            assert_eq!(from("/metrics", site), 403, "{site}");
            assert_eq!(from("/healthz", site), 200, "{site}");
        }
        let with = [("host", "127.0.0.1"), token, ("sec-fetch-site", "cross-site")];
        assert_eq!(verdict(Some("secret"), "/v1/models", &with), 403);
        let twice = [("host", "127.0.0.1"), ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")];
        assert_eq!(verdict(None, "/v1/models", &twice), 403);
    }

    #[test]
    fn what_only_forms_send_is_no_json() {
        let post = |kind| {
            asked(&Method::POST, None, "/surf/v1/gc", &[("host", "127.0.0.1"), ("content-type", kind)])
        };
        for kind in
            ["text/plain", "TEXT/Plain;charset=UTF-8", "multipart/form-data; boundary=x", " text/plain "]
        {
            assert_eq!(post(kind), 415, "{kind}");
        }
        for kind in ["application/json", "application/x-www-form-urlencoded", "application/octet-stream", ""]
        {
            assert_eq!(post(kind), 200, "{kind}");
        }
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
