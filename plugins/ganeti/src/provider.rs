//! What each script does, in terms of the node's API.
//!
//! Invariants, which Ganeti relies on: `attach` and `detach` may be called at any time, again and again, and `attach` by
//! whoever only looks; the URI of a disk is the same on every node; `create` leaves a whole disk or nothing; what
//! `remove` deletes can be taken back.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use node::api::{
    ApiError, AttachRequest, Attachment, CloneRequest, CreateVolumeRequest, ErrorCode, LabelRequest, PromoteRequest,
    ResizeRequest, Via, Volume,
};
use tokio::time::{Instant, sleep};
use types::{ByteSize, Name};

use crate::call::{Action, Call};
use crate::label::{self, key};
use crate::origin::Origin;
use crate::parameters::Meaning;
use crate::policy;
use crate::replica;
use crate::session::{LOOK_AGAIN, Session, invalid};

/// How long a disk that has left its home may take to arrive.
const ARRIVING: Duration = Duration::from_secs(5);

/// How long a client may take to be gone: QEMU ends before its connection does.
const CLIENT_GOES: Duration = Duration::from_secs(2);

/// How long it may take to take back what was made in vain.
const TAKING_BACK: Duration = Duration::from_secs(5);

/// Does what is called for, and returns what the script prints.
pub(crate) async fn act(session: &Session<'_>, call: &Call, sockets: &Path) -> Result<String, ApiError> {
    let volume = &call.volume;
    match &call.action {
        Action::Create { size } => create(session, call, *size).await,
        Action::Attach => attach(session, call, sockets).await,
        Action::Detach => detach(session, volume).await.map(|()| format!("{volume} is not attached any more\n")),
        Action::Open { exclusive } => open(session, call, *exclusive).await,
        Action::Close => close(session, volume).await,
        Action::Remove => remove(session, volume).await,
        Action::Grow { size } => grow(session, volume, *size).await,
        Action::SetInfo { metadata } => set_info(session, call, metadata).await,
        Action::Verify => verify(session, call).await,
        Action::Snapshot { name } => snapshot(session, volume, name).await,
    }
}

fn meaning(call: &Call) -> Result<Meaning, ApiError> {
    call.parameters.check().map_err(|error| invalid(&error))
}

/// A volume of this node.
async fn find_here(session: &Session<'_>, name: &Name) -> Result<Option<Volume>, ApiError> {
    let volumes = session.ask(session.client.volumes()).await?;
    Ok(volumes.into_iter().find(|volume| volume.name == *name))
}

