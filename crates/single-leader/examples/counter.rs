//! Three replicas of your own state machine survive the loss of their leader.
//!
//! `cargo run --example counter`

use replikit_core::Small;
use replikit_single_leader::Cluster;

/// A counter: a command adds its bytes as a number, a query asks for the sum.
fn counter() -> impl replikit_core::StateMachine {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok());
    Small::new(
        0_u64,
        move |sum, command: &[u8]| {
            *sum += number(command).unwrap_or(0);
            sum.to_string().into_bytes()
        },
        |sum, _| sum.to_string().into_bytes(),
    )
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = Cluster::open(3, counter)?;
    let handle = cluster.handle();
    println!("after adding 20: {:?}", handle.write("20").await?.reply);

    let leader = cluster.leader().await.ok_or("the cluster has ended")?;
    cluster.stop(leader).await;
    println!("node {leader}, the leader, is gone");

    println!("after adding 22: {:?}", handle.write("22").await?.reply);
    println!("read back:       {:?}", handle.query("").await?.value);
    Ok(())
}
