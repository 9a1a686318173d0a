//! Keys whose next ballot a quorum has promised already: the next proposal needs one round trip.
//!
//! Invariant: a [`Lease`] is taken out when it is used, so its ballot is proposed at most once. It is no lease in time: any
//! other proposer may overtake it, and then the acceptors refuse its ballot. Source: Rystsov, arXiv 1802.07000
//! (one-round-trip optimization).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ballot::Ballot;
use super::register::Register;

/// What a proposer remembers of a key after it succeeded.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    /// The ballot that a quorum promised when it accepted `register`.
    pub(super) next: Ballot,
    /// The latest value that this quorum had accepted then.
    pub(super) register: Register,
}

#[derive(Debug)]
struct Kept {
    lease: Lease,
    used: u64,
}

/// Leases by key, the ones used longest ago dropped first.
#[derive(Debug)]
pub(super) struct Leases {
    kept: BTreeMap<Bytes, Kept>,
    by_use: BTreeMap<u64, Bytes>,
    uses: u64,
    bytes: usize,
    entries_max: usize,
    bytes_max: usize,
}

impl Leases {
    pub(super) const fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { kept: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, entries_max, bytes_max }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a lease in place of the key's older one.
    pub(super) fn put(&mut self, key: Bytes, lease: Lease) {
        self.take(&key);
        self.uses += 1;
        self.bytes += bytes(&key, &lease);
        self.by_use.insert(self.uses, key.clone());
        self.kept.insert(key, Kept { lease, used: self.uses });
        while self.kept.len() > self.entries_max || self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { return };
            let oldest = oldest.clone();
            self.take(&oldest);
        }
    }

    /// Takes the lease of a key out.
    pub(super) fn take(&mut self, key: &Bytes) -> Option<Lease> {
        let Kept { lease, used } = self.kept.remove(key)?;
        self.by_use.remove(&used);
        self.bytes -= bytes(key, &lease);
        Some(lease)
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.by_use.clear();
        self.bytes = 0;
    }
}

fn bytes(key: &Bytes, lease: &Lease) -> usize {
    key.len() + lease.register.value_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_bounded_in_number_and_bytes_and_the_oldest_goes_first() {
        let lease = |bytes: usize| Lease {
            next: Ballot::ZERO,
            register: Register { value: Some(vec![0; bytes].into()), ..Register::default() },
        };
        let mut leases = Leases::new(3, 1_000);
        for key in ["a", "b", "c"] {
            leases.put(key.into(), lease(9));
        }
        leases.put("a".into(), lease(9));
        leases.put("d".into(), lease(9));
        assert_eq!((leases.len(), leases.bytes()), (3, 30));
        assert!(leases.take(&"b".into()).is_none(), "used longest ago");
        leases.put("e".into(), lease(980));
        assert_eq!((leases.len(), leases.bytes()), (2, 991));
        assert!(leases.take(&"d".into()).is_some());
        leases.put("f".into(), lease(5_000));
        assert_eq!((leases.len(), leases.bytes()), (0, 0), "one that is too large is not kept");
    }
}
