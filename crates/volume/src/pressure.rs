//! Says when journals are to be folded, and slows writes down, and at last stops them, long before journals have taken
//! the room that others need.
//!
//! Two things press: journals that are far longer than what counts in them, and a file system that fills up. Where either
//! goes too far writes become slower, the more the less is left, so that tidying and folding catch up; what is held in
//! reserve is never written to, so that folding, the roots and the catalog have room to work. The room is looked at once for
//! every few megabytes, more often when little is left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use medium::Room;
use types::Progress;

use crate::locks::Mutex;

/// How much is written at most before the room is looked at again, in bytes.
const STEP_BYTES: u64 = 4 << 20;

/// The reserve is at most this part of the file system.
const RESERVE_PART: u64 = 16;

/// Writes are slowed from so many reserves on.
const SLOW_FROM_RESERVES: u64 = 4;

/// What a KiB takes when hardly anything is left: 10 MB/s.
const SLOWEST_NANOSECONDS: u64 = 100_000;

/// The longest that one write is held up.
const LONGEST: Duration = Duration::from_millis(250);

/// Parts of one, for shares.
const WHOLE: u64 = 1000;

/// A volume rests while less than this is written to it in a second, in bytes.
const RESTING_RATE: u64 = 4 << 20;

/// For how long writes are counted to see whether a volume rests, in milliseconds.
const REST_MS: u64 = 60_000;

/// What a volume's writes have to keep to.
#[derive(Debug)]
pub(crate) struct Pressure {
    limits: Limits,
    state: Mutex<Pace>,
    rest: Mutex<Rest>,
    /// What was admitted, in bytes.
    written_bytes: AtomicU64,
}

/// What is set for a volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How much may count in the journals before they are folded, whatever the guest does, in bytes.
    pub(crate) journal_bytes: u64,
    /// The same for a volume that rests.
    pub(crate) resting_bytes: u64,
    /// What is left free on the file system, in bytes.
    pub(crate) reserve_bytes: u64,
}

/// Why journals are to be folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldDue {
    /// There is something to fold, and the guest writes little.
    Resting,
    /// There is too much, whatever the guest does.
    Full,
}

/// What a volume's journals are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Journals {
    /// Their length, in bytes.
    pub(crate) length_bytes: u64,
    /// What of it counts, and goes when they are folded.
    pub(crate) live_bytes: u64,
    /// What folding them writes at most, in bytes: whole chunks.
    pub(crate) folded_bytes: u64,
}

/// Whether a volume rests, as far as was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    looked_ms: u64,
    written_bytes: u64,
    rests: bool,
}

/// What was found when the room was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pace {
    /// How much may be written before it is looked at again, in bytes.
    budget_bytes: u64,
    nanoseconds_per_kib: u64,
}

/// What a look finds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// The volume's journals.
    pub(crate) journals: Journals,
    /// The room on their file system; `None` where it cannot be told.
    pub(crate) room: Option<Room>,
}

