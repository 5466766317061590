//! What is kept of members and moves, as records of the store: `cluster/NAME`, `home/VOLUME`, `offer/VOLUME/MEMBER`, `given/VOLUME`,
//! `taking/VOLUME`, `replicate/VOLUME`, `replica/VOLUME`, `witness/VOLUME`.

use std::collections::BTreeMap;

use cluster::Standing;
use cluster::message::{Protection, Replicate, Settings, Terms};
use minicbor::{Decode, Encode};
use store::{Domains, Live, LiveTree};
use types::{EndpointId, FrozenId, JournalId, Name, NodeId, SnapshotId};
use volume::Position;

use crate::record::{OriginRecord, Record, ScheduleRecord, domains_of};

pub(crate) const MEMBER: &str = "cluster/";
pub(crate) const HOME: &str = "home/";
pub(crate) const OFFER: &str = "offer/";
pub(crate) const GIVEN: &str = "given/";
pub(crate) const TAKING: &str = "taking/";
pub(crate) const REPLICATE: &str = "replicate/";
pub(crate) const REPLICA: &str = "replica/";
pub(crate) const WITNESS: &str = "witness/";

/// The name of the record of a volume's snapshot for a member.
pub(crate) fn offer_name(volume: &Name, to: EndpointId) -> String {
    format!("{OFFER}{volume}/{to}")
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MemberRecord {
    #[n(0)]
    pub(crate) endpoint: EndpointId,
    /// Where it is reached, as `IP:PORT`.
    #[n(1)]
    pub(crate) addresses: Vec<String>,
}

/// A volume that came from another member. One that was never given has none.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HomeRecord {
    /// How often it was given.
    #[n(0)]
    pub(crate) epoch: u64,
    /// What is still to come, if anything is.
    #[n(1)]
    pub(crate) arriving: Option<ArrivingRecord>,
    /// The epoch in which a replica took over that lacked what was written last, if one ever did: who used it before must not go on.
    #[n(2)]
    pub(crate) since: Option<u64>,
}

/// What of a volume is still to come.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ArrivingRecord {
    /// From whom.
    #[n(0)]
    pub(crate) from: EndpointId,
    /// The snapshot that it is asked for as.
    #[n(1)]
    pub(crate) snapshot: SnapshotId,
    /// The published disk that the volume was cloned from, wherever that was.
    #[n(2)]
    pub(crate) origin: Option<OriginRecord>,
}

/// A snapshot of a volume for one member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct OfferRecord {
    #[n(0)]
    pub(crate) to: EndpointId,
    /// The frozen disk, until it is sealed.
    #[n(1)]
    pub(crate) frozen: Option<FrozenId>,
    /// What it is, once it is sealed.
    #[n(2)]
    pub(crate) content: Option<ContentRecord>,
    /// When it was made, in milliseconds since 1970.
    #[n(3)]
    pub(crate) at_ms: u64,
}

/// A sealed snapshot of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ContentRecord {
    #[n(0)]
    pub(crate) snapshot: SnapshotId,
    #[n(1)]
    pub(crate) size_bytes: u64,
    #[n(2)]
    pub(crate) root: Option<NodeId>,
    /// Where its data are found here.
    #[n(3)]
    pub(crate) domains: Vec<u32>,
    /// Where what is not here can be asked for.
    #[n(4)]
    pub(crate) origin: Option<OriginRecord>,
}

/// A volume that was given to another member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct GivenRecord {
    #[n(0)]
    pub(crate) to: EndpointId,
    /// The epoch that began.
    #[n(1)]
    pub(crate) epoch: u64,
    /// What it was; none where a replica has taken over, so that nobody fetches it.
    #[n(2)]
    pub(crate) content: Option<ContentRecord>,
    #[n(3)]
    pub(crate) labels: BTreeMap<Name, String>,
    /// Whether all of it is there.
    #[n(4)]
    pub(crate) settled: bool,
    /// When it was given, in milliseconds since 1970.
    #[n(5)]
    pub(crate) at_ms: u64,
    /// Its schedule.
    #[n(6)]
    pub(crate) schedule: Option<ScheduleRecord>,
    /// How a replica of it is kept from now on.
    #[n(7)]
    pub(crate) replicate: Option<Replicate>,
    #[n(8)]
    pub(crate) since: Option<u64>,
    /// For how long its past is kept from now on.
    #[n(9)]
    pub(crate) protection: Option<Protection>,
}

/// A volume that this node means to take.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TakingRecord {
    #[n(0)]
    pub(crate) from: EndpointId,
}

