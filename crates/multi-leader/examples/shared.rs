//! A shared counter and a shared set: every node writes at the same time, and nothing is lost or counted twice.
//!
//! `cargo run --example shared`

use replikit_core::crdt::{CrdtKind, CrdtOp};
use replikit_core::policy::ConflictPolicy;
use replikit_core::{NodeId, ReadLevel, ReadRequest, Store, WriteLevel, WriteRequest};
use replikit_multi_leader::{Cluster, Keyspace, Keyspaces, KvHandle, Settings};

/// Acknowledged once all three nodes show it.
const ALL: WriteLevel = WriteLevel::Applied(3);

async fn visitor(store: KvHandle, name: &'static str) -> Result<(), replikit_core::WriteError> {
    for _ in 0..100 {
        store.write(WriteRequest::add("count/visits", 1).at(ALL)).await?;
    }
    let insert = CrdtOp::Insert { element: name.into() };
    store.write(WriteRequest::crdt("set/guests", insert).at(ALL)).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let merging = |kind| Keyspace::new(ConflictPolicy::Crdt(kind));
    let keyspaces =
        Keyspaces::default().with("count/", merging(CrdtKind::Counter)).with("set/", merging(CrdtKind::Set));
    let cluster = Cluster::open(3, Settings::new(keyspaces))?;
    let at = |node| cluster.handle_at(NodeId(node));
    tokio::try_join!(visitor(at(1), "Ada"), visitor(at(2), "Grace"), visitor(at(3), "Barbara"))?;

    // Node 3 has not seen that Ada is removed when it adds her again: the addition wins.
    let (remove, insert) = (CrdtOp::Remove { element: "Ada".into() }, CrdtOp::Insert { element: "Ada".into() });
    let (one, three) = (at(1), at(3));
    tokio::try_join!(
        one.write(WriteRequest::crdt("set/guests", remove).at(ALL)),
        three.write(WriteRequest::crdt("set/guests", insert).at(ALL)),
    )?;
    for node in 1..=3 {
        let visits = at(node).read(ReadRequest::new("count/visits").at(ReadLevel::Local)).await?;
        let guests = at(node).read(ReadRequest::new("set/guests").at(ReadLevel::Local)).await?;
        println!("node {node}: {:?} visits, guests {:?}", visits.values, guests.values);
        if visits.values != ["300"] || guests.values.len() != 3 {
            return Err("a write was lost".into());
        }
    }
    Ok(())
}
