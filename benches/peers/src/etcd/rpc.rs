//! The few calls of etcd's gRPC interface that a contest needs, with the fields of their messages that it reads or writes.
//!
//! The messages are declared here by their numbers, as in the published `rpc.proto` and `kv.proto` of etcd's version 3 interface,
//! so that no compiler of such files has to be installed.

use bytes::Bytes;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// What every answer begins with.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResponseHeader {
    /// The node that answers.
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
}

/// Asks for a key to be set.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PutRequest {
    /// Which.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// To what.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// It is set.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PutResponse {
    /// Who says so.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
}

/// Asks for a key, linearizably.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RangeRequest {
    /// Which.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Its value.
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// What was asked for, as far as it is there.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RangeResponse {
    /// The keys.
    #[prost(message, repeated, tag = "2")]
    pub kvs: Vec<KeyValue>,
}

/// Asks a node how it is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusRequest {}

/// How a node is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatusResponse {
    /// Who says so.
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Who leads; 0 where nobody does.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
}

/// A connection to one node. Errors are in words: the server's, or those of the connection.
pub struct Connection(Channel);

impl Connection {
    /// Connects to a node on this machine.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(port: u16) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map_err(|error| error.to_string())?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| format!("port {port}: {error}"))?;
        Ok(Self(channel))
    }

    /// Calls the method at this path.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal.
    pub async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, String>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.0.clone());
        client.ready().await.map_err(|error| error.to_string())?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = client.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
    }

    /// Whether this node leads.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn leads(&self) -> Result<bool, String> {
        let status: StatusResponse = self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok(status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_fields_that_etcd_numbers_so() {
        let put = PutRequest { key: "k".into(), value: "v".into() };
        assert_eq!(put.encode_to_vec(), [0x0a, 1, b'k', 0x12, 1, b'v']);
        assert_eq!(RangeRequest { key: "k".into() }.encode_to_vec(), [0x0a, 1, b'k']);
    }

    #[test]
    fn answers_are_read_past_the_fields_that_nobody_asked_for() {
        // header { cluster_id 1, member_id 7, revision 2 }, kvs { key, create_revision 2, value }, count 1.
        let range = [
            0x0a, 6, 0x08, 1, 0x10, 7, 0x18, 2, //
            0x12, 8, 0x0a, 1, b'k', 0x10, 2, 0x2a, 1, b'v', //
            0x20, 1,
        ];
        let found = RangeResponse::decode(&range[..]).expect("it is well-formed");
        assert_eq!(found.kvs, [KeyValue { key: "k".into(), value: "v".into() }]);
        // header { member_id 7 }, version "3", leader 7.
        let status = [0x0a, 2, 0x10, 7, 0x12, 1, b'3', 0x20, 7];
        let status = StatusResponse::decode(&status[..]).expect("it is well-formed");
        assert_eq!((status.header.map(|header| header.member_id), status.leader), (Some(7), 7));
    }
}
