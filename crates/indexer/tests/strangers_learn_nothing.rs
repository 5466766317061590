//! Who may not read a reference gets, byte for byte, the answer about one that does not exist.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use indexer::admin;
use world::{World, log_of, name, raw, request, signer, snapshot, status};

/// An answer without its date, which is the time and not about the reference.
fn undated(answer: &str) -> String {
    answer.split("\r\n").filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\r\n")
}

#[tokio::test]
async fn a_private_reference_looks_like_none() {
    let world = World::new().await;
    let (alice, stranger) = (world.account("alice").await, world.token("mallory").await);
    let log = log_of(&signer(1), 1);
    alice.claim(&name("alice"), &name("secret"), false, log.entries()).await.unwrap();
    // What would be accepted from someone who may.
    let mut longer = log.clone();
    let action = world::put(&log, "vm", 2);
    let entry = longer.write(&signer(1), action, 5).unwrap();
    let append =
        serde_json::to_string(&indexer::api::AppendRequest { expected_head: log.head().hash, entries: vec![entry] });
    let claim = indexer::api::ClaimRequest { public: true, entries: log.entries().to_vec() };
    let (append, claim) = (append.unwrap(), serde_json::to_string(&claim).unwrap());
    let providers = format!("/providers?snapshot={}", snapshot(1));
    let requests = [
        ("GET", "", ""),
        ("HEAD", "", ""),
        ("DELETE", "", ""),
        ("PATCH", "", r#"{"public":true}"#),
        ("PATCH", "", "garbage"),
        ("PUT", "", &claim),
        ("GET", "/log", ""),
        ("GET", "/log?from=1&limit=2", ""),
        ("POST", "/log", &append),
        ("GET", "/head", ""),
        ("GET", "/events", ""),
        ("GET", &providers, ""),
        ("POST", "/providers", r#"{"signed":"AAAA"}"#),
        ("GET", "/nothing", ""),
    ];
    for token in [None, Some(stranger.as_str())] {
        for (method, rest, body) in requests {
            let ask = |name: &str| request(method, &format!("/v1/accounts/alice/references/{name}{rest}"), token, body);
            let private = raw(world.address(), &ask("secret")).await;
            let missing = raw(world.address(), &ask("absent")).await;
            assert_eq!(undated(&private), undated(&missing), "{method} {rest} with token: {}", token.is_some());
            assert!([400, 401, 404].contains(&status(&private)), "{method} {rest}: {private}");
            assert!(!private.contains("secret"), "{private}");
            let path = format!("/v1/accounts/nobody/references/secret{rest}");
            let elsewhere = raw(world.address(), &request(method, &path, token, body)).await;
            assert_eq!(undated(&private), undated(&elsewhere), "an account that does not exist");
        }
    }
    assert_eq!(alice.reference(&name("alice"), &name("secret")).await.unwrap().head, log.head().into());
}

#[tokio::test]
async fn a_wrong_token_is_told_so_whatever_is_asked() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let log = log_of(&signer(1), 1);
    alice.claim(&name("alice"), &name("open"), true, log.entries()).await.unwrap();
    let expired = admin::account_add(&world.database(), &name("bob")).await.unwrap();
    let short = admin::token_rotate(&world.database(), &name("bob"), Some(1000)).await.unwrap();
    world.clock.advance(60_000);
    let unknown = format!("brant_{}", "0".repeat(64));
    for token in [&**expired, &**short, &unknown, "brant_", "x", "not a token at all"] {
        for path in ["/v1/whoami", "/v1/indexer", "/v1/accounts/alice/references/open"] {
            let answer = raw(world.address(), &request("GET", path, Some(token), "")).await;
            assert_eq!(status(&answer), 401, "{path}: {answer}");
            assert!(answer.contains("bad_token") && answer.contains("brant login"), "{answer}");
        }
    }
    let valid = admin::token_rotate(&world.database(), &name("bob"), None).await.unwrap();
    let answer = raw(world.address(), &request("GET", "/v1/whoami", Some(&valid), "")).await;
    assert!(status(&answer) == 200 && answer.contains("bob"));
    // Tokens are not in the database, only their hashes.
    let kept = std::fs::read(world.directory.path().join("index.db")).unwrap();
    let wal = std::fs::read(world.directory.path().join("index.db-wal")).unwrap();
    for file in [kept, wal] {
        assert!(!file.windows(valid.len()).any(|window| window == valid.as_bytes()));
    }
}