/// There is no room for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl Pressure {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default(), rest: Mutex::default(), written_bytes: AtomicU64::new(0) }
    }

    /// From how much that counts in the journals on a fold is due: the limit, or what a fold still has room for.
    pub(crate) fn fold_from(&self, room: Option<Room>) -> u64 {
        self.limits.journal_bytes.min(foldable(room))
    }

    /// Whether a fold is due. Folding hashes and compresses, so a volume that is written to waits with it for as long as
    /// there is room: what is overwritten meanwhile never has to be.
    pub(crate) fn is_fold_due(&self, journals: Journals, room: Option<Room>, now_ms: u64) -> Option<FoldDue> {
        if journals.live_bytes > self.limits.journal_bytes || Self::is_large(journals, room) {
            return Some(FoldDue::Full);
        }
        (journals.live_bytes > self.limits.resting_bytes && self.rests(now_ms)).then_some(FoldDue::Resting)
    }

    /// Whether a fold that began because the volume rested can wait: it is written to again, and there is room.
    pub(crate) fn may_wait(&self, journals: Journals, room: Option<Room>, now_ms: u64) -> bool {
        !self.rests(now_ms) && !Self::is_large(journals, room)
    }

    /// Whether so much counts in journals that a fold may soon have no room. Their length does not say: they are tidied.
    fn is_large(journals: Journals, room: Option<Room>) -> bool {
        journals.folded_bytes > foldable(room)
    }

    /// From what length of the journals on writes are slowed down: twice as much does not count as tidying leaves, or they are
    /// twice as long as they may count. A volume in which little counts is not held up for what tidying gives back at once.
    fn slow_from(&self, journals: Journals, room: Option<Room>) -> u64 {
        let limit = self.limits.journal_bytes;
        let idle_bytes = idle(journals.live_bytes.max(limit / 2), room) * 2;
        journals.live_bytes.saturating_add(idle_bytes).min(limit.saturating_mul(2))
    }

    /// Whether little was written in the last minute that was looked at, and little since.
    fn rests(&self, now_ms: u64) -> bool {
        let written_bytes = self.written_bytes.load(Ordering::Relaxed);
        let mut rest = self.rest.lock();
        let little = written_bytes.saturating_sub(rest.written_bytes) < RESTING_RATE * REST_MS / 1000;
        let is_new = rest.looked_ms == 0 || now_ms < rest.looked_ms;
        if is_new || !little || now_ms - rest.looked_ms >= REST_MS {
            *rest = Rest { looked_ms: now_ms, written_bytes, rests: little && !is_new };
        }
        rest.rests
    }

    /// How much has to be given up so that writes do not fail soon, in bytes: from twice the reserve on.
    pub(crate) fn missing(&self, room: Option<Room>) -> u64 {
        room.map_or(0, |room| (2 * self.reserve(room)).saturating_sub(room.available_bytes))
    }

    fn reserve(&self, room: Room) -> u64 {
        self.limits.reserve_bytes.min(room.total_bytes / RESERVE_PART)
    }

    /// Admits a write, and says how long it has to wait first.
    pub(crate) fn admit(&self, bytes: u64, look: impl FnOnce() -> Look) -> Result<Duration, NoRoom> {
        let mut pace = self.state.lock();
        if pace.budget_bytes < bytes {
            *pace = self.assess(bytes, look())?;
        }
        pace.budget_bytes -= bytes;
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Duration::from_nanos(bytes / 1024 * pace.nanoseconds_per_kib).min(LONGEST))
    }

    fn assess(&self, bytes: u64, look: Look) -> Result<Pace, NoRoom> {
        let by_journals = {
            let from = self.slow_from(look.journals, look.room);
            share(look.journals.length_bytes.saturating_sub(from), from)
        };
        let Some(room) = look.room else { return Ok(Pace::new(STEP_BYTES.max(bytes), by_journals)) };
        let reserve = self.reserve(room);
        let spare = room.available_bytes.saturating_sub(reserve);
        if spare < bytes {
            return Err(NoRoom);
        }
        let comfortable = reserve * (SLOW_FROM_RESERVES - 1);
        let by_room = share(comfortable.saturating_sub(spare), comfortable);
        Ok(Pace::new(STEP_BYTES.min(spare / 8).max(bytes), by_journals.max(by_room)))
    }
}

impl Pace {
    fn new(budget_bytes: u64, share: u64) -> Self {
        // Hardly anything at first, all of it only at the end.
        Self { budget_bytes, nanoseconds_per_kib: SLOWEST_NANOSECONDS * share * share / (WHOLE * WHOLE) }
    }
}

/// How much a fold may have to write so that it still has room, and what is written meanwhile too, in bytes.
pub(crate) fn foldable(room: Option<Room>) -> u64 {
    half(room)
}

/// Half of what is left, in bytes; without end where it cannot be told.
fn half(room: Option<Room>) -> u64 {
    room.map_or(u64::MAX, |room| room.available_bytes / 2)
}

/// How much of a journal's length tidying leaves that does not count, in bytes: half of what counts, less where there is
/// little room. The less it is, the more has to be moved for each write.
pub(crate) fn idle(live_bytes: u64, room: Option<Room>) -> u64 {
    (live_bytes / 2).min(half(room))
}

