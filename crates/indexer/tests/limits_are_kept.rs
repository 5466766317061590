//! Sizes, rates and counts have limits; plain HTTP does not leave the host unasked; every route is described.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use indexer::client::{AppendError, ClientError};
use indexer::{Announced, ServeError, ServeOptions, serve};
use world::{World, log_of, name, raw, request, signer, snapshot, status};

#[tokio::test]
async fn plain_http_does_not_leave_the_host_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = ServeOptions::new("0.0.0.0:0".parse().unwrap(), world::database(&directory));
    let refused = serve(options.clone()).await.unwrap_err();
    assert!(matches!(refused, ServeError::Insecure(_)) && refused.to_string().contains("--insecure-listen"));
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "nothing is made");
    options.insecure_listen = true;
    let serving = serve(options).await.unwrap();
    let mut taken = ServeOptions::new(serving.local_addr(), world::database(&directory));
    taken.insecure_listen = true;
    assert!(matches!(serve(taken).await, Err(ServeError::Listen { .. })));
    serving.stop().await;
    let mapped = ServeOptions::new("[::ffff:192.0.2.1]:0".parse().unwrap(), world::database(&directory));
    assert!(matches!(serve(mapped).await, Err(ServeError::Insecure(_))));
}

#[tokio::test]
async fn bodies_and_counts_are_limited() {
    let world = World::new().await;
    let token = world.token("alice").await;
    let path = "/v1/accounts/alice/references/vms";
    let long = "x".repeat((4 << 20) + 1);
    let answer = raw(world.address(), &request("PUT", path, Some(&token), &long)).await;
    assert!(status(&answer) == 413 && answer.contains("too_large"), "{answer}");
    let log = log_of(&signer(1), 0);
    let claim = indexer::api::ClaimRequest { public: false, entries: vec![log.entries()[0].clone(); 501] };
    let claim = serde_json::to_string(&claim).unwrap();
    let answer = raw(world.address(), &request("PUT", path, Some(&token), &claim)).await;
    assert_eq!(status(&answer), 413);
    for (method, path, body, expected) in [
        ("PUT", path, "{}", 400),
        ("PUT", path, r#"{"public":true,"entries":["!"]}"#, 400),
        ("PUT", path, r#"{"public":true,"entries":[],"more":1}"#, 400),
        ("GET", "/v1/accounts/a%2Fb/references/vms", "", 400),
        ("GET", "/v1/accounts/..%2f/references/vms", "", 400),
        ("GET", "/v1/accounts/alice/references/vms/log?from=-1", "", 400),
        ("GET", "/v1/accounts/alice/references/vms/providers?snapshot=xyz", "", 400),
        ("GET", "/v1/endpoints/xyz", "", 400),
        ("GET", "/v1/endpoints/", "", 404),
        ("GET", "/v1/accounts", "", 404),
        ("GET", "/", "", 404),
        ("POST", "/v1/whoami", "", 405),
    ] {
        let answer = raw(world.address(), &request(method, path, Some(&token), body)).await;
        assert_eq!(status(&answer), expected, "{method} {path}: {answer}");
        assert!(answer.contains(r#"{"code":""#), "one shape: {answer}");
    }
    let answer = raw(world.address(), b"GET /v1/indexer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("no-store") && answer.contains("nosniff"), "{answer}");
}

#[tokio::test]
async fn an_accounts_references_and_announcements_are_limited() {
    let world = World::with(|options| {
        options.limits.references_per_account = 2;
        options.limits.announcements_per_account = 2;
        options.limits.endpoints_per_account = 1;
    })
    .await;
    let alice = world.account("alice").await;
    let (account, log) = (name("alice"), log_of(&signer(1), 2));
    for text in ["a", "b", "a"] {
        alice.claim(&account, &name(text), false, log.entries()).await.unwrap();
    }
    let over = |error: ClientError| assert!(matches!(error, ClientError::Refused(error) if error.code == "over_limit"));
    match alice.claim(&account, &name("c"), false, log.entries()).await {
        Err(AppendError::Client(error)) => over(error),
        other => panic!("{other:?}"),
    }
    let both = [1, 2].map(|number| Announced { snapshot: snapshot(number), complete: true });
    alice.announce(&account, &name("a"), &signer(11), &both, 60).await.unwrap();
    alice.announce(&account, &name("a"), &signer(11), &both, 60).await.unwrap();
    over(alice.announce(&account, &name("a"), &signer(12), &both[..1], 60).await.unwrap_err());
    world.clock.advance(60_000);
    alice.announce(&account, &name("a"), &signer(12), &both, 60).await.unwrap();
    alice.put_addresses(&signer(11), Vec::new(), None).await.unwrap();
    over(alice.put_addresses(&signer(12), Vec::new(), None).await.unwrap_err());
    assert!(alice.endpoint(signer(12).endpoint_id()).await.unwrap().is_none());
}

#[tokio::test]
async fn requests_are_rationed_and_wrong_tokens_cost_more() {
    let world = World::with(|options| {
        options.limits.request_burst = 30;
        options.limits.requests_per_second = 1;
    })
    .await;
    let alice = world.account("alice").await;
    let wrong = world.client(Some(format!("brant_{}", "0".repeat(64))));
    let mut refusals = Vec::new();
    for _ in 0..5 {
        refusals.push(wrong.whoami().await.unwrap_err());
    }
    assert!(matches!(&refusals[0], ClientError::Unauthorized(_)));
    let last = refusals.pop().unwrap();
    assert!(last.is_passing() && matches!(&last, ClientError::Refused(error) if error.code == "too_many_requests"));
    // Who has a token is not held up by a neighbour without.
    alice.whoami().await.unwrap();
    let mut refused = None;
    for _ in 0..200 {
        refused = alice.whoami().await.err();
        if refused.is_some() {
            break;
        }
    }
    assert!(matches!(refused, Some(ClientError::Refused(error)) if error.code == "too_many_requests"));
}

#[tokio::test]
async fn the_description_names_every_route() {
    let world = World::new().await;
    let answer = raw(world.address(), &request("GET", "/v1/openapi.json", None, "")).await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    let mut described: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
        .collect();
    described.sort();
    let reference = "/v1/accounts/{account}/references/{name}";
    let mut expected: Vec<_> = [
        "get /v1/indexer",
        "get /v1/openapi.json",
        "get /v1/whoami",
        "get /v1/references",
        "post /v1/certificates",
        "put /v1/endpoints/{id}",
        "get /v1/endpoints/{id}",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(["put", "get", "patch", "delete"].map(|method| format!("{method} {reference}")))
    .chain(["get log", "post log", "get head", "get events", "get providers", "post providers"].map(|route| {
        let (method, rest) = route.split_once(' ').unwrap();
        format!("{method} {reference}/{rest}")
    }))
    .collect();
    expected.sort();
    assert_eq!(described, expected);
    // Each is there: none answers that there is no such route or method.
    for route in described {
        let (method, path) = route.split_once(' ').unwrap();
        let path = path.replace(['{', '}'], "");
        let answer = raw(world.address(), &request(&method.to_uppercase(), &path, None, "")).await;
        assert!(!answer.contains("no_route") && !answer.contains("no_method"), "{route}: {answer}");
    }
}
