//! Three nodes over TCP with fsynced logs on disk, in one process for the example's sake.
//!
//! `cargo run --example tcp`

use replikit_core::keyspace::Keyspace;
use replikit_core::{NodeId, ReadRequest, Store, WriteRequest};
use replikit_single_leader::{KvHandle, Node, NodeConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("replikit-tcp-{}", std::process::id()));
    let address = |id: u32| (NodeId(id), format!("127.0.0.1:{}", 7170 + id));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let (node, listen) = address(id);
        let config = NodeConfig::new(node, "example", listen).peers((1..=3).map(address)).dir(dir.join(id.to_string()));
        nodes.push(Node::open(config, Keyspace::new())?);
    }

    // Any handle will do for writes that find the leader: ask the one on the leader's node.
    let leader = nodes[0].handle().leader().await.ok_or("the node has stopped")?;
    let store = KvHandle::new(nodes[leader.0 as usize - 1].handle());
    let written = store.write(WriteRequest::put("k", "v")).await?;
    println!("node {leader} leads; written at {}, on {} disks", written.at.id, written.reached.durable);
    println!("read back: {:?}", store.read(ReadRequest::new("k")).await?.values);

    drop(nodes);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
