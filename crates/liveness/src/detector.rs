//! The detector of one node: which of the others can be reached by anybody.
//!
//! Invariants: it says of each node that it is down at most once until it says that it is up again; what it says is a hint and
//! never a proof: no guarantee may depend on it. The same inputs make the same outputs. Source: SWIM (Das, Gupta, Motivala,
//! DSN 2002) with suspicion, by the crate `foca`.

use core::convert::Infallible;
use core::num::{NonZeroU8, NonZeroUsize};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use foca::{Foca, NoCustomBroadcast, Notification, PeriodicParams, Timer};
use replikit_core::{NodeId, Time};

use crate::health::Health;
use crate::identity::{Life, Wire};

/// Largest probe, in bytes: news of others ride on it.
pub const PROBE_BYTES_MAX: usize = 1400;

/// Periods between two announcements to a node that is not up.
const ANNOUNCE_PERIODS: u32 = 2;

/// How fast failures are found, in a group of up to some hundred nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a node probes another one; each is probed once in as many periods as there are others. Default 200 ms.
    /// Shorter finds failures sooner and costs more messages: one probe and one answer each period and node.
    pub probe_period: Duration,
    /// How long the answer to a probe may take before others are asked to probe in its place; shorter than `probe_period`.
    /// Default 60 ms: above the usual round trip, or healthy nodes are suspected.
    pub probe_timeout: Duration,
    /// How long a suspected node has to say that it lives. Default 600 ms.
    pub suspicion: Duration,
    /// How many others are asked to probe one that does not answer. Default 3.
    pub indirect_probes: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(200),
            probe_timeout: Duration::from_millis(60),
            suspicion: Duration::from_millis(600),
            indirect_probes: 3,
        }
    }
}

/// Settings that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "probe_timeout {probe_timeout:?} has to be above zero and below probe_period {probe_period:?}, suspicion {suspicion:?} and indirect_probes {indirect_probes} above zero"
)]
pub struct SettingsError {
    /// As given.
    pub probe_period: Duration,
    /// As given.
    pub probe_timeout: Duration,
    /// As given.
    pub suspicion: Duration,
    /// As given.
    pub indirect_probes: u8,
}

impl Settings {
    fn config(self, others: usize) -> Result<foca::Config, SettingsError> {
        let Self { probe_period, probe_timeout, suspicion, indirect_probes } = self;
        let error = SettingsError { probe_period, probe_timeout, suspicion, indirect_probes };
        let indirect = NonZeroUsize::new(usize::from(indirect_probes)).ok_or(error)?;
        if probe_timeout.is_zero() || probe_timeout >= probe_period || suspicion.is_zero() {
            return Err(error);
        }
        let every = |periods, members: usize| {
            let num_members = NonZeroUsize::new(members.max(1)).expect("one at least");
            Some(PeriodicParams { frequency: probe_period * periods, num_members })
        };
        let transmissions = 4 * (usize::BITS - others.leading_zeros()) as u8;
        Ok(foca::Config {
            probe_period,
            probe_rtt: probe_timeout,
            num_indirect_probes: indirect,
            max_transmissions: NonZeroU8::new(transmissions.max(4)).expect("four at least"),
            suspect_to_down_after: suspicion,
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(PROBE_BYTES_MAX).expect("above zero"),
            notify_down_members: true,
            periodic_announce: every(20, 1),
            // Done by the detector: this would rest while nobody is up.
            periodic_announce_to_down_members: None,
            periodic_gossip: every(1, 2),
        })
    }
}

/// What the detector wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Send these bytes to a node; they may be lost, doubled and reordered.
    Send(NodeId, Bytes),
    /// A node lives.
    Up(NodeId),
    /// A node is not reached by anybody: it, or its network, has failed, or it stands still.
    Down(NodeId),
}

#[derive(Clone, Debug)]
struct Random(fastrand::Rng);

impl rand::TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// What comes of one call.
#[derive(Debug)]
struct Outbox<'a> {
    said: &'a mut VecDeque<Said>,
    down: &'a mut BTreeSet<NodeId>,
    timers: &'a mut BTreeMap<(Time, u64), Timer<Life>>,
    next: &'a mut u64,
    now: Time,
    health: Health,
}

impl foca::Runtime<Life> for Outbox<'_> {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        match notification {
            Notification::MemberUp(life) => {
                self.down.remove(&life.node);
                self.said.push_back(Said::Up(life.node));
            }
            Notification::MemberDown(life) if self.down.insert(life.node) => {
                self.said.push_back(Said::Down(life.node));
            }
            _ => {}
        }
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.said.push_back(Said::Send(to.node, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, event: Timer<Life>, after: Duration) {
        let at = self.now + self.health.stretched(after);
        let number = *self.next;
        *self.next += 1;
        self.timers.insert((at, number), event);
    }
}