/// A volume of this node or of a member of its cluster.
async fn find(session: &Session<'_>, name: &Name) -> Result<Option<Volume>, ApiError> {
    if let Some(volume) = find_here(session, name).await? {
        return Ok(Some(volume));
    }
    // What is asked about a volume that is not here is answered by the member that has it.
    match session.ask(session.client.volume(name.as_str())).await {
        Ok(detail) => Ok(Some(detail.volume)),
        Err(error) if error.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A volume without which there is nothing to do.
async fn found(session: &Session<'_>, name: &Name) -> Result<Volume, ApiError> {
    find(session, name).await?.ok_or_else(|| nowhere(session, name))
}

/// Asks for a change of a disk, and again for as long as it is not here and about to arrive: Ganeti calls as soon as it is open.
async fn when_arrived<T, Asking>(session: &Session<'_>, name: &Name, ask: impl Fn() -> Asking) -> Result<T, ApiError>
where
    Asking: Future<Output = Result<T, ApiError>>,
{
    let until = Instant::now() + ARRIVING;
    loop {
        let was_here = find_here(session, name).await?.is_some();
        match ask().await {
            Err(error) if error.code == ErrorCode::Conflict && !was_here && Instant::now() < until => {
                sleep(LOOK_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

fn nowhere(session: &Session<'_>, name: &Name) -> ApiError {
    let message = format!("there is no volume {name} at the node {}, or at a member", session.client.address());
    ApiError::new(ErrorCode::NotFound, message).hint(
        "was it removed? see brant volume list --deleted; is it at a node that is no member here? see brant cluster show",
    )
}

/// Refuses a bucket that is not there, or that snapshots cannot be put into.
async fn check_bucket(session: &Session<'_>, meaning: &Meaning) -> Result<(), ApiError> {
    let Some(bucket) = &meaning.bucket else { return Ok(()) };
    let found = session.ask(session.client.bucket(bucket.as_str())).await?.bucket;
    if meaning.every_ms.is_some() && !found.writable {
        let error = ApiError::new(ErrorCode::Forbidden, format!("{bucket} is somebody else's bucket"));
        return Err(error.hint("let snapshots go to a bucket of this node: brant bucket create NAME"));
    }
    Ok(())
}

async fn create(session: &Session<'_>, call: &Call, size: ByteSize) -> Result<String, ApiError> {
    let meaning = meaning(call)?;
    check_bucket(session, &meaning).await?;
    let name = &call.volume;
    if find(session, name).await?.is_some() {
        let message = format!("there is a volume {name} already");
        let hint = format!("to begin anew, delete it first; it is kept for a while: brant volume remove {name}");
        return Err(ApiError::new(ErrorCode::Conflict, message).hint(hint));
    }
    let bucket = meaning.bucket.iter().map(|bucket| (key(label::BUCKET), bucket.to_string()));
    let replica = meaning.replica.iter().map(|wanted| (key(label::REPLICA), replica::asked(wanted)));
    let labels: BTreeMap<_, _> = bucket.chain(replica).collect();
    let made = match &meaning.origin {
        None => {
            let request = CreateVolumeRequest { name: name.clone(), size_bytes: size, labels };
            session.ask(session.client.create_volume(&request)).await
        }
        Some(origin) => clone(session, name, origin, size, labels).await,
    };
    let made = match made {
        Ok(volume) => match begin(session, name, &meaning).await {
            Ok(()) => Ok(volume),
            Err(error) => Err(take_back(session, name, error).await),
        },
        // Nobody knows what became of it.
        Err(error) if error.code == ErrorCode::Unreachable => Err(take_back(session, name, error).await),
        outcome => outcome,
    };
    made.map(|volume| {
        let origin = volume.origin.map(|origin| format!(", as {origin}")).unwrap_or_default();
        format!("made {name}, {}{origin}\n", ByteSize(volume.size_bytes))
    })
}

/// Begins what the parameters of a new disk ask for beside it.
async fn begin(session: &Session<'_>, name: &Name, meaning: &Meaning) -> Result<(), ApiError> {
    if meaning.prefetch {
        session.ask(session.client.hydrate(name.as_str())).await?;
    }
    match &meaning.replica {
        Some(wanted) => replica::begin(session, name, wanted).await.map(drop),
        None => Ok(()),
    }
}

/// Removes for good what was made in vain; Ganeti calls no other script for it.
async fn take_back(session: &Session<'_>, name: &Name, error: ApiError) -> ApiError {
    let session = Session::new(session.client, TAKING_BACK);
    match session.ask(session.client.remove_volume(name.as_str(), true)).await {
        Ok(_) => error,
        Err(absent) if absent.code == ErrorCode::NotFound => error,
        Err(_) => {
            let hint = error.hint.clone().unwrap_or_default();
            error.hint(format!("{hint}; the volume may have been made all the same: brant volume remove {name} --now"))
        }
    }
}

async fn clone(
    session: &Session<'_>,
    name: &Name,
    origin: &Origin,
    size: ByteSize,
    labels: BTreeMap<Name, String>,
) -> Result<Volume, ApiError> {
    let snapshot = origin.snapshot(session).await?;
    let request = |disk: Option<String>| CloneRequest {
        snapshot: snapshot.clone(),
        disk,
        volume: name.clone(),
        size_bytes: Some(size),
        labels: labels.clone(),
    };
    if let Some(disk) = origin.disk() {
        return session.ask(session.client.clone_snapshot(&request(Some(disk.to_owned())))).await;
    }
    // A disk of an instance begins as the disk of that number, in a snapshot of an instance; else there must be only one.
    if let Some(disk) = disk_number(name).map(|number| format!("disk{number}")) {
        match session.ask(session.client.clone_snapshot(&request(Some(disk)))).await {
            Err(error) if error.code == ErrorCode::NotFound => {}
            outcome => return outcome,
        }
    }
    session.ask(session.client.clone_snapshot(&request(None))).await.map_err(|error| match error.hint {
        Some(hint) => ApiError { hint: Some(hint.replace("--disk: ", "origin=SNAPSHOT#DISK: ")), ..error },
        None => error,
    })
}

/// The number of a disk in Ganeti's name for it, `UUID.ext.diskN`.
pub(crate) fn disk_number(name: &Name) -> Option<u64> {
    name.as_str().rsplit_once(".ext.disk")?.1.parse().ok()
}

/// Attaches a disk, or finds that it is; prints the block device, or an empty line where there is none, and the URI.
async fn attach(session: &Session<'_>, call: &Call, sockets: &Path) -> Result<String, ApiError> {
    let name = &call.volume;
    let socket = sockets.join(format!("{name}.sock"));
    let attachment = match attached(session, name).await? {
        Some(attachment) => attachment,
        None => {
            let via = call.parameters.export();
            // For a block device the node has a socket of its own: at the same place on every node, as its directory is.
            let listen = (via == Via::Nbd).then(|| format!("unix:{}", socket.display()));
            let request = AttachRequest {
                target: name.to_string(),
                disk: None,
                via,
                listen,
                insecure_listen: false,
                read_timeout_ms: None,
                tls_certificates: None,
                tls: None,
            };
            match session.ask(session.client.attach(&request)).await {
                Err(error) if error.code == ErrorCode::NotFound => return Err(nowhere(session, name)),
                // Another call was faster.
                Err(error) if error.code == ErrorCode::Conflict => attached(session, name).await?.ok_or(error)?,
                outcome => outcome?,
            }
        }
    };
    // The parameter may have changed since: what there is counts until it is detached.
    let device = attachment.device.unwrap_or_default();
    match attachment.socket {
        Some(found) if !device.is_empty() || Path::new(&found) == socket => {
            Ok(format!("{device}\nkvm:nbd:unix:{found}\n"))
        }
        _ => {
            let message = format!("it is attached already, by somebody else and elsewhere: {}", attachment.uri);
            Err(ApiError::new(ErrorCode::Conflict, message).hint(format!("first: brant detach {name}")))
        }
    }
}

async fn attached(session: &Session<'_>, name: &Name) -> Result<Option<Attachment>, ApiError> {
    let attachments = session.ask(session.client.attachments()).await?;
    Ok(attachments.into_iter().find(|attachment| attachment.target == name.as_str()))
}

/// Ends an attachment, as soon as nobody is connected any more.
async fn detach(session: &Session<'_>, name: &Name) -> Result<(), ApiError> {
    let until = Instant::now() + CLIENT_GOES;
    loop {
        match session.ask(session.client.detach(name.as_str(), false)).await {
            Err(error) if error.code == ErrorCode::NotFound => return Ok(()),
            Err(error) if error.code == ErrorCode::Conflict && Instant::now() < until => sleep(LOOK_AGAIN).await,
            outcome => return outcome.map(drop),
        }
    }
}

/// Takes notice that this node uses the disk. Where it does so alone, the volume comes here, in the background: it is used at the member
/// that has it meanwhile, and that one gives it as soon as nobody uses it there.
async fn open(session: &Session<'_>, call: &Call, exclusive: bool) -> Result<String, ApiError> {
    let (meaning, name) = (meaning(call)?, &call.volume);
    let (volume, comes) = match find_here(session, name).await? {
        Some(volume) => (volume, ""),
        None if exclusive => {
            let comes = match session.ask(session.client.take_volume(name.as_str())).await {
                // Ganeti has given up the node that has it: it is the platform's word that the replica here takes over.
                Err(error) if error.code == ErrorCode::Unreachable => {
                    promote(session, name, error).await?;
                    "; its replica here has taken over"
                }
                outcome => outcome.map(|_| "; it is on its way to this node: see brant task list")?,
            };
            match found(session, name).await {
                // It has left its home, and is not here yet.
                Err(error) if error.code == ErrorCode::Conflict => return Ok(format!("{name} is about to arrive\n")),
                volume => (volume?, comes),
            }
        }
        None => (found(session, name).await?, "; it is at another node"),
    };
    keep_bucket(session, &volume, meaning.bucket.as_ref()).await?;
    // An instance starts also where its snapshots cannot be taken; the next time that it is opened they are tried again.
    let schedule = match policy::apply(session, &volume, &meaning).await {
        Ok(()) => String::new(),
        Err(error) => format!("; no snapshots of it are taken by themselves: {error}"),
    };
    // The same holds for its replica. What is on its way has that of its home.
    let replica = match comes.is_empty() {
        true => replica::apply(session, &volume, meaning.replica.as_ref()).await,
        false => Ok(()),
    };
    let replica = replica.err().map(|error| format!("; its replica is not as asked for: {error}")).unwrap_or_default();
    let how = if exclusive { "by this node alone" } else { "beside others" };
    Ok(format!("{name} is open, {how}{comes}{schedule}{replica}\n"))
}

/// Has the replica of a disk take over that is kept at this node. `gone` is why its home could not be asked.
async fn promote(session: &Session<'_>, name: &Name, gone: ApiError) -> Result<(), ApiError> {
    let request = PromoteRequest { accept_loss: false };
    match session.ask(session.client.promote_volume(name.as_str(), &request)).await {
        Err(error) if error.code == ErrorCode::NotFound => Err(gone),
        outcome => outcome.map(drop),
    }
}

/// Takes notice that this node uses the disk no more. Where a migration is cleaned up nothing else is called at the node that has lost, so
/// what nobody is connected to any more is released; before the node uses the disk again, it is attached again.
async fn close(session: &Session<'_>, name: &Name) -> Result<String, ApiError> {
    found(session, name).await?;
    // A QEMU that has just been killed may not be gone yet.
    match detach(session, name).await {
        Err(error) if error.code == ErrorCode::Conflict => Ok(format!("{name} is closed; somebody still uses it\n")),
        outcome => outcome.map(|()| format!("{name} is closed\n")),
    }
}

/// Keeps the bucket of the parameters with the volume, where `brant ganeti snapshot` finds it.
async fn keep_bucket(session: &Session<'_>, volume: &Volume, bucket: Option<&Name>) -> Result<(), ApiError> {
    let wanted = bucket.map(Name::to_string);
    if volume.labels.get(&key(label::BUCKET)) == wanted.as_ref() {
        return Ok(());
    }
    let request = LabelRequest { labels: [(key(label::BUCKET), wanted)].into() };
    session.ask(session.client.label_volume(volume.name.as_str(), &request)).await.map(drop)
}

/// Deletes a disk. It is kept for a while, unless it was a passing snapshot: Ganeti has removed disks that it had not copied.
async fn remove(session: &Session<'_>, name: &Name) -> Result<String, ApiError> {
    let Some(volume) = find(session, name).await? else { return Ok(format!("there is no volume {name}\n")) };
    let now = volume.labels.contains_key(&key(label::SNAPSHOT_OF));
    detach(session, name).await?;
    let left = replica::end(session, &volume).await?;
    session.ask(session.client.remove_volume(name.as_str(), now)).await?;
    let after = if now { String::new() } else { format!("; take it back with: brant volume restore {name}") };
    Ok(format!("removed {name}{left}{after}\n"))
}

async fn grow(session: &Session<'_>, name: &Name, size: ByteSize) -> Result<String, ApiError> {
    let before = when_arrived(session, name, || async {
        let before = found(session, name).await?.size_bytes;
        if before < size.0 {
            session.ask(session.client.resize_volume(name.as_str(), &ResizeRequest { size_bytes: size })).await?;
        }
        Ok(before)
    })
    .await?;
    Ok(format!("{name} has {}\n", ByteSize(size.0.max(before))))
}

async fn set_info(session: &Session<'_>, call: &Call, metadata: &str) -> Result<String, ApiError> {
    let (key, value) = label::of_metadata(metadata);
    let request = LabelRequest { labels: [(key, Some(value))].into() };
    let label = || session.ask(session.client.label_volume(call.volume.as_str(), &request));
    let volume = when_arrived(session, &call.volume, label).await?;
    // An instance is renamed whatever its disks' parameters have become.
    if let Ok(meaning) = call.parameters.check() {
        policy::apply(session, &volume, &meaning).await?;
    }
    Ok(format!("{} is labelled {metadata}\n", call.volume))
}

async fn verify(session: &Session<'_>, call: &Call) -> Result<String, ApiError> {
    let meaning = meaning(call)?;
    check_bucket(session, &meaning).await?;
    Ok("the parameters can be meant, and the node answers\n".to_owned())
}

/// Makes a volume that is what the disk is now, in place of one that an export has left.
async fn snapshot(session: &Session<'_>, name: &Name, snapshot: &Name) -> Result<String, ApiError> {
    if let Some(stale) = find(session, snapshot).await? {
        if !stale.labels.contains_key(&key(label::SNAPSHOT_OF)) {
            let message = format!("there is a volume {snapshot} already, which is no snapshot of Ganeti's");
            return Err(ApiError::new(ErrorCode::Conflict, message).hint("rename or remove it"));
        }
        detach(session, snapshot).await?;
        session.ask(session.client.remove_volume(snapshot.as_str(), true)).await?;
    }
    let request = CloneRequest {
        snapshot: name.to_string(),
        disk: None,
        volume: snapshot.clone(),
        size_bytes: None,
        labels: [(key(label::SNAPSHOT_OF), name.to_string())].into(),
    };
    session.ask(session.client.clone_snapshot(&request)).await?;
    Ok(format!("{snapshot} is what {name} was at one moment\n"))
}
