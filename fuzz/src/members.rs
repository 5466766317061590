//! What the members of a cluster send each other.

use cluster::message::{
    Given, MAX_MESSAGE_BYTES, Offered, Place, Protection, Refusal, Replicate, Reply, Request, Schedule, Settings,
    Terms, Testimony, decode,
};
use cluster::{MAX_PAYLOAD_BYTES, Operation, Outcome, REPLY_BYTES, REQUEST_BYTES, ReplyFrame, RequestFrame};
use format::to_canonical;
use types::{EndpointId, Name, SnapshotId};
use volume::Durability;

fn name() -> Name {
    "web1".parse().expect("a name")
}

const TERMS: Terms = Terms { sync: true, witness: Some(EndpointId([4; 32])), lag_bytes: 64 << 20 };

pub(crate) fn request(data: &[u8]) -> bool {
    let Ok(request) = decode::<Request>(data) else { return false };
    assert!(data.len() <= MAX_MESSAGE_BYTES);
    assert_eq!(to_canonical(&request), data, "one form");
    true
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let requests = [
        Request::Find { volume: name() },
        Request::Device { volume: name() },
        Request::Give { volume: name() },
        Request::Settle { volume: name(), epoch: 7 },
        Request::Forward {
            method: "GET".to_owned(),
            path: "/v1/volumes/web1".to_owned(),
            body: vec![b'{', b'}'].into(),
        },
        Request::Replicate { volume: name(), epoch: 1, terms: TERMS, line: Some(9) },
        Request::Continue { from: 1, consistent: 7 },
        Request::Witness {
            volume: name(),
            epoch: 2,
            replica: EndpointId([3; 32]),
            testimony: Testimony::ClaimWithLoss,
        },
    ];
    requests.iter().map(to_canonical).collect()
}

fn settings() -> Settings {
    Settings {
        labels: [(name(), "alice".to_owned())].into(),
        schedule: Some(Schedule {
            bucket: name(),
            object: name(),
            disk: None,
            every_ms: 3_600_000,
            keep: "3,24h".parse().ok(),
            latest_ms: 1,
        }),
        protection: Some(Protection { for_ms: 7_200_000, space_bytes: Some(1 << 30) }),
    }
}

pub(crate) fn set(data: &[u8]) -> bool {
    let Ok(settings) = decode::<Settings>(data) else { return false };
    assert_eq!(to_canonical(&settings), data, "one form");
    true
}

pub(crate) fn set_seeds() -> Vec<Vec<u8>> {
    vec![to_canonical(&settings()), to_canonical(&Settings::default())]
}

pub(crate) fn reply(data: &[u8]) -> bool {
    let Ok(reply) = decode::<Reply>(data) else { return false };
    assert!(data.len() <= MAX_MESSAGE_BYTES);
    assert_eq!(to_canonical(&reply), data, "one form");
    true
}

pub(crate) fn reply_seeds() -> Vec<Vec<u8>> {
    let content = Offered { snapshot: SnapshotId([1; 32]), size_bytes: 1 << 30, root: None, foreign: false };
    let given = Given {
        content: content.clone(),
        epoch: 3,
        origin: Some(Place { snapshot: SnapshotId([2; 32]), disk: 1 }),
        settings: settings(),
        replicate: Some(Replicate { to: EndpointId([3; 32]), terms: TERMS }),
        since: 2,
    };
    let refusal =
        Refusal { code: "conflict".to_owned(), message: "in use".to_owned(), hint: Some("stop it".to_owned()) };
    let replies = [
        Reply::Refused(refusal),
        Reply::Here { size_bytes: 1 << 30, epoch: 0 },
        Reply::Elsewhere { home: EndpointId([3; 32]), epoch: 1 },
        Reply::Absent,
        Reply::Opened { size_bytes: 512, epoch: 1, boot: "4a".to_owned(), since: 0 },
        Reply::Replica { resumed: true, applied: Some(7) },
        Reply::Offered(content),
        Reply::Given(Box::new(given)),
        Reply::Answered { status: 200, body: vec![1].into() },
    ];
    replies.iter().map(to_canonical).collect()
}

/// The heads of a request and of a reply, one behind the other.
pub(crate) fn frames(data: &[u8]) -> bool {
    let Some((request, reply)) = data.split_at_checked(REQUEST_BYTES) else { return false };
    let asked = RequestFrame::decode(request).is_ok_and(|frame| {
        assert_eq!(frame.encode(), request, "one form");
        let most = match frame.operation {
            Operation::Write => MAX_PAYLOAD_BYTES,
            Operation::Settings => MAX_MESSAGE_BYTES as u64,
            _ => u64::MAX,
        };
        assert!(frame.length <= most);
        assert!(frame.offset.checked_add(frame.length).is_some());
        true
    });
    let answered = reply.get(..REPLY_BYTES).is_some_and(|reply| {
        ReplyFrame::decode(reply).is_ok_and(|frame| {
            assert_eq!(frame.encode(), reply, "one form");
            assert!(frame.length <= MAX_PAYLOAD_BYTES);
            true
        })
    });
    asked && answered
}

pub(crate) fn frames_seeds() -> Vec<Vec<u8>> {
    let both = |operation, outcome| {
        let (durability, offset, length) = (Durability::Power, 4096, 65536);
        let request = RequestFrame { id: 1, operation, durability, offset, length };
        [&request.encode()[..], &ReplyFrame { id: 1, length, outcome }.encode()].concat()
    };
    vec![
        both(Operation::Write, Outcome::Done),
        both(Operation::Discard, Outcome::Gone),
        both(Operation::Grow, Outcome::Full),
        both(Operation::Settings, Outcome::Done),
    ]
}
