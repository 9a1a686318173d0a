//! Version vectors against plain sets of dots.

use std::collections::BTreeSet;

use proptest::prelude::*;
use replikit_core::{
    CausalContext, ContextError, Dot, DotRange, Incarnation, NodeId, Origin, OriginId, SequenceSet, VersionVector,
};

fn dot(origin: u32, sequence: u64) -> Dot {
    Dot { origin: OriginId(origin), sequence }
}

/// Runs of sequences, so that gaps, touching runs and long bases all come up.
fn dots() -> impl Strategy<Value = Vec<Dot>> {
    let run = (0..3_u32, 1..60_u64, 0..9_u64)
        .prop_map(|(origin, first, more)| (first..=first + more).map(|at| dot(origin, at)).collect::<Vec<_>>());
    proptest::collection::vec(run, 0..12).prop_map(|runs| runs.concat()).prop_shuffle()
}

fn both(dots: &[Dot]) -> (VersionVector, BTreeSet<Dot>) {
    let (mut vector, mut set) = (VersionVector::new(), BTreeSet::new());
    for &dot in dots {
        assert_eq!(vector.add(dot), set.insert(dot), "{dot:?} was reported wrongly as new or known");
    }
    (vector, set)
}

fn as_set(vector: &VersionVector) -> BTreeSet<Dot> {
    vector.minus(&VersionVector::new()).collect()
}

fn encoded(vector: &VersionVector) -> Vec<u8> {
    postcard::to_stdvec(vector).expect("vectors encode into memory")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_version_vector_is_exactly_a_set_of_dots(left in dots(), right in dots()) {
        let ((a, a_set), (b, b_set)) = (both(&left), both(&right));
        for origin in (0..3).map(OriginId) {
            let of: BTreeSet<u64> = a_set.iter().filter(|dot| dot.origin == origin).map(|dot| dot.sequence).collect();
            prop_assert_eq!(a.top(origin), of.last().copied().unwrap_or(0));
            prop_assert_eq!(a.base(origin), (1..).take_while(|at| of.contains(at)).last().unwrap_or(0));
            for sequence in 0..80 {
                prop_assert_eq!(a.contains(Dot { origin, sequence }), of.contains(&sequence));
            }
        }
        let missing: BTreeSet<Dot> = a_set.difference(&b_set).copied().collect();
        prop_assert_eq!(a.minus(&b).collect::<Vec<_>>(), missing.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(as_set(&a.beyond(&b)), missing.clone());
        prop_assert_eq!(b.lags(&a), missing.len() as u64);
        prop_assert_eq!(a.len(), a_set.len() as u64);
        prop_assert_eq!(a.is_empty(), a_set.is_empty());
        prop_assert_eq!(a.covers(&b), b_set.is_subset(&a_set));
        prop_assert_eq!(as_set(&a.meet(&b)), a_set.intersection(&b_set).copied().collect::<BTreeSet<_>>());
        let mut joined = a.clone();
        joined.join(&b);
        prop_assert_eq!(as_set(&joined), a_set.union(&b_set).copied().collect::<BTreeSet<_>>());
    }

    #[test]
    fn equal_sets_are_equal_vectors_however_they_came_about(
        (dots, shuffled) in dots().prop_flat_map(|dots| (Just(dots.clone()), Just(dots).prop_shuffle())),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole: VersionVector = dots.iter().copied().collect();
        prop_assert_eq!(&shuffled.iter().copied().collect::<VersionVector>(), &whole);
        let (left, right) = shuffled.split_at(cut.index(shuffled.len() + 1));
        let (left, right): (VersionVector, VersionVector) =
            (left.iter().copied().collect(), right.iter().copied().collect());
        let mut joined = left.clone();
        joined.join(&right);
        prop_assert_eq!(&joined, &whole);
        prop_assert_eq!(&whole.meet(&joined), &whole);
        let mut rest = whole.beyond(&left);
        rest.join(&left);
        prop_assert_eq!(&rest, &whole);
        let read: VersionVector = postcard::from_bytes(&encoded(&whole)).unwrap();
        prop_assert_eq!(&read, &whole);
        let context = CausalContext::from(whole);
        prop_assert_eq!(CausalContext::from_token(&context.to_token()), Ok(context));
    }

    #[test]
    fn ranges_are_as_long_as_possible(left in dots(), right in dots()) {
        let (a, b): (VersionVector, VersionVector) = (left.into_iter().collect(), right.into_iter().collect());
        let ranges: Vec<DotRange> = a.ranges_beyond(&b).collect();
        for pair in ranges.windows(2) {
            let apart = pair[0].origin != pair[1].origin
                || (pair[0].last + 1..pair[1].first).any(|at| !a.contains(dot(pair[0].origin.0, at)) || b.contains(dot(pair[0].origin.0, at)));
            prop_assert!(apart, "{:?} could be one range", pair);
        }
    }

    #[test]
    fn closing_an_origin_fills_what_nobody_holds_and_nothing_else(held in dots(), mine in dots()) {
        let origin = OriginId(1);
        let union: SequenceSet = held.iter().filter(|dot| dot.origin == origin).map(|dot| dot.sequence).collect();
        let mut vector: VersionVector = mine
            .iter()
            .copied()
            .filter(|dot| dot.origin != origin || union.contains(dot.sequence))
            .collect();
        let before = vector.clone();
        vector.close(origin, &union);
        for sequence in 1..80 {
            let void = sequence <= union.top() && !union.contains(sequence);
            prop_assert_eq!(vector.contains(dot(1, sequence)), before.contains(dot(1, sequence)) || void);
            prop_assert_eq!(vector.contains(dot(0, sequence)), before.contains(dot(0, sequence)));
        }
        vector.insert_all(origin, &union);
        prop_assert_eq!(vector.base(origin), union.top(), "once all that exists has arrived there is no gap");
        vector.retire(origin);
        prop_assert_eq!(vector.held(origin), None);
    }

    #[test]
    fn decoding_anything_gives_a_valid_vector_or_an_error(bytes in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..80)) {
        if let Ok(vector) = postcard::from_bytes::<VersionVector>(&bytes) {
            for (origin, held) in vector.iter() {
                prop_assert!(!held.is_empty() && held.top() <= Dot::SEQUENCE_MAX);
                prop_assert!(!held.contains(held.base() + 1));
                prop_assert!(held.contains(held.top()));
                prop_assert_eq!(vector.top(origin), held.top());
            }
            prop_assert_eq!(postcard::from_bytes::<VersionVector>(&encoded(&vector)).unwrap(), vector);
        }
        if let Err(refused) = CausalContext::from_token(&bytes) {
            prop_assert_eq!(refused, ContextError::Malformed);
        }
    }
}

