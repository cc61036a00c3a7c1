//! The command line as users write it, and the layers of settings.

use std::path::Path;

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::{
    settings::{LogFormat, Machine, Settings},
    *,
};
use crate::config::{Device, Precision, Size};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("surf-node").chain(line.split_whitespace()))
}

fn join(line: &str) -> Settings {
    match parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).command {
        Command::Join(join) => join.settings().clone(),
        other => panic!("{other:?} is not join"),
    }
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_command_parses() {
    for line in [
        "join",
        "join --bootstrap /ip4/127.0.0.1/tcp/1/p2p/12D3 --bootstrap /ip4/10.0.0.1/udp/1/quic-v1/p2p/12D3",
        "join --data-dir /d --listen 0.0.0.0:0 --transfer [::]:0 --rpc 127.0.0.1:0 --cache-size 10GB --memory 25% \
         --device cuda:1 --dtype bf16 --no-mdns --origin https://example.org/x --rpc-token /t --log json",
        "join --swarm-key /k --allow 12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq \
         --allow 12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq \
         --deny 12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
        "join --listen 0.0.0.0:1 --listen [::]:1",
        "key new",
        "key new -o swarm.key",
        "--json key new --output swarm.key",
        "publish ./model --name tiny --copy --follow-links",
        "publish ./model --quantize q4_k",
        "publish ./model --quantize Q8_0 --no-measure",
        "pull surf:0123456789",
        "export tiny out",
        "generate tiny -p Once --max-tokens 5 --temperature 0.7 --top-p 0.9 --top-k 40 --seed 1 --stop . --stop x",
        "generate tiny",
        "check tiny expected.safetensors --tolerance 1e-2",
        "models",
        "models tiny",
        "peers",
        "status",
        "limit",
        "limit --up 20Mbit --down 4MiB --origin none",
        "join --up 20Mbit --down 4MiB/s --origin-rate 1MB --max-connections 64",
        "join --scrub 7d",
        "join --scrub off",
        "pin tiny",
        "unpin tiny",
        "rm tiny",
        "gc",
        "verify",
        "verify tiny --repair",
        "demo",
        "id",
        "id --data-dir /d",
        "completions bash",
        "--rpc http://127.0.0.1:1 --json --quiet models",
        "models --rpc http://127.0.0.1:1 --json -vv",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        "",
        "fly",
        "pull",
        "export tiny",
        "publish ./model --quantize q9",
        "publish ./model --no-measure",
        "generate tiny --max-tokens 0",
        "check tiny x --tolerance -1",
        "check tiny x --tolerance NaN",
        "join --cache-size lots",
        "join --memory 0%",
        "join --up 0",
        "join --down none",
        "join --max-connections 1",
        "join --scrub never",
        "join --scrub 5s",
        "limit --up fast",
        "limit --max-connections 9",
        "join --device gpu",
        "join --dtype f64",
        "join --listen localhost",
        "join --bootstrap 127.0.0.1:1",
        "join --bootstrap /ip4/127.0.0.1/tcp/1",
        "join --origin example",
        "join --log xml",
        "join --allow me",
        "join --deny QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "key",
        "key old",
        "models -q -v",
        "completions tcsh",
    ] {
        let error = parse(line).map(|cli| format!("{cli:?}")).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(parse("--version").unwrap_err().kind(), ErrorKind::DisplayVersion);
}

#[test]
fn flags_are_read() {
    let settings =
        join("join --cache-size 10GB --memory 25% --device cuda:1 --dtype f16 --no-mdns --log json");
    assert_eq!(
        (settings.cache_size, settings.memory),
        (Some(Size::Bytes(10_000_000_000)), Some(Size::Share(2500)))
    );
    assert_eq!((settings.device, settings.dtype), (Some(Device::Cuda(1)), Some(Precision::F16)));
    assert_eq!((settings.no_mdns, settings.log), (Some(true), Some(LogFormat::Json)));
    assert_eq!(join("join --no-mdns=false").no_mdns, Some(false));
}

fn file(text: &str) -> Result<Settings, CliError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), text).unwrap();
    Settings::read(dir.path())
}

#[test]
fn every_option_is_a_key_of_the_file() {
    let settings = file(
        r#"
        listen = "0.0.0.0:1"
        transfer = "0.0.0.0:2"
        rpc = "127.0.0.1:3"
        bootstrap = ["/ip4/10.0.0.1/tcp/1/p2p/12D3"]
        cache-size = "10GB"
        memory = 1073741824
        device = "cpu"
        dtype = "f32"
        no-mdns = true
        up = "20Mbit"
        down = "4MiB"
        origin-rate = "1MB/s"
        max-connections = 64
        scrub = "12h"
        origin = ["https://example.org/"]
        swarm-key = "swarm.key"
        allow = ["12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"]
        deny = ["12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"]
        rpc-token = "/t"
        log = "json"
        "#,
    )
    .unwrap();
    assert_eq!(settings.memory, Some(Size::Bytes(1 << 30)));
    assert_eq!(settings.up.map(|rate| rate.bytes_per_s), Some(2_500_000));
    assert_eq!(settings.rpc_token.as_deref(), Some(Path::new("/t")));
    let swarm_key = settings.swarm_key.as_deref().unwrap();
    assert!(swarm_key.is_absolute() && swarm_key.ends_with("swarm.key"), "meant from where the file is");
    // Nothing is left to what is below.
    assert_eq!(settings.clone().or(join("join --listen 9.9.9.9:9 --log text")), settings);
    let none = Settings::read(Path::new("/nowhere")).unwrap();
    assert_eq!(none, Settings::default());
}

