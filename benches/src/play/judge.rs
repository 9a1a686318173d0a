//! Reads everything back after a play, and holds it and what clients saw against what was promised.
//!
//! Invariant: an update that is not there is *audited* when an audit log has a value with it, and *silent* otherwise. What
//! clients saw is judged by the simulator's checkers, so that the bench and the simulator mean the same by a guarantee.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use replikit_core::keyspace::Conflict;
use replikit_core::{ReadLevel, ReadRequest, ScanRequest, Store, WriteLevel};
use replikit_sim::check::{Losses, STEPS_MAX, Unproven, check_counter, check_history, check_sessions, check_staleness};

use super::{LOGS, Play, Played, elements};
use crate::engine::Audited;
use crate::error::BenchError;
use crate::ledger::Ledger;
use crate::load::Reads;
use crate::verify::{Verified, verify_at, verify_each};

/// A key that cannot be read is tried again: the cluster may just have lost its leader.
const ATTEMPTS_MAX: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);
const PAGE_KEYS: u32 = 500;

/// What was found afterwards.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// Records read back.
    pub records: Verified,
    /// Acknowledged updates of lists, sets, logs and counters.
    pub updates: u64,
    /// Those that are not there, and are in the audit log.
    pub lost_audited: u64,
    /// Those that are not there, and nobody can say what they were.
    pub lost_silent: u64,
    /// Values that were overwritten by a write that had not seen them; `None` where that does not happen.
    pub conflicts: Option<u64>,
    /// Operations that the checkers looked at.
    pub checked: usize,
    /// What they were held against.
    pub checked_as: &'static str,
    /// What they found to be wrong.
    pub broken: Option<String>,
}

impl Judged {
    /// Acknowledged writes of any kind that are gone without a trace.
    #[must_use]
    pub const fn silent(&self) -> u64 {
        self.lost_silent + self.records.lost
    }
}

/// Judges a play. Nothing else may be written meanwhile, and any replica shows everything. `scan_level` as
/// [`Engine::scan_level`](crate::engine::Engine::scan_level) says.
///
/// # Errors
/// When what was written cannot be read back.
pub async fn judge(
    play: &Play,
    played: &Played,
    ledger: &Ledger,
    store: &dyn Store,
    scan_level: Option<ReadLevel>,
    audited: Option<Audited>,
) -> Result<Judged, BenchError> {
    let mut judged = Judged { updates: played.updated.acked(), ..Judged::default() };
    judged.records = match &scan_level {
        Some(level) => verify_at(ledger, store, level.clone()).await?,
        None => verify_each(ledger, store).await?,
    };
    let conflicts = audited.as_ref().map_or(&[][..], |audited| &audited.conflicts[..]);
    if let Some(audited) = &audited {
        judged.conflicts = Some(audited.conflicts.len() as u64 + audited.dropped);
        judged.lost_audited += judged.records.excuse(ledger, conflicts);
    }
    let scans = scan_level.is_some();
    let level = scan_level.unwrap_or_default();
    let kept = kept(conflicts);
    for (key, acked) in &played.updated.elements {
        let shown = elements(&values(store, key, &level).await?);
        for element in acked.iter().filter(|element| !shown.contains(element)) {
            match kept.get(key).is_some_and(|kept| kept.contains(element)) {
                true => judged.lost_audited += 1,
                false => judged.lost_silent += 1,
            }
        }
    }
    let logs = if scans { entries(store, &level).await? } else { BTreeMap::new() };
    for (key, element) in &played.updated.logs {
        let shown = match scans {
            true => logs.get(key).copied(),
            false => values(store, key, &level).await?.first().and_then(first_element),
        };
        judged.lost_silent += u64::from(shown != Some(*element));
    }
    for (key, counter) in &played.updated.counters {
        let shown = values(store, key, &level).await?;
        let number = shown.first().and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok()).unwrap_or(0);
        let acked = std::iter::repeat_n(1, counter.acked as usize);
        let in_doubt = vec![1; counter.in_doubt as usize];
        if check_counter(number, acked, &in_doubt).is_err() {
            let (least, most) = (counter.acked as i64, (counter.acked + counter.in_doubt) as i64);
            // Counted twice is as wrong as not counted.
            judged.lost_silent += (least - number).max(number - most).unsigned_abs();
        }
    }
    check(play, played, &mut judged);
    Ok(judged)
}

/// Holds what clients saw against what their reads promise.
fn check(play: &Play, played: &Played, judged: &mut Judged) {
    judged.checked = played.history.operations().len();
    let strong = matches!(play.write_level, WriteLevel::Quorum | WriteLevel::Applied(_));
    judged.checked_as = match play.reads {
        Reads::Linearizable if strong => "linearizable",
        Reads::Session => "sessions",
        _ => "nothing that nobody wrote, nothing from the future",
    };
    let broken = match play.reads {
        Reads::Linearizable if strong => match check_history(&played.history, STEPS_MAX) {
            Ok(_) | Err(Unproven::Undecided { .. }) => None,
            Err(unproven) => Some(unproven.to_string()),
        },
        Reads::Session => check_sessions(&played.history, &Losses::new()).err().map(|broken| broken.to_string()),
        _ => check_staleness(&played.history, Duration::ZERO).err().map(|broken| broken.to_string()),
    };
    judged.broken = broken.or_else(|| played.wrong_told.clone());
}

fn kept(conflicts: &[Conflict]) -> BTreeMap<Bytes, BTreeSet<u32>> {
    let mut kept: BTreeMap<Bytes, BTreeSet<u32>> = BTreeMap::new();
    for conflict in conflicts {
        let value: Vec<Bytes> = conflict.overwritten.version.value.iter().cloned().collect();
        kept.entry(conflict.key.clone()).or_default().extend(elements(&value));
    }
    kept
}

fn first_element(value: &Bytes) -> Option<u32> {
    value.first_chunk().map(|first| u32::from_le_bytes(*first))
}

/// The entries of all logs, by key.
async fn entries(store: &dyn Store, level: &ReadLevel) -> Result<BTreeMap<Bytes, u32>, BenchError> {
    let mut found = BTreeMap::new();
    let to = Bytes::from(format!("{LOGS}~"));
    let mut from = Some(Bytes::from_static(LOGS.as_bytes()));
    let mut attempt = 0;
    while let Some(start) = from.clone() {
        let scan = ScanRequest { from: start, to: Some(to.clone()), limit: PAGE_KEYS, level: level.clone() };
        match store.scan(scan).await {
            Ok(page) => {
                found.extend(page.items.iter().filter_map(|(key, value)| Some((key.clone(), first_element(value)?))));
                from = page.next;
            }
            Err(error) if attempt == ATTEMPTS_MAX => return Err(error.into()),
            Err(_) => {
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(found)
}

async fn values(store: &dyn Store, key: &Bytes, level: &ReadLevel) -> Result<Vec<Bytes>, BenchError> {
    let mut attempt = 0;
    loop {
        match store.read(ReadRequest::new(key.clone()).at(level.clone())).await {
            Ok(answer) => return Ok(answer.values),
            Err(error) if attempt == ATTEMPTS_MAX => return Err(error.into()),
            Err(_) => attempt += 1,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
