//! Sizes, times and durations as people read them.

use std::time::Duration;

use types::ByteSize;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A number of bytes with a unit.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// How long ago something was; a date where that is more than a month.
pub(crate) fn ago(then_ms: u64, now_ms: u64) -> String {
    let ms = now_ms.saturating_sub(then_ms);
    match ms {
        ..SECOND => "just now".to_owned(),
        SECOND..MINUTE => format!("{} s ago", ms / SECOND),
        MINUTE..HOUR => format!("{} min ago", ms / MINUTE),
        HOUR..DAY => format!("{} h ago", ms / HOUR),
        DAY.. if ms / DAY <= 31 => format!("{} d ago", ms / DAY),
        _ => formatted(then_ms, "%Y-%m-%d"),
    }
}

/// How long it is until a moment, rounded down.
pub(crate) fn ahead(then_ms: u64, now_ms: u64) -> String {
    let ms = then_ms.saturating_sub(now_ms);
    match ms {
        0 => "no longer".to_owned(),
        1..MINUTE => format!("{} s", ms / SECOND),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..DAY => format!("{} h", ms / HOUR),
        DAY.. => format!("{} d", ms / DAY),
    }
}

/// When a moment will be.
pub(crate) fn until(then_ms: u64, now_ms: u64) -> String {
    if then_ms <= now_ms { "now".to_owned() } else { format!("in {}", ahead(then_ms, now_ms)) }
}

/// A moment in full, and how long ago it was.
pub(crate) fn moment(then_ms: u64, now_ms: u64) -> String {
    let ms = now_ms.saturating_sub(then_ms);
    let full = formatted(then_ms, "%Y-%m-%d %H:%M:%S UTC");
    if ms / DAY <= 31 { format!("{full} ({})", ago(then_ms, now_ms)) } else { full }
}

fn formatted(ms: u64, format: &str) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| format!("{ms} ms since 1970"), |timestamp| timestamp.strftime(format).to_string())
}

/// A span of time, to about two digits.
pub(crate) fn span(span: Duration) -> String {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let tenths = (ms + 50) / 100;
    match ms {
        ..SECOND => format!("{ms} ms"),
        _ if ms < 10 * SECOND => format!("{}.{} s", tenths / 10, tenths % 10),
        _ if ms < MINUTE => format!("{} s", ms / SECOND),
        _ if ms < HOUR => format!("{} min {} s", ms / MINUTE, ms % MINUTE / SECOND),
        _ => format!("{} h {} min", ms / HOUR, ms % HOUR / MINUTE),
    }
}

/// A span of time that somebody has chosen, in the unit in which it is a whole number.
pub(crate) fn whole_span(length: Duration) -> String {
    let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s")];
    let whole = units.into_iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| span(length), |(unit, name)| format!("{} {name}", ms / unit))
}

/// A part of a whole in percent, rounded down so that only all of it is 100 %.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    u64::try_from(u128::from(part.min(whole)) * 100 / u128::from(whole)).unwrap_or(100)
}

/// A word that depends on a number: `1 volume`, `2 volumes`.
pub(crate) fn count(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {one}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative_until_a_month_has_passed() {
        let now = 1_763_877_012_345;
        for (ms, text) in [
            (0, "just now"),
            (12 * SECOND, "12 s ago"),
            (3 * MINUTE + 5, "3 min ago"),
            (2 * HOUR, "2 h ago"),
            (30 * DAY, "30 d ago"),
            (40 * DAY, "2025-10-14"),
        ] {
            assert_eq!(ago(now - ms, now), text);
        }
        assert_eq!(ago(now + 5, now), "just now", "clocks differ");
        assert_eq!(moment(now, now), "2025-11-23 05:50:12 UTC (just now)");
        assert!(ago(u64::MAX, 0).contains("just now") && !moment(u64::MAX, u64::MAX).is_empty());
    }

    #[test]
    fn what_is_to_come_is_rounded_down() {
        for (ms, text) in
            [(0, "no longer"), (900, "0 s"), (MINUTE + 1, "1 min"), (3 * HOUR - 1, "2 h"), (7 * DAY - 1, "6 d")]
        {
            assert_eq!(ahead(5 + ms, 5), text);
        }
        assert_eq!(ahead(0, 5), "no longer");
    }

    #[test]
    fn spans_have_about_two_digits() {
        for (ms, text) in [
            (7, "7 ms"),
            (1_440, "1.4 s"),
            (9_999, "10.0 s"),
            (59_999, "59 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn chosen_spans_are_whole() {
        for (ms, text) in [(DAY, "1 d"), (36 * HOUR, "36 h"), (90 * MINUTE, "90 min"), (1500, "1.5 s"), (0, "0 ms")] {
            assert_eq!(whole_span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn what_is_not_to_come_is_now() {
        assert_eq!((until(5, 5), until(5 + HOUR, 5)), ("now".to_owned(), "in 1 h".to_owned()));
    }

    #[test]
    fn only_all_of_it_is_a_hundred_percent() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(2000, 1000), 100);
        assert_eq!(percent(1, 0), 0);
    }
}
