//! Numbers for Prometheus. What the node already counts is read when it is asked for; only what
//! passes through the RPC is counted here.
//!
//! Written in Prometheus' own text format, or as OpenMetrics for those who accept that.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::App;
use crate::{
    allocator,
    api::{GenerationStats, PeerView, Status, TransferStatus},
};

/// Seconds to the first token: from all resident on a GPU to a cold start over a slow link.
const TTFT_BUCKETS_S: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// What passes through the RPC. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Family<Answered, Counter>,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    ttft: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    /// The first digit of the status says enough.
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fetched {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Slow {
    model: String,
    reason: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            ttft: Histogram::new(TTFT_BUCKETS_S),
        }
    }
}

impl Metrics {
    /// Counts an answer.
    pub(super) fn answered(&self, status: StatusCode) {
        let status = format!("{}xx", status.as_u16() / 100);
        self.requests.get_or_create(&Answered { status }).inc();
    }

    /// Counts a generation.
    pub(super) fn generated(&self, stats: &GenerationStats) {
        self.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        self.completion_tokens.inc_by(stats.completion_tokens as u64);
        self.ttft.observe(stats.ttft_ms / 1e3);
    }

    fn text(&self, status: &Status, peers: &[PeerView]) -> String {
        let mut registry = Registry::with_prefix("surf");
        registry.register("http_requests", "Requests answered", self.requests.clone());
        registry.register("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        registry.register("completion_tokens", "Tokens generated", self.completion_tokens.clone());
        let help = "Time from a request to its first token";
        registry.register_with_unit("first_token", help, Unit::Seconds, self.ttft.clone());
        let gauges = [
            ("uptime_seconds", "Time since the node started", status.uptime_s),
            ("peers", "Connected peers", status.peers as u64),
            ("models", "Models whose manifest is here", status.models as u64),
            ("models_loaded", "Models that are ready to run", status.loaded.len() as u64),
            ("transfers", "Models being fetched", status.transfers.len() as u64),
            ("store_used_bytes", "Bytes in chunk files of the node", status.store.used),
            ("store_quota_bytes", "Bytes that these may grow to", status.store.quota),
            ("store_referenced_bytes", "Bytes that stay in users' files", status.store.referenced),
            ("store_chunks", "Chunks, wherever their bytes are", status.store.chunks),
            ("store_high_bytes", "Used bytes beyond which chunks are evicted", status.store.high),
            ("store_low_bytes", "Used bytes down to which they are", status.store.low),
        ];
        let free = status.store.free.map(|free| ("store_free_bytes", "Bytes free on the disk", free));
        let live = allocator::live_bytes();
        let live = live.map(|live| ("memory_live_bytes", "Bytes that the allocator has given out", live));
        for (name, help, value) in gauges.into_iter().chain(free).chain(live) {
            registry.register(name, help, ConstGauge::<u64>::new(value));
        }
        let sum = |count: fn(&PeerView) -> u64| ConstCounter::<u64>::new(peers.iter().map(count).sum());
        registry.register("sent_bytes", "Bytes sent to connected peers' data planes", sum(|peer| peer.sent));
        registry.register(
            "received_bytes",
            "Bytes received from connected peers' data planes",
            sum(|peer| peer.received),
        );
        let hashed = ConstCounter::<u64>::new(status.store.hashed);
        registry.register("store_hashed_bytes", "Bytes hashed to check what is on the disk", hashed);
        let damaged = ConstCounter::<u64>::new(status.store.damaged);
        registry.register("store_damaged_chunks", "Chunks found damaged or gone", damaged);
        if let Some(scrub) = status.store.scrub {
            let read = ConstCounter::<u64>::new(scrub.bytes);
            registry.register("scrub_bytes", "Bytes read to find what the disk has lost", read);
            let done = ConstGauge::<f64>::new(scrub.done);
            registry.register("scrub_done_ratio", "How much of the round is done", done);
        }
        transfers(&mut registry, &status.transfers);
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string cannot fail");
        text
    }
}

/// OpenMetrics in Prometheus' text format: there a counter is called what its samples are called, and units
/// and ends are not told.
fn prometheus(open_metrics: &str) -> String {
    let mut text = String::new();
    // The type of a metric comes after its help.
    let is_counter = |name: &str| open_metrics.contains(&format!("\n# TYPE {name} counter\n"));
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => continue,
            (Some("#"), Some(kind), Some(name), Some(rest)) if is_counter(name) => {
                text.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Whether `accept` asks for OpenMetrics.
fn wants_open_metrics(accept: Option<&HeaderValue>) -> bool {
    let kinds = accept.and_then(|accept| accept.to_str().ok()).unwrap_or_default().split(',');
    kinds.into_iter().any(|kind| kind.trim().starts_with("application/openmetrics-text"))
}

/// One line for each model that is being fetched.
fn transfers(registry: &mut Registry, transfers: &[TransferStatus]) {
    type Value = fn(&TransferStatus) -> u64;
    let values: [(&str, &str, Value); 6] = [
        ("transfer_here_bytes", "Bytes of the model that are here", |t| t.progress.bytes),
        ("transfer_total_bytes", "Bytes of the model", |t| t.progress.total),
        ("transfer_verified_bytes", "Bytes that came and were right", |t| t.progress.fetched_bytes),
        ("transfer_wasted_bytes", "Bytes that came in vain, duplicates too", |t| t.progress.wasted_bytes),
        ("transfer_duplicate_bytes", "Bytes that another sent sooner", |t| t.progress.duplicate_bytes),
        ("transfer_bytes_per_second", "Over the last seconds", |t| t.progress.rate),
    ];
    for (name, help, value) in values {
        let family = Family::<Fetched, Gauge>::default();
        for transfer in transfers {
            let label = Fetched { model: transfer.model.clone() };
            family.get_or_create(&label).set(i64::try_from(value(transfer)).unwrap_or(i64::MAX));
        }
        registry.register(name, help, family);
    }
    let slow = Family::<Slow, Gauge>::default();
    for transfer in transfers {
        if let Some(reason) = transfer.progress.reason.clone() {
            slow.get_or_create(&Slow { model: transfer.model.clone(), reason }).set(1);
        }
    }
    registry.register("transfer_slow", "Why the model comes slowly or not at all", slow);
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    let (status, peers) = tokio::join!(app.node.status(), app.node.peers());
    let text = app.metrics.text(&status, &peers);
    match wants_open_metrics(headers.get(header::ACCEPT)) {
        true => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text)
        }
        false => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], prometheus(&text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PullProgress, StoreStatus};

    #[test]
    fn metrics_are_named_and_counted() {
        let metrics = Metrics::default();
        metrics.answered(StatusCode::OK);
        metrics.answered(StatusCode::CREATED);
        metrics.answered(StatusCode::NOT_FOUND);
        metrics.generated(&GenerationStats {
            completion_tokens: 7,
            ttft_ms: 300.0,
            ..GenerationStats::default()
        });
        let store = StoreStatus { low: 85, free: Some(7), hashed: 5, ..StoreStatus::default() };
        let progress = PullProgress {
            duplicate_bytes: 5,
            reason: Some("relayed_peers".to_owned()),
            ..PullProgress::default()
        };
        let transfer = TransferStatus { model: "surf:ab".to_owned(), progress, ..TransferStatus::default() };
        let status = Status { peers: 3, store, transfers: vec![transfer], ..Status::default() };
        let peer = PeerView { sent: 40, ..PeerView::default() };
        let text = metrics.text(&status, &[peer.clone(), peer]);
        for line in [
            "surf_http_requests_total{status=\"2xx\"} 2",
            "surf_http_requests_total{status=\"4xx\"} 1",
            "surf_completion_tokens_total 7",
            "surf_first_token_seconds_bucket{le=\"0.5\"} 1",
            "surf_first_token_seconds_bucket{le=\"0.25\"} 0",
            "surf_peers 3",
            "surf_store_low_bytes 85",
            "surf_store_free_bytes 7",
            "surf_store_hashed_bytes_total 5",
            "surf_sent_bytes_total 80",
            "surf_transfer_duplicate_bytes{model=\"surf:ab\"} 5",
            "surf_transfer_slow{model=\"surf:ab\",reason=\"relayed_peers\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        check(&prometheus(&text));
    }

    /// The rules of `promtool check metrics` that our names and kinds could break; and the program itself, where
    /// it is installed.
    fn check(text: &str) {
        let kinds: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        assert!(20 < kinds.len(), "{text}");
        for (name, kind) in &kinds {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name} is a {kind}");
            for word in ["_gauge", "_counter", "_histogram", "_count", "_sum", "_bucket", "_info"] {
                assert!(!name.ends_with(word), "{name} tells its kind");
            }
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        for sample in samples {
            let name = sample.split(['{', ' ']).next().unwrap();
            let belongs = |(kin, kind): &&(&str, &str)| {
                let rest = name.strip_prefix(kin);
                rest.is_some_and(|rest| rest.is_empty() || *kind == "histogram" && rest.starts_with('_'))
            };
            assert!(kinds.iter().any(|kind| belongs(&kind)), "{sample} has no type");
        }
        let promtool = std::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn();
        // Not everyone who builds this has it.
        let Ok(mut promtool) = promtool else { return };
        std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let wants = |accept: &'static str| wants_open_metrics(Some(&HeaderValue::from_static(accept)));
        assert!(wants("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
        assert!(wants("text/plain, application/openmetrics-text; version=0.0.1"));
        assert!(!wants("*/*") && !wants("text/plain") && !wants_open_metrics(None));
    }
}
