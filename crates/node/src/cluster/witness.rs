//! What this node records of replicas that others keep: which of the two goes on alone when they do not hear of each other.
//!
//! Invariant: of a replica that was left behind and a claim of the same replica only the first is recorded, so that never both sides go on.

use std::sync::Arc;

use cluster::message::{Reply, Testimony};
use types::{EndpointId, Name};

use super::records::{WITNESS, WitnessRecord};
use crate::api::{ApiError, ErrorCode};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::Record as _;

impl Node {
    /// Records what a member says of a replica, or answers why it is too late for that.
    pub(super) async fn witness(
        self: &Arc<Self>,
        member: EndpointId,
        volume: Name,
        epoch: u64,
        replica: EndpointId,
        testimony: Testimony,
    ) -> Result<Reply, ApiError> {
        let node = Arc::clone(self);
        blocking(move || {
            // One at a time: the second reads what the first has recorded.
            let _turn = node.cluster.witnessing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let key = format!("{WITNESS}{volume}");
            let damaged = |error| ApiError::from_error(ErrorCode::Damaged, &error);
            let known = WitnessRecord::read(&*node.store, key.clone()).map_err(damaged)?;
            match judge(known, member, epoch, replica, testimony, &volume)? {
                Verdict::Record(record) => {
                    record.write(&*node.store, key).map_err(store_error)?;
                    Ok(Reply::Settled)
                }
                Verdict::Elsewhere(home, epoch) => Ok(Reply::Elsewhere { home, epoch }),
            }
        })
        .await
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Record(WitnessRecord),
    Elsewhere(EndpointId, u64),
}

fn judge(
    known: Option<WitnessRecord>,
    member: EndpointId,
    epoch: u64,
    replica: EndpointId,
    testimony: Testimony,
    volume: &Name,
) -> Result<Verdict, ApiError> {
    let conflict = |message| {
        Err(ApiError::new(ErrorCode::Conflict, message)
            .hint("what was written last may be lost: --accept-loss takes that"))
    };
    if let Some(known) = known.filter(|known| cluster::supersedes(known.epoch, epoch)) {
        return Ok(Verdict::Elsewhere(known.home, known.epoch));
    }
    if known.is_some_and(|known| known.epoch > epoch) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("the witness knows a later volume {volume}"))
            .hint("two members have a volume of this name: see brant volume list at each"));
    }
    // Of an earlier volume of the name nothing counts.
    let known = known.filter(|known| cluster::of_one_volume(known.epoch, epoch));
    if known.is_some_and(|known| known.epoch == epoch && known.home != member) {
        return Err(ApiError::new(ErrorCode::Conflict, format!("the witness knows another volume {volume}"))
            .hint("two members have a volume of this name: see brant volume list at each"));
    }
    let record = |outdated| Verdict::Record(WitnessRecord { home: member, epoch, replica, outdated });
    match testimony {
        Testimony::Current => Ok(record(false)),
        Testimony::Outdated => Ok(record(true)),
        Testimony::ClaimWithLoss => Ok(record(true)),
        // Asked again, it is answered again.
        Testimony::Claim if known.is_some_and(|known| known.home == member && known.epoch == epoch) => Ok(record(true)),
        Testimony::Claim => match known {
            Some(known) if known.replica == member && known.epoch + 1 == epoch && !known.outdated => Ok(record(true)),
            Some(_) => conflict(format!("the witness has recorded that this replica of {volume} was left behind")),
            None => conflict(format!("the witness knows nothing of {volume}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: EndpointId = EndpointId([1; 32]);
    const B: EndpointId = EndpointId([2; 32]);

    fn said(known: &mut Option<WitnessRecord>, who: EndpointId, epoch: u64, testimony: Testimony) -> Result<bool, ()> {
        let volume = "vm".parse().unwrap();
        match judge(*known, who, epoch, B, testimony, &volume) {
            Ok(Verdict::Record(record)) => {
                *known = Some(record);
                Ok(true)
            }
            Ok(Verdict::Elsewhere(..)) => Ok(false),
            Err(_) => Err(()),
        }
    }

    #[test]
    fn of_home_and_replica_only_the_first_goes_on_alone() {
        let mut known = None;
        assert_eq!(said(&mut known, B, 1, Testimony::Claim), Err(()), "nobody has said that it is current");
        assert_eq!(said(&mut known, A, 0, Testimony::Current), Ok(true));
        let mut home_first = known;
        assert_eq!(said(&mut home_first, A, 0, Testimony::Outdated), Ok(true));
        assert_eq!(said(&mut home_first, B, 1, Testimony::Claim), Err(()));
        assert_eq!(said(&mut known, B, 1, Testimony::Claim), Ok(true));
        assert_eq!(said(&mut known, B, 1, Testimony::Claim), Ok(true), "it is asked again");
        assert_eq!(said(&mut known, A, 0, Testimony::Outdated), Ok(false));
        assert_eq!(said(&mut known, A, 0, Testimony::Current), Ok(false));
    }

    #[test]
    fn with_loss_accepted_the_replica_goes_on_and_the_home_hears_of_it() {
        let mut known = None;
        assert_eq!(said(&mut known, A, 3, Testimony::Current), Ok(true));
        assert_eq!(said(&mut known, A, 3, Testimony::Outdated), Ok(true));
        assert_eq!(said(&mut known, B, 4, Testimony::ClaimWithLoss), Ok(true));
        assert_eq!(said(&mut known, A, 3, Testimony::Outdated), Ok(false));
    }

    #[test]
    fn another_volume_of_the_same_name_is_not_taken_for_one_that_was_taken_over() {
        let mut known = None;
        assert_eq!(said(&mut known, A, 0, Testimony::Current), Ok(true));
        assert_eq!(said(&mut known, EndpointId([3; 32]), 0, Testimony::Current), Err(()));
        // One that was made later is heard, and the earlier one is not any more, but nobody is told that it was taken over.
        let later = cluster::first_epoch(1_790_000_000_000);
        assert_eq!(said(&mut known, B, later + 1, Testimony::Claim), Err(()));
        assert_eq!(said(&mut known, EndpointId([3; 32]), later, Testimony::Current), Ok(true));
        assert_eq!(said(&mut known, A, 0, Testimony::Outdated), Err(()));
    }
}
