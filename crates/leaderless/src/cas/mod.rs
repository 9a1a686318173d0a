//! Compare-and-set per key: CASPaxos, a register that any member changes by any function, without a leader and without a log.
//!
//! Invariant: the values of a key form one line, each made from the one before by one proposal that a quorum accepted; what
//! requests saw and did is linearizable, whatever messages, processes and clocks do.
//!
//! # How a request goes
//!
//! 1. The proposer at the node that took the request asks all members to promise a ballot and to tell what they have accepted.
//! 2. A quorum has promised: it applies the request, and others of the same key that wait, to the latest value among the
//!    answers, and asks all members to accept the result.
//! 3. A quorum has accepted, each on its disk: the requests end. With the acceptance, the members promised the proposer's next
//!    ballot, so its next change of this key begins at step 2, with what it has just written: one round trip.
//!
//! If too many members have promised a higher ballot, it begins again at 1 after a random wait. Whether the proposal that
//! failed took effect after all is read off the value found then: see [`Lineage`].
//!
//! # Reads
//!
//! A read asks all members what they hold, which writes nothing to disk. If a set Q of them that is both a quorum of acceptors
//! and one of promises answers with the same ballot b (each answer durable, given after the read began), the value of b is the answer:
//!
//! - *It is not too old.* A write that was acknowledged before the read began was accepted by a quorum at some ballot c. Q
//!   meets that quorum in a member that had accepted c before it answered b; what a member has accepted only ascends, so b >= c,
//!   and the value of b descends from that of c.
//! - *It stays.* All of Q accepted b, so b is chosen: every later proposal has promises of a quorum, which meets Q, and so
//!   descends from b. (A member of Q that promised a higher ballot before accepting b would have refused b.)
//!
//! Different ballots mean that a proposal is under way or broke off: then the read becomes a proposal that changes nothing.
//!
//! # Ends
//!
//! [`End::Done`] only after a quorum; [`End::TimedOut`] only if no proposal ever had the request change anything; otherwise
//! [`End::Indeterminate`].
//!
//! # What it does not do
//!
//! It never removes the entry of a key: an absent key that was once written keeps its ballots (about 150 bytes), for the
//! highest promise must not be forgotten. It knows no client sessions: a client that retries an indeterminate addition may
//! add twice; a compare-and-set is safe to retry.
//!
//! # Driving it
//!
//! 1. [`Cas::recover`] every record of the disk, then [`Cas::start`] once; while [`Cas::standing`] is
//!    [`Standing::Joining`], gather the state of the others ([`Cas::admit`] and [`Cas::image`] or [`Cas::page`] there, [`Cas::join`] here),
//!    then [`Cas::serve`].
//! 2. Hand in requests, messages, finished disk writes, and the time when [`Cas::deadline`] has come.
//! 3. After each, carry out what [`Cas::poll_output`] gives, in its order. Records are appended in that order; messages need
//!    not wait for them, those that must are held here until [`Cas::handle_durable`].
//!
//! ```
//! use replikit_core::{Epoch, Incarnation, NodeId, Origin, Quorum, Time, Token, WriteEffect};
//! use replikit_leaderless::cas::{Cas, CasConfig, CasOp, CasOutput, Effect, End, Start};
//!
//! let mut members: Vec<Cas> = (1..=3)
//!     .map(|node| {
//!         let quorum = Quorum::majority((1..=3).map(NodeId).collect()).expect("three nodes");
//!         let origin = Origin { node: NodeId(node), incarnation: Incarnation(1) }.id().expect("a small node");
//!         let mut cas = Cas::new(CasConfig::default(), origin, Epoch(1), quorum).expect("an origin of a node");
//!         cas.start(Start::Whole);
//!         cas
//!     })
//!     .collect();
//! let now = Time(1);
//! let create = CasOp::CompareAndSet { expected: None, new: Some("mine".into()) };
//! members[0].begin(now, Token(7), "lock".into(), create, Time::NEVER)?;
//! let mut ended = None;
//! while ended.is_none() {
//!     for node in 0..3 {
//!         while let Some(output) = members[node].poll_output() {
//!             match output {
//!                 // A disk that is done at once, and a network that loses nothing.
//!                 CasOutput::Persist { number, record: _ } => members[node].handle_durable(now, number),
//!                 CasOutput::Send { to, message } => {
//!                     members[to.0 as usize - 1].handle_message(now, NodeId(node as u32 + 1), message);
//!                 }
//!                 CasOutput::Ended { token, end } => ended = Some((token, end)),
//!             }
//!         }
//!     }
//! }
//! let Some((Token(7), End::Done { effect, .. })) = ended else { panic!("no other request was made") };
//! assert_eq!(effect, Effect::Wrote(WriteEffect::Done));
//! # Ok::<(), replikit_leaderless::cas::CasRefusal>(())
//! ```
//!
//! # Source
//!
//! Denis Rystsov, "CASPaxos: Replicated State Machines without logs", arXiv 1802.07000; Lamport, "Paxos Made Simple"; quorums
//! of two kinds: Howard, Malkhi and Spiegelman 2016.

mod acceptor;
mod ballot;
mod change;
mod config;
mod member;
mod message;
mod output;
mod proposer;
mod record;
mod register;
mod round;
mod sticky;
mod tally;
mod work;

#[cfg(test)]
mod claims;
#[cfg(test)]
mod simulation;

pub use acceptor::Standing;
pub use ballot::{Ballot, Proposer};
pub use change::{CasOp, Effect, Update};
pub use config::CasConfig;
pub use member::{Cas, CasImage};
pub use message::{Answer, Ask, Attempt, Holding, Life, Message};
pub use output::{CasOutput, CasRefusal, CasSizes, CasStats, End, Start};
pub use record::{Entry, Record, RecordNumber};
pub use register::{Descent, LINEAGE_RUNS_MAX, Lineage, Register};
