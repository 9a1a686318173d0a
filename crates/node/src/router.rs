//! `replikit router`: the routing tier of a partitioned cluster, a process without data.

use replikit_partitioning::Replication;
use replikit_partitioning::store::{Router, StoreClientConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::node::refuse_beyond_loopback;
use crate::{CommandResult, args, say};

pub(crate) fn run(args: args::Router) -> CommandResult {
    if !args.insecure {
        refuse_beyond_loopback(&args.listen)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let replication = match (args.leaderless, args.multi_leader) {
        (true, _) => Replication::Leaderless,
        (_, true) => Replication::MultiLeader,
        _ => Replication::SingleLeader,
    };
    let router = Router::open(&args.listen, StoreClientConfig::new(args.cluster.clone(), args.peers), replication)?;
    say(format_args!("router of {}: listening on {}", args.cluster, router.local_address()));
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    router.shutdown();
    say("the router has stopped");
    Ok(())
}
