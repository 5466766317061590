//! Live migrations in which something dies: brant at either node, the target's QEMU, or Ganeti's own job. Whatever it is and whenever, the
//! instance runs at one node, its disk comes there with every record that the guest was told to be durable, and it can be migrated again.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, ClusterNode, Switch};
use testkit::{World, wait};

/// How an instance is added, apart from its disk and its name.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node1.cluster1.test";

/// When something dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Both nodes are about to have the disk open; the target has no QEMU yet.
    Before,
    /// The guest runs at the source, and its memory moves.
    Moving,
    /// The guest runs at the target, which does not have the disk for itself yet.
    After,
}

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// brant at the source, which is started again as systemd would.
    Source,
    /// brant at the target, likewise.
    Target,
    /// The target's QEMU.
    Qemu,
    /// The process that works on Ganeti's job. Then an operator cleans up.
    Job,
}

/// The nodes of an instance that moves, by their places in the cluster.
#[derive(Debug)]
struct Moving<'i> {
    cluster: Cluster,
    instance: &'i str,
    source: usize,
    target: usize,
}

impl Moving<'_> {
    fn source(&self) -> &ClusterNode {
        &self.cluster.nodes[self.source]
    }

    fn target(&self) -> &ClusterNode {
        &self.cluster.nodes[self.target]
    }

    /// Kills brant at a node, and starts it again.
    fn restart(&mut self, place: usize) -> Result<()> {
        let node = &mut self.cluster.nodes[place];
        node.kill_brant()?;
        node.start_brant()
    }

    fn migrate(&self) -> Result<u64> {
        self.cluster.submit(&format!("gnt-instance migrate --submit -f -n {} {}", self.target().name(), self.instance))
    }

    /// Waits until the guest's memory moves.
    fn await_memory(&self, job: u64) -> Result<()> {
        let mut told = String::new();
        let moves = wait::until("the memory moves", || {
            told = self.source().monitor(self.instance, "info migrate")?;
            Ok(told.contains("Migration status: active").then_some(()))
        });
        moves.with_context(|| format!("{told}\n{:?}", self.cluster.gnt(&format!("gnt-job info {job}"))))
    }

    /// Has the memory move as fast as it can.
    fn hurry(&self, job: u64) -> Result<()> {
        self.await_memory(job)?;
        self.source().monitor(self.instance, "migrate_set_parameter max-bandwidth 10G").map(drop)
    }

    /// Moves the instance as one does.
    fn moves(&mut self) -> Result<()> {
        let promised = self.source().record(self.instance)?;
        let job = self.migrate()?;
        self.hurry(job)?;
        self.succeeds(job)?;
        self.has_moved(promised)
    }

    /// Waits until a migration has succeeded.
    fn succeeds(&self, job: u64) -> Result<()> {
        let end = self.cluster.job_ends(job)?;
        // Ganeti 3.0.2 sometimes fails to see that the source's QEMU has ended, when it looks at that moment. An operator cleans up.
        if !end.success && end.said.contains("Could not finalize instance migration") {
            return self.clean_up(self.target());
        }
        ensure!(end.success, "{}", end.said);
        Ok(())
    }

    fn clean_up(&self, other: &ClusterNode) -> Result<()> {
        self.cluster.gnt(&format!("gnt-instance migrate -f --cleanup -n {} {}", other.name(), self.instance)).map(drop)
    }

    /// The instance is at the target, and the nodes change places.
    fn has_moved(&mut self, promised: u64) -> Result<()> {
        std::mem::swap(&mut self.source, &mut self.target);
        self.is_at_source(promised)
    }

    /// The instance runs at the source and only there; its disk is there too, with what the guest was promised, and more comes.
    fn is_at_source(&self, promised: u64) -> Result<()> {
        let (here, there, instance) = (self.source(), self.target(), self.instance);
        ensure!(here.has_qemu(instance)? && !there.has_qemu(instance)?, "it runs at one node");
        let primary = self.cluster.gnt(&format!("gnt-instance list --no-headers -o pnode,status {instance}"))?;
        ensure!(primary.contains(&here.name()) && primary.contains("running"), "{primary}");
        here.has_disks(there, instance, 1)?;
        let after = here.goes_on(instance, promised).with_context(|| self.told())?;
        let kept = here.records_on_disk(instance)?;
        ensure!(kept >= after, "{after} records were durable, {kept} are there");
        let (disks, attached) = (here.volumes_of(instance)?, there.json(&["attach"])?);
        let still =
            attached.as_array().context("a list")?.iter().any(|one| disks.iter().any(|disk| one["target"] == **disk));
        ensure!(!still, "attached at the other node: {attached}\n{}", self.told());
        Ok(())
    }

    /// What there is to say when something has gone wrong.
    fn told(&self) -> String {
        let status = self.source().monitor(self.instance, "info status");
        let nodes = [self.source(), self.target()];
        let of_node = |node: &ClusterNode| {
            let (attached, tasks) = (node.brant(&["attach"]), node.brant(&["task", "list"]));
            format!("{}: {attached:?}\n{tasks:?}\n{}", node.name(), node.log())
        };
        format!("{status:?}\n{}", nodes.map(of_node).join("\n"))
    }

    /// Begins to migrate the instance, up to a step.
    fn begins(&self, step: Step) -> Result<u64> {
        match step {
            Step::Before => self.target().close_gate("open.False")?,
            Step::Moving => {}
            Step::After => self.source().close_gate("close.")?,
        }
        let job = self.migrate()?;
        match step {
            Step::Before => self.target().await_at_gate("open.False")?,
            Step::Moving => self.await_memory(job)?,
            Step::After => {
                self.hurry(job)?;
                self.source().await_at_gate("close.")?;
            }
        }
        Ok(job)
    }

    /// Lets a migration go on behind a step.
    fn goes_on_behind(&self, step: Step) -> Result<()> {
        match step {
            Step::Before => self.target().open_gate("open.False"),
            Step::Moving => Ok(()),
            Step::After => self.source().open_gate("close."),
        }
    }

    /// Something dies at a step of a migration.
    fn survives(&mut self, fault: Fault, step: Step) -> Result<()> {
        e2e::say(&format!("{} at {}: {fault:?} dies, {step:?}", self.instance, self.source().name()));
        let promised = self.source().record(self.instance)?;
        let job = self.begins(step)?;
        match fault {
            Fault::Source => self.restart(self.source)?,
            Fault::Target => self.restart(self.target)?,
            Fault::Qemu => self.target().kill_qemu(self.instance)?,
            Fault::Job => self.cluster.kill_job(job)?,
        }
        self.goes_on_behind(step)?;
        match (fault, step) {
            (Fault::Job, _) => return self.is_cleaned_up(step, promised),
            (Fault::Qemu, Step::Moving) => {
                let end = self.cluster.job_ends(job)?;
                ensure!(!end.success && end.said.contains("Could not migrate"), "{}", end.said);
                return self.is_at_source(promised);
            }
            (_, Step::Before | Step::Moving) => self.hurry(job)?,
            (_, Step::After) => {}
        }
        self.succeeds(job)?;
        if fault == Fault::Qemu {
            self.cluster.start_instance(self.instance, "brant.check brant.records=100000")?;
        }
        self.has_moved(promised)
    }

    /// An operator cleans up after a migration of which the job has died.
    fn is_cleaned_up(&mut self, step: Step, promised: u64) -> Result<()> {
        // Where the guest runs at the target, Ganeti counts it as that node's already.
        self.clean_up(if step == Step::After { self.source() } else { self.target() })?;
        if step == Step::After { self.has_moved(promised) } else { self.is_at_source(promised) }
    }
}

