//! Rewind from the command line: moments of a protected volume are cloned while it is written to, after folds and
//! snapshots, and across `kill -9`.

use std::process::Command;

use e2e::{attach, connect, read_disk, write_disk};
use testkit::{Node, World, wait};

const BLOCK: usize = 4096;

/// This moment as RFC 3339 has it, to the millisecond.
fn now() -> String {
    let date = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().expect("coreutils");
    String::from_utf8(date.stdout).expect("a date").trim().to_owned()
}

fn number_at(node: &Node, moment: &str, clone: &str) -> u64 {
    node.brant(&["clone", &format!("web@{moment}"), clone]).expect("a clone of a moment");
    let bytes = read_disk(&attach(node, clone).expect("attached")).expect("read").0;
    node.brant(&["detach", clone, "--force"]).expect("detached");
    node.brant(&["volume", "remove", clone, "--now"]).expect("removed");
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert!(bytes[..BLOCK] == number.to_le_bytes().repeat(BLOCK / 8), "a write is there wholly or not at all");
    number
}

#[test]
fn of_a_volume_in_use() {
    let world = World::new(e2e::brant()).expect("a directory");
    let mut node = world.start_node("a").expect("a node");
    node.brant(&["bucket", "create", "vms"]).expect("a bucket");
    node.brant(&["volume", "create", "web", "--size", "1MiB"]).expect("a volume");
    let uri = attach(&node, "web").expect("attached");
    let refused = node.try_brant(&["clone", "web@now", "copy"]).expect("run").failed_with(3).expect("not protected");
    assert!(refused.stderr.contains("brant volume protect web"), "{}", refused.stderr);
    let detail = node.json(&["volume", "protect", "web", "--for", "2h", "--space", "1GiB"]).expect("protected");
    assert_eq!((&detail["rewind"]["for_ms"], &detail["rewind"]["space_bytes"]), (&7_200_000.into(), &(1 << 30).into()));

    let mut moments = Vec::new();
    for number in 1..=40_u64 {
        write_disk(&uri, 0, &number.to_le_bytes().repeat(BLOCK / 8)).expect("written");
        // A moment of its own: the next write is in a later millisecond.
        let moment = now();
        wait::until("the clock goes on", || Ok((now() > moment).then_some(()))).expect("time passes");
        moments.push((moment, number));
        match number {
            10 | 30 => drop(node.json(&["snapshot", "create", "web", "vms/web", "--wait"]).expect("a snapshot")),
            20 => {
                let client = connect(&uri).expect("a client under way");
                node.kill().expect("killed");
                drop(client);
                node = world.start_node("a").expect("started again");
            }
            _ => {}
        }
    }
    for (place, (moment, number)) in moments.iter().enumerate().step_by(3) {
        assert_eq!(number_at(&node, moment, &format!("clone-{place}")), *number, "{moment}");
    }
    assert_eq!(number_at(&node, "now", "latest"), 40);
    assert_eq!(number_at(&node, "0s ago", "latest"), 40);

    let early = node.try_brant(&["clone", "web@2001-01-01T00:00:00Z", "copy"]).expect("run").failed_with(3);
    let early = early.expect("outside the window").stderr;
    assert!(early.contains("nothing is kept of web at 2001-01-01T00:00:00Z\nhint: any moment from 2"), "{early}");
    node.try_brant(&["clone", "web@2999-01-01T00:00:00Z", "copy"]).expect("run").failed_with(3).expect("not yet");
    node.try_brant(&["clone", "web@yesterday-ish", "copy"]).expect("run").failed_with(2).expect("no moment");
    node.try_brant(&["clone", "nobody@now", "copy"]).expect("run").failed_with(3).expect("no such volume");
    let off = node.json(&["volume", "protect", "web", "--off"]).expect("let go");
    assert!(off["rewind"].is_null(), "{off}");
    node.try_brant(&["clone", "web@now", "copy"]).expect("run").failed_with(3).expect("nothing is kept");
}
