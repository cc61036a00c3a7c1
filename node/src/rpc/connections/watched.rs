//! A connection, and the bodies that pass through it, which tell its place what the client does.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::place::Place;
use crate::rpc::pace::PATIENCE;

/// The stream of a connection. Fails when the client has taken too little for too long, or the head of a request
/// takes too long.
pub(super) struct Watched {
    tcp: TcpStream,
    place: Arc<Place>,
    /// When to give up, while the head of a request is awaited.
    head: Pin<Box<Sleep>>,
    /// The same, while something waits to be written.
    unread: Pin<Box<Sleep>>,
}

impl Watched {
    pub(super) fn new(tcp: TcpStream, place: Arc<Place>) -> Self {
        Self { tcp, place, head: Box::pin(sleep(PATIENCE)), unread: Box::pin(sleep(PATIENCE)) }
    }

    /// What came of trying to write.
    fn wrote(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        match wrote {
            Poll::Ready(Ok(bytes)) => {
                self.place.took(bytes, now);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let left = self.place.stuck(now);
                ready!(over(&mut self.unread, left, now, cx));
                Poll::Ready(Err(late("the client takes nothing")))
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf)?;
        let now = Instant::now();
        if before < buf.filled().len() {
            self.place.heard(now);
        }
        if read.is_pending()
            && let Some(left) = self.place.head_left(now)
        {
            ready!(over(&mut self.head, left, now, cx));
            return Poll::Ready(Err(late("the head of a request did not come")));
        }
        read.map(Ok)
    }
}

/// Ready when nothing is `left` to wait, for which `timer` wakes.
fn over(timer: &mut Pin<Box<Sleep>>, left: Duration, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if left.is_zero() {
        return Poll::Ready(());
    }
    timer.as_mut().reset(now + left);
    timer.as_mut().poll(cx)
}

fn late(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.wrote(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// The body of a request.
pub(super) struct Asking<B> {
    pub(super) body: B,
    pub(super) place: Arc<Place>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Asking<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let now = Instant::now();
        match &frame {
            Poll::Pending => self.place.wants_body(now),
            Poll::Ready(Some(Ok(frame))) => {
                self.place.got_body(frame.data_ref().map_or(0, Bytes::len), now);
            }
            Poll::Ready(_) => self.place.got_body(0, now),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Asking<B> {
    /// Nobody wants the rest.
    fn drop(&mut self) {
        self.place.got_body(0, Instant::now());
    }
}

/// The body of an answer. When it is gone, the client's turn begins.
pub(super) struct Answering<B> {
    pub(super) body: B,
    pub(super) place: Arc<Place>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Answering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Answering<B> {
    fn drop(&mut self) {
        self.place.answered(Instant::now());
    }
}
