//! The scrub: the second lock on what owners hold. The exchange of logs makes sure that all of them know the same writes; this
//! looks whether they have the same *records* then, as they must.
//!
//! What it finds is damage that no log tells of: a bit that has flipped in memory, a snapshot that was damaged before it was
//! checksummed, a bug here. (A damaged log or snapshot file is found by its checksums when it is read.) Two steps, both paced: a
//! walk over the own records, which makes their [tree](crate::tree) say what is stored; and a comparison of trees with the other
//! owners, then of the keys in leaves that differ.
//!
//! Invariants: leaves are compared but for those that a write touches which only one of the two has applied, so it works under
//! load, and a difference is never a write on its way. Between two records of the same writes no dot decides, and the join of a
//! record with one that has been lost would be nothing: so they are never joined. What a majority of all owners has is right, and
//! each owner changes its own records only; without a majority nothing is changed. Nothing is changed or found in silence: values
//! that go are in the audit.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikit_core::{Batches, Epoch, Event, KEY_BYTES_MAX, NodeId, Now, Time, VersionVector, quorum};
use serde::{Deserialize, Serialize};

use crate::content::{Decided, KeyCopy};
use crate::message::Head;
use crate::record::{Local, Writes};
use crate::replica::Leaderless;
use crate::state::Listing;
use crate::tree::{LEAVES, Leaves, leaf_of};

/// Own records that are looked at in one exchange, and their bytes.
const WALK_KEYS: usize = 256;
const WALK_BYTES: usize = 1 << 20;
/// Keys that are looked at for one answer, and bytes of those that are in it.
const LIST_KEYS: usize = 2048;
const LIST_BYTES: usize = 256 << 10;
/// Writes on their way that are looked through for one answer; if there are more, it says nothing.
const TOUCHED_MAX: u64 = 4096;
/// Exchanges that a step waits for owners which do not answer.
const PATIENCE: u32 = 4;
/// Records that are taken over in one step.
const ADOPTED_MAX: usize = 64;
/// Undecided keys that are remembered, so that each is told once.
const UNDECIDED_MAX: usize = 1024;

/// One owner asks another what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// The epochs that the sender counts in.
    pub epoch: Epoch,
    /// Names the question.
    number: u64,
    /// What the sender has applied.
    base: VersionVector,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wanted {
    /// All leaves, unless this is the root of the tree.
    Leaves { root: u64 },
    /// Keys from one on that are in some leaves.
    Keys { from: Bytes, leaves: Leaves },
    /// The record of a key.
    Record { key: Bytes },
}

/// The answer to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    number: u64,
    given: Given,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Given {
    /// None when the root is the same.
    Leaves {
        of: Compared,
        leaves: Option<Vec<u64>>,
    },
    /// What the keys are that are something, and where the rest begins.
    Keys {
        of: Compared,
        keys: Vec<(Bytes, Decided)>,
        next: Option<Bytes>,
    },
    Record {
        key: Bytes,
        copy: KeyCopy,
    },
}

/// What an owner can be compared in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Compared {
    /// What it has applied.
    base: VersionVector,
    /// The leaves that it cannot be compared in: it has applied writes there that who asks had not.
    touched: Leaves,
}

/// What one round is at.
#[derive(Debug)]
enum Step {
    /// Trees are compared.
    Trees,
    /// Keys from this one on are.
    Keys { from: Bytes },
    /// Records are waited for that a majority has; the keys from this one on come next, if there are any.
    Records { outvoted: BTreeMap<Bytes, Outvoted>, next: Option<Bytes> },
}

/// An own record that a majority does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outvoted {
    mine: Decided,
    theirs: Decided,
    /// An owner that has it.
    at: u32,
    copies: u8,
}

/// One comparison with all other owners.
#[derive(Debug)]
struct Round {
    epoch: Epoch,
    number: u64,
    step: Step,
    /// The leaves that differ somewhere.
    leaves: Leaves,
    answers: BTreeMap<u32, Given>,
    waited: u32,
    undecided: BTreeMap<Bytes, u64>,
}

/// What the scrub has done since this replica was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScrubStats {
    /// Comparisons with at least one other owner that were brought to an end.
    pub rounds: u64,
    /// Walks over all own records.
    pub walks: u64,
    /// Own records, or parts of the tree over them, that were not what had been put there.
    pub damaged: u64,
    /// Own records that a majority of the owners had otherwise, and that were replaced.
    pub repaired: u64,
    /// Keys of which no majority has the same record, by the newest comparison.
    pub undecided: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Scrubbing {
    due: Time,
    round: Option<Round>,
    /// Keys of which no majority had the same, and what was found of each.
    undecided: BTreeMap<Bytes, u64>,
    pub(crate) stats: ScrubStats,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The own record stays.
    Keep,
    /// A majority has another one.
    Outvoted(Outvoted),
    /// So many records differ, and none has a majority.
    Undecided(u8),
}

