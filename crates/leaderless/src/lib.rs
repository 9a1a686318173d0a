//! Leaderless replication: any owner of a key takes a request, and quorums of owners answer it.
//!
//! N owners, all of a group's nodes. R, W and D are set up for the group ([`Quorums`]; majorities unless said otherwise) and are
//! what the level `Quorum` means; each request may ask for another one.
//!
//! | write level | acknowledged means | survives | lost when |
//! |---|---|---|---|
//! | `Memory`, `Received(k)` | in the memory of the node that was asked, of k owners | no crash | these crash; a session that has seen it is told |
//! | `LeaderDisk`, `One` | on one disk, most often that of the node that was asked | power loss | this disk is lost before another owner has it |
//! | `Durable(k)`, `Two`, `Three` | on k disks | k - 1 of them | k disks are lost |
//! | `LocalQuorum` | on the disks of a majority in the region of the node that was asked | power loss | these disks are lost |
//! | `Quorum` | applied by W owners, on D disks | D - 1 disks: with majorities, any minority | D disks are lost |
//! | `Applied(k)` | the same, and applied by k, on k disks | the same | the same |
//! | `EachQuorum`, `All` | on the disks of a majority in every region, of all owners | any minority of disks | never |
//!
//! | read level | sees |
//! |---|---|
//! | `Quorum` | with R + W > N every `Quorum` write that was acknowledged before it began, or what replaced it; with blocking repair and 2R > N it never goes back |
//! | `Replicas(k)`, `Two`, `Three`, `All`, `LocalQuorum`, `EachQuorum` | the same, if so many owners meet the write's |
//! | `Session(token)` | at least what the session has read and written, at any node |
//! | `BoundedStale(d)` | everything acknowledged anywhere up to `d` ago, by proof, or it is refused |
//! | `Local`, `One`, `LocalOne` | what this node has applied; how old that is, it says when it knows |
//! | `Linearizable` | refused: a quorum read is regular, which is less |
//!
//! A page of keys is read at the same levels: of each of its keys it promises what a read of that key alone does, and nothing
//! of several together. Of a key in conflict it shows the newest value. It may hold fewer keys than were asked for, or none, and go on.
//!
//! A [`Keyspace`] may also be of the kind [`Kind::Cas`]: its keys are compared and set by consensus of a majority on each key
//! alone, and all requests for them are linearizable, at every level. See [`cas`].
//!
//! An answer says whether it is `strict`: whether so many owners took part that the quorums of the group meet. Acknowledged is
//! not the same as kept: of writes that have not seen each other the policy of their [`Keyspace`] decides which is shown. Every
//! acknowledged write is live, or replaced by a write that had seen it, or in the audit log; or counted as dropped from there.
//! Where the last write wins, and W + W > N, a write that begins after another one was acknowledged wins over it whatever the
//! clocks say: an owner that holds a newer one does not count, and has the write stamped anew ([`NotLast`]).
//!
//! [Fallback nodes](Fallback) outside the group keep what owners miss that cannot be reached, and count in their place if they are
//! [told to](Counting): for `Quorum` and `Any`, and what they helped with is never called strict.
//!
//! # Owners that change
//!
//! The owners are those of the newest epoch that an [`EpochSource`](replikit_core::EpochSource) tells of; by default there is
//! only one. Between two epochs every request needs a quorum of the owners of both, until those of the newer one have all that
//! was acknowledged before; replicas answer only requests that are counted in the same epochs, and who is behind takes over
//! the newer ones from who refuses it. All that the tables say holds across that. An owner that leaves hands over what only it
//! has; one that was evicted while it was away comes back with an empty state, and makes those of its writes again that no
//! quorum had.
//!
//! # Damage that no log tells of
//!
//! Owners that have applied the same writes must hold the same. Whether they do, a [scrub](ScrubStats) looks every
//! [`Timing::scrub`]: a tree of hashes over the records finds what memory, a snapshot or a bug has made of them. Of a record that
//! differs a majority of all owners decides; without one it is told, and left as it is.
//!
//! # What it does not do
//!
//! Linearizable reads and compare-and-set of plain keys (both are refused); pages at several owners of ranges with keys that are
//! compared and set; exactly-once retries of a request (a counter's retry counts twice).
//!
//! # Fault model
//!
//! Crash and recovery; messages may be lost, duplicated, delayed and reordered; no clock is trusted for anything but which of
//! two concurrent writes is the newer one. A node whose log was cut at its end, or whose disk is empty, is counted in no quorum
//! before all others have told it what they know and it has applied that.
//!
//! # The driving loop
//!
//! See [`Replica`](replikit_core::Replica). A group of one, driven by hand:
//!
//! ```
//! use replikit_core::keyspace::{decode_versions, encode_get, encode_write};
//! use replikit_core::*;
//! use replikit_leaderless::{Config, Leaderless};
//!
//! let config = Config::new(ClusterId::from_name("doc"), GroupId(0), NodeId(1), vec![NodeId(1)]);
//! let mut replica = Leaderless::new(config, &Boot::default()).unwrap();
//! // 1. Recovery: an empty disk pushes nothing.
//! replica.handle(Now::default(), Input::Recovered);
//! // 2. Inputs, 3. drain: a disk that is done at once.
//! let mut run = |input| {
//!     replica.handle(Now::default(), input);
//!     let mut done = None;
//!     while let Some(action) = replica.poll() {
//!         match action {
//!             Action::Persist { id, .. } => replica.handle(Now::default(), Input::Durable { up_to: id }),
//!             Action::Done { outcome, .. } => done = Some(outcome),
//!             _ => {}
//!         }
//!     }
//!     done
//! };
//! let body = encode_write(&WriteRequest::put("key", "value")).unwrap();
//! let (token, group, level) = (Token(1), GroupId(0), WriteLevel::Quorum);
//! let written = run(Input::Command { token, group, level, session: None, body });
//! assert!(matches!(written, Some(Outcome::Acked { strict: true, .. })));
//! let (body, level) = (encode_get(b"key").unwrap(), ReadLevel::Owners(Owners::Quorum));
//! let read = run(Input::Query { token, group, level, body, bytes_max: 1 << 20 });
//! let Some(Outcome::Value { values, strict: true, .. }) = read else { panic!("a strict read") };
//! assert_eq!(decode_versions(&values[0]).unwrap().values, ["value"]);
//! ```
//!
//! # Sources
//!
//! Dynamo (DeCandia et al., SOSP 2007); writing back before returning: ABD (Attiya, Bar-Noy, Dolev 1995); dots and stripped
//! contexts: dotted version vectors (Almeida et al. 2014) and DottedDB (Goncalves et al., SRDS 2017); causal stability: Baquero,
//! Almeida, Shoker 2014; hedged requests: Dean and Barroso 2013; session guarantees: Terry et al., PDIS'94; the names of the
//! levels are Cassandra's; trees of hashes that are combined by exclusive or: Riak's active anti-entropy.
#![forbid(unsafe_code)]

