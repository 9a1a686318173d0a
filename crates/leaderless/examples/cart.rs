//! A shopping cart that takes additions at any node, also with one of three down: carts that have not seen each other stand side
//! by side until a client merges them, and nothing that was put in is lost.
//!
//! `cargo run --example cart`

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{NodeId, Owners, ReadLevel, ReadRequest, Store, WriteRequest};
use replikit_leaderless::{Cluster, Keyspace, Keyspaces, KvHandle, Settings};

const CART: &str = "cart/ada";
const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);

type Failure = Box<dyn std::error::Error>;

/// All that is in any of these carts: items, one on a line.
fn merge(carts: &[Bytes]) -> BTreeSet<String> {
    let items = carts.iter().flat_map(|cart| cart.split(|byte| *byte == b'\n'));
    items.filter(|item| !item.is_empty()).map(|item| String::from_utf8_lossy(item).into_owned()).collect()
}

/// Writes a cart with one more item over what this client saw of it: `seen` is the answer of an earlier read.
async fn add(store: &KvHandle, seen: replikit_core::ReadResult, item: &str) -> Result<(), Failure> {
    let mut items = merge(&seen.values);
    items.insert(item.to_owned());
    let cart = items.into_iter().collect::<Vec<_>>().join("\n");
    let context = seen.context.ok_or("a read of a leaderless group has a context")?;
    store.write(WriteRequest::put(CART, cart).over(context)).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let keyspaces = Keyspaces::default().with("cart/", Keyspace::new(ConflictPolicy::Siblings));
    let cluster = Cluster::open(3, Settings::new(keyspaces))?;
    let [phone, laptop, third] = [1, 2, 3].map(|node| cluster.handle_at(NodeId(node)));
    let look = || ReadRequest::new(CART).at(QUORUM);

    add(&phone, phone.read(look()).await?, "tea").await?;
    cluster.stop(NodeId(3)).await;
    println!("node 3 is down; two owners of three are a quorum");

    // Both devices look at the same cart, and then both add to it.
    let (on_phone, on_laptop) = (phone.read(look()).await?, laptop.read(look()).await?);
    add(&phone, on_phone, "milk").await?;
    add(&laptop, on_laptop, "bread").await?;
    let both = phone.read(look()).await?;
    println!("two carts that have not seen each other: {:?}", both.values);
    if both.values.len() != 2 {
        return Err("one of the carts was lost".into());
    }

    cluster.start(NodeId(3)).await;
    // Its own copy, without asking the others: it gets from their logs what it has missed.
    let mut own = third.read(ReadRequest::new(CART).at(ReadLevel::Local)).await?;
    while own.values.len() != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        own = third.read(ReadRequest::new(CART).at(ReadLevel::Local)).await?;
    }
    println!("node 3 is back and has both: {:?}", own.values);

    add(&third, own, "honey").await?;
    let cart = laptop.read(look()).await?;
    println!("merged by the next write: {:?}", cart.values);
    if cart.values.len() != 1
        || merge(&cart.values) != BTreeSet::from(["tea", "milk", "bread", "honey"].map(String::from))
    {
        return Err("something was lost".into());
    }
    Ok(())
}
