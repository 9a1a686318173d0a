//! Values that merge: conflict-free replicated data types with deltas.
//!
//! A [`Causal`] value is a dot store (which dots are live, and what they say) and the context of all dots it has seen. Every
//! mutator is given the dot of its write and returns a *delta*, itself a small causal value: joining the delta, in any order
//! and any number of times, has the effect of the write everywhere. Removing is seeing without keeping.
//!
//! Invariants: joins are commutative, associative and idempotent; replicas that have seen the same dots are equal. A dot goes
//! to one mutation only. What is still to be fetched is decided by the replica's vector of received writes, never by a
//! value's context: that also has dots which were seen by others' deltas and have not arrived themselves.
//!
//! | type | concurrent writes | removal or reset meets a concurrent write |
//! |---|---|---|
//! | [`Counter`] | all additions count, each once | additions not seen by the reset survive, exactly those |
//! | [`LwwRegister`] | the newest [`Stamp`](crate::Stamp) is shown; the others stay until overwritten | the write survives |
//! | [`MvRegister`] | all are shown | the write survives |
//! | [`AddWinsSet`] | all elements | the addition survives |
//! | [`EnableWinsFlag`] | on | the enabling survives |
//! | [`Map`] | field by field, as above | the written fields survive, with only what was written concurrently |
//!
//! Source: Almeida, Shoker, Baquero, "Delta state replicated data types", JPDC 2018, section 7 (causal CRDTs); Shapiro et
//! al. 2011 for the types.

mod counter;
mod flag;
mod map;
mod op;
mod register;
mod set;
mod state;
mod store;
mod value;
mod view;

pub use counter::Counter;
pub use flag::EnableWinsFlag;
pub use map::{Field, Map, Path};
pub use op::{CrdtOp, CrdtOpError};
pub use register::{LwwRegister, MvRegister};
pub use set::AddWinsSet;
pub use state::CrdtState;
pub use store::{Causal, CausalError, DotFun, DotMap, DotSet, DotStore};
pub use value::CrdtKind;
pub use view::{FieldView, MapView};
