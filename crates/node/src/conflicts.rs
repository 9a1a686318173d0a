//! `replikit conflicts`: the audit log of one node, page by page.

use replikit_core::keyspace::{Conflict, ConflictPage};
use replikit_core::policy::Cause;
use replikit_core::{Dot, HybridTimestamp, Origin};
use serde_json::{Map, Value, json};

use crate::client::{Session, connected};
use crate::{CommandResult, args, say};

/// Most conflicts that are asked for at once.
const PAGE_MAX: u32 = 1000;

pub(crate) fn run(command: args::Conflicts) -> CommandResult {
    let (reach, mut after, limit, json) = match command {
        args::Conflicts::List { after, limit, json, reach } => (reach, after, limit, json),
        args::Conflicts::Export { after, limit, reach } => (reach, after, limit, true),
    };
    connected(&reach, async |session: Session| {
        let mut left = limit;
        let mut dropped = 0;
        let mut next = Some(after);
        while let Some(from) = next.filter(|_| left > 0) {
            after = from;
            let page: ConflictPage = session.conflicts(after, left.min(PAGE_MAX)).await?;
            for conflict in &page.conflicts {
                if json { say(as_json(conflict)) } else { say(as_line(conflict)) }
            }
            left -= u32::try_from(page.conflicts.len()).unwrap_or(left).min(left);
            (dropped, next) = (page.dropped, page.next);
        }
        if let Some(next) = next {
            eprintln!("there are more: --after {next}");
        }
        if dropped > 0 {
            eprintln!("{dropped} older ones were dropped, because the audit log is limited in bytes");
        }
        Ok(())
    })
}

/// A write, as people name it: the node, its incarnation, and the number of the write.
pub(crate) fn dot(dot: Dot) -> String {
    match Origin::of(dot.origin) {
        Some(Origin { node, incarnation }) => format!("{node}.{}:{}", incarnation.0, dot.sequence),
        None => format!("{}:{}", dot.origin, dot.sequence),
    }
}

const fn why(cause: Cause) -> &'static str {
    match cause {
        Cause::Newer => "newer",
        Cause::Deleted => "deleted",
        Cause::DeleteLost => "delete-lost",
        Cause::Merged => "merged",
        Cause::Malformed => "malformed",
        Cause::Outvoted => "outvoted",
        _ => "other",
    }
}

fn as_line(conflict: &Conflict) -> String {
    let lost = &conflict.overwritten;
    let value = lost.version.value.as_ref().map_or("(delete)".into(), |value| String::from_utf8_lossy(value));
    let stamp = lost.version.stamp;
    format!(
        "{}\t{}\t{}\t{}\t{}\t{}\t{value}",
        conflict.number,
        String::from_utf8_lossy(&conflict.key),
        date(stamp.time),
        dot(stamp.dot),
        dot(lost.by.dot),
        why(lost.cause),
    )
}

fn as_json(conflict: &Conflict) -> Value {
    let lost = &conflict.overwritten;
    let mut object = Map::new();
    object.insert("number".into(), conflict.number.into());
    put_bytes(&mut object, "key", &conflict.key);
    object.insert("written".into(), date(lost.version.stamp.time).into());
    object.insert("dot".into(), dot(lost.version.stamp.dot).into());
    object.insert("by".into(), dot(lost.by.dot).into());
    object.insert("by_written".into(), date(lost.by.time).into());
    object.insert("cause".into(), why(lost.cause).into());
    match &lost.version.value {
        Some(value) => put_bytes(&mut object, "value", value),
        None => drop(object.insert("value".into(), json!(null))),
    }
    object.into()
}

/// Text as it is; other bytes in hexadecimal digits, under another name.
fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The wall-clock part as the writer's clock had it, in UTC. Source of the calendar: Hinnant, "chrono-compatible low-level
/// date algorithms", civil_from_days.
fn date(time: HybridTimestamp) -> String {
    let nanos = time.wall().0;
    let (seconds, millis) = (nanos / 1_000_000_000, nanos / 1_000_000 % 1_000);
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        let at = |seconds: u64| date(HybridTimestamp(seconds * 1_000_000_000));
        assert!(at(0).starts_with("1970-01-01T00:00:00"));
        // The clock's resolution of 65 us rounds down into the millisecond before.
        assert!(date(HybridTimestamp(951_782_400_500_000_000)).starts_with("2000-02-29T00:00:00.49"), "a leap day");
        assert!(date(HybridTimestamp(1_735_689_599_500_000_000)).starts_with("2024-12-31T23:59:59"));
    }
}
