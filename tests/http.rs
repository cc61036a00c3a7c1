//! A node's RPC among clients that are slow, foreign, silent or confused, and when the node stops.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::disallowed_methods, reason = "real programs are waited for, by the real clock")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use surf_tests::{Process, program, tiny_surfer};

/// How long anything may take that should happen at once, on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

fn place(node: &Process) -> &str {
    node.rpc().strip_prefix("http://").unwrap()
}

fn connect(node: &Process) -> TcpStream {
    let stream = TcpStream::connect(place(node)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// The status and the body of the answer to `method path`, asked with `headers`; 0 if there was none.
fn ask(node: &Process, head: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = connect(node);
    let size = body.len();
    let head = format!("{head} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}", place(node));
    let request = format!("{head}content-length: {size}\r\n\r\n{body}");
    let mut answer = Vec::new();
    // A connection may have to make room for another.
    let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) => (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()),
        None => (0, format!("{asked:?}")),
    }
}

fn json_of((status, body): (u16, String)) -> (u16, Value) {
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn post(node: &Process, path: &str, body: &Value) -> (u16, Value) {
    json_of(ask(node, &format!("POST {path}"), "", &body.to_string()))
}

fn get(node: &Process, path: &str) -> (u16, Value) {
    json_of(ask(node, &format!("GET {path}"), "", ""))
}

fn surfer(node: &Process) -> String {
    let published = node.done(&["publish", tiny_surfer().to_str().unwrap(), "--name", "surfer"]);
    published["model"].as_str().unwrap().to_owned()
}

fn signal(node: &Process, signal: &str) {
    assert!(Command::new("kill").args([signal, &node.pid().to_string()]).status().unwrap().success());
}

/// Waits until `is_so`, which is the case soon.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_get_changes_nothing() {
    let a = Process::join(&[], &[]);
    let b = Process::join(&[a.addr()], &[]);
    let model = surfer(&a);
    a.done(&["name", "set", "story", &model]);
    let name = format!("{}/story", a.ready["peer_id"].as_str().unwrap());
    until("the name is known", || get(&b, &format!("/surf/v1/name/{name}")).0 == 200);
    for path in [
        format!("/surf/v1/models/{model}"),
        format!("/surf/v1/models/{name}"),
        format!("/v1/models/{model}"),
        format!("/v1/models/{name}"),
    ] {
        assert_eq!(get(&b, &path).0, 404, "{path}");
        assert_eq!(ask(&b, &format!("HEAD {path}"), "", "").0, 404, "{path}");
    }
    assert_eq!(get(&b, "/surf/v1/models").1, json!([]));
    assert_eq!(fs::read_dir(b.dir().join("store/manifests")).unwrap().count(), 0);
    assert!(!b.dir().join("names.json").exists());
    // All of it could have been had.
    assert_eq!(b.done(&["name", "get", &name])["model"], model);
    assert!(b.dir().join("names.json").exists(), "what is looked up on purpose is remembered");
    assert_eq!(b.done(&["pull", &name])["model"], model);
    assert_eq!(get(&b, &format!("/surf/v1/models/{name}")).0, 200);
}

#[test]
fn pages_of_other_sites_get_nothing() {
    let node = Process::join(&[], &[]);
    for site in ["cross-site", "same-site"] {
        let headers = format!("sec-fetch-site: {site}\r\nsec-fetch-mode: no-cors\r\n");
        for path in ["/surf/v1/models", "/metrics", "/readyz", "/v1/models", "/surf/v1/events"] {
            assert_eq!(ask(&node, &format!("GET {path}"), &headers, "").0, 403, "{path}");
        }
        assert_eq!(ask(&node, "GET /healthz", &headers, "").0, 200);
        assert_eq!(ask(&node, "POST /surf/v1/gc", &headers, "{}").0, 403);
    }
    assert_eq!(ask(&node, "GET /surf/v1/models", "sec-fetch-site: none\r\n", "").0, 200);
    assert_eq!(ask(&node, "POST /surf/v1/gc", "content-type: text/plain\r\n", "{}").0, 415);
    assert_eq!(ask(&node, "OPTIONS /surf/v1/gc", "", "").0, 405, "no page is allowed to ask");
    assert_eq!(post(&node, "/surf/v1/gc", &json!({})).0, 200);
}

