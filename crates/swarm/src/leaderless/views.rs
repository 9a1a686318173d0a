//! Which epochs the replicas of a group count in, and that what can be decided in some of them cannot be decided past others.

use std::collections::{BTreeMap, BTreeSet};

use replikit_core::{Epoch, Membership, NodeId};
use replikit_leaderless::Leaderless;

use super::subject::Promises;
use crate::multi::census::Census;
use crate::probe::{Probe, Probes};

/// What one replica counts in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    name: Epoch,
    /// The members of each epoch in force.
    sets: BTreeMap<Epoch, BTreeSet<NodeId>>,
}

/// What all of them count in.
#[derive(Debug, Default)]
pub(crate) struct Views {
    of: BTreeMap<NodeId, View>,
}

impl Views {
    /// A replica has run: it never leaves an epoch but for a later one that it counted in, and no two sets of epochs in which
    /// quorums can be had at this moment are without a common one.
    pub(crate) fn check(
        &mut self,
        node: NodeId,
        replica: &Leaderless,
        promises: &Promises,
        census: &Census,
        probes: &mut Probes,
    ) -> Result<(), String> {
        if !census.changes() || self.of.get(&node).is_some_and(|known| known.name == replica.view()) {
            return Ok(());
        }
        let ownership = replica.ownership();
        let members = |membership: &Membership| (membership.epoch, membership.ids().collect());
        let in_force = ownership.settled.iter().chain(&ownership.joint);
        let view = View { name: replica.view(), sets: in_force.map(members).collect() };
        if view.sets.is_empty() {
            // It had not written down yet what it was founded with: it counts nowhere until it hears of that again.
            return Ok(());
        }
        if view.sets.len() > 1 {
            probes.hit(Probe::EpochsJoint);
        }
        if let Some(before) = self.of.insert(node, view.clone()) {
            let newest = |view: &View| view.sets.keys().next_back().copied();
            let first = |view: &View| view.sets.keys().next().copied();
            if newest(&view) < newest(&before) || first(&view) < first(&before) {
                return Err(format!("epochs_overlap: node {node} goes back from {before:?} to {view:?}"));
            }
            if first(&view) > first(&before) {
                probes.hit(Probe::EpochSettled);
            }
        }
        let names: BTreeMap<Epoch, &View> = self.of.values().map(|view| (view.name, view)).collect();
        let able = |view: &&View| {
            !view.sets.is_empty()
                && view.sets.values().all(|set| {
                    let inside = set.iter().filter(|node| self.of.get(node).is_some_and(|it| it.name == view.name));
                    let least = promises.of(set.len() as u8);
                    inside.count() >= usize::from(least.read.min(least.write))
                })
        };
        let able: Vec<&View> = names.into_values().filter(able).collect();
        for (nth, one) in able.iter().enumerate() {
            for other in &able[nth + 1..] {
                if !one.sets.keys().any(|epoch| other.sets.contains_key(epoch)) {
                    return Err(format!(
                        "epochs_overlap: quorums can be had in {one:?} and in {other:?}: {:?}",
                        self.of
                    ));
                }
            }
        }
        Ok(())
    }
}
