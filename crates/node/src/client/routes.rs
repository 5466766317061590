//! The node's routes as methods, so that no caller writes a path.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::Client;
use crate::api::{
    AddMemberRequest, ApiError, AttachRequest, Attachment, Bucket, BucketDetail, CloneRequest, Cluster, CollectRequest,
    CreateBucketRequest, CreateVolumeRequest, DeletedVolume, Differences, GrantRequest, ImportRequest, LabelRequest,
    LogEntry, Login, LoginRequest, MaterializeRequest, Member, NodeStatus, PromoteRequest, Promoted, ProtectRequest,
    Publication, PublishRequest, Replica, ReplicateRequest, Replication, ResizeRequest, Restart, RestoreRequest,
    RevertRequest, Reverted, Schedule, ScheduleRequest, ScrubRequest, Snapshot, SnapshotDetail, SubscribeRequest,
    Subscription, TakeSnapshotRequest, Task, Volume, VolumeDetail,
};

/// A fallible answer of the node; every method fails as [`Client::get`] does.
type Answer<T> = Result<T, ApiError>;

#[expect(clippy::missing_errors_doc, reason = "all fail as `Client::get` does: the type above says so once")]
impl Client {
    /// Returns the node as a whole.
    pub async fn status(&self) -> Answer<NodeStatus> {
        self.get("/v1/status").await
    }

    /// Starts the node's successor, which takes all connections over.
    pub async fn restart(&self) -> Answer<Restart> {
        self.post("/v1/restart", &json!({})).await
    }

    /// Returns this node and the members of its cluster.
    pub async fn cluster(&self) -> Answer<Cluster> {
        self.get("/v1/cluster").await
    }

    /// Adds a member to the cluster.
    pub async fn add_member(&self, request: &AddMemberRequest) -> Answer<Member> {
        self.post("/v1/cluster/members", request).await
    }

    /// Removes a member from the cluster.
    pub async fn remove_member(&self, member: &str) -> Answer<Member> {
        self.delete(&format!("/v1/cluster/members/{}", segment(member))).await
    }

    /// Lists the buckets.
    pub async fn buckets(&self) -> Answer<Vec<Bucket>> {
        self.get("/v1/buckets").await
    }

    /// Makes a bucket.
    pub async fn create_bucket(&self, request: &CreateBucketRequest) -> Answer<Bucket> {
        self.post("/v1/buckets", request).await
    }

    /// Returns a bucket in detail.
    pub async fn bucket(&self, bucket: &str) -> Answer<BucketDetail> {
        self.get(&format!("/v1/buckets/{}", segment(bucket))).await
    }

    /// Removes a bucket from this node.
    pub async fn remove_bucket(&self, bucket: &str) -> Answer<Value> {
        self.delete(&format!("/v1/buckets/{}", segment(bucket))).await
    }

    /// Returns a bucket's log, the oldest entry first.
    pub async fn bucket_log(&self, bucket: &str) -> Answer<Vec<LogEntry>> {
        self.get(&format!("/v1/buckets/{}/log", segment(bucket))).await
    }

    /// Lets someone read a bucket.
    pub async fn grant(&self, bucket: &str, request: &GrantRequest) -> Answer<BucketDetail> {
        self.post(&format!("/v1/buckets/{}/grant", segment(bucket)), request).await
    }

    /// Takes back that someone may read a bucket.
    pub async fn revoke(&self, bucket: &str, request: &GrantRequest) -> Answer<BucketDetail> {
        self.post(&format!("/v1/buckets/{}/revoke", segment(bucket)), request).await
    }

    /// Publishes a bucket at an Indexer.
    pub async fn publish(&self, bucket: &str, request: &PublishRequest) -> Answer<Publication> {
        self.post(&format!("/v1/buckets/{}/publish", segment(bucket)), request).await
    }

    /// Takes a bucket's reference back from its Indexer.
    pub async fn unpublish(&self, bucket: &str) -> Answer<Value> {
        self.post(&format!("/v1/buckets/{}/unpublish", segment(bucket)), &json!({})).await
    }

    /// Lists the subscriptions.
    pub async fn subscriptions(&self) -> Answer<Vec<Subscription>> {
        self.get("/v1/subscriptions").await
    }

    /// Follows a reference.
    pub async fn subscribe(&self, request: &SubscribeRequest) -> Answer<Subscription> {
        self.post("/v1/subscriptions", request).await
    }

    /// Stops following; what is here stays.
    pub async fn unsubscribe(&self, bucket: &str) -> Answer<Value> {
        self.delete(&format!("/v1/subscriptions/{}", segment(bucket))).await
    }

    /// Reads a foreign disk into a bucket.
    pub async fn import(&self, request: &ImportRequest) -> Answer<Task> {
        self.post("/v1/imports", request).await
    }