#[test]
fn whoever_is_slow_keeps_nobody_out() {
    let node = Process::join(&[], &[]);
    let model = surfer(&node);
    let _slow: Vec<TcpStream> = (0..320)
        .map(|_| {
            let mut stream = connect(&node);
            let head = format!("GET /v1/models HTTP/1.1\r\nhost: {}\r\nx-slow: ", place(&node));
            // Those that find no place may be cut off already.
            let _ = stream.write_all(head.as_bytes());
            stream
        })
        .collect();
    for path in ["/healthz", "/metrics", "/readyz"] {
        assert_eq!(get(&node, path).0, 200, "{path}");
    }
    until("others have places again", || get(&node, "/v1/models").0 == 200);

    let _dripping: Vec<TcpStream> = (0..320)
        .map(|_| {
            let mut stream = connect(&node);
            let head = "POST /surf/v1/pull HTTP/1.1\r\ncontent-length: 1000";
            // Those that find no place are told, or cut off.
            let _ = write!(stream, "{head}\r\nhost: {}\r\n\r\n{{", place(&node));
            stream
        })
        .collect();
    assert_eq!(get(&node, "/healthz").0, 200);
    until("others have places again", || get(&node, "/v1/models").0 == 200);

    let (_, detail) = get(&node, &format!("/surf/v1/models/{model}"));
    assert!(2 < detail["chunks"].as_u64().unwrap());
    let _unread: Vec<TcpStream> = (0..320)
        .map(|_| {
            let mut stream = connect(&node);
            for _ in 0..200 {
                let _ =
                    write!(stream, "GET /surf/v1/models/{model} HTTP/1.1\r\nhost: {}\r\n\r\n", place(&node));
            }
            stream
        })
        .collect();
    assert_eq!(get(&node, "/healthz").0, 200);
    until("others have places again", || get(&node, "/v1/models").0 == 200);
}

/// The lines of an answer under way when the node is told to stop, to their end.
fn stopped(node: &Process, path: &str, body: &Value) -> String {
    let mut stream = connect(node);
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close", place(node));
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut begun = [0; 200];
    stream.read_exact(&mut begun).unwrap();
    signal(node, "-TERM");
    let mut rest = String::from_utf8_lossy(&begun).into_owned();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn a_stop_ends_every_stream_with_an_error() {
    let chat = json!({"model": "surfer", "messages": [{"role": "user", "content": "A story."}], "n": 64,
        "max_tokens": 400, "ignore_eos": true, "stream": true});
    let node = Process::join(&[], &[]);
    surfer(&node);
    let text = stopped(&node, "/v1/chat/completions", &chat);
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    let last: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{last} is no error"));
    assert_eq!(last["error"]["code"], "stopping");

    let node = Process::join(&[], &[]);
    let missing = format!("surf:{}", "ab".repeat(32));
    let text = stopped(&node, "/surf/v1/pull", &json!({"model": missing}));
    let line = text.lines().rfind(|line| line.contains("event")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["event"], &line["code"]), (&json!("error"), &json!("stopping")));
}

#[test]
fn the_list_is_of_what_can_run() {
    let node = Process::join(&[], &[]);
    let model = surfer(&node);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "no model").unwrap();
    let notes = node.done(&["publish", folder.path().to_str().unwrap(), "--name", "notes"]);
    let unknown = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny_surfer()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, unknown.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = unknown.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let kind = serde_json::from_str::<Value>(&text).unwrap()["model_type"].as_str().unwrap().to_owned();
    fs::write(&config, text.replace(&format!("\"{kind}\""), "\"of_tomorrow\"")).unwrap();
    let strange = node.done(&["publish", unknown.path().to_str().unwrap()]);

    let (_, list) = get(&node, "/v1/models");
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [model.as_str(), "surfer"]);
    assert_eq!(get(&node, "/v1/models/surfer").0, 200);
    for name in ["notes", strange["model"].as_str().unwrap()] {
        assert_eq!(get(&node, &format!("/v1/models/{name}")).0, 404);
    }
    let (_, all) = get(&node, "/surf/v1/models");
    let all = all.as_array().unwrap();
    let of = |id: &Value| all.iter().find(|one| one["model"] == *id).unwrap();
    assert_eq!((all.len(), &of(&json!(model))["runs"]), (3, &json!(true)));
    assert_eq!(of(&notes["model"])["runs"], json!(false));
    let why = of(&strange["model"])["why_not"].as_str().unwrap();
    assert!(why.contains("of_tomorrow"), "{why}");
}

