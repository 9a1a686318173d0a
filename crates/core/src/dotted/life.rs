//! The lives of a node, and numbers that stay in order across them.
//!
//! Invariant: a number of a later life is larger than every number of an earlier one, as long as a life is on disk before its
//! numbers leave the node.

use crate::Incarnation;

/// Lives are counted in the upper bits of a number.
const SHIFT: u32 = 40;

/// Most lives of a node: a start every second lasts for three months.
pub const LIFE_MAX: u32 = 1 << 23;

/// Incarnations of a node of which nobody else knows any write. Below this many, none of them is ever taken a second time,
/// also when the node loses its disk: each is an unclean start, with writes, out of reach of everybody else.
pub const UNHEARD_MAX: u32 = 1 << 10;

/// The incarnation under which a node writes after it has asked all others. `own` is the last one that its disk knows of, 0
/// when that is empty; `newest` the last one that anybody else does.
///
/// What a lost disk had shown to a client, and to no other node, that client may still name: with a dot of an incarnation that
/// only the disk knew of. So a node with an empty disk leaves [`UNHEARD_MAX`] of them out.
#[must_use]
pub const fn next_incarnation(own: u32, newest: u32) -> Incarnation {
    let unheard = if own == 0 { UNHEARD_MAX } else { 0 };
    Incarnation((if own > newest { own } else { newest }).saturating_add(unheard).saturating_add(1))
}

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