    /// Writes a snapshot out to foreign storage.
    pub async fn materialize(&self, request: &MaterializeRequest) -> Answer<Task> {
        self.post("/v1/materializations", request).await
    }

    /// Brings what of a volume or snapshot is not here.
    pub async fn hydrate(&self, target: &str) -> Answer<Task> {
        self.post(&format!("/v1/hydrations/{}", segment(target)), &json!({})).await
    }

    /// Lists the volumes.
    pub async fn volumes(&self) -> Answer<Vec<Volume>> {
        self.get("/v1/volumes").await
    }

    /// Makes an empty volume.
    pub async fn create_volume(&self, request: &CreateVolumeRequest) -> Answer<Volume> {
        self.post("/v1/volumes", request).await
    }

    /// Returns a volume in detail.
    pub async fn volume(&self, volume: &str) -> Answer<VolumeDetail> {
        self.get(&format!("/v1/volumes/{}", segment(volume))).await
    }

    /// Starts to take a volume from the member of the cluster that has it.
    pub async fn take_volume(&self, volume: &str) -> Answer<Task> {
        self.post(&format!("/v1/volumes/{}/take", segment(volume)), &json!({})).await
    }

    /// Has a member of the cluster keep a replica of a volume.
    pub async fn replicate_volume(&self, volume: &str, request: &ReplicateRequest) -> Answer<Replication> {
        self.post(&format!("/v1/volumes/{}/replicate", segment(volume)), request).await
    }

    /// Ends the replica of a volume, also where its member cannot be told if `force`.
    pub async fn stop_replicating(&self, volume: &str, force: bool) -> Answer<Volume> {
        let query = if force { "?force=true" } else { "" };
        self.delete(&format!("/v1/volumes/{}/replicate{query}", segment(volume))).await
    }

    /// Makes the node the home of a volume of which it keeps a replica.
    pub async fn promote_volume(&self, volume: &str, request: &PromoteRequest) -> Answer<Promoted> {
        self.post(&format!("/v1/volumes/{}/promote", segment(volume)), request).await
    }

    /// Lists the replicas that the node keeps.
    pub async fn replicas(&self) -> Answer<Vec<Replica>> {
        self.get("/v1/replicas").await
    }

    /// Removes a replica that the node keeps.
    pub async fn remove_replica(&self, volume: &str) -> Answer<Value> {
        self.delete(&format!("/v1/replicas/{}", segment(volume))).await
    }

    /// Deletes a volume, which is kept for a while unless it shall be gone `now`.
    pub async fn remove_volume(&self, volume: &str, now: bool) -> Answer<Value> {
        let query = if now { "?now=true" } else { "" };
        self.delete(&format!("/v1/volumes/{}{query}", segment(volume))).await
    }

    /// Makes a volume larger.
    pub async fn resize_volume(&self, volume: &str, request: &ResizeRequest) -> Answer<Volume> {
        self.post(&format!("/v1/volumes/{}/resize", segment(volume)), request).await
    }

    /// Puts a volume back.
    pub async fn revert_volume(&self, volume: &str, request: &RevertRequest) -> Answer<Reverted> {
        self.post(&format!("/v1/volumes/{}/revert", segment(volume)), request).await
    }

    /// Changes the labels of a volume.
    pub async fn label_volume(&self, volume: &str, request: &LabelRequest) -> Answer<Volume> {
        self.post(&format!("/v1/volumes/{}/labels", segment(volume)), request).await
    }

    /// Keeps what is written to a volume.
    pub async fn protect_volume(&self, volume: &str, request: &ProtectRequest) -> Answer<VolumeDetail> {
        self.post(&format!("/v1/volumes/{}/protect", segment(volume)), request).await
    }

    /// Keeps nothing of a volume's past any more.
    pub async fn unprotect_volume(&self, volume: &str) -> Answer<VolumeDetail> {
        self.delete(&format!("/v1/volumes/{}/protect", segment(volume))).await
    }

    /// Lists the schedules.
    pub async fn schedules(&self) -> Answer<Vec<Schedule>> {
        self.get("/v1/schedules").await
    }

    /// Returns the schedule of a volume.
    pub async fn schedule(&self, volume: &str) -> Answer<Schedule> {
        self.get(&format!("/v1/volumes/{}/schedule", segment(volume))).await
    }

    /// Takes snapshots of a volume by itself, or changes how.
    pub async fn schedule_volume(&self, volume: &str, request: &ScheduleRequest) -> Answer<Schedule> {
        self.post(&format!("/v1/volumes/{}/schedule", segment(volume)), request).await
    }

    /// Takes no more snapshots of a volume by itself.
    pub async fn unschedule_volume(&self, volume: &str) -> Answer<Schedule> {
        self.delete(&format!("/v1/volumes/{}/schedule", segment(volume))).await
    }

