//! Schedules of a node as a whole, whose clock says what the test wants.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use types::Name;
use volume::{BlockDevice as _, Clock, Durability, Volume};

use super::*;
use crate::api::{
    AttachRequest, ErrorCode, Schedule, ScheduleRequest, Snapshot, SnapshotState, TakeSnapshotRequest, TaskState, Via,
};
use crate::node::{Node, NodeOptions};

const HOUR: u64 = 3_600_000;

/// A quarter past ten, some time in 2026.
const START: u64 = 497_000 * HOUR + HOUR / 4;

struct World {
    node: Arc<Node>,
    clock: Arc<AtomicU64>,
    directory: tempfile::TempDir,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

async fn start(directory: &Path, clock: &Arc<AtomicU64>) -> Arc<Node> {
    let clock = Arc::clone(clock);
    let options = NodeOptions {
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        collect_every: None,
        scrub_every: None,
        clock: Clock::new(move || clock.load(Ordering::SeqCst)),
        ..NodeOptions::new(directory)
    };
    Node::start(options, None).await.unwrap()
}

impl World {
    async fn new() -> Self {
        let (directory, clock) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(START)));
        let node = start(directory.path(), &clock).await;
        node.buckets.create(name("vms")).unwrap();
        Self { node, clock, directory }
    }

    fn volume(&self, volume: &str) -> Arc<Volume> {
        self.node
            .volumes
            .get(&name(volume))
            .unwrap_or_else(|| self.node.volumes.create(&name(volume), 1 << 20).unwrap())
    }

    fn write(&self, volume: &str) {
        self.volume(volume).write(0, &[7; 512], Durability::Process).unwrap();
    }

    async fn put(&self, volume: &str, object: &str, keep: &str) -> Schedule {
        self.volume(volume);
        let request =
            ScheduleRequest { into: format!("vms/{object}"), every_ms: HOUR, keep: keep.parse().ok(), disk: None };
        self.node.schedule_volume(&name(volume), request).await.unwrap()
    }

    fn shown(&self, volume: &str) -> Schedule {
        self.node.find_schedule(&name(volume)).unwrap()
    }

    /// Lets hours pass, runs what is due, and waits until all snapshots are sealed.
    async fn pass(&self, hours: u64) {
        self.clock.fetch_add(hours * HOUR, Ordering::SeqCst);
        self.run().await;
    }

    async fn run(&self) {
        self.node.run_schedules().await;
        for task in self.node.tasks.list().await.unwrap() {
            let ended = self.node.tasks.find(task.id, std::time::Duration::from_secs(60)).await.unwrap();
            assert_eq!(ended.state, TaskState::Done, "{:?}", ended.error);
        }
    }

    /// The versions of an object that are not retired.
    async fn versions(&self, object: &str) -> Vec<u64> {
        let listed: Vec<Snapshot> = self.node.catalog.versions(Some("vms")).await.unwrap();
        let left =
            listed.into_iter().filter(|one| one.object.as_str() == object && one.state != SnapshotState::Retired);
        left.map(|snapshot| snapshot.version).collect()
    }

    /// Stops the node, and starts it again on what it has kept.
    async fn restart(self) -> Self {
        let Self { node, clock, directory } = self;
        node.stop().await;
        while Arc::strong_count(&node) > 1 {
            tokio::task::yield_now().await;
        }
        drop(node);
        let node = start(directory.path(), &clock).await;
        Self { node, clock, directory }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_come_and_go_and_others_stay() {
    let world = World::new().await;
    let schedule = world.put("web1", "web", "2h").await;
    assert_eq!((schedule.last, schedule.next_ms), (None, START - HOUR / 4 + HOUR));
    world.run().await;
    assert!(world.versions("web").await.is_empty(), "nothing is due yet");
    for _ in 0..3 {
        world.write("web1");
        world.pass(1).await;
    }
    assert_eq!(world.versions("web").await, [2, 3]);
    let by_hand = TakeSnapshotRequest {
        volumes: vec![name("web1")],
        path: "vms/web".to_owned(),
        message: String::new(),
        disks: Vec::new(),
        machine: None,
    };
    world.node.take_snapshot(by_hand).await.unwrap();
    let attached = AttachRequest {
        target: "vms/web@3".to_owned(),
        disk: None,
        via: Via::Nbd,
        listen: None,
        insecure_listen: false,
        read_timeout_ms: None,
        tls_certificates: None,
        tls: None,
    };
    world.node.attach(attached).await.unwrap();
    for _ in 0..3 {
        world.write("web1");
        world.pass(1).await;
    }
    assert_eq!(world.versions("web").await, [3, 4, 6, 7], "what is attached stays, and what was taken by hand");
    world.node.detach("vms/web@3", false).await.unwrap();
    world.write("web1");
    world.pass(1).await;
    assert_eq!(world.versions("web").await, [4, 7, 8]);
    assert_eq!(world.shown("web1").last.unwrap().snapshot, "vms/web@8");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_made_up_for_once_and_nothing_is_taken_twice() {
    let world = World::new().await;
    world.put("web1", "web", "").await;
    world.write("web1");
    world.clock.fetch_add(10 * HOUR, Ordering::SeqCst);
    let world = world.restart().await;
    world.run().await;
    world.run().await;
    assert_eq!(world.versions("web").await, [1]);
    let unchanged = world.shown("web1");
    assert_eq!(unchanged.unchanged_ms, None);
    world.pass(1).await;
    let unchanged = world.shown("web1");
    assert_eq!(unchanged.unchanged_ms, Some(START + 11 * HOUR), "nothing was written");
    let world = world.restart().await;
    world.pass(1).await;
    assert_eq!(world.versions("web").await, [1]);
    world.node.volumes.grow(&world.volume("web1"), 2 << 20).unwrap();
    world.pass(1).await;
    assert_eq!(world.versions("web").await, [1, 2], "a larger disk is another one");
    world.write("web1");
    world.clock.store(START + HOUR, Ordering::SeqCst);
    world.run().await;
    assert_eq!(world.versions("web").await, [1, 2, 3], "the clock was put back by hours");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_read_is_not_withdrawn_before_they_have_read_it() {
    let world = World::new().await;
    world.put("web1", "web", "1").await;
    let bucket = world.node.buckets.find(&name("vms")).unwrap();
    bucket.append(format::entry::Action::Grant { reader: format::entry::Reader::Everyone }).unwrap();
    for _ in 0..2 {
        world.write("web1");
        world.pass(1).await;
    }
    let id = world.node.resolve("vms/web@2").unwrap().snapshot.unwrap();
    world.node.readers.note(id);
    for _ in 0..2 {
        world.write("web1");
        world.pass(1).await;
    }
    assert_eq!(world.versions("web").await, [2, 4], "one of them is read");
    drop(bucket);
    let world = world.restart().await;
    world.write("web1");
    world.clock.fetch_add(HOUR * 3 / 4, Ordering::SeqCst);
    world.run().await;
    assert_eq!(world.versions("web").await, [2, 4, 5], "nothing is known yet of who reads what");
    world.write("web1");
    world.pass(1).await;
    assert_eq!(world.versions("web").await, [6], "nobody has asked for them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_taken_together_without_what_is_deleted() {
    let world = World::new().await;
    world.put("db-data", "db", "1").await;
    let both = world.put("db-log", "db", "1").await;
    assert_eq!(both.volumes, [name("db-data"), name("db-log")]);
    let disks = async |version: u64| {
        let resolved = world.node.resolve(&format!("vms/db@{version}")).unwrap();
        let detail = world.node.show_snapshot(&resolved).await.unwrap();
        detail.disks.into_iter().map(|disk| disk.name.to_string()).collect::<Vec<_>>()
    };
    world.write("db-log");
    world.pass(1).await;
    assert_eq!(disks(1).await, ["db-data", "db-log"]);
    world.node.remove_volume(&name("db-log"), false).await.unwrap();
    world.write("db-data");
    world.pass(1).await;
    assert_eq!(disks(2).await, ["db"]);
    world.node.restore_volume("db-log", None).await.unwrap();
    world.pass(1).await;
    assert_eq!(disks(3).await, ["db-data", "db-log"], "it is on its schedule again");
    world.node.unschedule_volume(&name("db-log")).await.unwrap();
    world.node.remove_volume(&name("db-data"), true).await.unwrap();
    assert!(world.node.list_schedules().is_empty());
    assert!(world.node.store.roots().list(PREFIX).is_empty(), "nothing is left of what is gone for good");
    world.write("db-log");
    world.pass(1).await;
    assert_eq!(world.versions("db").await, [3], "they stay, whatever was to be kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_shown_and_tried_again_and_never_lost() {
    let world = World::new().await;
    world.put("web1", "web", "").await;
    world.write("web1");
    world.node.buckets.remove(&name("vms")).unwrap();
    world.pass(1).await;
    let failure = world.shown("web1").failure.unwrap();
    assert_eq!((failure.times, failure.error.code), (1, ErrorCode::NotFound));
    assert_eq!(world.shown("web1").next_ms, failure.at_ms + 10_000);
    world.run().await;
    assert_eq!(world.shown("web1").failure.unwrap().times, 1, "not before its time");
    world.clock.fetch_add(10_000, Ordering::SeqCst);
    world.run().await;
    assert_eq!(world.shown("web1").failure.unwrap().times, 2);
    world.node.buckets.create(name("vms")).unwrap();
    world.run().await;
    assert!(world.versions("web").await.is_empty(), "not before its time");
    world.put("web1", "web", "").await;
    world.run().await;
    assert_eq!((world.shown("web1").failure, world.versions("web").await), (None, vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused() {
    let world = World::new().await;
    world.put("web1", "web", "").await;
    let request = |into: &str, every_ms, disk: &str| ScheduleRequest {
        into: into.to_owned(),
        every_ms,
        keep: None,
        disk: disk.parse().ok(),
    };
    world.node.schedule_volume(&name("web1"), request("vms/web", HOUR, "root")).await.unwrap();
    world.volume("web2");
    for (refused, code) in [
        (request("vms/web@1", HOUR, ""), ErrorCode::Invalid),
        (request("web", HOUR, ""), ErrorCode::Invalid),
        (request("vms/web", 999, ""), ErrorCode::Invalid),
        (request("vms/web", u64::MAX, ""), ErrorCode::Invalid),
        (request("other/web", HOUR, ""), ErrorCode::NotFound),
        (request("vms/web", HOUR, "root"), ErrorCode::Conflict),
    ] {
        assert_eq!(world.node.schedule_volume(&name("web2"), refused).await.unwrap_err().code, code);
    }
    assert_eq!(world.node.find_schedule(&name("web2")).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.node.unschedule_volume(&name("web2")).await.unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn a_schedule_goes_to_another_member_without_what_was_taken_here() {
    let position = volume::Position { journal: types::JournalId([1; 16]), sequence: 9 };
    let record = ScheduleRecord {
        bucket: name("vms"),
        object: name("web"),
        disk: Some(name("disk0")),
        every_ms: HOUR,
        keep: "24h".parse().ok(),
        since_ms: 5,
        last: Some(crate::record::ScheduledRecord::new(7, 3, position, 512)),
    };
    let there = ScheduleRecord::of_message(record.to_message());
    assert_eq!(there, ScheduleRecord { since_ms: 7, last: None, ..record });
}