#[test]
fn a_wrong_file_is_named_with_the_key() {
    for (text, words) in [
        ("\ncolour = 1\n", "config.toml, line 2: unknown key `colour`, expected one of `listen`"),
        ("memory = \"lots\"", "config.toml, line 1: \"lots\" is not a size such as"),
        ("device = 7", "config.toml, line 1: invalid type: integer"),
        ("bootstrap = [\"x\"]", "config.toml: bootstrap: \"x\" is not a multiaddress"),
        ("deny = [\"me\"]", "config.toml: deny: \"me\" is not a peer id"),
        ("listen = ", "config.toml, line 1: "),
        ("listen = \"here\"", "config.toml, line 1: expected IP:PORT, or a list of them"),
        ("max-connections = 1", "config.toml: max-connections: \"1\" is not a number from 8"),
        ("scrub = \"1s\"", "config.toml, line 1: \"1s\" is too short: 1m at least"),
    ] {
        let error = file(text).unwrap_err();
        assert!(error.message.contains(words), "{} lacks {words}", error.message);
        assert!(error.exit == Exit::Usage && !error.message.contains('\n'), "{}", error.message);
    }
}

#[test]
fn flags_go_before_the_file_and_the_file_before_defaults() {
    let file =
        file("listen = \"0.0.0.0:1\"\nmemory = \"1GiB\"\nno-mdns = true\norigin = [\"https://a.example/\"]")
            .unwrap();
    let settings = join("join --listen 0.0.0.0:2 --no-mdns=false --cache-size 50%").or(file);
    let machine = Machine { memory: None, disk: Some(1000) };
    let config = settings.resolve("/d".into(), machine).unwrap();
    assert_eq!(config.swarm.listen, ["0.0.0.0:2".parse().unwrap()]);
    assert!(config.swarm.mdns);
    assert_eq!(config.transfer.limits, crate::config::Limits::default());
    assert_eq!((config.engine.memory, config.store.quota), (1 << 30, 500));
    assert_eq!(config.store.dir, Path::new("/d/store"));
    assert_eq!(config.store.scrub, Some(crate::config::Store::SCRUB));
    assert_eq!(config.fetch.origins[0].as_str(), "https://a.example/");
    assert_eq!((config.rpc.listen.to_string(), config.rpc.token), ("127.0.0.1:8471".into(), None));
    assert_eq!((config.engine.device, config.engine.dtype), (Device::Auto, Precision::Auto));
}

#[test]
fn a_node_listens_at_each_address_that_it_is_given() {
    let both = ["0.0.0.0:1", "[::1]:2"].map(|addr| addr.parse().unwrap());
    assert_eq!(join("join --listen 0.0.0.0:1 --listen [::1]:2").listen, both);
    assert_eq!(join("join --listen 0.0.0.0:1,[::1]:2").listen, both, "as in the environment");
    let file = file("listen = [\"0.0.0.0:1\", \"[::1]:2\"]").unwrap();
    assert_eq!(file.listen, both);
    assert_eq!(join("join --listen 127.0.0.1:3").or(file.clone()).listen.len(), 1, "not those of the file");
    assert_eq!(join("join").or(file).listen, both);
}

#[test]
fn a_share_of_the_unknown_is_refused() {
    let error =
        Settings::default().resolve("/d".into(), Machine { memory: Some(1), disk: None }).unwrap_err();
    assert!(error.message.contains("cache-size is 50%"), "{error}");
}

#[test]
fn the_rpc_may_be_written_as_clients_write_it() {
    let at = |rpc: &str| {
        let settings = Settings { rpc: Some(rpc.into()), ..Settings::default() };
        settings
            .resolve("/d".into(), Machine { memory: Some(1), disk: Some(1) })
            .map(|config| config.rpc.listen.to_string())
    };
    for rpc in ["127.0.0.1:0", "http://127.0.0.1:0", "http://127.0.0.1:0/"] {
        assert_eq!(at(rpc).unwrap(), "127.0.0.1:0");
    }
    assert_eq!(at("http://[::1]:5").unwrap(), "[::1]:5");
    for rpc in ["localhost:1", "127.0.0.1", "https://127.0.0.1:1", ""] {
        assert_eq!(at(rpc).unwrap_err().exit, Exit::Usage, "{rpc}");
    }
}

#[test]
fn a_token_is_one_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    for (text, token) in
        [("secret\n", Some("secret")), ("", None), (" \n", None), ("two words", None), ("é", None)]
    {
        std::fs::write(&path, text).unwrap();
        assert_eq!(settings::read_token(&path).ok().as_deref(), token, "{text:?}");
    }
    let error = settings::read_token(Path::new("/nowhere")).unwrap_err();
    assert!(error.exit == Exit::Failed && error.message.contains("/nowhere"), "{error}");
}

#[test]
fn exit_statuses_are_as_documented() {
    let statuses = [Exit::Done, Exit::Failed, Exit::Usage, Exit::NotFound, Exit::NoNode];
    assert_eq!(statuses.map(|exit| exit as u8), [0, 1, 2, 3, 4]);
}

#[test]
fn one_key_and_the_lists_reach_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("swarm.key");
    let line = format!(
        "join --swarm-key {} --allow 12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
        path.display()
    );
    let resolve = || join(&line).resolve("/d".into(), Machine { memory: Some(1), disk: Some(1) });
    let error = resolve().unwrap_err();
    assert!(error.exit == Exit::Failed && error.message.contains("swarm.key"), "{error}");
    let key = crate::members::SwarmKey::generate();
    key.save_new(&path).unwrap();
    let members = resolve().unwrap().members;
    assert_eq!((members.key, members.access.allow.len()), (Some(key), 1));
    std::fs::write(&path, "surf-key:").unwrap();
    let error = resolve().unwrap_err();
    assert!(error.exit == Exit::Usage && error.message.contains("swarm.key"), "{error}");
}
