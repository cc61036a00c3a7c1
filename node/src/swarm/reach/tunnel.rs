//! The swarm's side of [`Tunnel`]: asks the task for a stream until there is one, or there will be none.

use std::time::Duration;

use futures::future::BoxFuture;
use surf_protocol::NodeId;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    super::{Command, Handle},
    Unopened,
};
use crate::fetch::{DialError, Link, Tunnel, Tunnelled};

/// How long opening may take: a dial through a relay, and a way through the NAT.
const OPEN_TIME_MAX: Duration = Duration::from_secs(6);

/// The first pause until the task is asked again, and the longest. They double.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(1);

impl Tunnel for Handle {
    fn open(&self, peer: NodeId, bulk: bool) -> BoxFuture<'_, Result<Tunnelled, DialError>> {
        Box::pin(async move {
            let failed = |cause: String| DialError::new(peer, cause);
            let until = Instant::now() + OPEN_TIME_MAX;
            let mut pause = AGAIN;
            loop {
                let asked = Instant::now();
                match timeout_at(until, self.ask(|reply| Command::Open { peer, bulk, reply })).await {
                    Ok(Ok(Ok((stream, route)))) => {
                        // Agreeing on the protocol takes a round trip, so this is not less than one.
                        let link = Link { route, rtt: asked.elapsed() };
                        return Ok(Tunnelled { stream: Box::new(stream), link });
                    }
                    Ok(Ok(Err(Unopened::NotYet))) if Instant::now() + pause < until => {
                        sleep(pause).await;
                        pause = (pause * 2).min(AGAIN_MAX);
                    }
                    Ok(Ok(Err(unopened))) => {
                        let barred = matches!(unopened, Unopened::Barred(_));
                        return Err(DialError { barred, ..failed(unopened.to_string()) });
                    }
                    Ok(Err(_)) => return Err(failed("the connection was closed".to_owned())),
                    Err(_) => {
                        let cause = format!("no stream within {} s", OPEN_TIME_MAX.as_secs());
                        return Err(failed(cause));
                    }
                }
            }
        })
    }
}
