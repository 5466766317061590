//! Epochs: in which of its homes a volume is.
//!
//! An epoch has in its upper bits the time at which the volume was made, in milliseconds since 1970, and in its lower ones how often it was
//! given or taken over since. So what is remembered of one volume says nothing of another one of the same name.

/// How many bits count.
const COUNT_BITS: u32 = 20;

/// The first epoch of a volume that was made at a time, in milliseconds since 1970.
#[must_use]
pub fn first_epoch(made_ms: u64) -> u64 {
    made_ms << COUNT_BITS
}

/// Whether two epochs are of the same volume.
#[must_use]
pub fn of_one_volume(one: u64, other: u64) -> bool {
    one >> COUNT_BITS == other >> COUNT_BITS
}

/// Whether an epoch has followed on another one of the same volume.
#[must_use]
pub fn supersedes(later: u64, epoch: u64) -> bool {
    later > epoch && of_one_volume(later, epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_volume_of_a_name_supersedes_none() {
        let (one, other) = (first_epoch(1_790_000_000_000), first_epoch(1_790_000_000_001));
        assert!(supersedes(one + 1, one) && !supersedes(one, one) && !supersedes(one, one + 1));
        assert!(other > one + 1000 && !supersedes(other, one) && !of_one_volume(one, other));
        // Those that began with nothing, as they once did.
        assert!(supersedes(2, 1) && !supersedes(one, 2));
    }
}
