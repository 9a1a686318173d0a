//! The recovery decision: is what follows the last good frame of a log its clean end, a torn tail, or damage?
//!
//! Invariant: a frame that was proven durable is never cut. The log has one write in flight, and each frame says which
//! frame a *returned* fsync already covered when it was encoded; so any good frame proves those before it durable, and
//! only the frames of the last write can be torn. Source: protocol-aware recovery (Alagappan et al., FAST'18), TigerBeetle's
//! journal recovery table.

/// What stands at a place where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A start or group frame, header and content in order and chained to the frame before it in the log.
    Good { seq: u64, durable: u64 },
    /// The second copy of a group's registers, in order.
    Copy { seq: u64, durable: u64 },
    /// A footer, in order: the segment was left after this frame, which was durable by then.
    Footer { seq: u64 },
    /// Something that is not zero and not in order. `durable` is what its header proves, 0 when that is not in order either.
    Damaged { durable: u64 },
    /// Zeros.
    Zero,
}

/// What the slots mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The first `good` slots are the content and nothing is behind them.
    Clean { good: usize },
    /// The first `good` slots are the content; the rest was being written when the power failed. Cut it.
    Torn { good: usize },
    /// The slot at `at` held something durable. Refuse.
    Corrupt { at: usize },
}

/// Decides on the slots of the last segment, the first of which must be frame `first`; `proven` is the newest frame that
/// anything elsewhere proves durable.
pub(crate) fn classify(first: u64, slots: &[Slot], proven: u64) -> Decision {
    let mut expected = first;
    let mut good = slots.len();
    for (at, slot) in slots.iter().enumerate() {
        match *slot {
            Slot::Good { seq, .. } if seq == expected => expected += 1,
            Slot::Copy { seq, .. } if seq + 1 == expected => {}
            _ => {
                good = at;
                break;
            }
        }
    }
    let rest = &slots[good..];
    if let [Slot::Footer { seq }, behind @ ..] = rest
        && seq + 1 == expected
    {
        // A footer is written only once the segment behind holds a durable group: this is not the last segment. Behind a
        // footer nothing is ever written; what stands there and is not in order is of an earlier life of the file.
        let found = behind.iter().position(|slot| !matches!(slot, Slot::Damaged { durable: 0 } | Slot::Zero));
        return Decision::Corrupt { at: found.map_or(good, |found| good + 1 + found) };
    }
    let mut durable = proven;
    for slot in slots {
        durable = durable.max(match *slot {
            Slot::Good { durable, .. } | Slot::Copy { durable, .. } | Slot::Damaged { durable } => durable,
            Slot::Footer { seq } => seq,
            Slot::Zero => 0,
        });
    }
    // A frame that repeats an earlier number can only be a misdirected write.
    let repeats = rest.iter().any(|slot| {
        matches!(slot, Slot::Good { seq, .. } | Slot::Footer { seq } if *seq < expected)
            || matches!(slot, Slot::Copy { seq, .. } if *seq < expected)
    });
    if durable >= expected || repeats {
        return Decision::Corrupt { at: good };
    }
    if rest.iter().all(|slot| *slot == Slot::Zero) { Decision::Clean { good } } else { Decision::Torn { good } }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `check` with every sequence of up to `length` slots of the alphabet.
    fn every(alphabet: &[Slot], length: usize, check: &mut impl FnMut(&[Slot])) {
        fn extend(alphabet: &[Slot], length: usize, slots: &mut Vec<Slot>, check: &mut impl FnMut(&[Slot])) {
            check(slots);
            if slots.len() < length {
                for slot in alphabet {
                    slots.push(*slot);
                    extend(alphabet, length, slots, check);
                    slots.pop();
                }
            }
        }
        extend(alphabet, length, &mut Vec::new(), check);
    }

    fn seq_of(slot: Slot) -> Option<u64> {
        match slot {
            Slot::Good { seq, .. } => Some(seq),
            _ => None,
        }
    }

    #[test]
    fn over_all_states_nothing_proven_is_cut_and_nothing_out_of_order_is_kept() {
        let mut alphabet = vec![Slot::Zero];
        for seq in 1..=4 {
            alphabet.push(Slot::Footer { seq });
            alphabet.push(Slot::Damaged { durable: seq - 1 });
            for durable in 0..seq {
                alphabet.push(Slot::Good { seq, durable });
                alphabet.push(Slot::Copy { seq, durable });
            }
        }
        let mut states = 0_u64;
        for proven in 0..=3 {
            every(&alphabet, 4, &mut |slots| {
                states += 1;
                let decision = classify(1, slots, proven);
                let (kept, cut) = match decision {
                    Decision::Clean { good } | Decision::Torn { good } => slots.split_at(good),
                    Decision::Corrupt { at } => {
                        assert!(at <= slots.len(), "{slots:?}");
                        return;
                    }
                };
                let mut last = 0;
                for slot in kept {
                    if let Some(seq) = seq_of(*slot) {
                        assert_eq!(seq, last + 1, "kept frames are without gaps: {slots:?}");
                        last = seq;
                    }
                    assert!(!matches!(slot, Slot::Zero | Slot::Damaged { .. }), "only good frames are kept: {slots:?}");
                }
                let evidence = slots.iter().map(|slot| match *slot {
                    Slot::Good { durable, .. } | Slot::Copy { durable, .. } | Slot::Damaged { durable } => durable,
                    Slot::Footer { seq } => seq,
                    Slot::Zero => 0,
                });
                let evidence = evidence.max().unwrap_or(0).max(proven);
                assert!(
                    evidence <= last,
                    "frame {evidence} was durable, {last} is the last kept: {slots:?} {decision:?}"
                );
                if matches!(decision, Decision::Clean { .. }) {
                    let footer = kept.iter().any(|slot| matches!(slot, Slot::Footer { .. }));
                    assert!(
                        cut.iter().all(|slot| *slot == Slot::Zero || footer && *slot == Slot::Damaged { durable: 0 }),
                        "a clean end has nothing behind it: {slots:?}"
                    );
                }
            });
        }
        assert_eq!(states, 4 * (1 + 29 + 29_u64.pow(2) + 29_u64.pow(3) + 29_u64.pow(4)));
    }

    /// Plays every history of up to four frames, the last `unproven` of them in a write whose fsync may not have returned,
    /// and every way to lose frames.
    #[test]
    fn over_all_histories_acknowledged_frames_are_kept_or_the_log_refuses() {
        #[derive(Clone, Copy, PartialEq)]
        enum Fate {
            Intact,
            HeaderOnly,
            Damaged,
            Zeroed,
        }
        let fates = [Fate::Intact, Fate::HeaderOnly, Fate::Damaged, Fate::Zeroed];
        let (mut histories, mut corrupt, mut torn) = (0, 0, 0);
        for frames in 1..=4_u64 {
            // A rotation writes a start frame and a group in one write; both then name the same durable frame.
            for last_write in 1..=2.min(frames) {
                for fate in 0..4_usize.pow(frames as u32) {
                    let fates: Vec<Fate> =
                        (0..frames).map(|frame| fates[fate / 4_usize.pow(frame as u32) % 4]).collect();
                    let before_last = frames - last_write;
                    let durable = |seq: u64| if seq > before_last { before_last } else { seq - 1 };
                    let mut slots: Vec<Slot> = (1..=frames)
                        .map(|seq| match fates[seq as usize - 1] {
                            Fate::Intact => Slot::Good { seq, durable: durable(seq) },
                            Fate::HeaderOnly => Slot::Damaged { durable: durable(seq) },
                            Fate::Damaged => Slot::Damaged { durable: 0 },
                            Fate::Zeroed => Slot::Zero,
                        })
                        .collect();
                    slots.push(Slot::Zero);
                    histories += 1;
                    let first_bad = fates.iter().position(|fate| *fate != Fate::Intact).map_or(frames, |at| at as u64);
                    let told = (first_bad..frames)
                        .filter(|seq| matches!(fates[*seq as usize], Fate::Intact | Fate::HeaderOnly))
                        .map(|seq| durable(seq + 1))
                        .max()
                        .unwrap_or(0);
                    let rest_zero = fates[first_bad as usize..].iter().all(|fate| *fate == Fate::Zeroed);
                    let wanted = if told > first_bad {
                        corrupt += 1;
                        Decision::Corrupt { at: first_bad as usize }
                    } else if rest_zero {
                        Decision::Clean { good: first_bad as usize }
                    } else {
                        torn += 1;
                        Decision::Torn { good: first_bad as usize }
                    };
                    assert_eq!(classify(1, &slots, 0), wanted, "{slots:?}");
                }
            }
        }
        assert!(corrupt > 0 && torn > 0 && histories == 4 + 2 * (16 + 64 + 256));
    }

    #[test]
    fn a_crash_alone_is_never_taken_for_corruption() {
        // Whatever part of the last write arrived, all before it is intact.
        for before in 0..4_u64 {
            for last in 0..3_u64.pow(2) {
                let mut slots: Vec<Slot> =
                    (1..=before).map(|seq| Slot::Good { seq, durable: seq.saturating_sub(1) }).collect();
                for (at, fate) in [last % 3, last / 3].into_iter().enumerate() {
                    slots.push(match fate {
                        0 => Slot::Good { seq: before + 1 + at as u64, durable: before },
                        1 => Slot::Damaged { durable: before },
                        _ => Slot::Zero,
                    });
                }
                let decision = classify(1, &slots, 0);
                assert!(!matches!(decision, Decision::Corrupt { .. }), "{slots:?} {decision:?}");
            }
        }
    }
}