/// Tells of a group of up to some hundred nodes who is up; the crate's page says how.
///
/// ```
/// use replikit_core::{NodeId, Time};
/// use replikit_liveness::{Detector, Said, Settings};
///
/// let nodes = [NodeId(1), NodeId(2)];
/// let mut one = Detector::new(NodeId(1), &nodes, 1, Settings::default())?;
/// let mut two = Detector::new(NodeId(2), &nodes, 1, Settings::default())?;
/// one.start(Time(0));
/// two.start(Time(0));
/// while let Some(said) = one.poll() {
///     if let Said::Send(_, bytes) = said {
///         two.handle(Time(0), &bytes).expect("it is a probe");
///     }
/// }
/// assert!(core::iter::from_fn(|| two.poll()).any(|said| said == Said::Up(NodeId(1))));
/// # Ok::<(), replikit_liveness::SettingsError>(())
/// ```
pub struct Detector {
    foca: Foca<Life, Wire, Random, NoCustomBroadcast>,
    others: Vec<NodeId>,
    settings: Settings,
    timers: BTreeMap<(Time, u64), Timer<Life>>,
    next: u64,
    said: VecDeque<Said>,
    down: BTreeSet<NodeId>,
    health: Health,
    /// When those are announced to that are not up.
    announce: Option<Time>,
    /// Time that this node did not run, although it should have.
    stood_still: Duration,
}

impl core::fmt::Debug for Detector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Detector")
            .field("identity", self.foca.identity())
            .field("down", &self.down)
            .finish_non_exhaustive()
    }
}

/// What came is not a probe of this group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a probe is malformed")]
pub struct ProbeError;

impl Detector {
    /// The detector of this node. `nodes` is everybody, with or without it. `generation` has to be larger in each life of the
    /// node, as the wall clock at its start in milliseconds is; if it is not, the node is held to be down for some round trips
    /// after its start.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(me: NodeId, nodes: &[NodeId], generation: u64, settings: Settings) -> Result<Self, SettingsError> {
        let mut known = nodes.to_vec();
        known.push(me);
        known.sort_unstable();
        known.dedup();
        let others: Vec<NodeId> = known.iter().copied().filter(|node| *node != me).collect();
        let config = settings.config(others.len())?;
        let random = Random(fastrand::Rng::with_seed(generation ^ (u64::from(me.0) << 32)));
        Ok(Self {
            foca: Foca::new(Life::new(me, generation), config, random, Wire { nodes: known }),
            others,
            settings,
            timers: BTreeMap::new(),
            next: 0,
            said: VecDeque::new(),
            down: BTreeSet::new(),
            health: Health::default(),
            announce: None,
            stood_still: Duration::ZERO,
        })
    }

    /// This node lives from now on.
    pub fn start(&mut self, now: Time) {
        self.announce = Some(now);
        self.announce_to_absent(now);
    }

    /// Tells a node that this one lives: for when a connection to it stands.
    pub fn announce(&mut self, now: Time, to: NodeId) {
        if self.announce.is_some() && self.others.contains(&to) {
            self.call(now, |foca, outbox| foca.announce(Life::new(to, 0), outbox));
        }
    }

    /// Takes a probe. Returns whether it is one; if not, nothing has changed.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn handle(&mut self, now: Time, probe: &[u8]) -> Result<(), ProbeError> {
        if self.announce.is_none() {
            return Ok(());
        }
        match self.call(now, |foca, outbox| foca.handle_data(probe, outbox)) {
            Some(foca::Error::Decode(_) | foca::Error::MalformedPacket | foca::Error::DataTooBig) => Err(ProbeError),
            // What is out of order is no error: messages overtake each other.
            _ => Ok(()),
        }
    }

    /// Does what is due.
    pub fn timer(&mut self, now: Time) {
        let lived = self.lived(now);
        let due = self.deadline().filter(|due| *due <= now);
        let Some(due) = due else { return };
        let late = now.since(due);
        let tolerated = self.settings.probe_timeout / 2;
        self.health.timer(late, tolerated);
        let lived = if late > tolerated {
            // Others may have answered all the while: what was late waits on, as if the time had not passed.
            self.stood_still += late;
            Time(lived.0.saturating_sub(late.as_nanos() as u64))
        } else {
            lived
        };
        if self.announce.is_some_and(|at| at <= lived) {
            self.announce_to_absent(now);
        }
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= lived) {
            let event = entry.remove();
            self.call(now, |foca, outbox| foca.handle_timer(event, outbox));
        }
    }

    /// What it has to say, in order.
    pub fn poll(&mut self) -> Option<Said> {
        self.said.pop_front()
    }

    /// When [`Detector::timer`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        timer.into_iter().chain(self.announce).min().map(|at| at + self.stood_still)
    }

    /// Whether a node is held to be down.
    #[must_use]
    pub fn is_down(&self, node: NodeId) -> bool {
        self.down.contains(&node)
    }

    /// How badly this node itself does: 0, well, to 8; it waits that many times longer for others.
    #[must_use]
    pub const fn health(&self) -> u32 {
        self.health.score()
    }

    /// The time that this node has run.
    fn lived(&self, now: Time) -> Time {
        Time(now.0.saturating_sub(self.stood_still.as_nanos() as u64))
    }

    /// Tells those that are not up that this node lives, until they are.
    fn announce_to_absent(&mut self, now: Time) {
        let up: BTreeSet<NodeId> = self.foca.iter_members().map(|member| member.id().node).collect();
        for node in self.others.clone() {
            if !up.contains(&node) {
                self.announce(now, node);
            }
        }
        self.announce = Some(self.lived(now) + self.settings.probe_period * ANNOUNCE_PERIODS);
    }

    fn call(
        &mut self,
        now: Time,
        call: impl FnOnce(&mut Foca<Life, Wire, Random, NoCustomBroadcast>, &mut Outbox<'_>) -> Result<(), foca::Error>,
    ) -> Option<foca::Error> {
        let now = self.lived(now);
        let Self { said, down, timers, next, health, .. } = self;
        let mut outbox = Outbox { said, down, timers, next, now, health: *health };
        call(&mut self.foca, &mut outbox).err()
    }
}
