//! A shopping cart that takes additions at any node, also with one of three down, and with two: carts that have not seen each
//! other stand side by side until a client merges them, a fourth node keeps what owners miss, and nothing that was put in is lost.
//!
//! `cargo run --example cart`

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use replikit_core::policy::ConflictPolicy;
use replikit_core::{NodeId, Owners, ReadLevel, ReadRequest, Rejection, Store, WriteRequest, Written};
use replikit_leaderless::{Cluster, Counting, Keyspace, Keyspaces, KvHandle, Settings};

const CART: &str = "cart/ada";
const QUORUM: ReadLevel = ReadLevel::Owners(Owners::Quorum);

type Failure = Box<dyn std::error::Error>;

/// All that is in any of these carts: items, one on a line.
fn merge(carts: &[Bytes]) -> BTreeSet<String> {
    let items = carts.iter().flat_map(|cart| cart.split(|byte| *byte == b'\n'));
    items.filter(|item| !item.is_empty()).map(|item| String::from_utf8_lossy(item).into_owned()).collect()
}

/// Writes a cart with one more item over what this client saw of it: `seen` is the answer of an earlier read.
async fn add(store: &KvHandle, seen: replikit_core::ReadResult, item: &str) -> Result<Written, Failure> {
    let mut items = merge(&seen.values);
    items.insert(item.to_owned());
    let cart = items.into_iter().collect::<Vec<_>>().join("\n");
    let context = seen.context.ok_or("a read of a leaderless group has a context")?;
    Ok(store.write(WriteRequest::put(CART, cart).over(context)).await?)
}

/// Waits until a node shows so many carts from its own copy, without asking others.
async fn shows(store: &KvHandle, carts: usize) -> Result<replikit_core::ReadResult, Failure> {
    loop {
        match store.read(ReadRequest::new(CART).at(ReadLevel::Local)).await {
            Ok(own) if own.values.len() == carts => return Ok(own),
            Ok(_) | Err(replikit_core::ReadError::Rejected(Rejection::CatchingUp)) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let keyspaces = Keyspaces::default().with("cart/", Keyspace::new(ConflictPolicy::Siblings));
    // Node 4 owns nothing: it keeps what owners miss, and counts in the place of one that cannot be reached.
    let settings = Settings::new(keyspaces).fallbacks([NodeId(4)], Counting::TowardsQuorums);
    let cluster = Cluster::open(4, settings)?;
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
    // It gets what it has missed from node 4 and from the logs of the others, whoever is first.
    let own = shows(&third, 2).await?;
    println!("node 3 is back and has both: {:?}", own.values);

    add(&third, own, "honey").await?;
    let cart = laptop.read(look()).await?;
    println!("merged by the next write: {:?}", cart.values);
    if cart.values.len() != 1
        || merge(&cart.values) != BTreeSet::from(["tea", "milk", "bread", "honey"].map(String::from))
    {
        return Err("something was lost".into());
    }

    // Two owners of three are gone: there is no quorum of them, and node 4 helps out.
    let seen = phone.read(look()).await?;
    cluster.stop(NodeId(2)).await;
    cluster.stop(NodeId(3)).await;
    let written = add(&phone, seen, "jam").await?;
    println!(
        "jam is on {} disks, and was acknowledged by a quorum of owners: {}",
        written.reached.durable, written.strict
    );
    if written.strict {
        return Err("one owner is no quorum".into());
    }
    // Now its coordinator goes as well, and the others come back: what it wrote, they hear from node 4.
    cluster.stop(NodeId(1)).await;
    cluster.start(NodeId(2)).await;
    cluster.start(NodeId(3)).await;
    let cart = merge(&shows(&third, 1).await?.values);
    let delivered = async {
        while !merge(&shows(&third, 1).await?.values).contains("jam") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(Duration::from_secs(10), delivered).await.map_err(|_| format!("no hint came: {cart:?}"))??;
    println!(
        "node 3 has heard of it, although the only owner that had it is down: {:?}",
        merge(&shows(&third, 1).await?.values)
    );
    Ok(())
}
