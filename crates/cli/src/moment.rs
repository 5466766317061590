//! Moments as people write them: `10 minutes ago`, `2026-11-26T10:00:00`, `10:30`.

use jiff::civil::{DateTime, Time};
use jiff::{Span, Timestamp, Zoned};

/// What a person meant, where the time and the time zone are those of `now`.
///
/// # Errors
/// What to write instead.
pub(crate) fn moment(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(now.timestamp());
    }
    let found = if let Some(before) = text.strip_suffix("ago") {
        before.trim().parse::<Span>().ok().and_then(|span| now.checked_sub(span).ok())
    } else if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp);
    } else {
        // A time is also read from a date and time, so those come first.
        let of_today = || text.parse::<Time>().map(|time| now.date().to_datetime(time));
        let local = text.parse::<DateTime>().or_else(|_| of_today());
        local.ok().and_then(|local| local.to_zoned(now.time_zone().clone()).ok())
    };
    found.map(|found| found.timestamp()).ok_or_else(|| {
        format!(
            "{text:?} is not a moment: write '10 minutes ago', 10:30, 2026-11-26T10:00:00, or with a zone …T10:00:00Z"
        )
    })
}

/// A snapshot to clone, or `VOLUME@MOMENT` with the moment in the form that the node reads.
///
/// # Errors
/// As [`moment`].
pub(crate) fn with_moment(text: &str, now: &Zoned) -> Result<String, String> {
    match text.split_once('@') {
        Some((volume, when)) if !volume.contains('/') => Ok(format!("{volume}@{}", moment(when, now)?)),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-26T12:00:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    #[test]
    fn a_moment_is_read_in_the_zone_of_who_asks() {
        for (text, utc) in [
            ("now", "2026-11-26T11:00:00Z"),
            ("10 minutes ago", "2026-11-26T10:50:00Z"),
            ("90s ago", "2026-11-26T10:58:30Z"),
            ("1h 30m ago", "2026-11-26T09:30:00Z"),
            ("2 days ago", "2026-11-24T11:00:00Z"),
            ("10:30", "2026-11-26T09:30:00Z"),
            ("10:30:15", "2026-11-26T09:30:15Z"),
            ("2026-11-26T10:00:00", "2026-11-26T09:00:00Z"),
            ("2026-11-26 10:00:00", "2026-11-26T09:00:00Z"),
            ("2026-07-01T10:00:00", "2026-07-01T08:00:00Z"),
            ("2026-11-26T10:00:00Z", "2026-11-26T10:00:00Z"),
            ("2026-11-26T10:00:00-05:00", "2026-11-26T15:00:00Z"),
        ] {
            assert_eq!(moment(text, &now()).unwrap().to_string(), utc, "{text}");
        }
        for bad in ["", "soon", "ago", "yesterday", "25:00", "2026-13-01T00:00:00", "10 minutes", "7"] {
            assert!(moment(bad, &now()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_is_no_snapshot_has_a_moment() {
        assert_eq!(with_moment("vms/web@3", &now()).unwrap(), "vms/web@3");
        assert_eq!(with_moment("web1@10 minutes ago", &now()).unwrap(), "web1@2026-11-26T10:50:00Z");
        assert_eq!(with_moment(&"ab".repeat(32), &now()).unwrap(), "ab".repeat(32));
        assert!(with_moment("web1@3", &now()).is_err());
    }
}