pub mod cas;
mod comeback;
mod config;
mod consensus;
mod content;
mod coordinate;
mod epoch;
mod exchange;
mod fallback;
mod guarantees;
mod handoff;
mod hints;
mod latency;
mod levels;
mod member;
mod message;
#[cfg(feature = "runtime")]
mod node;
mod orphan;
mod ownership;
mod participant;
mod reads;
mod record;
mod register;
mod replica;
mod sampling;
mod scan;
mod scrub;
mod snapshot;
mod staleness;
mod state;
mod tree;

pub use config::{
    Config, ConfigError, Counting, Fallbacks, Founding, Keyspace, Keyspaces, Kind, Limits, OWNERS_MAX, Quorums,
    ReadRepair, Size, Timing,
};
pub use content::KeyCopy;
pub use fallback::Fallback;
pub use guarantees::{guarantees, guarantees_of, guarantees_of_cas, guarantees_with_reads};
pub use message::{
    Answer, CasGiven, CasWanted, Fetch, Fetched, Head, Hint, Moving, NotLast, Piece, PieceWanted, Push, Repair, Report,
    Stored,
};
#[cfg(feature = "runtime")]
pub use node::{Cluster, Node, Settings, SharedEpochs};
pub use ownership::Ownership;
pub use participant::Participant;
pub use record::{LoggedWrite, Merges};
pub use replica::{Figures, Leaderless};
#[cfg(feature = "runtime")]
pub use replikit_liveness::Settings as Detection;
#[cfg(feature = "runtime")]
pub use replikit_runtime::{KvHandle, NodeConfig, OpenError};
pub use sampling::Measured;
pub use scan::{FetchPage, FetchedPage, PageWanted, RepairPage};
pub use scrub::{Scrub, ScrubStats, Scrubbed};
pub use staleness::{Delays, Prediction, within_versions};
