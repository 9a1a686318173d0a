//! Gateways: requests for no group of the node, answered by whoever knows where they belong; clients of several groups.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use replikit_core::{GroupId, NodeId, Outcome, ReadRequest, Rejection, Store, WriteRequest};
use replikit_runtime::{
    Acked, Client, ClientConfig, DEFAULT_GROUP, Gateway, GatewayAt, GatewayCall, KvClient, WriteOptions,
};

use crate::{bounded, config, free_addresses, linked, open};

const FRONT: GroupId = GroupId(77);

/// Hands everything on to the cluster's own group, over a client that lives on the node's thread.
struct Forwarding {
    addresses: Vec<String>,
    client: tokio::sync::OnceCell<Client>,
    calls: OnceLock<()>,
}

#[async_trait]
impl Gateway for Forwarding {
    async fn call(&self, group: GroupId, call: GatewayCall) -> Outcome {
        assert_eq!(group, FRONT);
        self.calls.get_or_init(|| ());
        let connect = || Client::connect(ClientConfig::new("test", self.addresses.clone()));
        let client = self.client.get_or_init(async || connect().await.unwrap()).await;
        match call {
            GatewayCall::Command { level, session, body } => {
                match client.write_with(body, WriteOptions { level, session }).await {
                    Ok(Acked { at, reached, strict, reply }) => Outcome::Acked { at, reached, strict, reply },
                    Err(_) => Outcome::Rejected(Rejection::NoQuorum),
                }
            }
            GatewayCall::Query { body, .. } => match client.query(body).await {
                Ok(answer) => {
                    Outcome::Value { values: vec![answer.value], seen: answer.seen, strict: true, staleness: None }
                }
                Err(_) => Outcome::Rejected(Rejection::NoQuorum),
            },
            _ => Outcome::Rejected(Rejection::Unsupported),
        }
    }
}

#[test]
fn requests_for_the_gateways_group_are_answered_by_it_at_any_node() {
    bounded(async {
        let addresses = free_addresses(3);
        let gateways: Vec<Arc<Forwarding>> = addresses
            .iter()
            .map(|_| {
                let addresses = addresses.iter().map(|(_, address)| address.clone()).collect();
                Arc::new(Forwarding { addresses, client: tokio::sync::OnceCell::new(), calls: OnceLock::new() })
            })
            .collect();
        let nodes: Vec<_> = addresses
            .iter()
            .zip(&gateways)
            .map(|((id, _), gateway)| {
                let mut config = config(&addresses, *id);
                config.gateway = Some(GatewayAt { groups: vec![FRONT], gateway: gateway.clone() });
                open(config)
            })
            .collect();
        linked(&nodes).await;
        let third = [addresses[2].1.clone()];
        let mut settings = ClientConfig::new("test", third);
        settings.group = FRONT;
        let client = Client::connect(settings.without_leader()).await.unwrap();
        let front = KvClient::new(client.clone());
        front.write(WriteRequest::put("k", "v")).await.unwrap();
        assert!(gateways[2].calls.get().is_some() && gateways[0].calls.get().is_none());
        // The same connections, another group: what the gateway wrote is there.
        let direct = KvClient::new(client.for_group(DEFAULT_GROUP, [NodeId(1)]));
        assert_eq!(direct.read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
        assert_eq!(front.read(ReadRequest::new("k")).await.unwrap().values, ["v"]);
        // What a gateway does not answer is refused, not left open.
        assert!(client.take_snapshot(NodeId(3)).await.is_err());
    });
}
