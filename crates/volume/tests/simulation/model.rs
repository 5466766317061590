//! What a node must hold: for each sector the values that it may have, and what there is by name.
//!
//! A sector's values stand in the order in which they were written. After a kill it has the last one that was acknowledged,
//! or one that was under way behind it; after a loss of power the last one that was durable, or any behind it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) const SECTOR: usize = 512;

/// What a sector holds: zero is zeroes, every other number fills a sector in its own way.
pub(crate) type Token = u64;

/// Tokens with this bit compress well.
const PLAIN: Token = 1 << 63;

/// A token for a sector of a write.
pub(crate) fn token(write: u64, sector: u64, compresses: bool) -> Token {
    write << 24 | sector | if compresses { PLAIN } else { 0 }
}

/// The bytes of a sector.
pub(crate) fn fill(token: Token, sector: &mut [u8]) {
    sector.fill(0);
    if token == 0 {
        return;
    }
    sector[..8].copy_from_slice(&token.to_le_bytes());
    if token & PLAIN == 0 {
        let mut state = token;
        for word in sector[8..].as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            *word = (state ^ state >> 29).to_le_bytes();
        }
    }
}

/// What a sector holds; `None` for bytes that nobody has written.
pub(crate) fn read_token(sector: &[u8]) -> Option<Token> {
    let token = Token::from_le_bytes(*sector.first_chunk()?);
    let mut expected = [0; SECTOR];
    fill(token, &mut expected);
    (sector == expected).then_some(token)
}

/// What lies between a crash and who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process died.
    Kill,
    /// The power failed.
    Power,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sector {
    values: Vec<Token>,
    /// The first that can be read while the process lives, and after it died.
    live: usize,
    /// The first that can be there after a loss of power.
    durable: usize,
}

impl Sector {
    fn known(token: Token) -> Self {
        Self { values: vec![token], live: 0, durable: 0 }
    }

    fn allowed(&self, crash: Crash) -> &[Token] {
        match crash {
            Crash::Kill => &self.values[self.live..],
            Crash::Power => &self.values[self.durable..],
        }
    }
}

/// A disk that can be written; copies share what does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk(Rc<Vec<Sector>>);

impl Disk {
    pub(crate) fn new(sectors: usize) -> Self {
        Self::known(&vec![0; sectors])
    }

    pub(crate) fn known(tokens: &[Token]) -> Self {
        Self(Rc::new(tokens.iter().map(|token| Sector::known(*token)).collect()))
    }

    pub(crate) fn sectors(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn grow(&mut self, sectors: usize) {
        Rc::make_mut(&mut self.0).resize(sectors, Sector::known(0));
    }

    /// Enters a write. One that failed may have been done or not.
    pub(crate) fn write(&mut self, first: usize, tokens: &[Token], acknowledged: bool, durable: bool) {
        for (sector, token) in Rc::make_mut(&mut self.0)[first..].iter_mut().zip(tokens) {
            sector.values.push(*token);
            let last = sector.values.len() - 1;
            if acknowledged {
                sector.live = last;
            }
            if acknowledged && durable {
                sector.durable = last;
            }
        }
    }

    /// Everything that was acknowledged is durable from now on.
    pub(crate) fn flush(&mut self) {
        if self.0.iter().any(|sector| sector.durable < sector.live) {
            Rc::make_mut(&mut self.0).iter_mut().for_each(|sector| sector.durable = sector.durable.max(sector.live));
        }
    }

    /// A disk that stays as this one is now.
    pub(crate) fn freeze(&self) -> Self {
        let mut frozen = self.clone();
        frozen.flush();
        frozen
    }

    /// The values of the other one may be there too, and nothing of it is promised yet.
    fn or_in_flight(&mut self, after: &Self) {
        if Rc::ptr_eq(&self.0, &after.0) {
            return;
        }
        for (sector, after) in Rc::make_mut(&mut self.0).iter_mut().zip(after.0.iter()) {
            sector.values.clone_from(&after.values);
        }
    }

    /// The first sector that holds what it must not, where the disk may have grown since.
    pub(crate) fn wrong_although_grown(&self, found: &[Token]) -> Option<String> {
        let (own, grown) = found.split_at_checked(self.sectors()).unwrap_or((&[], found));
        if own.len() < self.sectors() || grown.iter().any(|token| *token != 0) {
            return Some(format!("{} sectors were {}", found.len(), self.sectors()));
        }
        self.wrong(own, Crash::Kill)
    }

    /// The first sector that holds what it must not.
    pub(crate) fn wrong(&self, found: &[Token], crash: Crash) -> Option<String> {
        let differs = |(_, (sector, token)): &(usize, (&Sector, &Token))| !sector.allowed(crash).contains(token);
        let (number, (sector, token)) = self.0.iter().zip(found).enumerate().find(differs)?;
        Some(format!("sector {number} holds {token:x} and not {:x?} (of {sector:x?})", sector.allowed(crash)))
    }

    /// Learns what a crash has left.
    fn learn(&mut self, found: &[Token], crash: Crash) {
        for (sector, token) in Rc::make_mut(&mut self.0).iter_mut().zip(found) {
            match crash {
                Crash::Power => *sector = Sector::known(*token),
                Crash::Kill => {
                    let place = sector.values.iter().rposition(|value| value == token).expect("it was allowed");
                    sector.values.truncate(place + 1);
                    sector.live = place;
                    sector.durable = sector.durable.min(place);
                }
            }
        }
    }
}

/// What a recovered node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) disks: BTreeMap<String, Vec<Token>>,
    /// The frozen disks of each version; `None` where one was forgotten.
    pub(crate) versions: BTreeMap<u64, Vec<Option<Vec<Token>>>>,
    /// The objects of each import.
    pub(crate) imports: BTreeMap<u64, Vec<u32>>,
    /// The length of each deleted volume, in sectors: what it holds is seen once it is taken back.
    pub(crate) deleted: BTreeMap<u64, usize>,
}

