//! The container: routes what comes in to the group that it is for, and gathers what the groups want.
//!
//! Invariants: a group is in the run queue exactly while it may have something to hand out; its deadline in the index is
//! the one that it gave when it was last drained. A round costs what its active groups cost.

use std::collections::{BTreeMap, VecDeque};

use replikit_core::{
    Action, Epoch, Event, GroupId, Input, LogIndex, Message, NodeId, Now, Outcome, Rejection, Replica, StorageEvent,
    Ticket, Time, Token, WriteId,
};

use crate::deadlines::Deadlines;
use crate::frames::{Frames, GroupsHead};
use crate::writes::{SlotId, Writes};

#[derive(Debug)]
struct Slot<R> {
    group: GroupId,
    replica: R,
    runs: bool,
    deadline: Option<Time>,
    // The newest of its storage actions that the watermark under way covers.
    durable: Option<WriteId>,
}

/// Replicas of many groups, driven as one.
///
/// ```
/// use replikit_core::{ClusterId, Epoch, GroupId, Replica};
/// use replikit_partitioning::Groups;
/// # use replikit_core::{Action, Input, Now, Time};
/// # #[derive(Default)] struct Quiet;
/// # impl Replica for Quiet {
/// #     type Head = ();
/// #     fn handle(&mut self, _: Now, _: Input<()>) {}
/// #     fn poll(&mut self) -> Option<Action<()>> { None }
/// #     fn deadline(&self) -> Option<Time> { None }
/// # }
/// # let replica = |_| Quiet;
/// let ids = (1..=1000).map(GroupId);
/// let mut node = Groups::new(Epoch(1), ids.map(|group| (group, replica(group))));
/// assert!(node.poll().is_none() && node.deadline().is_none());
/// assert_eq!(node.groups().count(), 1000);
/// ```
#[derive(Debug)]
pub struct Groups<R: Replica> {
    epoch: Epoch,
    slots: Vec<Slot<R>>,
    by_group: BTreeMap<GroupId, SlotId>,
    writes: Writes,
    deadlines: Deadlines,
    frames: Frames<R::Head>,
    // Reads of log and snapshots under way: the group's own ticket by the container's.
    reads: BTreeMap<Ticket, (SlotId, Ticket)>,
    next_ticket: Ticket,
    run: VecDeque<SlotId>,
    // What the container itself has to say.
    own: VecDeque<Action<GroupsHead<R::Head>>>,
    touched: Vec<SlotId>,
}

impl<R: Replica> Groups<R> {
    /// A container of these groups. `epoch` is what a client with a stale route is told.
    ///
    /// # Panics
    /// When a group is given twice: a caller's bug that would leave one of the two without any input.
    pub fn new(epoch: Epoch, groups: impl IntoIterator<Item = (GroupId, R)>) -> Self {
        let mut container = Self {
            epoch,
            slots: Vec::new(),
            by_group: BTreeMap::new(),
            writes: Writes::default(),
            deadlines: Deadlines::default(),
            frames: Frames::new(),
            reads: BTreeMap::new(),
            next_ticket: Ticket(1),
            run: VecDeque::new(),
            own: VecDeque::new(),
            touched: Vec::new(),
        };
        for (group, replica) in groups {
            let slot = container.slots.len() as SlotId;
            let twice = container.by_group.insert(group, slot);
            assert!(twice.is_none(), "group {group} was given twice");
            container.slots.push(Slot { group, replica, runs: false, deadline: None, durable: None });
            // It may have something to say of what it found when it was made.
            container.touch(slot);
        }
        container
    }

    /// The replica of a group.
    pub fn replica(&self, group: GroupId) -> Option<&R> {
        self.by_group.get(&group).map(|&slot| &self.slots[slot as usize].replica)
    }

