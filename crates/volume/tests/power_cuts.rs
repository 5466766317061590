//! Random histories of a node, with the power cut and the process killed at every step of each.
//!
//! A history is a seed. After every change that a step makes to the medium, and in the middle of every write, what a dying
//! process and what a loss of power would leave is opened as a node of its own, read whole and compared with the model;
//! often its recovery is cut short as well. Then the history goes on from one of these moments.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/rig.rs"]
mod rig;
#[path = "simulation/seeds.rs"]
mod seeds;
#[path = "simulation/step.rs"]
mod step;

use medium::Simulated;
use medium::simulated::Chance;

use crate::model::{Crash, Found, Model};
use crate::rig::Rig;
use crate::step::{Step, Tokens};

/// How many steps a history goes before it crashes, and how often it goes on.
const STEPS: u64 = 24;
const LIVES: u64 = 3;

/// A recovery in so many is cut short at each of its own steps.
const CUT_RECOVERIES: u64 = 12;

/// One history.
struct History {
    chance: Chance,
    /// Empty only while it is opened again.
    rig: Option<Rig>,
    model: Model,
    power_was_lost: bool,
    moments: u64,
    recoveries: u64,
}

impl History {
    fn new(seed: u64) -> Result<Self, String> {
        let rig = Some(Rig::begin(seed)?);
        Ok(Self {
            chance: Chance::new(!seed),
            rig,
            model: Model::default(),
            power_was_lost: false,
            moments: 0,
            recoveries: 0,
        })
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("a node is open")
    }

    fn run(&mut self) -> Result<(), String> {
        for life in 0..LIVES {
            self.rig().medium.keep_moments();
            for number in life * STEPS..(life + 1) * STEPS {
                let step = if self.model.disks.is_empty() {
                    Step::Create { name: "a".to_owned(), sectors: 300 }
                } else {
                    Step::choose(&mut self.chance, &self.model, number)
                };
                let last = number % STEPS == STEPS - 1;
                self.step(&step, last).map_err(|what| format!("step {number}, {step:?}\n{what}"))?;
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, last: bool) -> Result<(), String> {
        let before = self.model.clone();
        let after = step.after(&before);
        step.run(&mut self.rig)?;
        let found = self.rig().look()?;
        self.rig().check_nothing_is_left_over()?;
        after.check(&after, &found, Crash::Kill)?;
        let mut moments = self.rig().medium.take_moments();
        for (number, moment) in moments.iter().enumerate() {
            let what = |what| format!("at moment {number} of {}: {what}", moments.len());
            self.moment(moment, &before, &after).map_err(what)?;
        }
        if let Some(end) = moments.last() {
            self.moment(end, &after, &after).map_err(|what| format!("at its end: {what}"))?;
        }
        self.model = after;
        if last && !moments.is_empty() {
            // Crashes for good, somewhere in this step, and goes on from there.
            let moment = moments.swap_remove(usize::try_from(self.chance.below(moments.len() as u64)).expect("small"));
            let crash = if self.chance.in_256(128) { Crash::Kill } else { Crash::Power };
            let left = self.leave(&moment, crash);
            let (rig, found) = self.recover(&left, &before, &self.model.clone(), crash)?;
            self.model = before.learn(&self.model, &found, crash);
            self.rig = Some(rig);
            self.power_was_lost |= crash == Crash::Power;
        }
        Ok(())
    }

    /// What a crash leaves.
    fn leave(&mut self, moment: &Simulated, crash: Crash) -> Simulated {
        match crash {
            Crash::Kill => moment.kill(),
            Crash::Power => moment.power_cut(self.chance.number()),
        }
    }

    /// Tries what a moment leaves to who comes after a crash there.
    fn moment(&mut self, moment: &Simulated, before: &Model, after: &Model) -> Result<(), String> {
        self.moments += 1;
        for crash in [Crash::Kill, Crash::Power] {
            let left = self.leave(moment, crash);
            let what = |what| format!("{crash:?}: {what}");
            let (rig, _) = self.recover(&left, before, after, crash).map_err(what)?;
            if self.chance.in_256(64) {
                let chance = &mut self.chance;
                let at = |moments| usize::try_from(chance.below(moments as u64)).expect("small");
                rig.check_past(before, after, at).map_err(what)?;
            }
        }
        Ok(())
    }

    /// Opens what is left, looks at everything, and sometimes cuts this short too.
    fn recover(
        &mut self,
        left: &Simulated,
        before: &Model,
        after: &Model,
        crash: Crash,
    ) -> Result<(Rig, Found), String> {
        self.recoveries += 1;
        if self.chance.below(CUT_RECOVERIES) == 0 {
            left.keep_moments();
        }
        let rig = Rig::open(left)?;
        rig.check_store(self.power_was_lost || crash == Crash::Power)?;
        let found = rig.look()?;
        rig.check_nothing_is_left_over()?;
        before.check(after, &found, crash)?;
        for (number, moment) in left.take_moments().iter().enumerate() {
            self.recoveries += 1;
            let what = |what| format!("its recovery was cut at {number}: {what}");
            let again = Rig::open(&moment.power_cut(self.chance.number())).map_err(what)?;
            let again = again.look().map_err(what)?;
            match crash {
                Crash::Power if again != found => return Err(what("it finds something else".to_owned())),
                _ => before.check(after, &again, Crash::Power).map_err(what)?,
            }
        }
        Ok((rig, found))
    }
}

#[test]
fn no_cut_at_any_step_loses_what_was_durable() {
    let moments = seeds::run(20, 1500, "power_cuts", |seed| {
        let mut history = History::new(seed)?;
        history.run()?;
        Ok(history.moments + history.recoveries)
    });
    println!("{moments} moments and recoveries");
}

#[test]
fn what_a_recovery_did_not_find_does_not_come_back() {
    // A record that ends in zeroes is whole as soon as its journal is long enough.
    let write = |first, tokens| Step::Write { name: "a".to_owned(), first, tokens: Tokens(tokens), fua: false };
    for seed in seeds::seeds(2000, 20_000) {
        let mut chance = Chance::new(seed);
        let mut rig = Some(Rig::begin(seed).unwrap());
        let mut model = Model::default();
        let name = "a".to_owned();
        // Writes are made piece by piece then, and so are lengths.
        rig.as_ref().unwrap().medium.keep_moments();
        for step in [Step::Create { name: name.clone(), sectors: 40 }, write(3, vec![model::token(20, 3, true)])] {
            step.run(&mut rig).unwrap();
            model = step.after(&model);
        }
        for number in 21..24 {
            let left = rig.take().unwrap().medium.power_cut(chance.number());
            let recovered = Rig::open(&left).unwrap();
            let found = recovered.look().unwrap();
            if let Err(what) = model.check(&model, &found, Crash::Power) {
                panic!("seed {seed}, crash {number}: {what}\n{}", seeds::repeat(seed, "power_cuts"));
            }
            model = model.learn(&model, &found, Crash::Power);
            recovered.medium.keep_moments();
            rig = Some(recovered);
            let tokens = (0..2).map(|sector| model::token(number, sector, true)).collect();
            let step = write(usize::try_from(number).unwrap(), tokens);
            step.run(&mut rig).unwrap();
            model = step.after(&model);
        }
    }
}
