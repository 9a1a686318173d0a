//! A replicated key-value store in one process, through the `Store` trait that every strategy implements.
//!
//! `cargo run --example key_value`

use replikit_core::keyspace::Keyspace;
use replikit_core::{ReadRequest, Store, WriteEffect, WriteRequest};
use replikit_single_leader::{Cluster, KvHandle};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::open(3, Keyspace::new)?;
    let store = KvHandle::new(cluster.handle());
    store.write(WriteRequest::put("greeting", "hello")).await?;

    // Compare-and-set tells what it found.
    let swap = WriteRequest::compare_and_set("greeting", Some("hi".into()), Some("bye".into()));
    let Some(WriteEffect::Mismatch { found }) = store.write(swap).await?.effect else {
        return Err("the value was not the expected one, and yet it was set".into());
    };
    println!("expected hi, found {found:?}");

    let leader = cluster.leader().await.ok_or("the cluster has ended")?;
    cluster.stop(leader).await;
    let read = store.read(ReadRequest::new("greeting")).await?;
    println!("without node {leader}, the leader: {:?}", read.values);
    Ok(())
}