/// Decides between the records of a key, of so many owners in all. Who cannot tell is not among `others`.
fn decide(mine: Decided, others: &[(u32, Decided)], owners: u8) -> Verdict {
    if mine == Decided::Open || others.iter().all(|(_, theirs)| *theirs == mine) {
        return Verdict::Keep;
    }
    let mut votes: BTreeMap<Decided, (u8, Option<u32>)> = BTreeMap::from([(mine, (1, None))]);
    for (index, theirs) in others {
        let (copies, at) = votes.entry(*theirs).or_default();
        (*copies, *at) = (*copies + 1, at.or(Some(*index)));
    }
    let majority = quorum::majority(owners.into()) as u8;
    match votes.iter().find(|(_, (copies, _))| *copies >= majority) {
        Some((theirs, (copies, Some(at)))) if *theirs != mine => {
            Verdict::Outvoted(Outvoted { mine, theirs: *theirs, at: *at, copies: *copies })
        }
        Some(_) => Verdict::Keep,
        None => Verdict::Undecided(votes.len() as u8),
    }
}

impl Leaderless {
    /// At every exchange: looks at some of the own records, and goes on with a comparison.
    pub(crate) fn scrub(&mut self, now: Now) {
        let Some(every) = self.config.timing.scrub else { return };
        if self.failed || self.serves().is_err() || self.ownership.is_joint() {
            self.scrubbing.round = None;
            return;
        }
        self.walk();
        match &mut self.scrubbing.round {
            Some(round) if round.epoch != self.epoch => self.scrubbing.round = None,
            Some(round) => {
                round.waited += 1;
                self.go_on();
            }
            None if now.mono >= self.scrubbing.due => {
                self.scrubbing.due = now.mono + every;
                if self.owners.len() > 1 {
                    self.begin_round();
                }
            }
            None => {}
        }
    }

    fn walk(&mut self) {
        let walked = self.state.walk(WALK_KEYS, WALK_BYTES);
        self.scrubbing.stats.walks += u64::from(walked.is_over);
        self.scrubbing.stats.damaged += (walked.damaged.len() + walked.leaves) as u64;
        for key in walked.damaged {
            self.event(Event::RecordDamaged { key: Some(key) });
        }
        if walked.leaves > 0 {
            self.event(Event::RecordDamaged { key: None });
        }
    }

    fn begin_round(&mut self) {
        let round = Round {
            epoch: self.epoch,
            number: 0,
            step: Step::Trees,
            leaves: Leaves::default(),
            answers: BTreeMap::new(),
            waited: 0,
            undecided: BTreeMap::new(),
        };
        self.ask_all(round);
    }

    /// Begins the next step of a round: asks everybody who can be reached.
    fn ask_all(&mut self, mut round: Round) {
        self.close_batch();
        (round.number, round.waited) = (self.next_read(), 0);
        round.answers.clear();
        let all = |wanted: &Wanted, owners: &Self| -> Vec<(u32, Wanted)> {
            let others = owners.owners.others().filter(|node| !owners.is_away(*node));
            others.filter_map(|node| Some((owners.owners.index(node)?, wanted.clone()))).collect()
        };
        let asked = match &round.step {
            Step::Trees => all(&Wanted::Leaves { root: self.state.tree().root() }, self),
            Step::Keys { from } => all(&Wanted::Keys { from: from.clone(), leaves: round.leaves.clone() }, self),
            Step::Records { outvoted, .. } => {
                outvoted.iter().map(|(key, it)| (it.at, Wanted::Record { key: key.clone() })).collect()
            }
        };
        let (epoch, number, base) = (self.epoch, round.number, self.state.base().clone());
        for (index, wanted) in asked {
            let scrub = Scrub { epoch, number, base: base.clone(), wanted };
            self.send(self.owners.node(index), Head::Scrub(Box::new(scrub)), Batches::None);
        }
        self.scrubbing.round = Some(round);
    }