    /// All groups, in the order in which they were given.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &R)> {
        self.slots.iter().map(|slot| (slot.group, &slot.replica))
    }

    fn touch(&mut self, slot: SlotId) {
        let runs = &mut self.slots[slot as usize].runs;
        if !core::mem::replace(runs, true) {
            self.run.push_back(slot);
        }
    }

    fn input(&mut self, now: Now, slot: SlotId, input: Input<R::Head>) {
        self.slots[slot as usize].replica.handle(now, input);
        self.touch(slot);
    }

    /// Something for one group; what is for a group that is not here is dropped.
    fn route(&mut self, now: Now, group: GroupId, input: Input<R::Head>) {
        if let Some(&slot) = self.by_group.get(&group) {
            self.input(now, slot, input);
        }
    }

    /// A request for one group; every request is answered.
    fn request(&mut self, now: Now, group: GroupId, token: Token, input: Input<R::Head>) {
        match self.by_group.get(&group) {
            Some(&slot) => self.input(now, slot, input),
            None => {
                let outcome = Outcome::Rejected(Rejection::StaleRoute { current: self.epoch });
                self.own.push_back(Action::Done { token, outcome });
            }
        }
    }

    fn all(&mut self, now: Now, mut input: impl FnMut() -> Input<R::Head>) {
        for slot in 0..self.slots.len() as SlotId {
            self.input(now, slot, input());
        }
    }

    fn handle_message(&mut self, now: Now, from: NodeId, message: Message<GroupsHead<R::Head>>) {
        let Message { head, batches } = message;
        if !head.claims(&batches) {
            let group = head.parts.first().map(|part| part.group).unwrap_or_default();
            let event = Event::PeerMisbehaved { node: from, what: "parts claim other batches than came with them" };
            self.own.push_back(Action::Event { group, event });
            return;
        }
        let mut batches = batches.into_iter();
        for part in head.parts {
            let batches = batches.by_ref().take(part.batches as usize).collect();
            self.route(now, part.group, Input::Message { from, message: Message { head: part.head, batches } });
        }
    }

    fn handle_durable(&mut self, now: Now, up_to: WriteId) {
        let mut touched = core::mem::take(&mut self.touched);
        while let Some((slot, id)) = self.writes.durable(up_to) {
            if self.slots[slot as usize].durable.replace(id).is_none() {
                touched.push(slot);
            }
        }
        for slot in touched.drain(..) {
            let up_to = self.slots[slot as usize].durable.take().expect("set above");
            self.input(now, slot, Input::Durable { up_to });
        }
        self.touched = touched;
    }

    fn handle_timer(&mut self, now: Now) {
        while let Some(slot) = self.deadlines.due(now.mono) {
            self.slots[slot as usize].deadline = None;
            self.input(now, slot, Input::Timer);
        }
    }

    fn handle_storage(&mut self, now: Now, event: StorageEvent) {
        match &event {
            StorageEvent::Faulty { stream, .. } => {
                let group = stream.group;
                self.route(now, group, Input::Storage { event });
            }
            StorageEvent::Failed | StorageEvent::Slow => {
                self.all(now, || Input::Storage { event: event.clone() });
            }
        }
    }

    fn new_ticket(&mut self, slot: SlotId, inner: Ticket) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket = Ticket(ticket.0 + 1);
        self.reads.insert(ticket, (slot, inner));
        ticket
    }

    /// What a group wants, as the container wants it; `None` for what waits for the end of the round.
    fn translate(&mut self, slot: SlotId, action: Action<R::Head>) -> Option<Action<GroupsHead<R::Head>>> {
        Some(match action {
            Action::Persist { id, op } => Action::Persist { id: self.writes.renumber(slot, id), op },
            Action::Send { to, message } => {
                let group = self.slots[slot as usize].group;
                Action::Send { to, message: self.frames.add(to, group, message)? }
            }
            Action::ReadLog { ticket, stream, from, bytes_max } => {
                Action::ReadLog { ticket: self.new_ticket(slot, ticket), stream, from, bytes_max }
            }
            Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
                Action::ReadSnapshot { ticket: self.new_ticket(slot, ticket), at, group, offset, bytes_max }
            }
            Action::Done { token, outcome } => Action::Done { token, outcome },
            Action::Event { group, event } => Action::Event { group, event },
        })
    }

    /// A group has nothing more to hand out.
    fn rest(&mut self, slot: SlotId) {
        let state = &mut self.slots[slot as usize];
        state.runs = false;
        let deadline = state.replica.deadline();
        self.deadlines.replace(slot, core::mem::replace(&mut state.deadline, deadline), deadline);
    }
}

impl<R: Replica> Replica for Groups<R> {
    type Head = GroupsHead<R::Head>;

    fn handle(&mut self, now: Now, input: Input<Self::Head>) {
        match input {
            Input::RecoverSnapshot { at, chunk, last } => {
                self.route(now, at.stream.group, Input::RecoverSnapshot { at, chunk, last });
            }
            Input::Recover { batch } => self.route(now, batch.stream().group, Input::Recover { batch }),
            Input::Recovered => self.all(now, || Input::Recovered),
            Input::Timer => self.handle_timer(now),
            Input::Message { from, message } => self.handle_message(now, from, message),
            Input::Peer { node, link } => self.all(now, || Input::Peer { node, link }),
            Input::Command { token, group, level, session, body } => {
                self.request(now, group, token, Input::Command { token, group, level, session, body });
            }
            Input::OpenSession { token, group } => {
                self.request(now, group, token, Input::OpenSession { token, group });
            }
            Input::Query { token, group, level, body, bytes_max } => {
                self.request(now, group, token, Input::Query { token, group, level, body, bytes_max });
            }
            Input::Write { token, group, write } => {
                self.request(now, group, token, Input::Write { token, group, write });
            }
            Input::Read { token, group, read } => self.request(now, group, token, Input::Read { token, group, read }),
            Input::Durable { up_to } => self.handle_durable(now, up_to),
            Input::LogRead { ticket, stream, answer } => {
                if let Some((slot, ticket)) = self.reads.remove(&ticket) {
                    self.input(now, slot, Input::LogRead { ticket, stream, answer });
                }
            }
            Input::SnapshotRead { ticket, answer } => {
                if let Some((slot, ticket)) = self.reads.remove(&ticket) {
                    self.input(now, slot, Input::SnapshotRead { ticket, answer });
                }
            }
            Input::Storage { event } => self.handle_storage(now, event),
            Input::Admin { token, group, command } => {
                self.request(now, group, token, Input::Admin { token, group, command });
            }
        }
    }

    fn poll(&mut self) -> Option<Action<Self::Head>> {
        if let Some(action) = self.own.pop_front() {
            return Some(action);
        }
        while let Some(&slot) = self.run.front() {
            match self.slots[slot as usize].replica.poll() {
                Some(action) => {
                    if let Some(action) = self.translate(slot, action) {
                        return Some(action);
                    }
                }
                None => {
                    self.run.pop_front();
                    self.rest(slot);
                }
            }
        }
        self.frames.next().map(|(to, message)| Action::Send { to, message })
    }

    fn deadline(&self) -> Option<Time> {
        self.deadlines.earliest()
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        self.replica(group)?.committed(group)
    }
}
