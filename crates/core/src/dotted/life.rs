//! The lives of a node, and numbers that stay in order across them.
//!
//! Invariant: a number of a later life is larger than every number of an earlier one, as long as a life is on disk before its
//! numbers leave the node.

/// Lives are counted in the upper bits of a number.
const SHIFT: u32 = 40;

/// Most lives of a node: a start every second lasts for three months.
pub const LIFE_MAX: u32 = 1 << 23;

/// The first number of a life.
#[must_use]
pub const fn first_number(life: u32) -> u64 {
    (life as u64) << SHIFT
}

/// Which life a number belongs to.
#[must_use]
pub const fn life_of(number: u64) -> u32 {
    (number >> SHIFT) as u32
}

/// What a member's newly arrived report changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is older than what is known.
    Old,
    /// The member goes on.
    More,
    /// The member has begun a new life: it may hold less than before.
    NewLife,
}

impl News {
    /// What a report of this number changes when the newest known has that one; 0 when none is known.
    #[must_use]
    pub const fn of(number: u64, known: u64) -> Self {
        if number <= known {
            Self::Old
        } else if life_of(number) == life_of(known) {
            Self::More
        } else {
            Self::NewLife
        }
    }
}
