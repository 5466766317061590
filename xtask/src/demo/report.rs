//! What the demo prints: each step as it was typed, and the table at the end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// One step that was done.
#[derive(Clone, Debug)]
struct Step {
    what: String,
    took: Duration,
    moved_bytes: Option<u64>,
    full_bytes: Option<u64>,
}

/// The steps so far.
#[derive(Clone, Debug)]
pub(super) struct Report {
    begun: Instant,
    steps: Vec<Step>,
}

impl Report {
    /// Begins now.
    pub(super) fn begin() -> Report {
        Report { begun: Instant::now(), steps: Vec::new() }
    }

    /// Says what is typed now, and where.
    pub(super) fn typed(&self, place: &str, command: &str) {
        println!("{place}$ {command}");
    }

    /// Notes a step that has been done: `moved_bytes` went over the network (or into the store) for it, where a full copy is `full_bytes`.
    pub(super) fn done(&mut self, what: &str, took: Duration, moved_bytes: Option<u64>, full_bytes: Option<u64>) {
        let mut line = format!("   {:.2} s", took.as_secs_f64());
        if let Some(moved) = moved_bytes {
            let _infallible = write!(line, ", {} moved", size(moved));
        }
        if let Some(full) = full_bytes {
            let _infallible = write!(line, " (a full copy: {})", size(full));
        }
        println!("{line}");
        self.steps.push(Step { what: what.to_owned(), took, moved_bytes, full_bytes });
    }

    /// Lays the steps out as a table.
    pub(super) fn table(&self) -> String {
        let cell = |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), size);
        let width = self.steps.iter().map(|step| step.what.chars().count()).max().unwrap_or(0).max(4);
        let mut table = format!("{:width$}  {:>9}  {:>10}  {:>10}\n", "step", "seconds", "moved", "full copy");
        for step in &self.steps {
            let seconds = step.took.as_secs_f64();
            let (moved, full) = (cell(step.moved_bytes), cell(step.full_bytes));
            let _infallible = writeln!(table, "{:width$}  {seconds:>9.2}  {moved:>10}  {full:>10}", step.what);
        }
        // Not the sum: some things happen beside each other.
        let total = self.begun.elapsed();
        let _infallible = writeln!(table, "{:width$}  {:>9.2}", "in all", total.as_secs_f64());
        table
    }
}

/// Writes a number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scaled = bytes;
    let mut tenths = 0;
    while scaled >= 1024 && unit + 1 < UNITS.len() {
        tenths = scaled % 1024 * 10 / 1024;
        scaled /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(4 << 30), "4.0 GiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn the_table_has_a_line_for_each_step() {
        let mut report = Report::begin();
        report.done("import", Duration::from_millis(1500), Some(1 << 20), Some(4 << 20));
        report.done("clone", Duration::from_millis(10), None, None);
        let table = report.table();
        assert!(table.contains("import       1.50     1.0 MiB     4.0 MiB"), "{table}");
        assert!(table.contains("clone        0.01           –           –"), "{table}");
        assert_eq!(table.lines().count(), 4);
    }
}