/// Whether what a fold has yet to write will not find room, judging by what it has written.
pub(crate) fn fold_lacks_room(progress: &Progress, room: Option<Room>) -> bool {
    let (total, done) = (progress.total_bytes(), progress.done_bytes());
    let rest = u128::from(total.saturating_sub(done)) * u128::from(progress.moved_bytes());
    // At the beginning it says little.
    done > total / 16 && room.is_some_and(|room| rest / u128::from(done) > u128::from(room.available_bytes))
}

/// A part of a whole in thousandths, at most all of it.
fn share(part: u64, whole: u64) -> u64 {
    part.min(whole).saturating_mul(WHOLE) / whole.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 30;
    const RESERVE: u64 = 256 << 20;
    const LIMITS: Limits = Limits { journal_bytes: LIMIT, resting_bytes: LIMIT / 4, reserve_bytes: RESERVE };

    fn look(journal_bytes: u64, available_bytes: u64) -> Look {
        let journals = Journals { length_bytes: journal_bytes, live_bytes: journal_bytes / 2, folded_bytes: 0 };
        Look { journals, room: Some(Room { available_bytes, total_bytes: 100 << 30 }) }
    }

    fn admit(journal_bytes: u64, available_bytes: u64, bytes: u64) -> Result<Duration, NoRoom> {
        Pressure::new(LIMITS).admit(bytes, || look(journal_bytes, available_bytes))
    }

    #[test]
    fn with_room_nothing_waits() {
        for journal in [0, LIMIT, 2 * LIMIT] {
            assert_eq!(admit(journal, 50 << 30, 1 << 20), Ok(Duration::ZERO));
        }
        assert_eq!(admit(0, SLOW_FROM_RESERVES * RESERVE, 4096), Ok(Duration::ZERO));
    }

    #[test]
    fn the_less_is_left_the_longer_a_write_waits_and_the_reserve_is_kept() {
        let waits: Vec<_> =
            (1..=8).map(|eighths| admit(2 * LIMIT + eighths * LIMIT / 4, 50 << 30, 1 << 20).unwrap()).collect();
        assert!(waits.is_sorted() && waits[0] > Duration::ZERO, "{waits:?}");
        assert_eq!(waits[7], Duration::from_nanos(1024 * SLOWEST_NANOSECONDS));
        let waits: Vec<_> = (1..=3).rev().map(|reserves| admit(0, RESERVE * reserves + 8192, 4096).unwrap()).collect();
        assert!(waits.is_sorted() && waits[0] > Duration::ZERO, "{waits:?}");
        assert_eq!(admit(0, RESERVE + 4095, 4096), Err(NoRoom));
        assert_eq!(admit(100 * LIMIT, 50 << 30, 32 << 20), Ok(LONGEST));
    }

    #[test]
    fn a_small_file_system_keeps_a_small_reserve_and_folds_early() {
        let room = Room { available_bytes: 20 << 20, total_bytes: 64 << 20 };
        let pressure = Pressure::new(LIMITS);
        assert_eq!(pressure.fold_from(Some(room)), 10 << 20);
        assert!(pressure.admit(4096, || Look { journals: Journals::default(), room: Some(room) }).is_ok());
        assert_eq!((pressure.fold_from(None), pressure.missing(None)), (LIMIT, 0));
        assert_eq!(pressure.missing(Some(room)), 0);
        assert_eq!(pressure.missing(Some(Room { available_bytes: 7 << 20, ..room })), 1 << 20);
    }

    #[test]
    fn what_is_written_to_is_folded_later_than_what_rests() {
        let pressure = Pressure::new(LIMITS);
        let journals = |live_bytes| Journals { length_bytes: live_bytes + (100 << 20), live_bytes, folded_bytes: 0 };
        let large = Some(Room { available_bytes: 50 << 30, total_bytes: 100 << 30 });
        let write = |bytes| pressure.admit(bytes, || look(0, 50 << 30)).unwrap();
        let due = |live_bytes, now_ms| pressure.is_fold_due(journals(live_bytes), large, now_ms);
        let may_wait = |now_ms| pressure.may_wait(journals(LIMIT), large, now_ms);
        let much = LIMIT / 4 + 1;
        assert_eq!((due(much, 100_000), due(much, 159_999)), (None, None), "nobody knows yet");
        assert_eq!((due(much, 160_000), due(much - 1, 160_000)), (Some(FoldDue::Resting), None));
        assert!(!may_wait(160_000));
        write(241 << 20);
        assert!(may_wait(160_001), "241 MiB in less than a minute");
        assert_eq!(
            (due(much, 161_000), due(LIMIT, 161_000), due(LIMIT + 1, 161_000)),
            (None, None, Some(FoldDue::Full))
        );
        write(239 << 20);
        assert!(may_wait(220_000) && !may_wait(220_001), "239 MiB in a minute");
        assert_eq!(due(much, 230_000), Some(FoldDue::Resting));
        assert_eq!(due(much, 1_000), None, "the clock was set back");
    }

    #[test]
    fn what_leaves_no_room_for_a_fold_is_folded_whatever_counts() {
        let pressure = Pressure::new(LIMITS);
        let room = Some(Room { available_bytes: 200 << 20, total_bytes: 1 << 30 });
        let journals = |folded_bytes| Journals { length_bytes: LIMIT, live_bytes: 1 << 20, folded_bytes };
        assert_eq!(pressure.is_fold_due(journals(100 << 20), room, 0), None);
        assert_eq!(pressure.is_fold_due(journals((100 << 20) + 1), room, 0), Some(FoldDue::Full));
        assert_eq!(pressure.is_fold_due(journals(10 << 30), None, 0), None);
        assert!(pressure.admit(1 << 30, || look(0, 50 << 30)).is_ok());
        assert!(pressure.may_wait(journals(100 << 20), room, 1));
        assert!(!pressure.may_wait(journals((100 << 20) + 1), room, 1));
    }

    #[test]
    fn what_does_not_count_is_bounded_by_what_does_and_by_the_room() {
        let pressure = Pressure::new(LIMITS);
        let room = |available_bytes| Some(Room { available_bytes, total_bytes: 100 << 30 });
        let from = |live_bytes, available_bytes| {
            let journals = Journals { length_bytes: 0, live_bytes, folded_bytes: 0 };
            pressure.slow_from(journals, room(available_bytes))
        };
        assert_eq!(from(LIMIT * 3 / 4, 50 << 30), LIMIT * 3 / 2);
        assert_eq!(from(0, 50 << 30), LIMIT / 2, "a few segments are no reason");
        assert_eq!(from(2 * LIMIT, 50 << 30), 2 * LIMIT, "layers that wait for a fold");
        assert_eq!(from(LIMIT, 100 << 20), LIMIT + (100 << 20));
        assert_eq!((idle(LIMIT, room(50 << 30)), idle(LIMIT, room(100 << 20))), (LIMIT / 2, 50 << 20));
        assert_eq!(idle(LIMIT, None), LIMIT / 2);
    }

    #[test]
    fn a_fold_that_will_find_no_room_is_known_by_what_it_has_written() {
        let room = |available_bytes| Some(Room { available_bytes, total_bytes: 1 << 30 });
        let progress = Progress::default();
        assert!(!fold_lacks_room(&progress, room(0)), "nothing to do");
        progress.set_total_bytes(1600);
        progress.advance(100, 50);
        assert!(!fold_lacks_room(&progress, room(0)), "too early to say");
        progress.advance(100, 50);
        assert!(fold_lacks_room(&progress, room(699)));
        assert!(!fold_lacks_room(&progress, room(700)) && !fold_lacks_room(&progress, None));
    }

    #[test]
    fn the_room_is_looked_at_for_every_step_and_again_at_once_when_there_is_none() {
        let pressure = Pressure::new(LIMITS);
        let mut looks = 0;
        for _ in 0..3 * STEP_BYTES / 4096 {
            let found = pressure.admit(4096, || {
                looks += 1;
                look(0, 50 << 30)
            });
            assert_eq!(found, Ok(Duration::ZERO));
        }
        assert_eq!(looks, 3);
        assert_eq!(pressure.admit(STEP_BYTES, || look(0, RESERVE)), Err(NoRoom));
        assert_eq!(pressure.admit(STEP_BYTES, || look(0, 50 << 30)), Ok(Duration::ZERO));
    }
}