    /// The leaves of what has been applied here and not there; `None` when that is not at hand.
    fn touched(&self, there: &VersionVector) -> Option<Leaves> {
        let (mut touched, mut writes) = (Leaves::default(), 0);
        for (origin, held) in self.state.base().iter() {
            let (mut next, end) = (there.base(origin) + 1, held.base());
            writes += (end + 1).saturating_sub(next);
            if writes > TOUCHED_MAX {
                return None;
            }
            while next <= end {
                let batch = self.streams.get(&origin)?.cached(next)?;
                let batch = Writes::of(batch.clone(), |_, _| true).ok()?;
                batch.iter().for_each(|(_, record)| touched.insert(leaf_of(record.key)));
                next = batch.last() + 1;
            }
        }
        Some(touched)
    }

    /// Another owner asks what is here.
    pub(crate) fn handle_scrub(&mut self, from: NodeId, scrub: Scrub) {
        let Scrub { number, base, wanted, .. } = scrub;
        if self.serves().is_err() || self.ownership.is_joint() {
            return;
        }
        self.close_batch();
        let given = match wanted {
            Wanted::Record { key } if key.is_empty() || key.len() > KEY_BYTES_MAX => {
                return self.misbehaved(from, "a key that no keyspace has");
            }
            Wanted::Record { key } => Given::Record { copy: self.state.copy(&key), key },
            wanted => {
                let Some(touched) = self.touched(&base) else { return };
                let of = Compared { base: self.state.base().clone(), touched };
                match wanted {
                    Wanted::Keys { from, leaves } => {
                        let Listing { keys, next } = self.state.list(&from, &leaves, LIST_KEYS, LIST_BYTES);
                        Given::Keys { of, keys: keys.into_iter().collect(), next }
                    }
                    Wanted::Leaves { root } => {
                        let tree = self.state.tree();
                        let leaves = (tree.root() != root).then(|| tree.leaves().to_vec());
                        Given::Leaves { of, leaves }
                    }
                    Wanted::Record { .. } => unreachable!("answered above"),
                }
            }
        };
        self.send(from, Head::Scrubbed(Box::new(Scrubbed { number, given })), Batches::None);
    }

    /// Another owner has answered.
    pub(crate) fn handle_scrubbed(&mut self, from: NodeId, scrubbed: Scrubbed) {
        let Scrubbed { number, given } = scrubbed;
        let Some(index) = self.owners.index(from) else { return };
        let Some(round) = self.scrubbing.round.as_mut().filter(|round| round.number == number) else { return };
        let leaves_fit = match &given {
            Given::Leaves { leaves: Some(leaves), .. } => leaves.len() == LEAVES,
            _ => true,
        };
        match (&mut round.step, given) {
            (Step::Records { outvoted, .. }, Given::Record { key, copy }) => {
                if outvoted.get(&key).is_some_and(|it| it.at == index)
                    && let Some(it) = outvoted.remove(&key)
                {
                    self.adopt(key, copy, it);
                }
            }
            (Step::Trees, given @ Given::Leaves { .. }) | (Step::Keys { .. }, given @ Given::Keys { .. })
                if leaves_fit =>
            {
                round.answers.insert(index, given);
            }
            _ => self.misbehaved(from, "an answer to what it was not asked"),
        }
    }

    /// Does the next step of a round once everybody has answered who can, or has had time to.
    fn go_on(&mut self) {
        let others = self.owners.others().filter(|node| !self.is_away(*node)).count();
        let Some(mut round) = self.scrubbing.round.take() else { return };
        let is_over = match &round.step {
            Step::Records { outvoted, .. } => outvoted.is_empty(),
            _ => round.answers.len() >= others,
        };
        if !is_over && round.waited < PATIENCE {
            self.scrubbing.round = Some(round);
            return;
        }
        // Own writes that are open are in no batch that could be looked through.
        self.close_batch();
        match core::mem::replace(&mut round.step, Step::Trees) {
            Step::Trees => self.compare_trees(round),
            Step::Keys { from } => self.compare_keys(round, &from),
            Step::Records { next, .. } => self.next_keys(round, next),
        }
    }

    fn compare_trees(&mut self, mut round: Round) {
        let mut compared = 0;
        for given in round.answers.values() {
            let Given::Leaves { of, leaves } = given else { continue };
            let Some(touched) = self.touched(&of.base) else { continue };
            compared += 1;
            // The same root as was asked with, by what both had then.
            let Some(leaves) = leaves else { continue };
            let mut differing = self.state.tree().differing(leaves);
            differing.remove_all(&of.touched);
            differing.remove_all(&touched);
            round.leaves.join(&differing);
        }
        if round.leaves.is_empty() {
            self.end_round(round, compared > 0);
        } else {
            self.next_keys(round, Some(Bytes::new()));
        }
    }

