//! The UDP socket under QUIC: large kernel buffers, small receive buffer.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, EndpointConfig, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Bytes asked of the kernel for each direction: what a gigabit link carries in 60 ms, in which a
/// busy machine may not get round to reading. The kernel gives less where its limits are lower.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;

/// The largest UDP payload we take: all there are.
const PAYLOAD_MAX: u16 = 65_527;

/// An endpoint on `addr` that serves nobody yet.
pub(super) fn bind(addr: SocketAddr) -> io::Result<quinn::Endpoint> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(addr),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    for (name, result) in [
        ("receive", socket.set_recv_buffer_size(KERNEL_BUFFER)),
        ("send", socket.set_send_buffer_size(KERNEL_BUFFER)),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, name, "kernel buffer left as it is");
        }
    }
    if addr.is_ipv6() {
        // IPv4 peers can be dialled and served through `[::]`.
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    let socket = TokioRuntime.wrap_udp_socket(UdpSocket::from(socket))?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(PAYLOAD_MAX).expect("within QUIC's bounds");
    let socket = Arc::new(Compact(socket));
    quinn::Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))
}

/// A socket whose receive buffer has room for one largest datagram per message.
///
/// quinn makes room for the largest datagram times the number of datagrams that the kernel may join
/// into one message, 130 MB. But the kernel never joins more than 64 KiB, and that is how large one
/// datagram may be already.
struct Compact(Arc<dyn AsyncUdpSocket>);

impl fmt::Debug for Compact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsyncUdpSocket for Compact {
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
