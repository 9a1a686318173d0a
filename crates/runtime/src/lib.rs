//! Drives any replikit replica on real machines: TCP, timers, a log thread, and the ways in for clients.
//!
//! | what | type |
//! |---|---|
//! | a node: one replica (or a container of many), its log, listener and links | [`Node`] |
//! | n replicas in one loop, in memory | [`LocalCluster`] |
//! | the way in from the same process | [`Handle`], [`KvHandle`] |
//! | the way in over TCP: finds the leader, retries once-only, pipelines | [`Client`], [`KvClient`] |
//!
//! # What it guarantees
//!
//! Every request ends: acknowledged, answered, rejected, or indeterminate. A write that the client may have delivered is sent
//! again only under its session and sequence number, so it takes effect once. Storage actions reach the log in order, and
//! nothing that depends on their durability is sent before the log has confirmed it (the replica sees to that: see
//! [`Replica`](replikit_core::Replica)). Whatever a socket brings that breaks the format or a limit closes that socket, is
//! counted, and touches nothing else. Every queue has a limit with a name: [`Limits`], [`ClientConfig`].
//!
//! # What it does not do
//!
//! It knows no strategy and changes no data. No TLS and no authentication yet: whoever reaches the port may speak, so listen
//! on loopback or a network that is trusted.
//!
//! # Fault model
//!
//! The network may lose, delay and cut; peers and clients may send anything. A disk may stall, which the replica is told, or
//! fail, after which nothing more is confirmed. Clocks are read, never trusted: the wall clock serves hybrid timestamps only.
//!
//! # The driving loop
//!
//! One thread holds the sockets and the loop, so that a message goes from socket to protocol without a hand-over; the log has
//! threads of its own, because it waits for the disk. A round:
//!
//! 1. Every socket that is ready is read once; requests, messages, calls of handles and answers of the log gather in the
//!    inbox. What gathers while a round runs is the next round's batch: batching comes from load, there is no timer but the
//!    replica's deadline, and a lone request waits for nothing.
//! 2. The clocks are read, after the inputs were received.
//! 3. The replica handles all inputs, and is polled until it wants nothing more done.
//! 4. One write for each peer, then one group for the log (so that the peers' disks work while this one does), then one write
//!    for each client, and the waiters in this process are woken. A round without entries for a disk answers first.
//!
//! # A node and a client
//!
//! ```no_run
//! use replikit_core::keyspace::Keyspace;
//! use replikit_core::{NodeId, Replica, Store, WriteRequest};
//! use replikit_runtime::{Boots, Client, ClientConfig, KvClient, Node, NodeConfig};
//!
//! // `replica` comes from a strategy crate, which has a shorter way to say all this.
//! async fn run<R: Replica + 'static>(replica: fn(&Boots) -> R) -> Result<(), Box<dyn std::error::Error>> {
//!     let config = NodeConfig::new(NodeId(1), "demo", "127.0.0.1:7001")
//!         .peers([(NodeId(2), "127.0.0.1:7002".to_owned()), (NodeId(3), "127.0.0.1:7003".to_owned())])
//!         .dir("/var/lib/demo/1");
//!     let node: Node<Keyspace> = Node::open(config, move |boots| Ok(replica(boots)))?;
//!
//!     let client = Client::connect(ClientConfig::new("demo", ["127.0.0.1:7001", "127.0.0.1:7002"])).await?;
//!     KvClient::new(client).write(WriteRequest::put("key", "value")).await?;
//!     node.shutdown();
//!     Ok(())
//! }
//! ```
//!
//! # Sources
//!
//! Group commit: DeWitt et al., SIGMOD'84, section 5.2. Batching without timers: Friedman and Hadad, "Adaptive Batching for
//! Replicated Servers", SRDS'06. Exactly-once sessions: Ongaro's thesis, section 6.3.
#![forbid(unsafe_code)]

mod call;
mod changes;
mod client;
mod clock;
mod config;
mod counters;
mod driver;
mod error;
mod feed;
mod gateway;
mod handle;
mod kv;
mod link;
mod local;
mod log_thread;
mod net;
mod node;
mod requests;
mod server;
mod slot;
mod socket;
mod storage;
mod wire;

pub use call::{Acked, Answer};
pub use client::{Client, ClientConfig, ClientTarget, ReadTarget, Retries};
pub use config::{
    ANSWER_BYTES_MAX, DEFAULT_GROUP, EventHook, LOG_RETAINED_BYTES, Limits, NodeConfig, Promise, ReadOptions,
    SUBSCRIPTION_BYTES, Timing, WriteOptions,
};
pub use counters::{NodeCounters, NodeStatus};
pub use error::{ConnectError, OpenError};
pub use gateway::{Gateway, GatewayAt, GatewayCall};
pub use handle::Handle;
pub use kv::{Kv, KvClient, KvHandle};
pub use local::{LocalCluster, LocalConfig};
pub use node::Node;
pub use replikit_log::Boots;
pub use wire::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, greets_as_client};
