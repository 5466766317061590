//! Ganeti's scripts against a real node: each does what Ganeti's contract says, in the order in which Ganeti calls them and
//! also when it does not keep to one, and says plainly what it cannot do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ganeti::{Definition, Script, Settings, run, snapshot_instance};
use node::api::{AddMemberRequest, ApiError, CreateBucketRequest, ErrorCode, ReplicationMode, ScheduleRequest, Volume};
use node::client::Client;
use node::{NodeOptions, Start};
use tempfile::TempDir;

const DISK: &str = "0fb2a5d4-1fb0-4b8e-8f3a-2a5d41fb04b8.ext.disk0";
const SECOND: &str = "91b2a5d4-1fb0-4b8e-8f3a-2a5d41fb04b8.ext.disk1";

/// A node in this process, and where it is.
struct Node {
    client: Client,
    settings: Settings,
    // Dropped last.
    _directory: TempDir,
}

impl Node {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::of_directory(directory.path());
        let settings = Settings { sockets: directory.path().join("sockets"), ..Settings::default() };
        let options = NodeOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..NodeOptions::new(directory.path()) };
        let (send, ready) = tokio::sync::oneshot::channel();
        let said = Box::new(move |_: &_| send.send(()).unwrap());
        tokio::spawn(async move { node::serve(options, Start::Alone, said).await.map(drop) });
        ready.await.unwrap();
        client.create_bucket(&CreateBucketRequest { name: "vms".parse().unwrap() }).await.unwrap();
        Self { client, settings, _directory: directory }
    }

    /// Calls a script as Ganeti does, for a disk.
    async fn call(&self, script: Script, disk: &str, further: &[(&str, &str)]) -> Result<String, ApiError> {
        run(&self.client, script, environment(disk, further), &self.settings).await
    }

    async fn volume(&self, name: &str) -> Option<Volume> {
        self.client.volumes().await.unwrap().into_iter().find(|volume| volume.name.as_str() == name)
    }

    fn socket(&self, disk: &str) -> PathBuf {
        self.settings.sockets.join(format!("{disk}.sock"))
    }
}

