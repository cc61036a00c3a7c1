//! Numbers for Prometheus. What the node already counts is read when it is asked for; only what
//! passes through the RPC is counted here.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::App;
use crate::api::{GenerationStats, PeerView, Status};

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
        ];
        for (name, help, value) in gauges {
            registry.register(name, help, ConstGauge::<u64>::new(value));
        }
        let sum = |count: fn(&PeerView) -> u64| ConstCounter::<u64>::new(peers.iter().map(count).sum());
        registry.register("sent_bytes", "Bytes sent to connected peers' data planes", sum(|peer| peer.sent));
        registry.register(
            "received_bytes",
            "Bytes received from connected peers' data planes",
            sum(|peer| peer.received),
        );
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string cannot fail");
        text
    }
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let (status, peers) = tokio::join!(app.node.status(), app.node.peers());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(&status, &peers))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let status = Status { peers: 3, ..Status::default() };
        let peer = PeerView { sent: 40, ..PeerView::default() };
        let text = metrics.text(&status, &[peer.clone(), peer]);
        for line in [
            "surf_http_requests_total{status=\"2xx\"} 2",
            "surf_http_requests_total{status=\"4xx\"} 1",
            "surf_completion_tokens_total 7",
            "surf_first_token_seconds_bucket{le=\"0.5\"} 1",
            "surf_first_token_seconds_bucket{le=\"0.25\"} 0",
            "surf_peers 3",
            "surf_sent_bytes_total 80",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
