//! The container: routes what comes in to the group that it is for, and gathers what the groups want.
//!
//! Invariants: a group is in the run queue exactly while it may have something to hand out; its deadline in the index is
//! the one that it gave when it was last drained. A round costs what its active groups cost. A group hears that recovery is over
//! before it hears anything of other nodes, the disk or time.

use std::collections::{BTreeMap, VecDeque};

use replikit_core::{
    Action, Epoch, Event, GroupId, Input, Link, LogIndex, Message, NodeId, Now, Outcome, Rejection, Replica,
    StorageEvent, Ticket, Time, Token, WriteId,
};

use crate::deadlines::Deadlines;
use crate::frames::{Frames, GroupsHead};
use crate::heartbeats::{Heartbeats, NodeHeartbeats};
use crate::news::{News, Notice};
use crate::writes::{SlotId, Writes};

/// A node with so many storage actions under way has enough to do: it wakes fewer groups.
const BUSY_WRITES: usize = 512;

#[derive(Debug)]
struct Slot<R> {
    group: GroupId,
    // None once the group was removed; the slot is given to another one when none of its storage actions is under way.
    replica: Option<R>,
    writes_under_way: u32,
    // It has heard that recovery is over.
    has_begun: bool,
    runs: bool,
    // It has been drained since somebody asked which were.
    rested: bool,
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
    heartbeats: Option<Heartbeats>,
    news: News,
    now: Now,
    // Reads of log and snapshots under way: the group's own ticket by the container's.
    reads: BTreeMap<Ticket, (SlotId, Ticket)>,
    next_ticket: Ticket,
    run: VecDeque<SlotId>,
    // What the container itself has to say.
    own: VecDeque<Action<GroupsHead<R::Head>>>,
    touched: Vec<SlotId>,
    rested: Vec<SlotId>,
    free: Vec<SlotId>,
    recovered: bool,
    // The disk has stalled, and nothing has become durable since.
    is_stalled: bool,
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
            heartbeats: None,
            news: News::default(),
            now: Now::default(),
            reads: BTreeMap::new(),
            next_ticket: Ticket(1),
            run: VecDeque::new(),
            own: VecDeque::new(),
            touched: Vec::new(),
            rested: Vec::new(),
            free: Vec::new(),
            recovered: false,
            is_stalled: false,
        };
        for (group, replica) in groups {
            container.seat(group, replica);
        }
        // A replica is a kilobyte or two, and there may be ten thousand.
        container.slots.shrink_to_fit();
        container
    }

    /// Watches the nodes that share groups with this one, and tells the groups which are gone and back, so that groups in which nothing
    /// happens need no messages of their own.
    #[must_use]
    pub fn with_node_heartbeats(mut self, settings: NodeHeartbeats) -> Self {
        self.heartbeats = Some(Heartbeats::new(settings));
        self
    }

    fn seat(&mut self, group: GroupId, replica: R) -> SlotId {
        let state = Slot {
            group,
            replica: Some(replica),
            writes_under_way: 0,
            has_begun: false,
            runs: false,
            rested: false,
            deadline: None,
            durable: None,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                // It may be listed already.
                let rested = self.slots[slot as usize].rested;
                self.slots[slot as usize] = Slot { rested, ..state };
                slot
            }
            None => {
                self.slots.push(state);
                self.slots.len() as SlotId - 1
            }
        };
        let twice = self.by_group.insert(group, slot);
        assert!(twice.is_none(), "group {group} was given twice");
        // It may have something to say of what it found when it was made.
        self.touch(slot);
        slot
    }

    /// Adds a group while the container runs. Its replica has found nothing on disk, or what it found has been pushed to it; in a
    /// container that has recovered it begins at once.
    ///
    /// # Panics
    /// When the group is here already.
    pub fn add(&mut self, now: Now, group: GroupId, replica: R) {
        let slot = self.seat(group, replica);
        self.begin(now, slot);
        let gone: Vec<NodeId> = self.heartbeats.iter().flat_map(Heartbeats::gone).collect();
        for node in gone {
            self.input(now, slot, Input::Peer { node, link: Link::Down });
        }
    }

    /// Takes a group out while the container runs; none if it is not here. Its requests are never answered, what it has asked
    /// of the storage is carried out, and what it has on disk stays until somebody releases it. Requests for it are refused from now
    /// on, messages for it dropped. Other nodes take this one for one that began anew: their replicas of the group must not go on to
    /// rely on it.
    pub fn remove(&mut self, group: GroupId) -> Option<R> {
        let slot = self.by_group.remove(&group)?;
        self.heartbeats.iter_mut().for_each(Heartbeats::begin_anew);
        let state = &mut self.slots[slot as usize];
        let replica = state.replica.take();
        self.deadlines.replace(slot, state.deadline.take(), None);
        self.reads.retain(|_, (of, _)| *of != slot);
        self.release(slot);
        replica
    }

    /// Has a group look at what has changed beside it: its members, for example.
    pub fn wake(&mut self, now: Now, group: GroupId) {
        self.route(now, group, Input::Timer);
    }

    /// Gives a slot without a group free once nothing points to it any more.
    fn release(&mut self, slot: SlotId) {
        let state = &self.slots[slot as usize];
        if state.replica.is_none() && state.writes_under_way == 0 && !state.runs {
            self.free.push(slot);
        }
    }

    /// The groups that have been drained since this was asked last, each once: those in which something may have changed.
    pub fn take_rested(&mut self) -> Vec<GroupId> {
        let slots = core::mem::take(&mut self.rested);
        let mut groups = Vec::with_capacity(slots.len());
        for slot in slots {
            let state = &mut self.slots[slot as usize];
            // A slot that was given to another group is listed once for that one.
            if core::mem::take(&mut state.rested) && state.replica.is_some() {
                groups.push(state.group);
            }
        }
        groups
    }

    /// Whether [`Replica::poll`] may have something to hand out.
    pub fn is_running(&self) -> bool {
        !self.run.is_empty() || !self.own.is_empty() || !self.frames.is_empty()
    }

    /// The replica of a group.
    pub fn replica(&self, group: GroupId) -> Option<&R> {
        self.by_group.get(&group).and_then(|&slot| self.slots[slot as usize].replica.as_ref())
    }

    /// All groups, in the order in which they were given; one that was added later may stand in the place of one that was removed.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &R)> {
        self.slots.iter().filter_map(|slot| Some((slot.group, slot.replica.as_ref()?)))
    }

    fn touch(&mut self, slot: SlotId) {
        let runs = &mut self.slots[slot as usize].runs;
        if !core::mem::replace(runs, true) {
            self.run.push_back(slot);
        }
    }

    /// Tells a group that recovery is over, once it is.
    fn begin(&mut self, now: Now, slot: SlotId) {
        if self.recovered && !core::mem::replace(&mut self.slots[slot as usize].has_begun, true) {
            self.hand(now, slot, Input::Recovered);
        }
    }

    fn input(&mut self, now: Now, slot: SlotId, input: Input<R::Head>) {
        self.begin(now, slot);
        self.hand(now, slot, input);
    }

    fn hand(&mut self, now: Now, slot: SlotId, input: Input<R::Head>) {
        let Some(replica) = &mut self.slots[slot as usize].replica else { return };
        replica.handle(now, input);
        self.touch(slot);
    }

    /// What a group hears from elsewhere, it hears knowing which nodes are gone.
    fn input_with_news(&mut self, now: Now, slot: SlotId, input: Input<R::Head>) {
        let losses: Vec<_> = self.news.losses(slot).collect();
        for (node, link) in losses {
            self.input(now, slot, Input::Peer { node, link });
        }
        self.input(now, slot, input);
    }

    /// Something for one group; what is for a group that is not here is dropped.
    fn route(&mut self, now: Now, group: GroupId, input: Input<R::Head>) {
        if let Some(&slot) = self.by_group.get(&group) {
            self.input_with_news(now, slot, input);
        }
    }

    /// A request for one group; every request is answered.
    fn request(&mut self, now: Now, group: GroupId, token: Token, input: Input<R::Head>) {
        let rejection = match self.by_group.get(&group) {
            // Else whoever asks all groups of a node that starts would have them all begin at once.
            Some(&slot) if self.recovered && !self.slots[slot as usize].has_begun => {
                Rejection::NotLeader { leader: None }
            }
            Some(&slot) => return self.input_with_news(now, slot, input),
            None => Rejection::StaleRoute { current: self.epoch },
        };
        self.own.push_back(Action::Done { token, outcome: Outcome::Rejected(rejection) });
    }

    fn handle_link(&mut self, now: Now, node: NodeId, link: Link) {
        let Self { heartbeats, news, .. } = self;
        match heartbeats {
            Some(heartbeats) => heartbeats.hinted(node, link, now.mono, |change| news.add(change.into(), now.mono)),
            None => news.add(Notice::Link(node, link), now.mono),
        }
        self.tell_news(now);
    }

    /// Tells the groups what has changed of other nodes, as many as it is time for.
    fn tell_news(&mut self, now: Now) {
        if !self.news.begin(now.mono, self.writes.under_way() > BUSY_WRITES) {
            return;
        }
        while let Some((slot, notice)) = self.news.next(self.slots.len()) {
            let sleeps = |this: &Self| {
                this.slots[slot as usize].replica.as_ref().is_some_and(|replica| replica.deadline().is_none())
            };
            let slept = sleeps(self);
            match notice {
                Notice::Begin => self.begin(now, slot),
                Notice::Link(node, link) => self.input(now, slot, Input::Peer { node, link }),
            }
            if slept && !sleeps(self) {
                self.news.woke();
            }
        }
    }

    fn handle_heartbeat(&mut self, now: Now) {
        let Self { heartbeats: Some(heartbeats), news, frames, .. } = self else { return };
        if heartbeats.due_at() <= now.mono {
            heartbeats.beat(now.mono, |change| news.add(change.into(), now.mono), |node| _ = frames.open(node));
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
        let Self { heartbeats, news, .. } = self;
        if let Some(heartbeats) = heartbeats {
            heartbeats.heard(from, head.life, now.mono, |change| news.add(change.into(), now.mono));
            self.tell_news(now);
        }
        let mut batches = batches.into_iter();
        for part in head.parts {
            let batches = batches.by_ref().take(part.batches as usize).collect();
            self.route(now, part.group, Input::Message { from, message: Message { head: part.head, batches } });
        }
    }

    fn handle_durable(&mut self, now: Now, up_to: WriteId) {
        self.is_stalled = false;
        let mut touched = core::mem::take(&mut self.touched);
        while let Some((slot, id)) = self.writes.durable(up_to) {
            let state = &mut self.slots[slot as usize];
            state.writes_under_way -= 1;
            if state.replica.is_none() {
                self.release(slot);
            } else if state.durable.replace(id).is_none() {
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
        self.handle_heartbeat(now);
        self.tell_news(now);
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
            StorageEvent::Failed => {
                self.heartbeats.iter_mut().for_each(Heartbeats::fall_silent);
                for slot in 0..self.slots.len() as SlotId {
                    self.input(now, slot, Input::Storage { event: StorageEvent::Failed });
                }
            }
            StorageEvent::Slow => {
                self.is_stalled = true;
                for slot in 0..self.slots.len() as SlotId {
                    if self.slots[slot as usize].writes_under_way > 0 {
                        self.tell_of_stall(now, slot);
                    }
                }
            }
        }
    }

    /// Only a group that waits for the disk is told that it stalls: thousands of leaders that want nothing of it stay.
    fn tell_of_stall(&mut self, now: Now, slot: SlotId) {
        self.input(now, slot, Input::Storage { event: StorageEvent::Slow });
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
            Action::Persist { id, op } => {
                let state = &mut self.slots[slot as usize];
                state.writes_under_way += 1;
                if self.is_stalled && state.writes_under_way == 1 {
                    self.tell_of_stall(self.now, slot);
                }
                Action::Persist { id: self.writes.renumber(slot, id), op }
            }
            Action::Send { to, message } => {
                let group = self.slots[slot as usize].group;
                let message = self.frames.add(to, group, message)?;
                self.send(to, message)
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

    fn send(&mut self, to: NodeId, mut message: Message<GroupsHead<R::Head>>) -> Action<GroupsHead<R::Head>> {
        if let Some(heartbeats) = &mut self.heartbeats {
            heartbeats.said(to, self.now.mono);
            message.head.life = heartbeats.life();
        }
        Action::Send { to, message }
    }

    /// A group has nothing more to hand out.
    fn rest(&mut self, slot: SlotId) {
        let state = &mut self.slots[slot as usize];
        state.runs = false;
        let Some(replica) = &state.replica else { return self.release(slot) };
        let deadline = replica.deadline();
        if !core::mem::replace(&mut state.rested, true) {
            self.rested.push(slot);
        }
        self.deadlines.replace(slot, core::mem::replace(&mut state.deadline, deadline), deadline);
    }
}

impl<R: Replica> Replica for Groups<R> {
    type Head = GroupsHead<R::Head>;

    fn handle(&mut self, now: Now, input: Input<Self::Head>) {
        self.now = now;
        match input {
            Input::RecoverSnapshot { at, chunk, last } => {
                self.route(now, at.stream.group, Input::RecoverSnapshot { at, chunk, last });
            }
            Input::Recover { batch } => self.route(now, batch.stream().group, Input::Recover { batch }),
            Input::Recovered => {
                self.recovered = true;
                self.news.add(Notice::Begin, now.mono);
                self.tell_news(now);
            }
            Input::Timer => self.handle_timer(now),
            Input::Message { from, message } => self.handle_message(now, from, message),
            Input::Peer { node, link } => self.handle_link(now, node, link),
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
            match self.slots[slot as usize].replica.as_mut().and_then(R::poll) {
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
        let (to, message) = self.frames.next()?;
        Some(self.send(to, message))
    }

    fn deadline(&self) -> Option<Time> {
        let heartbeat = self.heartbeats.as_ref().map(Heartbeats::due_at).filter(|at| *at != Time::NEVER);
        [self.deadlines.earliest(), heartbeat, self.news.due_at()].into_iter().flatten().min()
    }

    fn committed(&self, group: GroupId) -> Option<LogIndex> {
        self.replica(group)?.committed(group)
    }
}