    /// Lists the deleted volumes that are kept.
    pub async fn deleted_volumes(&self) -> Answer<Vec<DeletedVolume>> {
        self.get("/v1/deleted-volumes").await
    }

    /// Takes a deleted volume back.
    pub async fn restore_volume(&self, deleted: &str, request: &RestoreRequest) -> Answer<Volume> {
        self.post(&format!("/v1/deleted-volumes/{}/restore", segment(deleted)), request).await
    }

    /// Deletes a deleted volume for good.
    pub async fn purge_volume(&self, deleted: &str) -> Answer<Value> {
        self.delete(&format!("/v1/deleted-volumes/{}", segment(deleted))).await
    }

    /// Returns where two disks differ, from a place on.
    pub async fn differences(&self, from: &str, to: &str, disk: Option<&str>, offset: u64) -> Answer<Differences> {
        let disk = disk.map(|disk| format!("&disk={}", segment(disk))).unwrap_or_default();
        self.get(&format!("/v1/differences?from={}&to={}{disk}&offset={offset}", segment(from), segment(to))).await
    }

    /// Makes a volume that begins as a snapshot, or as what another volume is now.
    pub async fn clone_snapshot(&self, request: &CloneRequest) -> Answer<Volume> {
        self.post("/v1/clones", request).await
    }

    /// Lists the snapshots, of one bucket or of all.
    pub async fn snapshots(&self, bucket: Option<&str>) -> Answer<Vec<Snapshot>> {
        let query = bucket.map(|bucket| format!("?bucket={}", segment(bucket))).unwrap_or_default();
        self.get(&format!("/v1/snapshots{query}")).await
    }

    /// Takes a snapshot of volumes at one moment.
    pub async fn take_snapshot(&self, request: &TakeSnapshotRequest) -> Answer<Snapshot> {
        self.post("/v1/snapshots", request).await
    }

    /// Returns a snapshot in detail.
    pub async fn snapshot(&self, snapshot: &str) -> Answer<SnapshotDetail> {
        self.get(&format!("/v1/snapshots/{}", segment(snapshot))).await
    }

    /// Withdraws a version.
    pub async fn retire_snapshot(&self, snapshot: &str) -> Answer<Value> {
        self.delete(&format!("/v1/snapshots/{}", segment(snapshot))).await
    }

    /// Lists the attachments.
    pub async fn attachments(&self) -> Answer<Vec<Attachment>> {
        self.get("/v1/attachments").await
    }

    /// Makes a volume or snapshot visible as a block device.
    pub async fn attach(&self, request: &AttachRequest) -> Answer<Attachment> {
        self.post("/v1/attachments", request).await
    }

    /// Ends an attachment; one in use only by force.
    pub async fn detach(&self, target: &str, force: bool) -> Answer<Value> {
        let query = if force { "?force=true" } else { "" };
        self.delete(&format!("/v1/attachments/{}{query}", segment(target))).await
    }

    /// Gives the room of what nothing refers to back.
    pub async fn collect(&self, request: &CollectRequest) -> Answer<Task> {
        self.post("/v1/store/collections", request).await
    }

    /// Reads everything again, and fetches what is damaged.
    pub async fn scrub(&self, request: &ScrubRequest) -> Answer<Task> {
        self.post("/v1/store/scrubs", request).await
    }

    /// Lists the tasks.
    pub async fn tasks(&self) -> Answer<Vec<Task>> {
        self.get("/v1/tasks").await
    }

    /// Returns a task as soon as it has ended, or as it is after a while.
    pub async fn task(&self, id: u64, wait: Duration) -> Answer<Task> {
        self.get(&format!("/v1/tasks/{id}?wait_ms={}", wait.as_millis())).await
    }

    /// Asks a task to stop.
    pub async fn cancel_task(&self, id: u64) -> Answer<Task> {
        self.post(&format!("/v1/tasks/{id}/cancel"), &json!({})).await
    }

    /// Lists the accounts that the node uses.
    pub async fn logins(&self) -> Answer<Vec<Login>> {
        self.get("/v1/logins").await
    }

    /// Makes the node use an account.
    pub async fn login(&self, request: &LoginRequest) -> Answer<Login> {
        self.post("/v1/logins", request).await
    }
}

/// Encodes text as one segment of a path (RFC 3986: all but unreserved characters are percent-encoded).
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'.' && !is_dots(text)) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Whether a segment would be taken for "here" or "above" if it stayed as it is.
fn is_dots(text: &str) -> bool {
    text == "." || text == ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("vms/web-1.2@3"), "vms%2Fweb-1.2%403");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("a?b#c d%é"), "a%3Fb%23c%20d%25%C3%A9");
    }
}
