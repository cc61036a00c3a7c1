//! The other end of the RPC: how commands talk to a node that runs.

use std::{io, ops::ControlFlow, time::Duration};

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::CliError,
    stream::{Events, Lines, TooLong},
};
use crate::{
    api::{ErrorBody, ErrorDetail, Step},
    rpc::error::code,
};

/// How long a machine may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Bytes of an answer that is not what it should be, to be looked at for an error.
const ERROR_SIZE_MAX: usize = 64 * 1024;

/// A node to talk to.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

impl Client {
    /// A client of the node at `url`, which may be a mere `HOST:PORT`.
    pub(crate) fn new(url: &str, token: Option<String>) -> Result<Self, CliError> {
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let usable = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let base = Url::parse(&full).ok().filter(usable).ok_or_else(|| {
            CliError::usage(format!("{url:?} is not where a node's RPC could be"))
                .hint(format!("write a URL such as {}", super::RPC_DEFAULT))
        })?;
        // A proxy is for the world outside; nodes are ours.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIME).build();
        let http =
            http.map_err(|error| CliError::failed(format!("HTTP cannot be spoken: {}", causes(&error))))?;
        Ok(Self { http, base, token })
    }

    /// What `GET path` answers. Each part of the path is encoded as needed.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, CliError> {
        self.whole(self.request(Method::GET, path)).await
    }

    /// What `POST path` answers to `body`.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.whole(self.request(Method::POST, path).json(body)).await
    }

    /// What `POST path?query` answers to raw bytes.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        let mut url = self.url(path);
        url.query_pairs_mut().extend_pairs(query);
        self.whole(self.authorized(self.http.post(url)).body(body)).await
    }

    /// Long work: calls `on_progress` for each step, and gives the result.
    pub(crate) async fn work<P, D>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        mut on_progress: impl FnMut(P) -> Result<(), CliError>,
    ) -> Result<D, CliError>
    where
        P: DeserializeOwned,
        D: DeserializeOwned,
    {
        let mut response = self.send(self.request(Method::POST, path).json(body)).await?;
        let mut lines = Lines::default();
        while let Some(bytes) = response.chunk().await.map_err(|error| self.broke_off(&error))? {
            for line in lines.push(&bytes).map_err(|error| self.too_long(error))? {
                match step(&line).ok_or_else(|| self.unexpected(&line))?? {
                    Step::Progress(progress) => on_progress(progress)?,
                    Step::Done(done) => return Ok(done),
                }
            }
        }
        Err(CliError::failed(format!("the node at {} stopped before the work was done", self.base)))
    }

    /// Server-sent events: calls `on_data` for each, until it says that it has enough.
    pub(crate) async fn listen(
        &self,
        path: &[&str],
        body: &impl Serialize,
        mut on_data: impl FnMut(Value) -> Result<ControlFlow<()>, CliError>,
    ) -> Result<(), CliError> {
        let mut response = self.send(self.request(Method::POST, path).json(body)).await?;
        let mut events = Events::default();
        while let Some(bytes) = response.chunk().await.map_err(|error| self.broke_off(&error))? {
            for data in events.push(&bytes).map_err(|error| self.too_long(error))? {
                if data == "[DONE]" {
                    return Ok(());
                }
                let value: Value = serde_json::from_str(&data).map_err(|_| self.unexpected(&data))?;
                if let Ok(body) = ErrorBody::deserialize(&value) {
                    return Err(told(body.error));
                }
                if on_data(value)?.is_break() {
                    return Ok(());
                }
            }
        }
        Err(CliError::failed(format!("the node at {} stopped before the answer was complete", self.base)))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        let mut segments = url.path_segments_mut().expect("checked to have a host");
        segments.pop_if_empty().extend(path);
        drop(segments);
        url
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.authorized(self.http.request(method, self.url(path)))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn whole<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = self.send(request).await?;
        let bytes = response.bytes().await.map_err(|error| self.broke_off(&error))?;
        serde_json::from_slice(&bytes).map_err(|_| self.unexpected(&String::from_utf8_lossy(&bytes)))
    }

    /// The answer, if it is a good one.
    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| self.unanswered(&error))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(self.refused(status, response).await) }
    }

    async fn refused(&self, status: StatusCode, mut response: Response) -> CliError {
        let mut bytes = Vec::new();
        while let Ok(Some(piece)) = response.chunk().await {
            bytes.extend_from_slice(&piece);
            if ERROR_SIZE_MAX < bytes.len() {
                break;
            }
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => told(body.error),
            Err(_) => CliError::no_node(format!("what answers at {} is no node: {status}", self.base)),
        }
    }

    fn unanswered(&self, error: &reqwest::Error) -> CliError {
        let is_tls = self.base.scheme() == "https";
        if !error.is_connect() && !is_tls {
            return self.broke_off(error);
        }
        if is_tls {
            let why = format!("no node can be reached at {}: {}", self.shown(), causes(error));
            let hint =
                "nodes speak plain HTTP, unless something before them speaks TLS: write http://HOST:PORT";
            return CliError::no_node(why).hint(hint);
        }
        let message = match io_kind(error) {
            Some(io::ErrorKind::ConnectionRefused) => format!("no node is running at {}", self.shown()),
            _ => format!("no node can be reached at {}: {}", self.shown(), causes(error)),
        };
        CliError::no_node(message).hint("start one with `surf-node join`, or say where it is with --rpc")
    }

    fn broke_off(&self, error: &reqwest::Error) -> CliError {
        CliError::failed(format!("the node at {} broke off: {}", self.shown(), causes(error)))
    }

    fn too_long(&self, error: TooLong) -> CliError {
        CliError::failed(format!("the node at {} sent {error}", self.shown()))
    }

    fn unexpected(&self, text: &str) -> CliError {
        let start: String = text.chars().take(80).collect();
        CliError::failed(format!(
            "the node at {} sent what this version does not understand: {start:?}",
            self.shown()
        ))
        .hint("`surf-node status` tells the node's version, `surf-node --version` this one's")
    }

    /// The address without the slash that the parser adds.
    fn shown(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }
}

