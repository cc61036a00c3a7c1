//! The JSON is what the interface says.

use serde_json::json;

use super::*;

#[test]
fn pull_events_are_as_documented() {
    let done = PullEvent::Done(Pulled {
        model: "surf:00".into(),
        bytes: 3,
        fetched_bytes: 2,
        wasted_bytes: 1,
        seconds: 0.5,
        sources: vec![PullSource { peer: "P".into(), bytes: 2, path: "lan".into() }],
    });
    let text = json!({
        "event": "done", "model": "surf:00", "bytes": 3, "fetched_bytes": 2, "wasted_bytes": 1,
        "seconds": 0.5, "sources": [{"peer": "P", "bytes": 2, "path": "lan"}],
    });
    assert_eq!(serde_json::to_value(&done).unwrap(), text);
    assert_eq!(serde_json::from_value::<PullEvent>(text).unwrap(), done);
    let progress = serde_json::to_value(PullEvent::Progress(PullProgress::default())).unwrap();
    assert_eq!(progress["event"], "progress");
    assert!(progress.get("note").is_none());
}

#[test]
fn a_detail_is_the_list_entry_and_more() {
    let detail = ModelDetail {
        info: ModelInfo { model: "surf:00".into(), files: 1, ..ModelInfo::default() },
        files: vec![FileInfo { path: "config.json".into(), size: 2, sha256: "e3".into() }],
        groups: Vec::new(),
    };
    let text = serde_json::to_value(&detail).unwrap();
    assert_eq!(text["files"], 1);
    assert_eq!(text["file_list"][0]["path"], "config.json");
    assert_eq!(serde_json::from_value::<ModelDetail>(text).unwrap(), detail);
}
