//! Three regions and a laptop: the laptop goes offline, edits, and comes back; conflicts are shown and resolved.
//!
//! `cargo run --example regions`

use std::path::Path;
use std::time::Duration;

use replikit_core::policy::ConflictPolicy;
use replikit_core::{NodeId, ReadLevel, ReadRequest, ReadResult, Store, WriteLevel, WriteRequest};
use replikit_multi_leader::{Founding, Keyspace, Keyspaces, KvHandle, Node, NodeConfig, Settings};

const NAMES: [&str; 4] = ["Frankfurt", "Virginia", "Tokyo", "the laptop"];
const LAPTOP: usize = 3;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Opens a node; offline, it listens and dials where nobody is.
fn open(at: usize, first_port: u16, dir: &Path, online: bool) -> Outcome<Node> {
    let address =
        |at: usize| (NodeId(at as u32 + 1), format!("127.0.0.1:{}", if online { first_port + at as u16 } else { 1 }));
    let listen = if online { address(at).1 } else { "127.0.0.1:0".to_owned() };
    let peers = (0..NAMES.len()).filter(|peer| *peer != at).map(address);
    let config = NodeConfig::new(NodeId(at as u32 + 1), "regions", listen).peers(peers).dir(dir.join(at.to_string()));
    let notes = Keyspaces::default().with("note/", Keyspace::new(ConflictPolicy::Siblings));
    // Its first start: none of these nodes has ever been a member of anything.
    let founding = if dir.join(at.to_string()).exists() { Founding::Ask } else { Founding::New };
    Ok(Node::open(config, Settings { founding, ..Settings::new(notes) })?)
}

async fn put(store: &KvHandle, who: usize, key: &'static str, value: &'static str) -> Outcome<()> {
    store.write(WriteRequest::put(key, value).at(WriteLevel::LeaderDisk)).await?;
    println!("{} writes {key} = {value}", NAMES[who]);
    Ok(())
}

/// Waits until a node shows so many values for a key.
async fn shown(store: &KvHandle, key: &'static str, count: usize, newest: &str) -> Outcome<ReadResult> {
    loop {
        let found = store.read(ReadRequest::new(key).at(ReadLevel::Local)).await?;
        if found.values.len() == count && found.values.iter().any(|value| *value == newest) {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("replikit-regions-{}", std::process::id()));
    let port = 20_000 + (std::process::id() % 1_000) as u16 * 8;
    let mut nodes = (0..NAMES.len()).map(|at| open(at, port, &dir, true)).collect::<Outcome<Vec<Node>>>()?;

    put(&nodes[0].handle(), 0, "note/plan", "meet on Monday").await?;
    shown(&nodes[LAPTOP].handle(), "note/plan", 1, "meet on Monday").await?;
    println!("all have it; the laptop leaves the network\n");
    drop(nodes.remove(LAPTOP));

    let offline = open(LAPTOP, port, &dir, false)?;
    put(&offline.handle(), LAPTOP, "note/plan", "meet on Tuesday").await?;
    put(&offline.handle(), LAPTOP, "note/idea", "written on a train").await?;
    put(&offline.handle(), LAPTOP, "title", "Draft of the laptop").await?;
    offline.shutdown();
    put(&nodes[2].handle(), 2, "note/plan", "meet on Wednesday").await?;
    put(&nodes[1].handle(), 1, "title", "Draft of Virginia").await?;

    println!("\nthe laptop comes back");
    nodes.push(open(LAPTOP, port, &dir, true)?);
    shown(&nodes[0].handle(), "note/idea", 1, "written on a train").await?;
    let plan = shown(&nodes[0].handle(), "note/plan", 2, "meet on Tuesday").await?;
    println!("Frankfurt sees both plans: {:?}", plan.values);
    let context = plan.context.ok_or("versions come with a context")?;
    let agreed = WriteRequest::put("note/plan", "meet on Tuesday, call on Wednesday").over(context);
    nodes[0].handle().write(agreed.at(WriteLevel::Applied(4))).await?;
    for (node, name) in nodes.iter().zip(NAMES) {
        let plan = shown(&node.handle(), "note/plan", 1, "meet on Tuesday, call on Wednesday").await?;
        println!("  {name}: {:?}", plan.values);
    }

    // The default for other keys: one of the two wins, at all nodes the same, and the other one is kept in the audit log.
    let tokyo = nodes[2].handle();
    let title = tokyo.read(ReadRequest::new("title").at(ReadLevel::Local)).await?;
    println!("title is {:?}; the audit log of Tokyo keeps:", title.values);
    for lost in tokyo.conflicts(0, 10).await?.conflicts {
        println!("  {:?}, which lost to a write that had not seen it", lost.overwritten.version.value);
    }
    drop(nodes);
    Ok(std::fs::remove_dir_all(&dir)?)
}
