//! A replica takes over, as its volume's home is gone.
//!
//! Who becomes the home is decided by the operator or the platform, and where there is a witness, by it. What could be lost is found out before: a
//! home that answers, a replica that was left behind, and one whose terms allow it to be so.

use std::sync::Arc;
use std::time::Duration;

use cluster::message::{Reply, Request, Settings, Testimony};
use store::RootChange;
use types::Name;
use volume::{BlockDevice, Volume};

use super::find::Location;
use super::records::{GIVEN, HOME, HomeRecord, REPLICA, REPLICATE, ReplicaRecord, ReplicateRecord, TAKING};
use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, not_found};
use crate::node::Node;
use crate::record::{Record as _, ScheduleRecord};
use crate::snapshots::volume_error;

/// How long a member may take to answer: whoever drives the node waits.
const ANSWER: Duration = Duration::from_secs(3);

impl Node {
    /// Makes this node the home of a volume of which it keeps a replica.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        name: &Name,
        request: api::PromoteRequest,
    ) -> Result<api::Promoted, ApiError> {
        if self.volumes.get(name).is_some() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is here already")));
        }
        let Some(kept) = self.cluster.replicas.get(name) else {
            return Err(not_found("replica of", name).hint("see: brant volume replicas"));
        };
        // From now on it does not follow any more.
        let record = kept.end();
        let promoted = self.promote_ended(name, &record, request.accept_loss).await;
        if promoted.is_err() {
            kept.revive();
        }
        promoted
    }

    async fn promote_ended(
        self: &Arc<Self>,
        name: &Name,
        record: &ReplicaRecord,
        accept_loss: bool,
    ) -> Result<api::Promoted, ApiError> {
        let Some(copy) = record.copy.as_ref().and_then(|copy| self.volumes.get(copy)) else {
            return Err(ApiError::new(ErrorCode::Conflict, format!("nothing of {name} has come here yet"))
                .hint("what is lost is lost; a snapshot of it may be somewhere: brant snapshot list"));
        };
        let home = self.cluster.moves.name_of(record.home);
        let (mut doubts, epoch) = self.doubts(name, record, &home).await?;
        if doubts.is_empty() || accept_loss {
            self.claim(name, (record, epoch), accept_loss, &mut doubts).await?;
        }
        if !doubts.is_empty() && !accept_loss {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{name} may lose what was written last: {}", doubts.join("; ")),
            )
            .hint(format!("bring {home} back; or, if that may be lost: brant volume promote {name} --accept-loss")));
        }
        let lossless = doubts.is_empty() && record.terms.sync;
        self.become_home(name, &copy, (record, epoch), lossless).await?;
        tracing::warn!(volume = %name, %home, lossless, "a replica has taken over");
        let volume = self.find_volume(name)?;
        Ok(api::Promoted { volume: self.show_volume(&volume), lossless })
    }

    /// Why something that was answered could be lost, and the epoch to begin; an error where somebody else has the volume.
    async fn doubts(&self, name: &Name, record: &ReplicaRecord, home: &str) -> Result<(Vec<String>, u64), ApiError> {
        let question = Request::Find { volume: name.clone() };
        let asking = self.cluster.peers.ask(record.home, &question, ANSWER);
        let (location, asked) = tokio::join!(self.locate(name), asking);
        match location {
            Location::At { home, .. } => {
                return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is at {}, which answers", home.name))
                    .hint(format!("have it here: brant volume take {name}")));
            }
            // Otherwise its home has heard that this node takes over, which was not done to its end.
            Location::Mine { .. } if self.means_to_take(name)? => {
                return Err(ApiError::new(ErrorCode::Conflict, format!("{name} was given to this node"))
                    .hint(format!("go on with: brant volume take {name}")));
            }
            Location::Mine { .. } | Location::Nowhere | Location::Unknown(_) => {}
        }
        let mut doubts = Vec::new();
        let mut epoch = record.epoch + 1;
        match asked {
            // The epoch that was begun with then.
            Ok(Reply::Elsewhere { home, epoch: begun }) if home == self.swarm.endpoint() => epoch = epoch.max(begun),
            Ok(Reply::Elsewhere { epoch: later, .. }) => {
                // Later than any that somebody may have begun.
                epoch = epoch.max(later + 1);
                doubts.push(format!("{home} answers, and does not have it any more"));
            }
            Ok(Reply::Absent) => doubts.push(format!("{home} answers, and does not have it any more")),
            _ => {}
        }
        if !record.current {
            doubts.push(format!("this replica was behind when {home} was last heard"));
        }
        if !record.consistent {
            doubts.push("it was being brought up to date, and mixes two moments".to_owned());
        }
        if !record.terms.sync && record.terms.witness.is_none() {
            doubts.push(format!("it follows {home} without being waited for, and there is no witness"));
        }
        Ok((doubts, epoch))
    }

    /// Has the witness, where there is one, record that this node takes over.
    async fn claim(
        &self,
        name: &Name,
        (record, epoch): (&ReplicaRecord, u64),
        accept_loss: bool,
        doubts: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(witness) = record.terms.witness else { return Ok(()) };
        let mine = self.swarm.endpoint();
        let ask = async |testimony| self.ask_witness(witness, name, epoch, mine, testimony).await;
        let mut reply = if doubts.is_empty() { Some(ask(Testimony::Claim).await) } else { None };
        let refused = match &reply {
            Some(Err(cluster::AskError::Refused(refusal))) => Some(refusal.message.clone()),
            _ => None,
        };
        doubts.extend(refused.clone());
        if accept_loss && (refused.is_some() || reply.is_none()) {
            reply = Some(ask(Testimony::ClaimWithLoss).await);
        }
        match reply {
            Some(Ok(Reply::Elsewhere { home, .. })) => {
                let home = self.cluster.moves.name_of(home);
                Err(ApiError::new(ErrorCode::Conflict, format!("the witness says that {name} is at {home}"))
                    .hint(format!("have it here: brant volume take {name}")))
            }
            Some(Err(cluster::AskError::Refused(refusal))) if accept_loss => Err(super::home::api_error(refusal)),
            Some(Err(cluster::AskError::Refused(_)) | Ok(_)) | None => Ok(()),
            Some(Err(error)) => {
                doubts.push(format!("the witness {} does not answer: {error}", self.cluster.moves.name_of(witness)));
                Ok(())
            }
        }
    }

    /// Makes the replica's volume the volume, in one step with the records that say so.
    async fn become_home(
        self: &Arc<Self>,
        name: &Name,
        copy: &Arc<Volume>,
        (record, epoch): (&ReplicaRecord, u64),
        lossless: bool,
    ) -> Result<(), ApiError> {
        let since = if lossless { None } else { Some(epoch) };
        let replicate = ReplicateRecord::new(record.home, record.terms, false);
        let further = vec![
            HomeRecord { epoch, arriving: None, since }.change(format!("{HOME}{name}")),
            replicate.change(format!("{REPLICATE}{name}")),
            (format!("{REPLICA}{name}"), None),
            (format!("{GIVEN}{name}"), None),
            (format!("{TAKING}{name}"), None),
        ];
        let (node, renaming, new) = (Arc::clone(self), Arc::clone(copy), name.clone());
        let settings = record.settings.clone().unwrap_or_default();
        let volume = blocking(move || node.take_name(&renaming, &new, settings, further)).await?;
        self.forget_replica(name);
        self.begin_mirror(&volume, replicate);
        let Some(used) = self.cluster.uses.get(name) else { return Ok(()) };
        if lossless {
            used.placed.replace(&used.remote, volume as Arc<dyn BlockDevice>).await;
        } else {
            // Whoever uses it here has seen what the replica lacks, and must begin anew.
            used.remote.close();
        }
        self.cluster.uses.remove(name);
        let (node, target) = (Arc::clone(self), name.to_string());
        blocking(move || node.attachment_is_here(&target)).await
    }

    /// Gives a replica's volume its name and what was set for it, in one step with other changes. Blocks.
    fn take_name(
        &self,
        copy: &Arc<Volume>,
        name: &Name,
        settings: Settings,
        mut further: Vec<RootChange>,
    ) -> Result<Arc<Volume>, ApiError> {
        let (id, Settings { labels, schedule, protection }) = (copy.id(), settings);
        // Before it has the name: who finds it has its past kept.
        self.protect_as(copy, protection)?;
        let schedule = schedule.map(ScheduleRecord::of_message);
        let mut schedules = self.schedules.change();
        further.push(self.labels.giving(id, labels.clone()));
        further.extend(schedule.as_ref().map(|record| schedules.putting(id, record)));
        let volume = self.volumes.rename(copy, name, further).map_err(volume_error)?;
        self.labels.given(id, labels);
        schedule.into_iter().for_each(|record| schedules.note(id, record));
        Ok(volume)
    }
}
