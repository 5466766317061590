//! Limits: how many requests, connections and streams anyone gets. All tables are bounded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The most keys that the table of rates holds.
const MAX_RATES: usize = 20_000;

/// What clients may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests per second of one account, or of one address without a token, in the long run.
    pub requests_per_second: u32,
    /// Requests that may come at once.
    pub request_burst: u32,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// Event streams in all.
    pub streams: usize,
    /// Event streams of one account, or of one address without a token.
    pub streams_per_caller: usize,
    /// References of one account.
    pub references_per_account: u64,
    /// Entries of one log.
    pub log_entries: u64,
    /// Bytes of one log.
    pub log_bytes: u64,
    /// Snapshots times endpoints that one account has announced.
    pub announcements_per_account: u64,
    /// Address records of one account.
    pub endpoints_per_account: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_second: 50,
            request_burst: 500,
            connections: 4096,
            connections_per_address: 512,
            streams: 2048,
            streams_per_caller: 128,
            references_per_account: 1000,
            log_entries: 100_000,
            log_bytes: 64 << 20,
            announcements_per_account: 100_000,
            endpoints_per_account: 1000,
        }
    }
}

/// Who is counted: an account, or an address without one. IPv6 addresses count by their /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Account(i64),
    Address(IpAddr),
}

impl Key {
    pub(crate) fn address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self::Address(IpAddr::V6((u128::from(address) >> 64 << 64).into())),
            address @ IpAddr::V4(_) => Self::Address(address),
        }
    }
}

/// A token bucket per key.
#[derive(Debug)]
pub(crate) struct Rates {
    per_second: f64,
    burst: f64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// What each key has left, and when that was.
    buckets: BTreeMap<Key, (f64, Instant)>,
    /// When full buckets were last looked for.
    swept: Option<Instant>,
}

impl Rates {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let (per_second, burst) = (f64::from(per_second.max(1)), f64::from(burst.max(1)));
        Self { per_second, burst, table: Mutex::default() }
    }

    /// Takes `cost` from a key's bucket, if that much is in it.
    pub(crate) fn take(&self, key: Key, cost: f64, now: Instant) -> bool {
        let mut table = lock(&self.table);
        if table.buckets.len() >= MAX_RATES && !table.buckets.contains_key(&key) {
            // Looking through the table costs: not more often than once a second, however many keys there are.
            if table.swept.is_none_or(|swept| seconds(swept, now) >= 1.0) {
                let (per_second, burst) = (self.per_second, self.burst);
                table.buckets.retain(|_, (left, then)| *left + seconds(*then, now) * per_second < burst);
                table.swept = Some(now);
            }
            if table.buckets.len() >= MAX_RATES {
                return false;
            }
        }
        let (left, then) = table.buckets.entry(key).or_insert((self.burst, now));
        *left = (*left + seconds(*then, now) * self.per_second).min(self.burst);
        *then = now;
        let enough = *left >= cost;
        if enough {
            *left -= cost;
        }
        enough
    }
}

fn seconds(then: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}

/// Counts what is open, in all and per key.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    all: usize,
    each: usize,
    open: Arc<Mutex<(usize, BTreeMap<Key, usize>)>>,
}

/// One that is open; dropped when it closes.
#[derive(Debug)]
pub(crate) struct Open {
    key: Key,
    counters: Counters,
}

impl Counters {
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self { all, each, open: Arc::default() }
    }

    /// Counts one more, if there may be one.
    pub(crate) fn open(&self, key: Key) -> Option<Open> {
        let mut open = lock(&self.open);
        let mine = open.1.get(&key).copied().unwrap_or(0);
        if open.0 >= self.all || mine >= self.each {
            return None;
        }
        open.0 += 1;
        open.1.insert(key, mine + 1);
        drop(open);
        Some(Open { key, counters: self.clone() })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = lock(&self.counters.open);
        open.0 = open.0.saturating_sub(1);
        match open.1.get_mut(&self.key) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => {
                open.1.remove(&self.key);
            }
        }
    }
}

/// No invariant of these tables spans a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_spent_and_comes_back() {
        let (rates, start) = (Rates::new(2, 3), Instant::now());
        let (one, two) = (Key::Account(1), Key::Account(2));
        assert!((0..3).all(|_| rates.take(one, 1.0, start)));
        assert!(!rates.take(one, 1.0, start) && rates.take(two, 1.0, start));
        assert!(rates.take(one, 1.0, start + Duration::from_millis(500)));
        assert!(!rates.take(one, 1.0, start + Duration::from_millis(500)));
        assert!((0..3).all(|_| rates.take(one, 1.0, start + Duration::from_secs(60))));
        assert!(!rates.take(one, 1.0, start + Duration::from_secs(60)));
    }

    #[test]
    fn the_table_of_rates_is_bounded() {
        let (rates, start) = (Rates::new(1, 1), Instant::now());
        let taken = (0..30_000).filter(|id| rates.take(Key::Account(*id), 1.0, start)).count();
        assert_eq!(taken, MAX_RATES);
        assert!(rates.take(Key::Account(40_000), 1.0, start + Duration::from_secs(2)));
        assert_eq!(lock(&rates.table).buckets.len(), 1);
    }

    #[test]
    fn what_is_closed_counts_no_more() {
        let counters = Counters::new(3, 2);
        let key = Key::address("2001:db8::1".parse().unwrap());
        assert_eq!(key, Key::address("2001:db8::2".parse().unwrap()), "one /64");
        let (one, two) = (counters.open(key).unwrap(), counters.open(key).unwrap());
        assert!(counters.open(key).is_none());
        let third = counters.open(Key::Account(1)).unwrap();
        assert!(counters.open(Key::Account(2)).is_none());
        drop((one, two, third));
        assert!(lock(&counters.open).1.is_empty() && lock(&counters.open).0 == 0);
    }
}
