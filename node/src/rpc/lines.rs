//! Long work answered as it goes: one JSON object per line, the last of them `done` or `error`.

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::error::ApiError;
use crate::{api::Step, node::NodeError};

/// Events that may wait for a client that reads slowly. Then the work waits.
const QUEUE: usize = 16;

/// The last line of work that failed.
#[derive(Serialize)]
struct Failure<'a> {
    event: &'static str,
    message: &'a str,
    code: &'static str,
}

/// Runs `work`, which is handed where to tell its progress, and answers with what it tells and what
/// it gives. The work ends when the client goes away, and with an error when `stop` is cancelled.
pub(super) fn answer<P, D, F, W>(stop: &CancellationToken, work: W) -> Response
where
    P: Serialize + Send + 'static,
    D: Serialize + Send + 'static,
    F: Future<Output = Result<D, NodeError>> + Send + 'static,
    W: FnOnce(mpsc::Sender<P>) -> F,
{
    let (teller, progress) = mpsc::channel(QUEUE);
    let working = AbortOnDropHandle::new(tokio::spawn(work(teller)));
    let stopped = stop.clone().cancelled_owned();
    let result = futures::stream::once(async move {
        let ended = tokio::select! {
            biased;
            ended = working => ended,
            () = stopped => return failure(ApiError::stopping()),
        };
        match ended {
            Ok(Ok(done)) => line(&Step::<P, D>::Done(done)),
            Ok(Err(error)) => failure(error.into()),
            Err(_) => {
                failure(ApiError::failed("this is a bug in surf-node: the work ended without a result"))
            }
        }
    });
    let progress = ReceiverStream::new(progress).take_until(stop.clone().cancelled_owned());
    let lines = progress.map(|progress| line(&Step::<P, D>::Progress(progress))).chain(result);
    let body = Body::from_stream(lines.map(Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response()
}

fn failure(error: ApiError) -> Bytes {
    line(&Failure { event: "error", message: &error.message, code: error.code })
}

fn line(event: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(event).expect("our own types have string keys and finite depth");
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::api::{Amount, Exported};

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        String::from_utf8(bytes.into()).unwrap()
    }

    #[tokio::test]
    async fn progress_comes_first_and_the_result_last() {
        let response = answer(&CancellationToken::new(), |teller: mpsc::Sender<Amount>| async move {
            teller.send(Amount { bytes: 1, total: 2 }).await.unwrap();
            Ok(Exported { model: "surf:00".into(), files: 1, bytes: 2 })
        });
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        assert_eq!(
            text(response).await,
            "{\"event\":\"progress\",\"bytes\":1,\"total\":2}\n\
             {\"event\":\"done\",\"model\":\"surf:00\",\"files\":1,\"bytes\":2}\n"
        );
    }

    #[tokio::test]
    async fn a_failure_is_the_last_line() {
        let response = answer(&CancellationToken::new(), |_: mpsc::Sender<Amount>| async {
            Err::<Exported, _>(NodeError::NotFound("no model x".into()))
        });
        let text = text(response).await;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["event"], "error");
        assert_eq!(value["code"], "not_found");
        assert!(value["message"].as_str().unwrap().contains("no model x"));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_without_its_words() {
        let response = answer(&CancellationToken::new(), |_: mpsc::Sender<Amount>| async {
            if true { panic!("secret path") } else { Ok(Exported::default()) }
        });
        let text = text(response).await;
        assert!(text.contains("\"code\":\"failed\"") && !text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn a_stop_is_an_error_and_no_silence() {
        let stop = CancellationToken::new();
        let response = answer(&stop, |teller: mpsc::Sender<Amount>| async move {
            teller.send(Amount { bytes: 1, total: 2 }).await.unwrap();
            std::future::pending::<Result<Exported, _>>().await
        });
        let reading = tokio::spawn(text(response));
        tokio::task::yield_now().await;
        stop.cancel();
        let text = reading.await.unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["code"]), (&"error".into(), &"stopping".into()), "{text}");
    }

    #[tokio::test]
    async fn work_ends_with_its_client() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Flag(Arc::clone(&ended));
        let response = answer(&CancellationToken::new(), |_: mpsc::Sender<Amount>| async move {
            let _flag = flag;
            std::future::pending::<Result<Exported, _>>().await
        });
        drop(response);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert!(ended.load(Ordering::SeqCst));
    }
}