/// That a replica is kept of a volume that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ReplicateRecord {
    /// By whom.
    #[n(0)]
    pub(crate) to: EndpointId,
    #[n(1)]
    pub(crate) terms: Terms,
    /// Whether nothing may be answered that it lacks.
    #[n(2)]
    pub(crate) current: bool,
    /// Where both stood when the node ended as planned; taken back before anybody can change the volume.
    #[n(3)]
    pub(crate) left: Option<StandingRecord>,
}

/// [`Standing`], as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StandingRecord {
    /// The line of changes.
    #[n(0)]
    line: u64,
    /// The number of its last change.
    #[n(1)]
    last: u64,
    /// The volume's journal.
    #[n(2)]
    journal: JournalId,
    /// The number that the journal's next record gets.
    #[n(3)]
    sequence: u64,
    /// The volume's size.
    #[n(4)]
    size_bytes: u64,
}

impl StandingRecord {
    pub(crate) fn new(standing: Standing) -> Self {
        let Standing { line, last, position: Position { journal, sequence }, size_bytes } = standing;
        Self { line, last, journal, sequence, size_bytes }
    }

    pub(crate) fn standing(self) -> Standing {
        let Self { line, last, journal, sequence, size_bytes } = self;
        Standing { line, last, position: Position { journal, sequence }, size_bytes }
    }
}

impl ReplicateRecord {
    /// One of which the volume's changes are in nobody's line.
    pub(crate) fn new(to: EndpointId, terms: Terms, current: bool) -> Self {
        Self { to, terms, current, left: None }
    }
}

/// A replica that is kept here.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ReplicaRecord {
    /// Where its volume is.
    #[n(0)]
    pub(crate) home: EndpointId,
    /// How often the volume was given.
    #[n(1)]
    pub(crate) epoch: u64,
    #[n(2)]
    pub(crate) terms: Terms,
    /// The volume that holds it here, once there is one.
    #[n(3)]
    pub(crate) copy: Option<Name>,
    /// The line of changes that it was made for.
    #[n(4)]
    pub(crate) line: Option<u64>,
    /// Whether the home has said that nothing is answered which it lacks.
    #[n(5)]
    pub(crate) current: bool,
    /// Whether it is what the volume was at some moment.
    #[n(6)]
    pub(crate) consistent: bool,
    /// The volume that held it before, until that is removed.
    #[n(7)]
    pub(crate) stale: Option<Name>,
    /// What is set for the volume, as the home has told it.
    #[n(8)]
    pub(crate) settings: Option<Settings>,
}

/// What this node has witnessed of a replica that others keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct WitnessRecord {
    /// Where the volume is.
    #[n(0)]
    pub(crate) home: EndpointId,
    #[n(1)]
    pub(crate) epoch: u64,
    /// Who keeps the replica.
    #[n(2)]
    pub(crate) replica: EndpointId,
    /// Whether it was left behind.
    #[n(3)]
    pub(crate) outdated: bool,
}

impl ReplicaRecord {
    /// One of which nothing is here yet.
    pub(crate) fn agreed(home: EndpointId, epoch: u64, terms: Terms) -> Self {
        let (copy, line, stale, settings) = (None, None, None, None);
        Self { home, epoch, terms, copy, line, current: false, consistent: false, stale, settings }
    }
}

impl GivenRecord {
    /// One that says that another member has taken a volume over: nobody fetches it.
    pub(crate) fn taken_over(to: EndpointId, epoch: u64, at_ms: u64) -> Self {
        let (content, labels, schedule) = (None, BTreeMap::new(), None);
        let (replicate, since, protection) = (None, None, None);
        Self { to, epoch, content, labels, settled: true, at_ms, schedule, replicate, since, protection }
    }

    /// What was set for the volume.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            labels: self.labels.clone(),
            schedule: self.schedule.as_ref().map(ScheduleRecord::to_message),
            protection: self.protection,
        }
    }
}

impl Record for ReplicateRecord {}
impl Record for ReplicaRecord {}
impl Record for WitnessRecord {}
impl Record for MemberRecord {}
impl Record for HomeRecord {}
impl Record for OfferRecord {}
impl Record for GivenRecord {}
impl Record for TakingRecord {}

impl ContentRecord {
    /// Where its data are found here.
    pub(crate) fn domains(&self) -> Domains {
        domains_of(&self.domains)
    }