#[test]
fn a_name_moves_only_if_told_to() {
    let node = Process::join(&[], &[]);
    let folder = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), text).unwrap();
        folder
    };
    let (one, two) = (folder("one"), folder("two"));
    let publish = |folder: &tempfile::TempDir, more: &[&str]| {
        node.run(&[&["publish", folder.path().to_str().unwrap(), "--name", "x"], more].concat())
    };
    assert!(publish(&one, &[]).status.success());
    assert!(publish(&one, &[]).status.success(), "it means the same");
    let first = node.done(&["models", "x"])["model"].as_str().unwrap().to_owned();
    let refused = publish(&two, &[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains(&first) && said.contains("--force"), "{said}");
    assert_eq!(node.done(&["models", "x"])["model"], first.as_str());
    let body = json!({"path": two.path(), "name": "x"});
    let lines = ask(&node, "POST /surf/v1/publish", "", &body.to_string()).1;
    assert!(lines.contains("\"code\":\"name_taken\""), "{lines}");
    assert!(publish(&two, &["--force"]).status.success());
    let second = node.done(&["models", "x"])["model"].as_str().unwrap().to_owned();
    assert_ne!(first, second);

    assert_eq!(node.done(&["name", "set", "n", &second])["moved_from"], Value::Null);
    assert_eq!(node.done(&["name", "set", "n", &first])["moved_from"], second.as_str());
    assert_eq!(node.done(&["name", "set", "n", &first])["moved_from"], Value::Null);
}

#[test]
fn ready_is_who_can_serve_and_not_who_has_peers() {
    let nobody = "/ip4/127.0.0.1/udp/9/quic-v1/p2p/12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq";
    let node = Process::join(&[nobody], &[]);
    assert_eq!(ask(&node, "GET /readyz", "", ""), (200, "ok\n".to_owned()));
    let (status, said) = ask(&node, "GET /readyz?verbose", "", "");
    assert!(
        status == 200 && said.contains("[+] store") && said.contains("[+] control plane: 0 peers"),
        "{said}"
    );
    fs::remove_dir_all(node.dir().join("store")).unwrap();
    let (status, said) = ask(&node, "GET /readyz", "", "");
    assert!(status == 503 && said.starts_with("[-] store") && said.contains("is gone"), "{said}");
    let (status, said) = ask(&node, "GET /readyz?verbose", "", "");
    assert!(status == 503 && said.contains("[-] store") && said.contains("[+] control plane"), "{said}");
    assert_eq!(get(&node, "/healthz").0, 200);
}

#[test]
fn a_node_s_secrets_are_not_published() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("node");
    let node = Process::join_in(&data, &[], &[]);
    fs::write(home.path().join("model.txt"), "x").unwrap();
    let key = data.join("identity.key");
    for path in [home.path(), &data, &key, &data.join("store")] {
        let refused = node.run(&["publish", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{}: {said}", path.display());
    }
    let swarm_key = home.path().join("swarm.key");
    assert!(Command::new(program()).args(["key", "new", "-o"]).arg(&swarm_key).status().unwrap().success());
    let refused = node.run(&["publish", swarm_key.to_str().unwrap(), "--copy"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("key of a private swarm"));
    assert_eq!(get(&node, "/surf/v1/models").1, json!([]));

    let empty = tempfile::tempdir().unwrap();
    let published = node.done(&["publish", empty.path().to_str().unwrap()]);
    assert_eq!(published["notices"].as_array().unwrap().len(), 1, "{published}");
}

#[test]
fn fields_that_change_the_answer_are_served_or_refused() {
    let node = Process::join(&[], &[]);
    surfer(&node);
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let user = json!({"role": "user", "content": "x"});
    for messages in [
        json!([user, {"role": "assistant", "content": null, "tool_calls": call}]),
        json!([user, {"role": "tool", "tool_call_id": "1", "content": "42"}]),
        json!([{"role": "narrator", "content": "x"}]),
    ] {
        let (status, error) =
            post(&node, "/v1/chat/completions", &json!({"model": "surfer", "messages": messages}));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("messages")), "{error}");
    }
    for (name, value) in
        [("min_p", json!(0.1)), ("chat_template_kwargs", json!({"a": 1})), ("what", json!(1))]
    {
        let body = json!({"model": "surfer", "messages": [user], name: value});
        let (status, error) = post(&node, "/v1/chat/completions", &body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(name)), "{error}");
    }
    for (path, body) in [
        ("/surf/v1/pull", json!({"model": "surfer", "fast": true})),
        ("/surf/v1/rm", json!({"model": "surfer", "force": true})),
        ("/surf/v1/gc", json!({"model": "surfer"})),
        ("/surf/v1/forward", json!({"model": "surfer", "input_ids": [1], "position_ids": [0]})),
        ("/surf/v1/check?model=surfer&strict=1", json!({})),
    ] {
        assert_eq!(post(&node, path, &body).0, 400, "{path}");
    }
    let developer = json!({"model": "surfer", "max_tokens": 1, "temperature": 0,
        "messages": [{"role": "developer", "content": "Be brief."}, user]});
    assert_eq!(post(&node, "/v1/chat/completions", &developer).0, 200);
}