fn environment(disk: &str, further: &[(&str, &str)]) -> BTreeMap<String, String> {
    // A device of the kernel takes root, and the real program: the end-to-end tests have that.
    let ganeti = [("VOL_NAME", disk), ("VOL_UUID", "7"), ("EXTP_PROVIDER", "brant"), ("EXTP_ACCESS", "userspace")];
    let usual = ganeti.into_iter().chain([("EXTP_EXPORT", "userspace")]).collect::<Vec<_>>();
    usual.iter().chain(further).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn size(mebibytes: &str) -> Vec<(&str, &str)> {
    vec![("VOL_SIZE", mebibytes)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_lives_from_create_to_remove() {
    let node = Node::start().await;
    node.call(Script::Create, DISK, &size("64")).await.unwrap();
    let printed = node.call(Script::Attach, DISK, &[]).await.unwrap();
    assert_eq!(printed, format!("\nkvm:nbd:unix:{}\n", node.socket(DISK).display()), "no device, and the URI");
    assert_eq!(node.call(Script::Attach, DISK, &[]).await.unwrap(), printed, "again, and by whoever only looks");
    node.call(Script::Open, DISK, &[("VOL_OPEN_EXCLUSIVE", "True")]).await.unwrap();
    node.call(Script::Setinfo, DISK, &[("VOL_METADATA", "originstname+web1.example.org")]).await.unwrap();
    node.call(Script::Grow, DISK, &[("VOL_SIZE", "64"), ("VOL_NEW_SIZE", "96")]).await.unwrap();
    node.call(Script::Grow, DISK, &[("VOL_SIZE", "64"), ("VOL_NEW_SIZE", "96")]).await.unwrap();
    let volume = node.volume(DISK).await.unwrap();
    assert_eq!(volume.size_bytes, 96 << 20);
    assert_eq!(volume.labels[&ganeti::label::INSTANCE.parse().unwrap()], "web1.example.org");
    node.call(Script::Setinfo, DISK, &[("VOL_METADATA", "originstname+web2.example.org")]).await.unwrap();
    let volume = node.volume(DISK).await.unwrap();
    assert_eq!(volume.labels[&ganeti::label::INSTANCE.parse().unwrap()], "web2.example.org", "it was renamed");
    node.call(Script::Close, DISK, &[]).await.unwrap();
    assert!(!node.socket(DISK).exists(), "nobody may call anything else where a migration has been cleaned up");
    node.call(Script::Close, DISK, &[]).await.unwrap();
    node.call(Script::Attach, DISK, &[]).await.unwrap();
    node.call(Script::Verify, DISK, &[]).await.unwrap();
    node.call(Script::Detach, DISK, &[]).await.unwrap();
    node.call(Script::Detach, DISK, &[]).await.unwrap();
    assert!(!node.socket(DISK).exists());
    node.call(Script::Attach, DISK, &[]).await.unwrap();
    node.call(Script::Remove, DISK, &[]).await.unwrap();
    node.call(Script::Remove, DISK, &[]).await.unwrap();
    assert!(node.volume(DISK).await.is_none());
    let deleted = node.client.deleted_volumes().await.unwrap();
    assert_eq!(deleted[0].name.as_str(), DISK, "it can be taken back");
    node.call(Script::Create, DISK, &size("64")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_uses_is_not_taken_away() {
    let node = Node::start().await;
    node.call(Script::Create, DISK, &size("1")).await.unwrap();
    node.call(Script::Attach, DISK, &[]).await.unwrap();
    let guest = UnixStream::connect(node.socket(DISK)).unwrap();
    negotiate(&guest);
    for script in [Script::Detach, Script::Remove] {
        let refused = node.call(script, DISK, &[]).await.unwrap_err();
        assert!(refused.message.contains("is in use: 1 client is connected"), "{refused}");
    }
    let printed = node.call(Script::Close, DISK, &[]).await.unwrap();
    assert!(printed.contains("somebody still uses it") && node.socket(DISK).exists(), "{printed}");
    // Who is gone a moment later is waited for.
    let going = tokio::task::spawn_blocking(move || drop(guest));
    node.call(Script::Detach, DISK, &[]).await.unwrap();
    going.await.unwrap();
}

/// Gets through the handshake of the NBD protocol (`doc/proto.md`, fixed newstyle) to the empty export.
fn negotiate(mut stream: &UnixStream) {
    use std::io::{Read as _, Write as _};
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert!(greeting.starts_with(b"NBDMAGIC"));
    // NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES, then NBD_OPT_EXPORT_NAME with a name of no length.
    let mut words = 3_u32.to_be_bytes().to_vec();
    words.extend(b"IHAVEOPT");
    words.extend([1_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat());
    stream.write_all(&words).unwrap();
    let mut size = [0; 10];
    stream.read_exact(&mut size).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_begins_as_a_snapshot_of_another() {
    let node = Node::start().await;
    for (disk, mebibytes) in [(DISK, "8"), (SECOND, "16")] {
        node.call(Script::Create, disk, &[size(mebibytes), vec![("EXTP_BUCKET", "vms")]].concat()).await.unwrap();
        node.call(Script::Setinfo, disk, &[("VOL_METADATA", "originstname+web1")]).await.unwrap();
    }
    let text = |disks| format!(r#"{{"version":1,"name":"web1","os":"debian","hypervisor":"kvm","disks":[{disks}]}}"#);
    let one_too_few = Definition::decode(&text(r#"{"size_mib":8}"#)).unwrap();
    let refused = snapshot_instance(&node.client, "web1", None, String::new(), Some(&one_too_few)).await.unwrap_err();
    assert!(refused.message.contains("has 1 disks, and 2 of them are here"), "{refused}");
    let definition = Definition::decode(&text(r#"{"size_mib":8},{"size_mib":16}"#)).unwrap();
    let taken = snapshot_instance(&node.client, "web1", None, "note".to_owned(), Some(&definition)).await.unwrap();
    let detail = node.client.snapshot(&format!("{}/{}", taken.bucket, taken.object)).await.unwrap();
    assert_eq!(detail.machine, Some(definition.to_machine()), "what it is kept with is given back");
    assert_eq!((taken.bucket.as_str(), taken.object.as_str(), taken.size_bytes), ("vms", "web1", 24 << 20));
    let other = |number: u8| format!("aaaa.ext.disk{number}");
    let origin = |origin, mebibytes| [size(mebibytes), vec![("EXTP_ORIGIN", origin)]].concat();
    node.call(Script::Create, &other(0), &origin("vms/web1", "8")).await.unwrap();
    node.call(Script::Create, &other(1), &origin("vms/web1@1", "32")).await.unwrap();
    node.call(Script::Create, &other(2), &origin("vms/web1#disk0", "8")).await.unwrap();
    let sizes = [0, 1, 2].map(|number| 8 << (20 + [0, 2, 0][number]));
    for (number, expected) in (0..3).zip(sizes) {
        let volume = node.volume(&other(number)).await.unwrap();
        assert_eq!(volume.size_bytes, expected, "disk {number}, grown to what was asked for");
    }
    for (disk, parameters, says) in [
        (other(3), origin("vms/web1", "64"), "choose one with origin=SNAPSHOT#DISK: disk0, disk1"),
        (other(3), origin("vms/web1#disk1", "8"), "does not fit into a volume of 8388608"),
        (other(3), origin("vms/nothing", "8"), "there is no object vms/nothing"),
        (other(3), origin("vms/web1@9", "8"), "the latest is @1"),
        (other(3), [size("8"), vec![("EXTP_BUCKET", "nothing")]].concat(), "nothing"),
        (other(3), [size("8"), vec![("EXTP_SCHEDULE", "daily")]].concat(), "schedule=daily needs bucket too"),
        (other(0), size("8"), "there is a volume aaaa.ext.disk0 already"),
    ] {
        let refused = node.call(Script::Create, &disk, &parameters).await.unwrap_err();
        assert!(refused.message.contains(says) && !refused.message.contains('\n'), "{refused}");
    }
    assert!(node.volume(&other(3)).await.is_none(), "nothing is left of what was refused");
    let nobody = snapshot_instance(&node.client, "web9", None, String::new(), None).await.unwrap_err();
    assert_eq!(nobody.code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_an_instance_are_snapshotted_by_themselves_as_their_parameters_say() {
    let node = Node::start().await;
    let policy = |every, keep| vec![("EXTP_BUCKET", "vms"), ("EXTP_SCHEDULE", every), ("EXTP_KEEP", keep)];
    for disk in [DISK, SECOND] {
        node.call(Script::Create, disk, &[size("8"), policy("1d", "24h+7d")].concat()).await.unwrap();
        let open = [policy("1d", "24h+7d"), vec![("VOL_OPEN_EXCLUSIVE", "True")]].concat();
        node.call(Script::Open, disk, &open).await.unwrap();
        assert!(node.client.schedule(disk).await.is_err(), "it is not known yet whose disk it is");
        let set = [policy("1d", "24h+7d"), vec![("VOL_METADATA", "originstname+web1")]].concat();
        node.call(Script::Setinfo, disk, &set).await.unwrap();
    }
    let schedule = node.client.schedule(DISK).await.unwrap();
    assert_eq!((schedule.into.as_str(), schedule.volumes.len(), schedule.every_ms), ("vms/web1", 2, 86_400_000));
    assert_eq!(schedule.keep, "24h,7d".parse().ok());

    // Ganeti changes a parameter without a word: it counts from when the disk is opened next.
    let open = [policy("2h", "3"), vec![("VOL_OPEN_EXCLUSIVE", "True")]].concat();
    for _ in 0..2 {
        node.call(Script::Open, DISK, &open).await.unwrap();
        assert_eq!(node.client.schedule(DISK).await.unwrap().every_ms, 7_200_000);
    }
    let snapshot = format!("{DISK}.snap");
    node.call(Script::Snapshot, DISK, &[("VOL_SNAPSHOT_NAME", &snapshot), ("VOL_SNAPSHOT_SIZE", "8")]).await.unwrap();
    node.call(Script::Open, &snapshot, &open).await.unwrap();
    assert!(node.client.schedule(&snapshot).await.is_err(), "what passes is not snapshotted");

    let renamed = [policy("2h", "3"), vec![("VOL_METADATA", "originstname+web2")]].concat();
    node.call(Script::Setinfo, DISK, &renamed).await.unwrap();
    assert_eq!(node.client.schedule(DISK).await.unwrap().into, "vms/web2");
    node.call(Script::Open, DISK, &[("VOL_OPEN_EXCLUSIVE", "True")]).await.unwrap();
    assert!(node.client.schedule(DISK).await.is_err(), "the parameters were taken away");

    // One that was made by hand is nobody's business here.
    let by_hand = ScheduleRequest { into: "vms/hand".to_owned(), every_ms: 3_600_000, keep: None, disk: None };
    node.client.schedule_volume(DISK, &by_hand).await.unwrap();
    node.call(Script::Open, DISK, &[("VOL_OPEN_EXCLUSIVE", "True")]).await.unwrap();
    assert_eq!(node.client.schedule(DISK).await.unwrap().into, "vms/hand");

    // A bucket that is gone keeps no instance from starting.
    node.client.remove_bucket("vms").await.unwrap();
    let opened = node.call(Script::Open, DISK, &open).await.unwrap();
    assert!(opened.contains("no snapshots of it are taken by themselves: there is no bucket vms"), "{opened}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exports_snapshot_is_a_passing_volume() {
    let node = Node::start().await;
    node.call(Script::Create, DISK, &size("8")).await.unwrap();
    let name = format!("{DISK}.snap");
    let snapshot = [("VOL_SNAPSHOT_NAME", name.as_str()), ("VOL_SNAPSHOT_SIZE", "8")];
    node.call(Script::Snapshot, DISK, &snapshot).await.unwrap();
    let first = node.volume(&name).await.unwrap();
    node.call(Script::Attach, &name, &[]).await.unwrap();
    node.call(Script::Snapshot, DISK, &snapshot).await.unwrap();
    assert_ne!(node.volume(&name).await.unwrap().id, first.id, "a stale one is replaced, also when it is attached");
    node.call(Script::Attach, &name, &[]).await.unwrap();
    node.call(Script::Open, &name, &[("VOL_OPEN_EXCLUSIVE", "True")]).await.unwrap();
    node.call(Script::Detach, &name, &[]).await.unwrap();
    node.call(Script::Remove, &name, &[]).await.unwrap();
    assert!(node.client.deleted_volumes().await.unwrap().is_empty(), "it is gone for good");
    node.call(Script::Create, &name, &size("8")).await.unwrap();
    let refused = node.call(Script::Snapshot, DISK, &snapshot).await.unwrap_err();
    assert!(refused.message.contains("no snapshot of Ganeti's"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nowhere_is_said_to_be() {
    let node = Node::start().await;
    for (script, further) in [
        (Script::Attach, vec![]),
        (Script::Open, vec![("VOL_OPEN_EXCLUSIVE", "False")]),
        (Script::Close, vec![]),
        (Script::Grow, vec![("VOL_NEW_SIZE", "8")]),
    ] {
        let error = node.call(script, DISK, &further).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("is it at a node that is no member here?"), "{error}");
    }
    node.call(Script::Detach, DISK, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_disks_are_made_at_once() {
    let node = Node::start().await;
    let calls = (0..20).map(|number| {
        let (client, settings) = (node.client.clone(), node.settings.clone());
        tokio::spawn(async move {
            let disk = format!("aaaa{number}.ext.disk0");
            for (script, further) in [(Script::Create, size("8")), (Script::Attach, vec![])] {
                run(&client, script, environment(&disk, &further), &settings).await?;
            }
            Ok::<_, ApiError>(())
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(node.client.attachments().await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_node_that_is_down_or_stuck_is_named_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let down = failure(directory.path()).await;
    assert!(down.message.starts_with(&format!("brant could not attach {DISK}: no node answers at ")), "{down}");
    assert!(down.message.contains("start it with: brant node serve --dir"), "{down}");
    // Somebody listens there, and never answers.
    let stuck = std::os::unix::net::UnixListener::bind(directory.path().join("node.sock")).unwrap();
    let error = failure(directory.path()).await;
    assert!(error.message.contains("has not answered within"), "{error}");
    assert_eq!(error.message.lines().count(), 1);
    drop(stuck);
}

async fn failure(directory: &Path) -> ApiError {
    let limits = (Duration::from_millis(100), Duration::from_millis(300));
    let settings = Settings { reach: limits.0, total: limits.1, ..Settings::default() };
    run(&Client::of_directory(directory), Script::Attach, environment(DISK, &[]), &settings).await.unwrap_err()
}

/// Makes each of two nodes a member of the other.
async fn make_members(one: &Node, two: &Node) {
    for (here, there, name) in [(one, two, "two"), (two, one, "one")] {
        let shown = there.client.cluster().await.unwrap();
        let (endpoint, addresses) = (shown.endpoint, shown.addresses);
        let request = AddMemberRequest { name: name.parse().unwrap(), endpoint, addresses };
        here.client.add_member(&request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_a_member_is_used_and_comes_when_it_is_opened_alone() {
    let (one, two) = (Node::start().await, Node::start().await);
    make_members(&one, &two).await;
    one.call(Script::Create, DISK, &size("16")).await.unwrap();
    let hourly =
        ScheduleRequest { into: "vms/web1".to_owned(), every_ms: 3_600_000, keep: "24h".parse().ok(), disk: None };
    two.client.schedule_volume(DISK, &hourly).await.unwrap();
    assert!(two.client.schedules().await.unwrap().is_empty(), "it is where the volume is");
    let taken = two.call(Script::Create, DISK, &size("16")).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::Conflict, "{taken}");

    two.call(Script::Attach, DISK, &[]).await.unwrap();
    two.call(Script::Close, DISK, &[]).await.unwrap();
    let shared = two.call(Script::Open, DISK, &[("VOL_OPEN_EXCLUSIVE", "False")]).await.unwrap();
    assert!(shared.contains("it is at another node"), "{shared}");
    assert!(two.volume(DISK).await.is_none() && two.client.tasks().await.unwrap().is_empty(), "it stays where it is");

    two.call(Script::Setinfo, DISK, &[("VOL_METADATA", "originstname+web1.example.org")]).await.unwrap();
    two.call(Script::Grow, DISK, &[("VOL_SIZE", "16"), ("VOL_NEW_SIZE", "24")]).await.unwrap();
    let changed = one.volume(DISK).await.unwrap();
    assert_eq!(changed.size_bytes, 24 << 20);
    assert!(changed.labels.values().any(|value| value == "web1.example.org"), "{:?}", changed.labels);

    for _ in 0..2 {
        let alone = two.call(Script::Open, DISK, &[("VOL_OPEN_EXCLUSIVE", "True")]).await.unwrap();
        assert!(alone.contains("by this node alone"), "{alone}");
    }
    let task = two.client.take_volume(DISK).await.unwrap();
    let ended = two.client.wait_for_task(task.id, Duration::from_secs(1), |_| {}).await.unwrap();
    ended.into_result().unwrap();
    assert!(two.volume(DISK).await.is_some() && one.volume(DISK).await.is_none(), "it has one home");
    let come = two.client.schedules().await.unwrap();
    assert_eq!((come.len(), come[0].into.as_str(), come[0].keep), (1, "vms/web1", "24h".parse().ok()));
    assert!(one.client.schedules().await.unwrap().is_empty(), "the schedule has gone with it");

    // The source is told last, and may ask once more.
    one.call(Script::Close, DISK, &[]).await.unwrap();
    one.call(Script::Detach, DISK, &[]).await.unwrap();
    two.call(Script::Detach, DISK, &[]).await.unwrap();
    one.call(Script::Remove, DISK, &[]).await.unwrap();
    assert!(two.volume(DISK).await.is_none(), "it is removed where it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_kept_as_the_parameters_say_and_ends_with_the_disk() {
    let (one, two) = (Node::start().await, Node::start().await);
    make_members(&one, &two).await;
    let create = |replica| [("VOL_SIZE", "16"), ("EXTP_REPLICA", replica), ("EXTP_REPLICA_MODE", "async")];
    let refused = one.call(Script::Create, DISK, &create("nobody")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound, "{refused}");
    assert!(refused.message.contains("nobody") && one.volume(DISK).await.is_none(), "{refused}");
    assert!(one.client.deleted_volumes().await.unwrap().is_empty(), "nothing is left of it");
    one.call(Script::Create, DISK, &create("two")).await.unwrap();

    let replication = async |node: &Node| node.volume(DISK).await.unwrap().replication;
    let kept = replication(&one).await.unwrap();
    assert_eq!((kept.to.as_str(), kept.mode), ("two", ReplicationMode::Async));
    let alone = ("VOL_OPEN_EXCLUSIVE", "True");
    let sync = [alone, ("EXTP_REPLICA", "two")];
    one.call(Script::Open, DISK, &sync).await.unwrap();
    assert_eq!(replication(&one).await.unwrap().mode, ReplicationMode::Sync, "the parameter has changed");
    one.call(Script::Open, DISK, &[alone]).await.unwrap();
    assert!(
        replication(&one).await.is_none() && two.client.replicas().await.unwrap().is_empty(),
        "it is not asked for"
    );
    one.call(Script::Open, DISK, &sync).await.unwrap();

    // The disk comes to its replica's node: the two change places, and the parameters say the same.
    two.call(Script::Open, DISK, &sync).await.unwrap();
    let task = two.client.take_volume(DISK).await.unwrap();
    two.client.wait_for_task(task.id, Duration::from_secs(1), |_| {}).await.unwrap().into_result().unwrap();
    let opened = two.call(Script::Open, DISK, &sync).await.unwrap();
    assert!(opened.ends_with("by this node alone\n"), "{opened}");
    assert_eq!(replication(&two).await.unwrap().to, "one");
    assert_eq!(one.client.volume(DISK).await.unwrap().volume.home.as_deref(), Some("two"), "it says where the disk is");

    // What somebody has taken away is asked for anew, and fails where it cannot be: the disk is opened all the same.
    two.client.stop_replicating(DISK, false).await.unwrap();
    let opened = two.call(Script::Open, DISK, &sync).await.unwrap();
    assert!(opened.contains("its replica is not as asked for"), "{opened}");
    two.call(Script::Open, DISK, &[alone, ("EXTP_REPLICA", "one")]).await.unwrap();
    assert_eq!(replication(&two).await.unwrap().to, "one");
    two.call(Script::Remove, DISK, &[]).await.unwrap();
    assert!(
        two.volume(DISK).await.is_none() && one.client.replicas().await.unwrap().is_empty(),
        "it ends with the disk"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_is_named() {
    let node = Node::start().await;
    let gone = AddMemberRequest {
        name: "node2".parse().unwrap(),
        endpoint: types::EndpointId([7; 32]),
        addresses: vec!["127.0.0.1:9".parse().unwrap()],
    };
    node.client.add_member(&gone).await.unwrap();
    for (script, further) in [
        (Script::Attach, vec![]),
        (Script::Open, vec![("VOL_OPEN_EXCLUSIVE", "True")]),
        (Script::Close, vec![]),
        // Not "there is none", which would have Ganeti forget a disk that is there.
        (Script::Remove, vec![]),
    ] {
        let error = node.call(script, DISK, &further).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unreachable, "{error}");
        assert!(error.message.contains("it may be at node2, which does not answer"), "{error}");
        assert_eq!(error.message.lines().count(), 1, "{error}");
    }
}