#[test]
fn whatever_dies() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    if !e2e::can_have_devices_or_skip() || !e2e::can_run_ganeti_or_skip() {
        return Ok(());
    }
    let world = World::new(e2e::brant())?;
    let switch = Switch::new(&world)?;
    let cluster = Cluster::up(&world, &switch, 1, 2, &kernel)?;
    cluster.nodes.iter().try_for_each(ClusterNode::put_gates)?;
    // Memory moves slowly, until the test has it move fast.
    cluster.gnt("gnt-cluster modify -H kvm:migration_bandwidth=1")?;
    let full = std::env::var_os("BRANT_TEST_FULL").is_some();
    let mut moving = begin(cluster, "kernel1", "export=kernel")?;
    if !full {
        // Each begins with what the one before has left: that it can be migrated again needs no migration of its own.
        moving.survives(Fault::Qemu, Step::Moving)?;
        moving.survives(Fault::Source, Step::Moving)?;
        moving.survives(Fault::Job, Step::Moving)?;
        moving.survives(Fault::Target, Step::After)?;
        moving.survives(Fault::Job, Step::After)?;
        return moving.moves();
    }
    for fault in [Fault::Source, Fault::Target, Fault::Qemu, Fault::Job] {
        every_step(&mut moving, fault)?;
    }
    let mut moving = begin(moving.cluster, "user1", "export=userspace,access=userspace")?;
    // The death of brant is an error for a QEMU that talks to it directly.
    for fault in [Fault::Qemu, Fault::Job] {
        every_step(&mut moving, fault)?;
    }
    Ok(())
}

fn every_step(moving: &mut Moving<'_>, fault: Fault) -> Result<()> {
    for step in [Step::Before, Step::Moving, Step::After] {
        // Before there is one, it cannot die.
        if (fault, step) != (Fault::Qemu, Step::Before) {
            moving.survives(fault, step).with_context(|| format!("{fault:?} died, {step:?}"))?;
            moving.moves()?;
        }
    }
    Ok(())
}

/// An instance at the first node, whose guest writes records.
fn begin<'i>(cluster: Cluster, instance: &'i str, parameters: &str) -> Result<Moving<'i>> {
    cluster.gnt(&format!("{ADD} --disk 0:size=64M,provider=brant,{parameters} {instance}"))?;
    cluster.start_instance(instance, "brant.format brant.records=100000")?;
    cluster.goes_on(instance, 50)?;
    Ok(Moving { cluster, instance, source: 0, target: 1 })
}