#[test]
fn a_dot_far_above_the_base_is_not_added() {
    let mut vector = VersionVector::new();
    assert!(!vector.add(dot(1, VersionVector::GAP_MAX + 1)));
    assert!(!vector.add(dot(1, u64::MAX)));
    assert!(!vector.insert(dot(1, Dot::SEQUENCE_MAX + 1)));
    assert!(vector.is_empty(), "a refused dot leaves no empty origin behind");
    assert!(vector.add(dot(1, VersionVector::GAP_MAX)));
    assert!(vector.insert(dot(1, Dot::SEQUENCE_MAX)));
}

#[test]
fn a_digest_in_sync_takes_at_most_16_bytes_an_origin() {
    for (node, incarnation, writes, bytes_max) in [
        (2, 1, 1_000_000, 6),
        (120, 100, (1 << 42) - 1, 9),
        (Origin::NODE_MAX.0, Incarnation::MAX.0, Dot::SEQUENCE_MAX, 16),
    ] {
        let mut vector = VersionVector::new();
        for node in [node - 2, node - 1, node] {
            let origin = Origin { node: NodeId(node), incarnation: Incarnation(incarnation) };
            vector.insert_all(origin.id().unwrap(), &SequenceSet::up_to(writes));
        }
        let bytes = encoded(&vector).len();
        assert!(bytes <= 1 + 3 * bytes_max, "{bytes} bytes for three origins at {writes} writes");
    }
}

#[test]
fn a_dot_takes_two_bytes_beside_its_sequence() {
    let origin = Origin { node: NodeId(126), incarnation: Incarnation(127) };
    let dot = Dot { origin: origin.id().unwrap(), sequence: (1 << 14) - 1 };
    let bytes = postcard::to_stdvec(&dot).unwrap();
    assert_eq!(bytes.len(), 2 + 2);
    assert_eq!(postcard::from_bytes::<Dot>(&bytes).unwrap(), dot);
    let range = DotRange { origin: dot.origin, first: 3, last: 9 };
    assert_eq!(postcard::from_bytes::<DotRange>(&postcard::to_stdvec(&range).unwrap()).unwrap(), range);
    assert!(postcard::from_bytes::<Dot>(&[0xff, 0x7f, 0, 1]).is_err(), "no origin has these parts");
}

#[test]
fn a_vector_with_overlapping_huge_or_repeated_parts_is_refused() {
    type Entry<'a> = ((u32, u32), (u64, &'a [(u64, u64)]));
    let malformed: [&[Entry<'_>]; 6] = [
        &[((0, 1), (0, &[]))],
        &[((0, 1), (5, &[])), ((0, 1), (6, &[]))],
        &[((0, 2), (5, &[])), ((0, 1), (6, &[]))],
        &[((1 << 12, 1), (5, &[]))],
        &[((0, 1), (u64::MAX, &[]))],
        &[((0, 1), (5, &[(0, u64::MAX)]))],
    ];
    for entries in malformed {
        let bytes = postcard::to_stdvec(entries).unwrap();
        assert!(postcard::from_bytes::<VersionVector>(&bytes).is_err(), "{entries:?}");
    }
    // A length of 2^32 that is not followed by as many entries must not be believed.
    assert!(postcard::from_bytes::<VersionVector>(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    let large = vec![0; CausalContext::TOKEN_BYTES_MAX + 1];
    assert_eq!(CausalContext::from_token(&large), Err(ContextError::TooLarge { bytes: large.len() }));
}

#[test]
fn a_vector_with_the_most_gaps_that_can_be_added_survives_encoding() {
    let mut vector = VersionVector::new();
    for sequence in (2..=VersionVector::GAP_MAX).step_by(2) {
        assert!(vector.add(dot(9, sequence)));
    }
    assert_eq!(postcard::from_bytes::<VersionVector>(&encoded(&vector)).unwrap(), vector);
    for sequence in (1..VersionVector::GAP_MAX).step_by(2) {
        assert!(vector.add(dot(9, sequence)));
    }
    assert!(vector.is_contiguous());
    assert_eq!(vector.base(OriginId(9)), VersionVector::GAP_MAX);
}