/// What a node must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) disks: BTreeMap<String, Disk>,
    pub(crate) versions: BTreeMap<u64, Vec<Option<Disk>>>,
    pub(crate) imports: BTreeMap<u64, Vec<u32>>,
    pub(crate) deleted: BTreeMap<u64, Disk>,
    /// Of each protected volume, moments at which all of it was durable, and what it was then.
    pub(crate) past: BTreeMap<String, Vec<(u64, Disk)>>,
}

/// Names and sizes: what changes all or nothing.
#[derive(Debug, PartialEq, Eq)]
struct Outline {
    disks: Vec<(String, usize)>,
    versions: Vec<(u64, Vec<Option<usize>>)>,
    imports: BTreeMap<u64, Vec<u32>>,
    deleted: BTreeMap<u64, usize>,
}

impl Found {
    fn outline(&self) -> Outline {
        let lengths = |disks: &Vec<Option<Vec<Token>>>| disks.iter().map(|disk| disk.as_ref().map(Vec::len)).collect();
        Outline {
            disks: self.disks.iter().map(|(name, tokens)| (name.clone(), tokens.len())).collect(),
            versions: self.versions.iter().map(|(number, disks)| (*number, lengths(disks))).collect(),
            imports: self.imports.clone(),
            deleted: self.deleted.clone(),
        }
    }
}

impl Model {
    fn outline(&self) -> Outline {
        let lengths = |disks: &Vec<Option<Disk>>| disks.iter().map(|disk| disk.as_ref().map(Disk::sectors)).collect();
        Outline {
            disks: self.disks.iter().map(|(name, disk)| (name.clone(), disk.sectors())).collect(),
            versions: self.versions.iter().map(|(number, disks)| (*number, lengths(disks))).collect(),
            imports: self.imports.clone(),
            deleted: self.deleted.iter().map(|(number, disk)| (*number, disk.sectors())).collect(),
        }
    }

    /// What may be there, by what was found there, while a step is under way that leads to `after`: what changes names and
    /// sizes happens as a whole, and of what does not, nothing is promised yet.
    fn or_in_flight(&self, after: &Self, found: &Found) -> Option<Self> {
        let outline = found.outline();
        match (outline == self.outline(), outline == after.outline()) {
            (false, false) => None,
            (true, false) => Some(self.clone()),
            (false, true) => Some(after.clone()),
            (true, true) => {
                let mut model = self.clone();
                for (name, disk) in &mut model.disks {
                    disk.or_in_flight(&after.disks[name]);
                }
                Some(model)
            }
        }
    }

    /// Checks what a crash has left, while a step was under way that leads to `after`.
    pub(crate) fn check(&self, after: &Self, found: &Found, crash: Crash) -> Result<(), String> {
        let Some(model) = self.or_in_flight(after, found) else {
            let (found, before, after) = (found.outline(), self.outline(), after.outline());
            return Err(format!("there is {found:?}\nand not {before:?}\nor {after:?}"));
        };
        for (name, tokens) in &found.disks {
            if let Some(wrong) = model.disks[name].wrong(tokens, crash) {
                return Err(format!("volume {name}: {wrong}"));
            }
        }
        for (number, disks) in &found.versions {
            for (disk, tokens) in model.versions[number].iter().zip(disks) {
                if let (Some(disk), Some(tokens)) = (disk, tokens)
                    && let Some(wrong) = disk.wrong(tokens, crash)
                {
                    return Err(format!("snapshot {number}: {wrong}"));
                }
            }
        }
        Ok(())
    }

    /// What must be there from now on, after a crash has left what was checked.
    pub(crate) fn learn(&self, after: &Self, found: &Found, crash: Crash) -> Self {
        let mut model = self.or_in_flight(after, found).expect("it was checked");
        for (name, disk) in &mut model.disks {
            disk.learn(&found.disks[name], crash);
        }
        model.versions.clear();
        for (number, disks) in &found.versions {
            let known = disks.iter().map(|disk| disk.as_ref().map(|tokens| Disk::known(tokens))).collect();
            model.versions.insert(*number, known);
        }
        model.past.retain(|name, _| after.past.contains_key(name));
        model
    }
}
