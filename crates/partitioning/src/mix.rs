//! Numbers that look drawn by lot, and are the same everywhere.

/// The step of SplitMix64's sequence: numbers of which each is one step further, mixed, are its draws.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA'14): every bit of the result depends on all bits.
pub(crate) const fn mixed(number: u64) -> u64 {
    let mut it = number;
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    it ^ (it >> 31)
}
