//! The encoding of a map: its parts, checked again whenever they are read. What is computed from them is not written.

use std::collections::BTreeMap;
use std::sync::Arc;

use replikit_core::Epoch;
use serde::de::Error as _;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Handoff, Partition, PartitionMap};
use crate::id::PartitionId;
use crate::partitioner::Scheme;

/// The parts in the order in which they are written.
#[derive(Deserialize)]
#[serde(rename = "PartitionMap")]
struct Parts {
    epoch: Epoch,
    scheme: Scheme,
    next_id: PartitionId,
    partitions: Vec<Partition>,
    handoffs: Vec<Handoff>,
}

struct Each<I>(I);

impl<T: Serialize, I: ExactSizeIterator<Item = T> + Clone> Serialize for Each<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone())
    }
}

impl Serialize for PartitionMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut parts = serializer.serialize_struct("PartitionMap", 5)?;
        parts.serialize_field("epoch", &self.epoch)?;
        parts.serialize_field("scheme", &self.scheme)?;
        parts.serialize_field("next_id", &self.next_id)?;
        parts.serialize_field("partitions", &Each(self.partitions.iter().map(|partition| &**partition)))?;
        parts.serialize_field("handoffs", &Each(self.handoffs.values()))?;
        parts.end()
    }
}

impl<'de> Deserialize<'de> for PartitionMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = Parts::deserialize(deserializer)?;
        let partitions = parts.partitions.into_iter().map(Arc::new).collect();
        let handoffs: BTreeMap<_, _> = parts.handoffs.into_iter().map(|handoff| (handoff.id, handoff)).collect();
        Self::build(parts.epoch, parts.scheme, parts.next_id, partitions, handoffs).map_err(D::Error::custom)
    }
}
