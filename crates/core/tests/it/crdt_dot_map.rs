//! [`DotMap`] joins against the definition, dot by dot: what both have stays, and of either side what the other has not seen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use replikit_core::crdt::{Causal, DotMap, DotSet, Map};
use replikit_core::{CausalContext, Dot, OriginId, VersionVector};

const DOTS: u64 = 12;
const KEYS: u8 = 4;

type Live = BTreeMap<u8, BTreeSet<Dot>>;

/// The n-th dot; it is written to one key only, on whatever side.
fn dot(number: u64) -> Dot {
    Dot { origin: OriginId(1 + (number % 2) as u32), sequence: 1 + number / 2 }
}

fn key(number: u64) -> u8 {
    (number * 7 % u64::from(KEYS)) as u8
}

/// What one side has and has seen: of each dot, whether it is unknown, seen above, seen in the base, or live as well.
#[derive(Clone, Debug)]
struct Side {
    live: Live,
    above: CausalContext,
    base: VersionVector,
}

fn side(with_base: bool) -> impl Strategy<Value = Side> {
    let what = prop_oneof![3 => Just(0_u8), 2 => Just(1), 2 => Just(2), 1 => Just(3), 1 => Just(4)];
    proptest::collection::vec(what, DOTS as usize).prop_map(move |drawn| {
        let mut side = Side { live: Live::new(), above: CausalContext::new(), base: VersionVector::new() };
        for (number, what) in (0..DOTS).zip(drawn) {
            match what {
                0 => continue,
                3 | 4 if with_base => side.base.insert(dot(number)),
                _ => side.above.insert(dot(number)),
            };
            if what % 2 == 0 {
                side.live.entry(key(number)).or_default().insert(dot(number));
            }
        }
        side
    })
}

impl Side {
    fn causal(&self) -> Causal<DotMap<u8, DotSet>> {
        let bytes = postcard::to_stdvec(&(&self.live, &self.above)).expect("it encodes into memory");
        postcard::from_bytes(&bytes).expect("the fields are those of a map")
    }

    fn has_seen(&self, dot: Dot) -> bool {
        self.above.contains(dot) || self.base.contains(dot)
    }

    fn joined(&self, other: &Self) -> Live {
        let mut joined = Live::new();
        for number in 0..DOTS {
            let (dot, key) = (dot(number), key(number));
            let is_live = |side: &Self| side.live.get(&key).is_some_and(|dots| dots.contains(&dot));
            let stays = match (is_live(self), is_live(other)) {
                (true, true) => true,
                (true, false) => !other.has_seen(dot),
                (false, true) => !self.has_seen(dot),
                (false, false) => false,
            };
            if stays {
                joined.entry(key).or_default().insert(dot);
            }
        }
        joined
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_two_maps_join_as_the_definition_says(
        mine in side(true),
        theirs in any::<bool>().prop_flat_map(side),
    ) {
        let expected = mine.joined(&theirs);
        let mut map = mine.causal();
        map.join_at(&mine.base, &theirs.causal(), &theirs.base);
        let live: Live = postcard::from_bytes(&postcard::to_stdvec(&map.store).unwrap()).unwrap();
        prop_assert_eq!(live, expected);
    }
}

/// A delta is looked at where it says something: one that takes a field away which another one has filled since leaves that one.
#[test]
fn a_delta_of_one_field_takes_from_that_field_and_from_no_other() {
    let path = |name: &'static str| vec![bytes::Bytes::from(name)];
    let mut map = Causal::<Map>::new();
    let dot = |sequence| Dot { origin: OriginId(1), sequence };
    let set = |map: &mut Causal<Map>, name, sequence| {
        map.mutate(|map| map.update(path(name), |field: &replikit_core::crdt::Counter| field.add(dot(sequence), 1)))
    };
    (1..=3).for_each(|sequence| drop(set(&mut map, "a", sequence)));
    (4..=6).for_each(|sequence| drop(set(&mut map, "b", sequence)));
    let removed = map.store.remove(dot(7), &path("a"));
    map.join(&removed);
    assert_eq!(map.store.len(), 1);
    assert!(map.store.get::<replikit_core::crdt::Counter>(&path("b")).is_some_and(|field| field.value() == 3));
}
