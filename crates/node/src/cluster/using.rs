//! Volumes of other members that are attached here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cluster::{Placed, RemoteVolume};
use minicbor::{Decode, Encode};
use types::Name;
use volume::BlockDevice;

use super::find::NodeMembers;
use crate::api::{ApiError, ErrorCode};
use crate::node::Node;

/// That what is attached is at another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct RemoteRecord {
    /// Its size in bytes, so that the attachment comes back before the member does.
    #[n(0)]
    pub(crate) size_bytes: u64,
}

/// A volume of another member, as it is attached here.
#[derive(Clone, Debug)]
pub(super) struct Use {
    pub(super) placed: Arc<Placed>,
    pub(super) remote: Arc<RemoteVolume>,
}

/// The volumes of other members that are attached here, for as long as they are.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<BTreeMap<Name, WeakUse>>);

/// A use that ends with its attachment.
type WeakUse = (Weak<Placed>, Weak<RemoteVolume>);

impl Uses {
    /// How a volume is used, if it is attached here and at another member.
    pub(super) fn get(&self, volume: &Name) -> Option<Use> {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (placed, remote) = uses.get(volume)?;
        Some(Use { placed: placed.upgrade()?, remote: remote.upgrade()? })
    }

    fn insert(&self, volume: Name, placed: &Arc<Placed>, remote: &Arc<RemoteVolume>) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|_, (placed, _)| placed.strong_count() > 0);
        uses.insert(volume, (Arc::downgrade(placed), Arc::downgrade(remote)));
    }

    pub(super) fn remove(&self, volume: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(volume);
    }
}

impl Node {
    /// What can be attached under a name: a volume or snapshot of this node, or a volume of another member. `known` is what was
    /// known of it when it was attached.
    pub(crate) async fn attachable(
        self: &Arc<Self>,
        target: &str,
        disk: Option<&str>,
        known: Option<RemoteRecord>,
    ) -> Result<(String, Arc<dyn BlockDevice>, Option<RemoteRecord>), ApiError> {
        let error = match self.device(target, disk).await {
            Ok((name, device)) => return Ok((name, device, None)),
            Err(error) => error,
        };
        let name = target.parse::<Name>().ok().filter(|_| error.code == ErrorCode::NotFound);
        let Some(name) = name.filter(|_| known.is_some() || !self.cluster.moves.members().is_empty()) else {
            return Err(error);
        };
        let (record, home) = match known {
            Some(known) => (known, None),
            None => match self.home_of(&name).await {
                Ok((home, size_bytes)) => (RemoteRecord { size_bytes }, Some(home.endpoint)),
                // Its home may be gone. Requests wait until the replica here takes over, or the home is back.
                Err(error) if error.code == ErrorCode::Unreachable => {
                    let size_bytes = self.replica_size(&name).ok_or(error)?;
                    (RemoteRecord { size_bytes }, None)
                }
                Err(error) => return Err(error),
            },
        };
        let members = Arc::new(NodeMembers(Arc::downgrade(self)));
        let remote = RemoteVolume::open(name.clone(), record.size_bytes, home, members);
        let placed = Placed::new(Arc::<RemoteVolume>::clone(&remote));
        self.cluster.uses.insert(name.clone(), &placed, &remote);
        Ok((name.to_string(), placed, Some(record)))
    }

    /// The member where a volume is that is attached here, by name; none where it is here.
    pub(crate) fn home_name(&self, target: &str) -> Option<String> {
        let used = self.cluster.uses.get(&target.parse().ok()?)?;
        Some(used.remote.home().map_or_else(|| "unknown".to_owned(), |home| self.cluster.moves.name_of(home)))
    }
}
