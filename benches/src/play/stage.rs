//! A play from its beginning to its end on an engine of its own: started, loaded, played, settled, judged, ended.

use std::path::Path;
use std::rc::Rc;

use replikit_core::Guarantees;

use super::{Judged, Play, Played};
use crate::engine::{Engine, EngineKind};
use crate::error::BenchError;
use crate::ledger::Ledger;
use crate::network::Network;

/// What was found.
#[derive(Debug)]
pub struct Staged {
    /// What the engine promises at the play's levels.
    pub guarantees: Guarantees,
    /// What its clients found.
    pub played: Played,
    /// What was found afterwards.
    pub judged: Judged,
}

/// Plays it over this network, part of which may be away for a while, with the engine's data below `folder`. Must run on a
/// current-thread runtime.
///
/// # Errors
/// When the engine does not start, does not settle, or cannot be read back.
pub async fn stage(kind: EngineKind, play: &Play, network: &Network, folder: &Path) -> Result<Staged, BenchError> {
    let mut engine: Box<dyn Engine> = kind.start_over(folder, Some(network)).await?;
    let ledger = Rc::new(Ledger::new(play.trace.keys(), play.trace.value_bytes_max() as usize));
    let homes = engine.homes();
    let mut history = Default::default();
    super::load(play, &ledger, &homes[0], &mut history).await?;
    engine.settle().await?;
    // What was overwritten before is not this play's.
    engine.audited().await?;
    let (played, ()) = super::play(play.clone(), ledger.clone(), homes, history, async |_| {
        let Some(offline) = network.offline else { return Ok::<(), BenchError>(()) };
        let Some(proxy) = engine.nodes().and_then(|nodes| nodes.proxy()) else { return Ok(()) };
        let away = network.of_region(offline.region);
        let others: Vec<_> = network.ids().filter(|node| !away.contains(node)).collect();
        let links =
            || away.iter().flat_map(|one| others.iter().flat_map(move |other| [(*one, *other), (*other, *one)]));
        tokio::time::sleep(offline.from).await;
        links().for_each(|(from, to)| proxy.cut(from, to));
        tokio::time::sleep(offline.lasts).await;
        links().for_each(|(from, to)| proxy.mend(from, to));
        Ok(())
    })
    .await?;
    engine.check()?;
    engine.wait_ready().await?;
    engine.settle().await?;
    let audited = engine.audited().await?;
    let store = engine.target(play.write_level, play.reads).leader[0].clone();
    let judged = super::judge(play, &played, &ledger, &*store, engine.scan_level(), audited).await?;
    let guarantees = engine.guarantees(play.write_level);
    engine.stop().await?;
    Ok(Staged { guarantees, played, judged })
}
