//! Mergeable values as bytes: what a key-value store keeps without knowing the type.
//!
//! Invariant: joining encoded values is joining the values; bytes that are none are refused, never half joined.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{AddWinsSet, Causal, CausalError, Counter, DotStore, EnableWinsFlag, LwwRegister, Map, MvRegister};
use crate::VersionVector;

/// The type of a keyspace's values. A value is the postcard encoding of [`Causal`] of the type, with its whole context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CrdtKind {
    /// [`Counter`].
    Counter,
    /// [`LwwRegister`] of bytes.
    Lww,
    /// [`MvRegister`] of bytes.
    MultiValue,
    /// [`AddWinsSet`] of bytes.
    Set,
    /// [`EnableWinsFlag`].
    Flag,
    /// [`Map`].
    Map,
}

impl CrdtKind {
    /// Joins two encoded states or deltas.
    ///
    /// # Errors
    /// [`CausalError`]: one of them is no value of this type.
    pub fn join(self, left: &[u8], right: &[u8]) -> Result<Bytes, CausalError> {
        match self {
            Self::Counter => join::<Counter>(left, right),
            Self::Lww => join::<LwwRegister<Bytes>>(left, right),
            Self::MultiValue => join::<MvRegister<Bytes>>(left, right),
            Self::Set => join::<AddWinsSet<Bytes>>(left, right),
            Self::Flag => join::<EnableWinsFlag>(left, right),
            Self::Map => join::<Map>(left, right),
        }
    }

    /// Checks that bytes are a value of this type.
    ///
    /// # Errors
    /// [`CausalError`].
    pub fn check(self, value: &[u8]) -> Result<(), CausalError> {
        match self {
            Self::Counter => decode::<Counter>(value).map(drop),
            Self::Lww => decode::<LwwRegister<Bytes>>(value).map(drop),
            Self::MultiValue => decode::<MvRegister<Bytes>>(value).map(drop),
            Self::Set => decode::<AddWinsSet<Bytes>>(value).map(drop),
            Self::Flag => decode::<EnableWinsFlag>(value).map(drop),
            Self::Map => decode::<Map>(value).map(drop),
        }
    }
}

impl<S: DotStore + Serialize> Causal<S> {
    /// The value as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a value always encodes into memory").into()
    }
}

impl<S: DotStore + DeserializeOwned> Causal<S> {
    /// The inverse of [`Causal::to_bytes`], for a value that carries its whole context.
    ///
    /// # Errors
    /// [`CausalError`]: the bytes come from a peer or a client and may be anything.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CausalError> {
        decode(bytes)
    }
}

fn decode<S: DotStore + DeserializeOwned>(bytes: &[u8]) -> Result<Causal<S>, CausalError> {
    let Ok((value, [])) = postcard::take_from_bytes::<Causal<S>>(bytes) else { return Err(CausalError::Malformed) };
    value.verify(&VersionVector::new())?;
    Ok(value)
}

fn join<S: DotStore + Serialize + DeserializeOwned>(left: &[u8], right: &[u8]) -> Result<Bytes, CausalError> {
    let mut joined = decode::<S>(left)?;
    joined.join(&decode(right)?);
    Ok(joined.to_bytes())
}