    fn next_keys(&mut self, mut round: Round, from: Option<Bytes>) {
        match from {
            Some(from) => {
                round.step = Step::Keys { from };
                self.ask_all(round);
            }
            None => self.end_round(round, true),
        }
    }

    fn compare_keys(&mut self, mut round: Round, from: &Bytes) {
        let mine = self.state.list(from, &round.leaves, LIST_KEYS, LIST_BYTES);
        let mut next = mine.next;
        let mut others: Vec<(u32, Leaves, BTreeMap<Bytes, Decided>)> = Vec::new();
        for (index, given) in core::mem::take(&mut round.answers) {
            let Given::Keys { of, keys, next: theirs } = given else { continue };
            let Some(mut touched) = self.touched(&of.base) else { continue };
            touched.join(&of.touched);
            // Nobody is compared beyond what everybody has listed.
            next = match (next, theirs) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            others.push((index, touched, keys.into_iter().collect()));
        }
        if next.as_ref().is_some_and(|next| next <= from) {
            // A peer that does not go forward is not asked for ever.
            return self.end_round(round, false);
        }
        let listed = others.iter().flat_map(|(_, _, keys)| keys.keys()).chain(mine.keys.keys());
        let mut listed: Vec<Bytes> =
            listed.filter(|key| next.as_ref().is_none_or(|next| *key < next)).cloned().collect();
        listed.sort_unstable();
        listed.dedup();
        let mut outvoted = BTreeMap::new();
        for key in listed {
            let leaf = leaf_of(&key);
            let known = |keys: &BTreeMap<Bytes, Decided>| keys.get(&key).copied().unwrap_or(Decided::Nothing);
            let theirs: Vec<(u32, Decided)> = (others.iter())
                .filter(|(_, touched, _)| !touched.contains(leaf))
                .map(|(index, _, keys)| (*index, known(keys)))
                .filter(|(_, theirs)| *theirs != Decided::Open)
                .collect();
            match decide(known(&mine.keys), &theirs, self.owners.len()) {
                Verdict::Keep => {}
                Verdict::Outvoted(it) if outvoted.len() < ADOPTED_MAX => drop(outvoted.insert(key, it)),
                // The next round finds it again.
                Verdict::Outvoted(_) => {}
                Verdict::Undecided(records) => {
                    let found = known(&mine.keys).hash() ^ u64::from(records);
                    if self.scrubbing.undecided.get(&key) != Some(&found) {
                        self.event(Event::RecordsDiffer { key: key.clone(), records });
                    }
                    if round.undecided.len() < UNDECIDED_MAX {
                        round.undecided.insert(key, found);
                    }
                }
            }
        }
        if outvoted.is_empty() {
            return self.next_keys(round, next);
        }
        round.step = Step::Records { outvoted, next };
        self.ask_all(round);
    }

    /// Takes over what a majority has, if it and the own record are still what was compared.
    fn adopt(&mut self, key: Bytes, copy: KeyCopy, outvoted: Outvoted) {
        let keyspace = self.config.keyspaces.of(&key);
        let theirs = copy.clone().check(keyspace).map(|(content, _)| content.decided(&key, keyspace));
        if theirs != Some(outvoted.theirs) || self.state.decided(&key) != outvoted.mine {
            return;
        }
        self.close_batch();
        let record = Local::Adopted { key: key.clone(), copy: copy.clone() };
        if self.state.adopt(&key, copy, self.last_write.next()) {
            self.persist_local(&record);
            self.scrubbing.stats.repaired += 1;
            self.event(Event::RecordRepaired { key, copies: outvoted.copies });
            self.maybe_snapshot();
        }
    }

