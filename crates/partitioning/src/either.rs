//! Groups of different strategies in one container: a replica that is one of two kinds.
//!
//! Invariant: a replica never changes its kind, and hears only messages of its own kind; one of the other kind is dropped, and its
//! sender told of. An enum rather than boxed heads: heads stay typed and small on the wire, nothing is called through a
//! pointer, and a container of one kind pays nothing. Three kinds are an `Either` in an `Either`.

use replikit_core::{Action, Event, GroupId, Input, LogIndex, Message, Now, Replica, Time};
use serde::{Deserialize, Serialize};

use crate::convert;

/// A replica of one kind or of another.
///
/// ```
/// use replikit_core::{Epoch, GroupId};
/// use replikit_partitioning::{Either, Groups};
/// # use replikit_core::{Action, Input, Now, Replica, Time};
/// # #[derive(Default)] struct Quiet;
/// # impl Replica for Quiet {
/// #     type Head = ();
/// #     fn handle(&mut self, _: Now, _: Input<()>) {}
/// #     fn poll(&mut self) -> Option<Action<()>> { None }
/// #     fn deadline(&self) -> Option<Time> { None }
/// # }
/// # let (raft, leaderless) = (Quiet, Quiet);
/// let one: Either<_, _> = Either::one(GroupId(1), raft);
/// let other = Either::other(GroupId(2), leaderless);
/// let node = Groups::new(Epoch(1), [(GroupId(1), one), (GroupId(2), other)]);
/// assert_eq!(node.groups().count(), 2);
/// ```
#[derive(Debug)]
pub struct Either<A: Replica, B: Replica> {
    group: GroupId,
    kind: Kind<A, B>,
    // Who spoke in the other kind's words.
    strays: Option<Action<EitherHead<A::Head, B::Head>>>,
}

#[derive(Debug)]
enum Kind<A, B> {
    One(A),
    Other(B),
}

/// What replicas of the two kinds say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EitherHead<A, B> {
    /// Of the one kind.
    One(A),
    /// Of the other.
    Other(B),
}

impl<A: Replica, B: Replica> Either<A, B> {
    /// A replica of the one kind, of this group.
    pub const fn one(group: GroupId, replica: A) -> Self {
        Self { group, kind: Kind::One(replica), strays: None }
    }

    /// A replica of the other kind, of this group.
    pub const fn other(group: GroupId, replica: B) -> Self {
        Self { group, kind: Kind::Other(replica), strays: None }
    }

    /// The replica, if it is of the one kind.
    pub const fn as_one(&self) -> Option<&A> {
        match &self.kind {
            Kind::One(replica) => Some(replica),
            Kind::Other(_) => None,
        }
    }

    /// The replica, if it is of the other kind.
    pub const fn as_other(&self) -> Option<&B> {
        match &self.kind {
            Kind::One(_) => None,
            Kind::Other(replica) => Some(replica),
        }
    }
}

impl<A: Replica, B: Replica> Replica for Either<A, B> {
    type Head = EitherHead<A::Head, B::Head>;

    fn handle(&mut self, now: Now, input: Input<Self::Head>) {
        match (&mut self.kind, input) {
            (Kind::One(it), Input::Message { from, message: Message { head: EitherHead::One(head), batches } }) => {
                it.handle(now, Input::Message { from, message: Message { head, batches } });
            }
            (Kind::Other(it), Input::Message { from, message: Message { head: EitherHead::Other(head), batches } }) => {
                it.handle(now, Input::Message { from, message: Message { head, batches } });
            }
            (_, Input::Message { from, .. }) => {
                let event = Event::PeerMisbehaved { node: from, what: "spoke in words of another strategy" };
                self.strays = Some(Action::Event { group: self.group, event });
            }
            (Kind::One(it), other) => convert::input(other).into_iter().for_each(|input| it.handle(now, input)),
            (Kind::Other(it), other) => convert::input(other).into_iter().for_each(|input| it.handle(now, input)),
        }
    }

    fn poll(&mut self) -> Option<Action<Self::Head>> {
        if let Some(action) = self.strays.take() {
            return Some(action);
        }
        match &mut self.kind {
            Kind::One(it) => it.poll().map(|action| convert::action(action, EitherHead::One)),
            Kind::Other(it) => it.poll().map(|action| convert::action(action, EitherHead::Other)),
        }
    }

    fn deadline(&self) -> Option<Time> {
        match &self.kind {
            Kind::One(it) => it.deadline(),
            Kind::Other(it) => it.deadline(),
        }
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        match &self.kind {
            Kind::One(it) => it.committed(group),
            Kind::Other(it) => it.committed(group),
        }
    }
}
