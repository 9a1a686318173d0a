//! The mechanics of logs that have one writer each: holding them, sending them to peers, and knowing what everybody has.
//! Shared by the families without a leader.
//!
//! Invariant: what one replica lacks and another holds is an exact difference of vectors, so pushes may be lost, and offline
//! replicas, slow ones and new ones are served by the same code. Source: DottedDB (Gonçalves et al., SRDS 2017).

mod life;
mod peer;
mod stability;
mod stream;
mod transfer;

pub use life::{LIFE_MAX, News, UNHEARD_MAX, first_number, life_of, next_incarnation};
pub use peer::Peer;
pub use stability::{Holding, Stability};
pub use stream::Stream;
pub use transfer::Outgoing;