fn run(envs: &[(&str, &str)], args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program());
    command.args(args).envs(envs.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn empty_variables_are_unset_and_of_two_flags_the_last_counts() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = |dir: &tempfile::TempDir| dir.path().to_str().unwrap().to_owned();
    let (status, ..) = run(&[], &["id", "--data-dir", &path(&one), "--data-dir", &path(&two)]);
    let has_key = |dir: &Path| dir.join("identity.key").exists();
    assert_eq!((status, has_key(one.path()), has_key(two.path())), (Some(0), false, true));

    let home = path(&one);
    let (status, _, said) = run(&[("SURF_DATA_DIR", ""), ("SURF_HOME", &home)], &["id"]);
    assert_eq!((status, has_key(one.path())), (Some(0), true), "{said}");
    let (status, _, said) =
        run(&[("SURF_RPC", ""), ("SURF_RPC_TOKEN", "")], &["--rpc", "127.0.0.1:9", "status"]);
    assert_eq!(status, Some(4), "{said}");
    // A name of the settings that is wrong ends `join` with 2; those that are empty do not.
    let empty = [
        "SURF_MEMORY",
        "SURF_CACHE_SIZE",
        "SURF_LISTEN",
        "SURF_UP",
        "SURF_LOG",
        "SURF_DEVICE",
        "SURF_BOOTSTRAP",
    ];
    let envs: Vec<_> = empty.iter().map(|name| (*name, "")).chain([("SURF_RELAY", "perhaps")]).collect();
    let (status, _, said) = run(&envs, &["join", "--data-dir", &home]);
    assert!(status == Some(2) && said.contains("SURF_RELAY") | said.contains("--relay"), "{said}");
}

#[test]
fn what_is_logged_to_a_file_has_no_colours() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = Command::new(program());
    command.args(["join", "--no-mdns", "--data-dir"]).arg(dir.path().join("data"));
    for listen in ["--listen", "--transfer", "--rpc"] {
        command.args([listen, "127.0.0.1:0"]);
    }
    command.env("RUST_LOG", "debug").env_remove("NO_COLOR");
    let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    until("something is logged", || 1000 < fs::metadata(&log).unwrap().len());
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read(&log).unwrap();
    assert!(!text.contains(&0x1b), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn tls_where_there_is_none_tells_its_cause() {
    let node = Process::join(&[], &[]);
    let url = node.rpc().replace("http://", "https://");
    let (status, _, said) = run(&[], &["--rpc", &url, "status"]);
    assert!(
        status == Some(4) && said.contains(&url) && said.contains("hint: nodes speak plain HTTP"),
        "{said}"
    );
    let dir = tempfile::tempdir().unwrap();
    let (status, _, said) =
        run(&[], &["join", "--rpc", "https://127.0.0.1:0", "--data-dir", dir.path().to_str().unwrap()]);
    assert!(status == Some(2) && said.contains("plain HTTP"), "{said}");
}
