//! What Indexers and peers say and sign: logs, evidence of forks, certificates, heads, announcements.

use bucket::{Certificate, ForkEvidence, HeadStatement, Log, Signed, Signer, Statement};
use format::entry::{Action, Reader, SignedEntry};
use indexer::{AddressRecord, Announced, Announcement, EndpointProof};
use types::{BucketId, EntryHash, SnapshotId};

use crate::objects::name;

fn signer() -> Signer {
    Signer::from_seed(&[8; 32])
}

/// Frames of a length (2 bytes, little-endian) and a signed entry, replayed as a log.
pub(crate) fn log(data: &[u8]) -> bool {
    let mut entries = Vec::new();
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length));
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        entries.extend(SignedEntry::decode(frame));
        rest = after;
    }
    let whole = Log::replay(signer().bucket_id(), entries.clone());
    if let Ok(log) = &whole {
        assert_eq!(log.length(), entries.len() as u64);
    }
    // What follows a good beginning is merged, all or nothing.
    let Some(mut log) = entries.first().and_then(|first| Log::replay(signer().bucket_id(), vec![first.clone()]).ok())
    else {
        return false;
    };
    let merged = log.merge(&entries);
    assert_eq!(merged.is_ok(), whole.is_ok());
    assert!(merged.is_ok() || log.length() == 1, "a merge that fails changes nothing");
    whole.is_ok()
}

pub(crate) fn log_seeds() -> Vec<Vec<u8>> {
    let mut log = Log::create(&signer(), 1_790_000_000_000);
    let put = Action::Put {
        object: name("web-01"),
        version: 1,
        snapshot: SnapshotId([9; 32]),
        size_bytes: 512,
        message: String::new(),
    };
    let grant = Action::Grant { reader: Reader::Everyone };
    let retire = Action::Retire { object: name("web-01"), version: 1 };
    for action in [put, grant, retire] {
        log.write(&signer(), action, 1_790_000_000_001).expect("the owner may write");
    }
    let frame = |entry: &SignedEntry| {
        let bytes = entry.encode();
        [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes()[..], &bytes].concat()
    };
    vec![log.entries().iter().flat_map(frame).collect(), log.entries()[1..].iter().flat_map(frame).collect()]
}

pub(crate) fn fork_evidence(data: &[u8]) -> bool {
    let Ok(evidence) = ForkEvidence::decode(data) else { return false };
    assert_eq!(evidence.encode(), data, "one form");
    true
}

pub(crate) fn fork_evidence_seeds() -> Vec<Vec<u8>> {
    let entry = |byte| SignedEntry { entry: vec![byte; 40], signature: [byte; 64] };
    vec![ForkEvidence { bucket: BucketId([1; 32]), sequence: 5, ours: entry(1), theirs: entry(2) }.encode()]
}

/// The first byte says what the rest shall be: from 8 on without a signature, which is then made.
pub(crate) fn statement(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    let signed = match kind {
        8..=12 => sign(kind - 8, rest),
        _ => data.to_vec(),
    };
    match signed.split_first() {
        Some((0, rest)) => check::<Certificate>(rest),
        Some((1, rest)) => check::<HeadStatement>(rest),
        Some((2, rest)) => check::<Announcement>(rest),
        Some((3, rest)) => check::<EndpointProof>(rest),
        Some((4, rest)) => check::<AddressRecord>(rest),
        _ => false,
    }
}

fn sign(kind: u8, statement: &[u8]) -> Vec<u8> {
    let contexts = [
        Certificate::CONTEXT,
        HeadStatement::CONTEXT,
        Announcement::CONTEXT,
        EndpointProof::CONTEXT,
        AddressRecord::CONTEXT,
    ];
    let signature = signer().sign(contexts[usize::from(kind)], statement);
    let mut encoder = minicbor::Encoder::new(vec![kind]);
    let pair = encoder.array(2).and_then(|pair| pair.bytes(statement)).and_then(|pair| pair.bytes(&signature));
    pair.expect("writing to a vector cannot fail");
    encoder.into_writer()
}

fn check<S: Statement>(data: &[u8]) -> bool {
    let Ok(signed) = Signed::<S>::decode(data) else { return false };
    assert_eq!(signed.encode(), data, "one form");
    let Ok(said) = signed.verify(0) else { return false };
    assert_eq!(format::to_canonical(&said), signed.bytes, "one form");
    true
}

pub(crate) fn statement_seeds() -> Vec<Vec<u8>> {
    let (signer, expires_ms) = (signer(), 1_790_000_000_000);
    let (indexer, endpoint) = (signer.public_key(), signer.endpoint_id());
    let account = || name("alice");
    let head = HeadStatement {
        version: HeadStatement::VERSION,
        indexer,
        bucket: BucketId([2; 32]),
        sequence: 3,
        head: EntryHash([3; 32]),
        expires_ms,
    };
    let announcement = Announcement {
        version: Announcement::VERSION,
        endpoint,
        indexer,
        account: account(),
        name: name("vms"),
        snapshots: vec![Announced { snapshot: SnapshotId([4; 32]), complete: true }],
        ttl_s: 600,
        expires_ms,
    };
    let proof = EndpointProof { version: EndpointProof::VERSION, endpoint, indexer, account: account(), expires_ms };
    let address = AddressRecord {
        version: AddressRecord::VERSION,
        endpoint,
        sequence: 1,
        addresses: vec!["127.0.0.1:4000".parse().expect("an address"), "[::1]:4000".parse().expect("an address")],
        relay: Some("https://relay.example.org".into()),
    };
    let of = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    let certificate = Certificate { version: Certificate::VERSION, indexer, account: account(), endpoint, expires_ms };
    vec![
        of(8, format::to_canonical(&certificate)),
        of(9, format::to_canonical(&head)),
        of(10, format::to_canonical(&announcement)),
        of(11, format::to_canonical(&proof)),
        of(12, format::to_canonical(&address)),
        of(0, Signed::<Certificate>::issue(&signer, account(), endpoint, expires_ms).encode()),
        of(1, Signed::<HeadStatement>::sign(&signer, &head).encode()),
        of(2, Signed::<Announcement>::sign(&signer, &announcement).encode()),
        of(3, Signed::<EndpointProof>::sign(&signer, &proof).encode()),
        of(4, Signed::<AddressRecord>::sign(&signer, &address).encode()),
    ]
}
