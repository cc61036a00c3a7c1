//! How fast to send: CUBIC, but for losses that are not the sender's doing.
//!
//! CUBIC takes every loss for a full queue. On a radio link that loses one packet in a hundred whatever
//! is sent, that leaves it a small part of the link. As in TCP Veno (Fu and Liew, "TCP Veno: TCP
//! enhancement for transmission over wireless access networks", IEEE JSAC 2003), a loss only counts
//! when there is a queue, which shows in the round trip; or when there are many, for a queue may
//! be too short to be seen.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// There is a queue when the round trip has grown by this share of the shortest one: a half. CUBIC then
/// gives up three tenths of the window, which leaves as much as the line holds without a queue.
const QUEUE_SHARE: u32 = 2;

/// and by no less than this: timers and busy machines make up as much.
const QUEUE_MIN: Duration = Duration::from_millis(4);

/// A share of lost bytes that nobody should send into.
const LOSS_MAX: f64 = 0.03;

/// Bytes of which must be known whether they were lost before the share says anything: some 350 packets, of which
/// a link that loses one in a hundred by chance loses eleven once in a thousand times.
const COUNTED_MIN: u64 = 512 * 1024;

/// The same, before earlier ones count half.
const COUNTED_MAX: u64 = 4 * COUNTED_MIN;

/// Makes a controller for each connection.
#[derive(Debug)]
pub(super) struct Discerning(pub(super) Arc<CubicConfig>);

impl ControllerFactory for Discerning {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.0).build(now, mtu);
        Box::new(Discern { cubic, queue: false, acked: 0, lost: 0 })
    }
}

struct Discern {
    cubic: Box<dyn Controller>,
    /// Whether the last round trip showed a queue.
    queue: bool,
    /// Bytes acknowledged and lost lately, since less was last sent because of it.
    acked: u64,
    lost: u64,
}

impl Discern {
    fn count(&mut self, acked: u64, lost: u64) {
        (self.acked, self.lost) = (self.acked + acked, self.lost + lost);
        if COUNTED_MAX < self.acked + self.lost {
            (self.acked, self.lost) = (self.acked / 2, self.lost / 2);
        }
    }

    /// Whether losses are likely our doing.
    fn is_congested(&self) -> bool {
        let counted = self.acked + self.lost;
        let many = COUNTED_MIN <= counted && LOSS_MAX * (counted as f64) < self.lost as f64;
        self.queue || many
    }
}

impl Controller for Discern {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.count(bytes, 0);
        let longer = rtt.get().saturating_sub(rtt.min());
        self.queue = QUEUE_MIN.max(rtt.min() / QUEUE_SHARE) < longer;
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        self.count(0, lost);
        // No bytes: the network says itself that it is full.
        if persistent || lost == 0 || self.is_congested() {
            self.cubic.on_congestion_event(now, sent, persistent, lost);
            // What was lost has had its effect. Counted on, it would have it again every round trip.
            (self.acked, self.lost) = (0, 0);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
