//! Settings and limits of compare-and-set per key.

use core::time::Duration;

/// Settings of one member.
#[derive(Clone, Debug)]
pub struct CasConfig {
    /// Most requests under way at this node, queued ones included. Default 65,536.
    pub requests_max: usize,
    /// Most requests of one key under way at this node. Default 1,024.
    pub requests_per_key_max: usize,
    /// Most requests of one key that are proposed together. Default 256.
    pub batch_max: usize,
    /// Most keys whose next proposal takes one round trip. Default 65,536.
    pub leases_max: usize,
    /// Most bytes of their keys and values. Default 64 MiB.
    pub lease_bytes_max: usize,
    /// Most answers that wait for the disk; what is above is dropped, as a message may be. Default 65,536.
    pub held_max: usize,
    /// A question without an answer is asked again after this time. Default 100 ms.
    pub resend: Duration,
    /// Longest wait after the first conflict; it doubles with each further one. About a round trip. Default 2 ms.
    pub backoff: Duration,
    /// Longest wait after any conflict. Default 100 ms.
    pub backoff_max: Duration,
    /// Seeds the waits, together with the node. Default 0.
    pub seed: u64,
}

impl Default for CasConfig {
    fn default() -> Self {
        Self {
            requests_max: 1 << 16,
            requests_per_key_max: 1 << 10,
            batch_max: 256,
            leases_max: 1 << 16,
            lease_bytes_max: 64 << 20,
            held_max: 1 << 16,
            resend: Duration::from_millis(100),
            backoff: Duration::from_millis(2),
            backoff_max: Duration::from_millis(100),
            seed: 0,
        }
    }
}
