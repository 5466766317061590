//! Which snapshots of a schedule are kept.
//!
//! The rules count spans of time in which there are snapshots, not time that has passed, as restic and Proxmox do. So neither a
//! node that was down nor a clock that jumps makes anything go: only newer snapshots do. Spans are those of UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use types::Keep;

/// The hour, day, week, month and year in which a moment lies, as numbers that differ where the spans do.
fn spans_of(ms: u64) -> [i64; 5] {
    const HOUR_MS: i64 = 3_600_000;
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX);
    let day = at.as_millisecond().div_euclid(24 * HOUR_MS);
    let date = at.to_zoned(TimeZone::UTC).date();
    let year = i64::from(date.year());
    // The first day of 1970 was a Thursday, and weeks begin on Mondays.
    let week = (day + 3).div_euclid(7);
    [at.as_millisecond().div_euclid(HOUR_MS), day, week, year * 12 + i64::from(date.month()), year]
}

/// Whether each snapshot is kept, of those that were taken at these moments: the newest first, in the order in which they were taken,
/// whatever the clock said.
///
/// A rule keeps the newest snapshot of each of its spans, beginning with the newest span, until there are as many as it says. What some
/// rule keeps is kept, and the newest one always.
pub(super) fn kept(keep: Keep, taken_ms: &[u64]) -> Vec<bool> {
    let spans: Vec<_> = taken_ms.iter().map(|ms| spans_of(*ms)).collect();
    let last = usize::try_from(keep.last).unwrap_or(usize::MAX).max(1);
    let mut kept: Vec<bool> = (0..spans.len()).map(|place| place < last).collect();
    let numbers = [keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly];
    for (rule, mut left) in numbers.into_iter().enumerate() {
        let mut current = None;
        for (kept, spans) in kept.iter_mut().zip(&spans) {
            if left == 0 {
                break;
            }
            if current != Some(spans[rule]) {
                current = Some(spans[rule]);
                *kept = true;
                left -= 1;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(text: &str) -> u64 {
        text.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap()
    }

    /// What is left of moments, the newest first.
    fn prune(keep: Keep, taken_ms: &[u64]) -> Vec<u64> {
        taken_ms.iter().zip(kept(keep, taken_ms)).filter_map(|(ms, kept)| kept.then_some(*ms)).collect()
    }

    fn shown(keep: &str, taken: &[&str]) -> Vec<String> {
        let taken: Vec<u64> = taken.iter().map(|text| ms(text)).collect();
        let left = prune(keep.parse().unwrap(), &taken);
        left.into_iter().map(|ms| Timestamp::from_millisecond(ms.cast_signed()).unwrap().to_string()).collect()
    }

    #[test]
    fn the_newest_of_each_span_is_kept() {
        let taken = [
            "2026-03-02T10:30:00Z",
            "2026-03-02T10:00:00Z",
            "2026-03-02T09:00:00Z",
            "2026-03-01T23:00:00Z",
            "2026-03-01T22:00:00Z",
            "2026-02-28T12:00:00Z",
            "2026-02-01T12:00:00Z",
            "2025-12-31T12:00:00Z",
        ];
        for (keep, places) in [
            ("1", &[0][..]),
            ("3", &[0, 1, 2]),
            ("2h", &[0, 2]),
            ("2d", &[0, 3]),
            ("3d", &[0, 3, 5]),
            ("2w", &[0, 3]),
            ("3m", &[0, 5, 7]),
            ("2y", &[0, 7]),
            ("3,2d,2y", &[0, 1, 2, 3, 7]),
        ] {
            let expected: Vec<&str> = places.iter().map(|place| taken[*place]).collect();
            assert_eq!(shown(keep, &taken), expected, "{keep}");
        }
    }

    #[test]
    fn weeks_begin_on_mondays_and_cross_years() {
        let taken = ["2026-01-05T00:00:00Z", "2026-01-04T23:00:00Z", "2025-12-29T00:00:00Z", "2025-12-28T23:00:00Z"];
        assert_eq!(shown("3w", &taken), [taken[0], taken[1], taken[3]]);
    }

    #[test]
    fn a_clock_that_jumps_takes_nothing_away() {
        // Years ahead for one snapshot, then back, with an hour that comes twice.
        let taken = [
            "2026-03-02T11:00:00Z",
            "2026-03-02T10:00:00Z",
            "2031-01-01T00:00:00Z",
            "2026-03-02T10:00:00Z",
            "2026-03-02T09:00:00Z",
        ];
        assert_eq!(shown("24h,7d", &taken).len(), 5);
        // What is taken next pushes out one at most, whenever it says that it was taken.
        for next in ["1970-01-01T00:00:00Z", "2026-03-02T12:00:00Z", "9999-12-30T00:00:00Z"] {
            let with: Vec<&str> = std::iter::once(next).chain(taken).collect();
            assert_eq!(shown("5h", &with).len(), 5, "{next}");
        }
        assert_eq!(prune("2h".parse().unwrap(), &[u64::MAX, 0]).len(), 2, "moments that no calendar has");
    }

    #[test]
    fn an_hourly_schedule_of_years_settles() {
        let keep: Keep = "24h,7d,4w,12m".parse().unwrap();
        let mut all: Vec<u64> = Vec::new();
        let start = ms("2026-01-01T00:00:00Z");
        for hour in 0..24 * 800 {
            all.insert(0, start + hour * 3_600_000);
            all = prune(keep, &all);
            assert!(all.len() <= 24 + 7 + 4 + 12);
        }
        assert!(all.len() >= 40, "some are kept for two reasons, and few for more: {}", all.len());
        assert!(all[0] - all[all.len() - 1] > 300 * 24 * 3_600_000, "they reach back for most of a year");
    }

    fn keeps() -> impl Strategy<Value = Keep> {
        proptest::array::uniform6(0_u32..6).prop_map(|[last, hourly, daily, weekly, monthly, yearly]| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        })
    }

    /// Moments, mostly ones that follow each other, with a clock that jumps now and then.
    fn moments() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            20 => (0_u64..40).prop_map(|hours| -i128::from(hours) * 1_800_000),
            1 => any::<i64>().prop_map(i128::from),
        ];
        proptest::collection::vec(step, 0..60).prop_map(|steps| {
            let mut at = 1_790_000_000_000_i128;
            let mut taken = Vec::new();
            for step in steps {
                at = (at + step).clamp(0, i128::from(u64::MAX));
                taken.push(u64::try_from(at).unwrap());
            }
            taken
        })
    }

    proptest! {
        #[test]
        fn the_newest_stays(keep in keeps(), taken in moments()) {
            let left = prune(keep, &taken);
            prop_assert_eq!(left.first(), taken.first());
        }

        #[test]
        fn twice_is_once(keep in keeps(), taken in moments()) {
            let once = prune(keep, &taken);
            prop_assert_eq!(prune(keep, &once), once);
        }

        #[test]
        fn who_asks_for_more_keeps_all_that_less_keeps(one in keeps(), other in keeps(), taken in moments()) {
            let more = kept(one.most(other), &taken);
            let less = kept(one, &taken);
            prop_assert!(more.iter().zip(less).all(|(more, less)| *more || !less));
        }

        #[test]
        fn what_goes_would_have_gone_later_too(keep in keeps(), taken in moments(), newer in moments()) {
            let all: Vec<u64> = newer.iter().chain(&taken).copied().collect();
            let later = kept(keep, &all);
            let now = kept(keep, &taken);
            prop_assert!(later[newer.len()..].iter().zip(now).all(|(later, now)| now || !later));
        }

        #[test]
        fn no_more_are_kept_than_the_rules_say(keep in keeps(), taken in moments()) {
            let most: u32 = keep.numbers().into_iter().map(|(number, _)| number).sum();
            prop_assert!(prune(keep, &taken).len() <= most.max(1) as usize);
        }

        #[test]
        fn as_many_are_kept_as_the_rules_say_and_there_are(keep in keeps(), taken in moments()) {
            let left = prune(keep, &taken).len();
            prop_assert!(left >= taken.len().min(keep.last as usize));
        }
    }
}
