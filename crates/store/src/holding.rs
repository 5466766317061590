//! Holds, and what was pinned under them. Shared by all stores.
//!
//! Invariant: as long as there is any hold, what is pinned stays pinned; with the last one all pins go.

use std::sync::{Arc, PoisonError, RwLock};

use crate::pins::Pins;
use crate::{Domain, Hold, Key};

#[derive(Debug, Default)]
struct State {
    holds: usize,
    pins: Option<Arc<Pins>>,
}

/// Counts holds, and keeps their pins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holding(Arc<RwLock<State>>);

struct Guard(Holding);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.0.write().unwrap_or_else(PoisonError::into_inner);
        state.holds -= 1;
        if state.holds == 0 {
            state.pins = None;
        }
    }
}

impl Holding {
    /// Begins a hold.
    pub(crate) fn hold(&self) -> Hold {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.holds += 1;
        state.pins.get_or_insert_with(|| Arc::new(Pins::new()));
        drop(state);
        Hold::new(Guard(self.clone()))
    }

    /// The pins, while there is a hold.
    pub(crate) fn pins(&self) -> Option<Arc<Pins>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).pins.clone()
    }

    /// Pins an object in domains, while there is a hold.
    pub(crate) fn pin(&self, key: &Key, domains: impl IntoIterator<Item = Domain>) {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pins) = &state.pins {
            domains.into_iter().for_each(|domain| pins.insert(key, domain));
        }
    }
}