    fn end_round(&mut self, round: Round, compared: bool) {
        self.scrubbing.stats.rounds += u64::from(compared);
        if compared {
            self.scrubbing.stats.undecided = round.undecided.len() as u64;
            self.scrubbing.undecided = round.undecided;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use replikit_core::crdt::{CrdtKind, CrdtOp};
    use replikit_core::keyspace::encode_write;
    use replikit_core::policy::ConflictPolicy;
    use replikit_core::{
        Action, Admin, Boot, ClusterId, GroupId, Input, LogAnswer, Message, Replica, Token, WriteLevel, WriteRequest,
    };

    use super::*;
    use crate::config::{Config, Founding, Keyspace, Keyspaces};
    use crate::tree::Tree;

    /// Two owners and the wire between them; disks are done at once.
    struct Pair {
        owners: Vec<Leaderless>,
        wire: VecDeque<(usize, Message<Head>)>,
        now: Now,
        told: Vec<Event>,
    }

    const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

    impl Pair {
        fn new() -> Self {
            let spaces = Keyspaces::default()
                .with("s", Keyspace::new(ConflictPolicy::Siblings))
                .with("c", Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Set)))
                .with("n", Keyspace::new(ConflictPolicy::Crdt(CrdtKind::Counter)));
            let owner = |node| {
                let mut config = Config::new(ClusterId::from_name("pair"), GroupId(0), node, NODES.to_vec());
                (config.keyspaces, config.founding) = (spaces.clone(), Founding::New);
                config.limits.snapshot_log_bytes = 1 << 10;
                config.limits.retained_bytes_max = 1 << 10;
                config.limits.cache_bytes_max = 1 << 10;
                Leaderless::new(config, &Boot::default()).expect("in range")
            };
            let owners = NODES.into_iter().map(owner).collect();
            let mut pair = Self { owners, wire: VecDeque::new(), now: Now::default(), told: Vec::new() };
            (0..2).for_each(|at| pair.input(at, Input::Recovered));
            (0..8).for_each(|_| pair.tick());
            pair
        }

        fn input(&mut self, at: usize, input: Input<Head>) {
            self.owners[at].handle(self.now, input);
            while let Some(action) = self.owners[at].poll() {
                match action {
                    Action::Persist { id, .. } => self.owners[at].handle(self.now, Input::Durable { up_to: id }),
                    Action::Send { message, .. } => self.wire.push_back((1 - at, message)),
                    Action::Event { event, .. } => self.told.push(event),
                    // There is no log to read: what is not in memory any more comes as a snapshot.
                    Action::ReadLog { ticket, stream, from, .. } => {
                        let answer = LogAnswer::Compacted { first: from.next() };
                        self.owners[at].handle(self.now, Input::LogRead { ticket, stream, answer });
                    }
                    _ => {}
                }
            }
        }

        fn deliver(&mut self) {
            while let Some((to, message)) = self.wire.pop_front() {
                self.input(to, Input::Message { from: NODES[1 - to], message });
            }
        }

        fn tick(&mut self) {
            self.now.mono = self.now.mono + core::time::Duration::from_secs(1);
            (0..2).for_each(|at| self.input(at, Input::Timer));
            self.deliver();
        }

        fn write(&mut self, at: usize, write: &WriteRequest) {
            let (token, group, level) = (Token(1), GroupId(0), WriteLevel::LeaderDisk);
            let body = encode_write(write).expect("in range");
            self.input(at, Input::Command { token, group, level, session: None, body });
        }

        /// The tree is what it would be, were it made of all records now.
        fn assert_right(&mut self, at: usize) {
            let state = &mut self.owners[at].state;
            let mut anew = Tree::default();
            let mut all = Leaves::default();
            (0..LEAVES).for_each(|leaf| all.insert(leaf));
            for (key, decided) in state.list(b"", &all, usize::MAX, usize::MAX).keys {
                anew.replace(leaf_of(&key), 0, decided.hash());
            }
            assert_eq!(*state.tree(), anew, "owner {at}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, u8, Option<u8>),
        Deliver,
        Lose,
        Tick,
        Snapshot(usize),
        Walk(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let write = (0..2_usize, any::<u8>(), proptest::option::weighted(0.7, any::<u8>()));
        prop_oneof![
            6 => write.prop_map(|(at, key, value)| Step::Write(at, key, value)),
            2 => Just(Step::Deliver),
            1 => Just(Step::Lose),
            2 => Just(Step::Tick),
            1 => (0..2_usize).prop_map(Step::Snapshot),
            2 => (0..2_usize, 0..4_usize).prop_map(|(at, most)| Step::Walk(at, most)),
        ]
    }

    fn request(key: u8, value: Option<u8>) -> WriteRequest {
        let name = format!("{}{}", ["k", "s", "c", "n"][usize::from(key % 4)], key / 4 % 3);
        match (key % 4, value) {
            (2, Some(value)) => WriteRequest::crdt(name, CrdtOp::Insert { element: vec![value % 5].into() }),
            (3, Some(value)) => WriteRequest::crdt(name, CrdtOp::Add { amount: i64::from(value) - 99 }),
            (_, Some(value)) => WriteRequest::put(name, vec![value; 9]),
            (_, None) => WriteRequest::delete(name),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_tree_is_that_of_the_records_whatever_is_written_lost_collected_or_joined(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let mut pair = Pair::new();
            for step in steps {
                match step {
                    Step::Write(at, key, value) => pair.write(at, &request(key, value)),
                    Step::Deliver => pair.deliver(),
                    Step::Lose => pair.wire.clear(),
                    Step::Tick => pair.tick(),
                    Step::Snapshot(at) => {
                        let (token, group, command) = (Token(2), GroupId(0), Admin::Snapshot);
                        pair.input(at, Input::Admin { token, group, command });
                    }
                    Step::Walk(at, most) => {
                        let walked = pair.owners[at].state.walk(most, usize::MAX);
                        prop_assert!(walked.damaged.is_empty() && walked.leaves == 0);
                    }
                }
                (0..2).for_each(|at| pair.assert_right(at));
            }
            (0..40).for_each(|_| pair.tick());
            let [one, other] = &pair.owners[..] else { unreachable!("two owners") };
            prop_assert_eq!(one.state.base(), other.state.base());
            prop_assert_eq!(one.state.tree(), other.state.tree());
            // Of a counter one entry of each owner is left, on both sides.
            prop_assert_eq!(one.state.unsettled() + other.state.unsettled(), one.lasting() + other.lasting());
            let told = |event: &Event| matches!(
                event,
                Event::RecordDamaged { .. } | Event::RecordRepaired { .. } | Event::RecordsDiffer { .. }
            );
            prop_assert!(!pair.told.iter().any(told));
        }
    }

    #[test]
    fn a_walk_finds_a_record_that_has_changed_or_gone_in_memory_and_the_other_owner_hears_of_it() {
        for (at, damage) in [(0, crate::state::Damage::Alter), (1, crate::state::Damage::Lose)] {
            let mut pair = Pair::new();
            (0..9).for_each(|key| pair.write(0, &request(key * 4, Some(key))));
            pair.deliver();
            (0..4).for_each(|_| pair.tick());
            pair.owners[at].state.damage(b"k1", damage);
            assert_eq!(pair.owners[0].state.tree(), pair.owners[1].state.tree(), "no tree says so");
            pair.told.clear();
            for _ in 0..3 {
                let walked = pair.owners[at].state.walk(2, usize::MAX);
                let found = Event::RecordDamaged { key: walked.damaged.first().cloned() };
                if !walked.damaged.is_empty() || walked.leaves > 0 {
                    pair.told.push(found);
                }
            }
            let key = (damage == crate::state::Damage::Alter).then(|| Bytes::from_static(b"k1"));
            assert_eq!(pair.told, [Event::RecordDamaged { key }]);
            assert_ne!(pair.owners[0].state.tree(), pair.owners[1].state.tree(), "from now on it can be compared");
            pair.assert_right(at);
            (0..30).for_each(|_| pair.tick());
            let differ = |event: &&Event| matches!(event, Event::RecordsDiffer { key, records: 2 } if key == "k1");
            assert_eq!(pair.told.iter().filter(differ).count(), 2, "{:?}", pair.told);
        }
    }

    #[test]
    fn a_majority_of_all_owners_decides_and_nothing_else_does() {
        let (one, other, third) = (Decided::Record(1), Decided::Record(2), Decided::Record(3));
        let outvoted = |theirs, at, copies| Verdict::Outvoted(Outvoted { mine: one, theirs, at, copies });
        assert_eq!(decide(one, &[(1, one), (2, one)], 3), Verdict::Keep);
        assert_eq!(decide(one, &[(1, other), (2, other)], 3), outvoted(other, 1, 2));
        assert_eq!(decide(one, &[(1, Decided::Nothing), (2, Decided::Nothing)], 3), outvoted(Decided::Nothing, 1, 2));
        assert_eq!(decide(one, &[(1, one), (2, other)], 3), Verdict::Keep, "the other one is wrong");
        assert_eq!(decide(one, &[(1, other), (2, third)], 3), Verdict::Undecided(3));
        assert_eq!(decide(one, &[(1, other)], 3), Verdict::Undecided(2), "one that cannot be reached may have either");
        assert_eq!(decide(one, &[(1, other)], 2), Verdict::Undecided(2), "which of two is right, nobody knows");
        assert_eq!(decide(one, &[], 3), Verdict::Keep);
        assert_eq!(decide(Decided::Open, &[(1, other), (2, other)], 3), Verdict::Keep);
        assert_eq!(decide(one, &[(1, other), (2, other)], 5), Verdict::Undecided(2));
    }
}
