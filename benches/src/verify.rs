//! Reads everything back and holds it against what was acknowledged.

use replikit_core::keyspace::Conflict;
use replikit_core::{Page, ReadError, ReadLevel, ReadRequest, ScanRequest, Store, WriteRequest};

use crate::ledger::{Ledger, Verdict};
use crate::workload::{key_bytes, key_number};

/// Lies outside the keys that are judged.
const FENCE: &str = "fence";
const PAGE_KEYS: u32 = 500;
/// A scan that fails is tried again: the cluster may just have lost its leader.
const ATTEMPTS_MAX: u32 = 50;
/// Most lost keys that are told in full.
const TOLD_MAX: usize = 5;

/// What was read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Keys with an acknowledged write.
    pub keys: u64,
    /// Those whose newest acknowledged write is gone: absent, or superseded by an older value.
    pub lost: u64,
    /// Keys that hold a value which was never written to them.
    pub foreign: u64,
    /// Some of the lost and foreign ones, in words.
    pub told: Vec<String>,
    /// The keys counted as lost.
    pub lost_keys: Vec<u32>,
}

impl Verified {
    /// Takes out the lost keys for which an audit log has a value that may be the newest; how many they are.
    pub fn excuse(&mut self, ledger: &Ledger, audited: &[Conflict]) -> u64 {
        let mut kept: Vec<u32> = Vec::new();
        for conflict in audited {
            let Some(key) = key_number(&conflict.key) else { continue };
            let value = conflict.overwritten.version.value.as_deref();
            if ledger.judge(ledger.expect(key), ledger.now(), value) == Verdict::Fresh {
                kept.push(key);
            }
        }
        kept.sort_unstable();
        let before = self.lost_keys.len();
        self.lost_keys.retain(|key| kept.binary_search(key).is_err());
        let excused = (before - self.lost_keys.len()) as u64;
        self.lost -= excused;
        excused
    }

    fn note(&mut self, key: u32, verdict: Verdict) {
        match verdict {
            Verdict::Fresh => return,
            Verdict::Stale { .. } | Verdict::Missing => {
                self.lost += 1;
                self.lost_keys.push(key);
            }
            Verdict::Foreign => self.foreign += 1,
        }
        if self.told.len() < TOLD_MAX {
            self.told.push(format!("key {key}: {verdict:?}"));
        }
    }
}

/// Scans the store linearizably and judges every key that has an acknowledged write. Nothing else may be written meanwhile.
///
/// # Errors
/// When a page could not be read within all attempts.
pub async fn verify(ledger: &Ledger, store: &dyn Store) -> Result<Verified, ReadError> {
    verify_at(ledger, store, ReadLevel::Linearizable).await
}

/// The same at another level, where a replica is known to show everything.
///
/// # Errors
/// When a page could not be read within all attempts.
pub async fn verify_at(ledger: &Ledger, store: &dyn Store, level: ReadLevel) -> Result<Verified, ReadError> {
    // A write acknowledged at a weak level is seen once it is committed, and it is once a later one is. If this write
    // fails, the scan below finds out what that means.
    let _ = store.write(WriteRequest::put(FENCE, "")).await;
    let mut verified = Verified::default();
    let mut expected = ledger.acked_keys().peekable();
    let mut from = Some(key_bytes(0));
    while let Some(start) = from {
        let began = ledger.now();
        let scan = ScanRequest { from: start, to: Some(key_bytes(u32::MAX)), limit: PAGE_KEYS, level: level.clone() };
        let page = page(store, scan).await?;
        for (key, value) in &page.items {
            let Some(key) = key_number(key) else { continue };
            while let Some(missing) = expected.next_if(|expected| *expected < key) {
                verified.keys += 1;
                verified.note(missing, Verdict::Missing);
            }
            if expected.next_if_eq(&key).is_some() {
                verified.keys += 1;
                verified.note(key, ledger.judge(ledger.expect(key), began, Some(value)));
            }
        }
        from = page.next;
    }
    for missing in expected {
        verified.keys += 1;
        verified.note(missing, Verdict::Missing);
    }
    Ok(verified)
}

/// Reads every key that has an acknowledged write by itself, linearizably. Nothing else may be written meanwhile.
///
/// # Errors
/// When a key could not be read within all attempts.
pub async fn verify_each(ledger: &Ledger, store: &dyn Store) -> Result<Verified, ReadError> {
    let mut verified = Verified::default();
    for key in ledger.acked_keys() {
        let began = ledger.now();
        let mut attempt = 0;
        let found = loop {
            match store.read(ReadRequest::new(key_bytes(key)).at(ReadLevel::Linearizable)).await {
                Ok(found) => break found,
                Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
                Err(_) => attempt += 1,
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        };
        let value = found.values.first().map(|value| &value[..]);
        verified.keys += 1;
        verified.note(key, ledger.judge(ledger.expect(key), began, value));
    }
    Ok(verified)
}

async fn page(store: &dyn Store, scan: ScanRequest) -> Result<Page, ReadError> {
    let mut attempt = 0;
    loop {
        match store.scan(scan.clone()).await {
            Ok(page) => return Ok(page),
            Err(error) if attempt == ATTEMPTS_MAX => return Err(error),
            Err(_) => attempt += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use replikit_core::policy::{Cause, Overwritten, Version};
    use replikit_core::{Dot, HybridTimestamp, OriginId, Stamp};

    use super::*;

    #[test]
    fn a_lost_key_is_excused_by_its_newest_value_only() {
        let ledger = Ledger::new(2, 64);
        let write = || {
            let (begun, value) = ledger.begin(1, 64).expect("the ledger has room");
            ledger.acked(begun);
            value
        };
        let (older, newest) = (write(), write());
        let audited = |value: Bytes| {
            let stamp = Stamp { time: HybridTimestamp(1), dot: Dot { origin: OriginId(1), sequence: 1 } };
            let version = Version { stamp, value: Some(value) };
            let overwritten = Overwritten { version, by: stamp, cause: Cause::Newer };
            vec![Conflict { number: 1, key: key_bytes(1), overwritten }]
        };
        let mut verified = Verified::default();
        verified.note(1, Verdict::Missing);
        assert_eq!(verified.excuse(&ledger, &audited(older)), 0);
        assert_eq!(verified.excuse(&ledger, &audited(newest)), 1);
        assert_eq!((verified.lost, verified.lost_keys.len()), (0, 0));
    }
}
