//! Random histories of a node whose medium fails at any operation, or has no room at any moment.
//!
//! What fails changes nothing else: all that was acknowledged is still read. After room was made the same node goes on; after
//! an error of the medium the next process does, with all that was durable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/rig.rs"]
mod rig;
#[path = "simulation/seeds.rs"]
mod seeds;
#[path = "simulation/step.rs"]
mod step;

use medium::simulated::{Chance, Fault, Operation};

use crate::model::{Crash, Model};
use crate::rig::Rig;
use crate::step::Step;

const STEPS: u64 = 120;

/// What fails most often is what matters most.
const OPERATIONS: [Option<Operation>; 12] = [
    None,
    None,
    None,
    Some(Operation::Sync),
    Some(Operation::Sync),
    Some(Operation::SyncDirectory),
    Some(Operation::Write),
    Some(Operation::Write),
    Some(Operation::Open),
    Some(Operation::Rename),
    Some(Operation::SetLength),
    Some(Operation::Read),
];

struct History {
    chance: Chance,
    rig: Option<Rig>,
    model: Model,
    /// What the next process may find instead, after a change that failed and may have been made all the same.
    instead: Option<Model>,
    failures: u64,
    /// A journal that could not be made durable takes no more writes until the next process.
    broken: bool,
}

impl History {
    fn new(seed: u64) -> Self {
        let rig = Some(Rig::begin(seed).unwrap());
        Self { chance: Chance::new(!seed), rig, model: Model::default(), instead: None, failures: 0, broken: false }
    }

    fn choose(&mut self, number: u64) -> Step {
        if self.model.disks.is_empty() {
            return Step::Create { name: "a".to_owned(), sectors: 300 };
        }
        loop {
            match Step::choose(&mut self.chance, &self.model, number) {
                Step::Reopen => {}
                step if self.instead.is_some() && !step.is_data() => {}
                step => return step,
            }
        }
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("a node is open")
    }

    /// Checks what the node shows while it runs, where a step may have happened or not.
    fn check_live(&self, after: &Model) -> Result<(), String> {
        let found = self.rig().look().map_err(|what| format!("running on: {what}"))?;
        self.model.check(after, &found, Crash::Kill).map_err(|what| format!("running on: {what}"))
    }

    /// Enters what a step has done, or may have done.
    fn enter(&mut self, step: &Step, done: bool) {
        for model in std::iter::once(&mut self.model).chain(&mut self.instead) {
            *model = if done { step.after(model) } else { step.after_failure(model) };
        }
    }

    /// Opens what a loss of power leaves, which the medium may make hard too.
    fn reopen(&mut self) -> Result<(), String> {
        let after = &self.instead.take().unwrap_or_else(|| self.model.clone());
        let medium = self.rig.take().expect("a node is open").medium;
        let mut left = medium.power_cut(self.chance.number());
        left.fail(Fault { operation: None, after: self.chance.below(60), lasting: false });
        let rig = match Rig::open(&left) {
            Ok(rig) => rig,
            Err(_) => {
                self.failures += 1;
                left = left.power_cut(self.chance.number());
                Rig::open(&left)?
            }
        };
        left.mend();
        let found = rig.look()?;
        self.model.check(after, &found, Crash::Power)?;
        self.model = self.model.learn(after, &found, Crash::Power);
        self.rig = Some(rig);
        self.broken = false;
        Ok(())
    }

    /// A step while the medium fails once.
    fn with_error(&mut self, step: &Step) -> Result<(), String> {
        let operation = OPERATIONS[usize::try_from(self.chance.below(OPERATIONS.len() as u64)).unwrap()];
        let fault = Fault { operation, after: self.chance.below(12), lasting: self.chance.in_256(64) };
        self.rig().medium.fail(fault);
        let outcome = step.run(&mut self.rig);
        let failed = self.rig().medium.mend();
        let Err(error) = outcome else {
            self.enter(step, true);
            // A step may do without what failed. What a failed sync has lost is another matter: it must fail.
            return self.check_live(&self.model).map_err(|what| format!("after {fault:?} was passed over: {what}"));
        };
        if failed.is_empty() && !self.broken {
            return Err(format!("it fails without a fault: {error}"));
        }
        self.failures += 1;
        let context = |what| format!("after {fault:?}, {error}: {what}");
        if !step.is_data() {
            self.instead = Some(step.after(&self.model));
        }
        self.enter(step, false);
        // What is read after a failed sync nobody knows, until the next process has looked at the checksums.
        // The copies that a collection has made may be lost then; those that it copied are found by the next process.
        let copied = matches!(step, Step::Collect) || matches!(step, Step::Import { collect: true, .. });
        let forgotten = failed.contains(&Operation::Sync) && (error.contains("the journal") || copied);
        if !forgotten {
            self.check_live(&self.model).map_err(context)?;
        }
        // While every sync fails, nobody can say whether a change was made.
        let unknown = fault.lasting && !step.is_data();
        // What is written after a revert that may be found would be to another disk.
        let replaced = matches!(step, Step::Revert { .. });
        if !forgotten && !unknown && !replaced && self.chance.in_256(128) {
            // It goes on as it is: what it acknowledges from now on must be so.
            self.broken = true;
            return Ok(());
        }
        self.reopen().map_err(context)
    }

    /// A step while there is hardly any room.
    fn without_room(&mut self, step: &Step) -> Result<(), String> {
        let medium = self.rig().medium.clone();
        let room = medium::Medium::room(&medium, "/".as_ref()).unwrap();
        let used = room.total_bytes - room.available_bytes;
        medium.set_total_bytes(used + self.chance.below(40) * 4096);
        let outcome = step.run(&mut self.rig);
        let checked = match &outcome {
            Ok(()) => Ok(()),
            Err(_) => self.check_live(&step.after_failure(&self.model)),
        };
        medium.set_total_bytes(1 << 40);
        self.enter(step, outcome.is_ok());
        checked.map_err(|what| format!("after {outcome:?}: {what}"))?;
        if let Err(error) = outcome {
            self.failures += 1;
            let context = |what| format!("after {error}, with room again: {what}");
            // What was refused is taken now.
            step.run(&mut self.rig).map_err(context)?;
            self.enter(step, true);
            self.check_live(&self.model).map_err(context)?;
        }
        Ok(())
    }

    /// A step while all is well, unless something has failed before.
    fn undisturbed(&mut self, step: &Step) -> Result<(), String> {
        match step.run(&mut self.rig) {
            Ok(()) => self.enter(step, true),
            Err(error) if self.broken => {
                if !step.is_data() {
                    self.instead = Some(step.after(&self.model));
                }
                self.enter(step, false);
                self.reopen().map_err(|what| format!("after {error}: {what}"))?;
            }
            Err(error) => return Err(error),
        }
        // A few more steps at most, so that what may be instead is looked at.
        if self.instead.is_some() && self.chance.in_256(64) { self.reopen() } else { Ok(()) }
    }

    fn run(&mut self) -> Result<(), String> {
        for number in 0..STEPS {
            let step = self.choose(number);
            let done = match self.chance.below(4) {
                0 => self.with_error(&step),
                1 if !self.broken => self.without_room(&step),
                _ => self.undisturbed(&step),
            };
            done.map_err(|what| format!("step {number}, {step:?}\n{what}"))?;
        }
        self.reopen()
    }
}

#[test]
fn what_fails_changes_nothing_else() {
    let failures = seeds::run(500, 10_000, "faults_lose_nothing", |seed| {
        let mut history = History::new(seed);
        history.run()?;
        Ok(history.failures)
    });
    println!("{failures} failures");
}
