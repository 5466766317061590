//! Reads the report that nextest writes (`junit.xml`), for the counts and for what tests said they skipped.
//!
//! Reads only what nextest writes: `<testcase name=… classname=…>` elements with `<failure>`, `<error>`, `<system-out>` and
//! `<system-err>` inside. Text inside is escaped, so a tag is always a tag.

use crate::tally::{SKIP_MARK, Tally};

/// Counts the tests of a report.
#[must_use]
pub fn tally(report: &str) -> Tally {
    let mut tally = Tally::default();
    let mut rest = report;
    while let Some(start) = rest.find("<testcase ") {
        let element = &rest[start..];
        let end = end_of_element(element);
        let (case, after) = element.split_at(end);
        rest = after;
        let name = format!("{} {}", attribute(case, "classname"), attribute(case, "name"));
        if case.contains("<failure") || case.contains("<error") {
            tally.failed.push(name);
        } else if let Some(reason) = skip_reason(case) {
            tally.skipped.push(format!("{name}: {reason}"));
        } else {
            tally.passed += 1;
        }
    }
    tally
}

fn end_of_element(element: &str) -> usize {
    let tag_end = element.find('>').map_or(element.len(), |at| at + 1);
    if element[..tag_end].ends_with("/>") {
        return tag_end;
    }
    element.find("</testcase>").unwrap_or(element.len())
}

fn attribute(element: &str, name: &str) -> String {
    let value = element.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    unescape(value.map_or("", |(value, _)| value))
}

fn skip_reason(case: &str) -> Option<String> {
    // The first line of a test's output stands right behind the tag.
    let at = case.find(SKIP_MARK)?;
    let before = case[..at].chars().next_back();
    if !matches!(before, Some('\n' | '>')) {
        return None;
    }
    let line = case[at + SKIP_MARK.len()..].split(['\n', '<']).next()?;
    Some(unescape(line.trim()))
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0">
    <testsuite name="store" tests="4" disabled="0" errors="0" failures="1">
        <testcase name="tests::plain" classname="store" timestamp="2026-01-01T00:00:00Z" time="0.002">
        </testcase>
        <testcase name="tests::short" classname="store"/>
        <testcase name="tests::full_disk" classname="store" time="0.002">
            <system-out>
running 1 test
SKIPPED: no loop devices &amp; no &lt;root&gt;
test tests::full_disk ... ok
</system-out>
        </testcase>
        <testcase name="tests::broken" classname="store" time="0.002">
            <failure type="test failure">left: 1 SKIPPED: not this</failure>
        </testcase>
        <testcase name="tests::says" classname="store"><system-out>a line with SKIPPED: inside</system-out></testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn counts_passes_failures_and_skips() {
        let tally = tally(REPORT);
        assert_eq!(tally.passed, 3);
        assert_eq!(tally.failed, ["store tests::broken"]);
        assert_eq!(tally.skipped, ["store tests::full_disk: no loop devices & no <root>"]);
    }

    #[test]
    fn a_report_that_was_cut_off_does_not_panic() {
        for end in 0..REPORT.len() {
            let _counts = tally(&REPORT[..end]);
        }
    }
}