/// An event of long work; `None` if `line` is none.
fn step<P: DeserializeOwned, D: DeserializeOwned>(line: &str) -> Option<Result<Step<P, D>, CliError>> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["event"] == "error" {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        return Some(Err(failure(text("code").as_deref(), text("message").unwrap_or_default())));
    }
    serde_json::from_value(value).ok().map(Ok)
}

fn told(error: ErrorDetail) -> CliError {
    failure(error.code.as_deref(), error.message)
}

/// The error for what the node says went wrong. The exit status follows from the code alone.
fn failure(said: Option<&str>, message: String) -> CliError {
    match said {
        Some(code::NOT_FOUND) => CliError::not_found(message),
        Some(code::BUSY) => CliError::failed(message).hint("try again in a while"),
        Some(code::NAME_TAKEN) => CliError::failed(message).hint("move the name with --force"),
        Some(code::UNAUTHORIZED) => {
            CliError::failed(message).hint("give the file that holds it with --rpc-token")
        }
        Some(code::UNKNOWN_ROUTE) => CliError::failed(message).hint("the node may be of an older version"),
        _ => CliError::failed(message),
    }
}

/// What the system said, if it was the system.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = cause.source();
    }
    None
}

/// What reqwest says, and what it leaves to its sources.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        api::{Amount, Exported},
        cli::error::Exit,
    };

    fn read(line: &str) -> Option<Result<Step<Amount, Exported>, CliError>> {
        step(line)
    }

    #[test]
    fn lines_of_long_work_are_understood() {
        let amount = Amount { bytes: 1, total: 2 };
        assert_eq!(
            read(r#"{"event":"progress","bytes":1,"total":2,"new":0}"#),
            Some(Ok(Step::Progress(amount)))
        );
        let done = Exported { model: "surf:00".into(), files: 1, bytes: 2 };
        assert_eq!(
            read(r#"{"event":"done","model":"surf:00","files":1,"bytes":2}"#),
            Some(Ok(Step::Done(done)))
        );
        for line in ["", "{", "[]", "{}", r#"{"event":"other"}"#, r#"{"event":"done"}"#] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn codes_become_exit_statuses() {
        for (said, exit) in [
            ("not_found", Exit::NotFound),
            ("invalid", Exit::Failed),
            ("busy", Exit::Failed),
            ("name_taken", Exit::Failed),
            ("stopping", Exit::Failed),
            ("failed", Exit::Failed),
            ("unauthorized", Exit::Failed),
            ("unknown_route", Exit::Failed),
            ("of tomorrow", Exit::Failed),
        ] {
            let line =
                serde_json::json!({"event": "error", "message": "no model x", "code": said}).to_string();
            let error = read(&line).unwrap().unwrap_err();
            assert_eq!((error.exit, error.message.as_str()), (exit, "no model x"), "{said}");
        }
    }

    #[test]
    fn addresses_may_be_short() {
        let url = |text: &str| {
            Client::new(text, None)
                .map(|client| client.url(&["surf", "v1", "models", "org/name x"]).to_string())
        };
        let expected = "http://127.0.0.1:8471/surf/v1/models/org%2Fname%20x";
        assert_eq!(url("127.0.0.1:8471").unwrap(), expected);
        assert_eq!(url("http://127.0.0.1:8471/").unwrap(), expected);
        for bad in ["ftp://127.0.0.1", "http://", "", "::"] {
            assert_eq!(url(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    /// A client of a server that answers one request with `answer`, in two pieces.
    async fn client_of(answer: &'static str) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let (one, two) = answer.split_at(answer.len() - 9);
            stream.write_all(one.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(two.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            // What is closed with bytes unread is reset, and what was sent is lost.
            let _ = stream.read_to_end(&mut head).await;
        });
        Client::new(&addr.to_string(), None).unwrap()
    }

    async fn export(answer: &'static str) -> (Vec<Amount>, Result<Exported, CliError>) {
        let mut told = Vec::new();
        let tell = |amount| {
            told.push(amount);
            Ok(())
        };
        let done = client_of(answer).await.work(&["x"], &Value::Null, tell).await;
        (told, done)
    }

    #[tokio::test]
    async fn long_work_is_followed_to_its_end() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n{\"event\":\"progress\",\"bytes\":1,\"total\":2}\n\
                      {\"event\":\"done\",\"model\":\"m\",\"files\":1,\"bytes\":2}\n";
        let (told, done) = export(answer).await;
        assert_eq!((told, done.unwrap().files), (vec![Amount { bytes: 1, total: 2 }], 1));
        let cut = "HTTP/1.1 200 OK\r\n\r\n{\"event\":\"progress\",\"bytes\":1,\"total\":2}\n";
        let error = export(cut).await.1.unwrap_err();
        assert!(error.exit == Exit::Failed && error.message.contains("stopped before"), "{error}");
        let failed =
            "HTTP/1.1 200 OK\r\n\r\n{\"event\":\"error\",\"message\":\"no m\",\"code\":\"not_found\"}\n";
        assert_eq!(export(failed).await.1.unwrap_err().exit, Exit::NotFound);
        let strange = "HTTP/1.1 200 OK\r\n\r\n<html> and so on\n";
        assert!(export(strange).await.1.unwrap_err().message.contains("does not understand: \"<html>"));
    }

    #[tokio::test]
    async fn refusals_are_told_from_strangers() {
        let refused = "HTTP/1.1 404 Not Found\r\n\r\n\
                       {\"error\":{\"message\":\"no m\",\"type\":\"x\",\"param\":null,\"code\":\"not_found\"}}";
        let error = export(refused).await.1.unwrap_err();
        assert_eq!((error.exit, error.message.as_str()), (Exit::NotFound, "no m"));
        let stranger = "HTTP/1.1 404 Not Found\r\n\r\n<html>nothing here</html>";
        assert_eq!(export(stranger).await.1.unwrap_err().exit, Exit::NoNode);
    }

    #[tokio::test]
    async fn events_are_heard_until_the_last() {
        let listen = async |answer| {
            let mut heard = Vec::new();
            let hear = |value: Value| {
                heard.push(value["n"].clone());
                Ok(ControlFlow::Continue(()))
            };
            let ended = client_of(answer).await.listen(&["x"], &Value::Null, hear).await;
            (heard, ended)
        };
        let whole =
            "HTTP/1.1 200 OK\r\n\r\n: hello\n\ndata: {\"n\":1}\n\ndata: {\"n\":2}\n\ndata: [DONE]\n\n";
        assert_eq!(listen(whole).await, (vec![1.into(), 2.into()], Ok(())));
        let (heard, cut) = listen("HTTP/1.1 200 OK\r\n\r\ndata: {\"n\":1}\n\n").await;
        assert!(heard == [1] && cut.unwrap_err().message.contains("stopped before"));
        let failed = "HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"message\":\"no chunk\",\"type\":\"x\",\"code\":\"not_found\"}}\n\n";
        let (heard, ended) = listen(failed).await;
        assert_eq!((heard.len(), ended.unwrap_err().exit), (0, Exit::NotFound));
    }

    #[tokio::test]
    async fn where_nobody_listens_there_is_no_node() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&free.to_string(), None).unwrap();
        let error = client.fetch::<Value>(&["surf", "v1", "status"]).await.unwrap_err();
        assert_eq!(
            (error.exit, error.message),
            (Exit::NoNode, format!("no node is running at http://{free}"))
        );
        assert!(error.hint.unwrap().contains("surf-node join"));
    }

    #[tokio::test]
    async fn tls_where_there_is_none_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let error = Client::new(&url, None).unwrap().fetch::<Value>(&["x"]).await.unwrap_err();
        assert_eq!(error.exit, Exit::NoNode);
        assert!(error.message.starts_with(&format!("no node can be reached at {url}: ")), "{error}");
        assert!(error.hint.unwrap().contains("http://"));
    }
}