    /// What must be kept for it.
    fn live(&self) -> Vec<Live> {
        let domains = self.domains();
        let manifest = Live::Object { key: self.snapshot.into(), domains: domains.clone() };
        let tree = |root| {
            Live::Tree(LiveTree {
                root,
                size_bytes: self.size_bytes,
                domains: domains.clone(),
                chunks: true,
                partial: self.origin.is_some(),
            })
        };
        std::iter::once(manifest).chain(self.root.map(tree)).collect()
    }
}

/// What a record of a cluster refers to; `None` where the record is of another kind.
pub(crate) fn live(name: &str, value: &[u8]) -> Result<Option<Vec<Live>>, format::CanonicalError> {
    if name.starts_with(OFFER) {
        return Ok(Some(OfferRecord::from_bytes(value)?.content.map(|content| content.live()).unwrap_or_default()));
    }
    if name.starts_with(GIVEN) {
        let record = GivenRecord::from_bytes(value)?;
        return Ok(Some(record.content.filter(|_| !record.settled).map(|content| content.live()).unwrap_or_default()));
    }
    Ok([MEMBER, HOME, TAKING, REPLICATE, REPLICA, WITNESS].iter().any(|known| name.starts_with(known)).then(Vec::new))
}

#[cfg(test)]
mod tests {
    use cluster::message::Schedule;
    use format::to_canonical;

    use super::*;
    use crate::record::tests::golden;

    const HOME_MEMBER: EndpointId = EndpointId([1; 32]);
    const KEEPER: EndpointId = EndpointId([2; 32]);
    const TERMS: Terms = Terms { sync: true, witness: Some(EndpointId([3; 32])), lag_bytes: 64 << 20 };

    fn settings() -> Settings {
        let schedule = Schedule {
            bucket: "vms".parse().unwrap(),
            object: "web1".parse().unwrap(),
            disk: Some("disk0".parse().unwrap()),
            every_ms: 3_600_000,
            keep: "24h,7d".parse().ok(),
            latest_ms: 1_790_000_000_000,
        };
        Settings {
            labels: [("ganeti.instance".parse().unwrap(), "web1.example.org".to_owned())].into(),
            schedule: Some(schedule),
            protection: Some(Protection { for_ms: 7_200_000, space_bytes: Some(1 << 30) }),
        }
    }

    /// Holds what is written to its file for ever, and finds nothing in less of it.
    fn held<R: Record + PartialEq + std::fmt::Debug>(file: &str, record: &R) {
        let written = to_canonical(record);
        golden(file, &written);
        assert_eq!(&R::from_bytes(&written).unwrap(), record, "{file}");
        assert!((0..written.len()).all(|length| R::from_bytes(&written[..length]).is_err()), "{file}");
    }

    #[test]
    fn replicas_are_recorded_as_documented() {
        // As it was before a planned restart of the home was told from a crash.
        let replicate = ReplicateRecord::new(KEEPER, TERMS, true);
        held("replicate-1.cbor", &replicate);
        let position = Position { journal: JournalId([4; 16]), sequence: 12 };
        let left = Standing { line: 7, last: 1_000_000, position, size_bytes: 1 << 30 };
        held("replicate-2.cbor", &ReplicateRecord { left: Some(StandingRecord::new(left)), ..replicate });
        assert_eq!(StandingRecord::new(left).standing(), left);
        held("witness-1.cbor", &WitnessRecord { home: HOME_MEMBER, epoch: 2, replica: KEEPER, outdated: true });
        let agreed = ReplicaRecord::agreed(HOME_MEMBER, 2, TERMS);
        // As it was before replicas knew what was set for their volumes.
        let first = ReplicaRecord {
            copy: "replica.0000000000000007".parse().ok(),
            line: Some(7),
            current: true,
            consistent: true,
            stale: "replica.0000000000000006".parse().ok(),
            ..agreed.clone()
        };
        held("replica-1.cbor", &first);
        held("replica-2.cbor", &ReplicaRecord { settings: Some(settings()), stale: None, ..first });
        held("replica-agreed-1.cbor", &agreed);
    }

    #[test]
    fn what_was_given_says_what_was_set() {
        let taken_over = GivenRecord::taken_over(KEEPER, 3, 1_790_000_000_000);
        let Settings { labels, schedule, protection } = settings();
        let schedule = schedule.map(ScheduleRecord::of_message);
        let replicate = Some(Replicate { to: KEEPER, terms: TERMS });
        // As it was before the past of a volume was kept where it went.
        let first = GivenRecord { labels, schedule, replicate, since: Some(2), settled: false, ..taken_over };
        held("given-1.cbor", &first);
        let second = GivenRecord { protection, ..first };
        held("given-2.cbor", &second);
        assert_eq!(second.settings(), settings());
    }
}
