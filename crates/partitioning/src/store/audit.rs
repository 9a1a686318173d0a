//! The audit logs of a node's groups as one: acknowledged values that are not shown because a write that had not seen them won.
//!
//! Invariant: the number of a conflict is that of its group, and behind it that in the group's log, so that pages go on where they ended
//! whatever is recorded meanwhile. What was overwritten at one node only is in the log of that one: pages are of one node.

use replikit_core::GroupId;
use replikit_core::keyspace::{Conflict, ConflictPage, decode_conflict_page, encode_conflicts};
use replikit_core::{ReadError, ReadLevel, Rejection};
use replikit_runtime::{Handle, ReadOptions};

use super::asking::ask_some_at_once;
use super::machine::StoreMachine;

/// Bits of a conflict's number within its group: a thousand a second, for 34 years.
const NUMBER_BITS: u32 = 40;
/// Groups that are asked at a time.
const ASKED_AT_ONCE: usize = 64;

const fn joint(group: GroupId, number: u64) -> u64 {
    ((group.0 as u64) << NUMBER_BITS) | number
}

/// Behind which number a group is to be asked, for all that follows `after`.
const fn behind(group: GroupId, after: u64) -> u64 {
    match after >> NUMBER_BITS {
        of if of == group.0 as u64 => after & ((1 << NUMBER_BITS) - 1),
        of if of > group.0 as u64 => u64::MAX,
        _ => 0,
    }
}

/// A page of what the groups of a node have recorded, ascending by group. Groups that are not here have recorded nothing.
///
/// # Errors
/// [`Rejection::Unsupported`] where no group has such a log, because one leader orders the writes of each.
pub(super) async fn page(
    handle: &Handle<StoreMachine>,
    groups: Vec<GroupId>,
    after: u64,
    limit: u32,
    bytes_max: usize,
) -> Result<ConflictPage, ReadError> {
    let ask = |group| {
        let handle = handle.for_group(group);
        async move {
            let question = encode_conflicts(behind(group, after), limit);
            let options = ReadOptions { level: ReadLevel::Local, answer_bytes_max: bytes_max };
            let answer = handle.query_with(question, options).await.ok()?;
            Some((group, decode_conflict_page(&answer.value).ok()?))
        }
    };
    let mut pages: Vec<(GroupId, ConflictPage)> =
        ask_some_at_once(groups, ASKED_AT_ONCE, ask).await.into_iter().flatten().collect();
    if pages.is_empty() {
        return Err(Rejection::Unsupported.into());
    }
    pages.sort_by_key(|(group, _)| *group);
    Ok(joined(pages, limit.max(1) as usize, bytes_max))
}

/// Pages of groups, ascending, as one.
fn joined(pages: Vec<(GroupId, ConflictPage)>, limit: usize, bytes_max: usize) -> ConflictPage {
    let mut all = ConflictPage { dropped: pages.iter().map(|(_, page)| page.dropped).sum(), ..ConflictPage::default() };
    let mut bytes = 0;
    for (group, page) in pages {
        // Once something is left out, nothing behind it may be in the page.
        if all.next.is_some() {
            break;
        }
        let goes_on = page.next.is_some();
        for conflict in page.conflicts {
            let value = conflict.overwritten.version.value.as_ref().map_or(0, |value| value.len());
            bytes += conflict.key.len() + value;
            if all.conflicts.len() == limit || bytes > bytes_max && !all.conflicts.is_empty() {
                all.next = all.conflicts.last().map(|last| last.number);
                break;
            }
            all.conflicts.push(Conflict { number: joint(group, conflict.number), ..conflict });
        }
        if goes_on && all.next.is_none() {
            all.next = all.conflicts.last().map(|last| last.number);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use replikit_core::policy::{Cause, Overwritten, Version};
    use replikit_core::{Dot, HybridTimestamp, OriginId, Stamp};

    use super::*;

    fn page(numbers: &[u64], goes_on: bool) -> ConflictPage {
        let stamp = Stamp { time: HybridTimestamp(1), dot: Dot { origin: OriginId(7), sequence: 1 } };
        let version = Version { stamp, value: Some("lost".into()) };
        let overwritten = Overwritten { version, by: stamp, cause: Cause::Newer };
        let conflict = |number: &u64| Conflict { number: *number, key: "k".into(), overwritten: overwritten.clone() };
        let next = numbers.last().copied().filter(|_| goes_on);
        ConflictPage { conflicts: numbers.iter().map(conflict).collect(), next, dropped: 1 }
    }

    #[test]
    fn pages_go_on_where_they_ended_over_all_groups() {
        let (one, two) = (GroupId(2), GroupId(5));
        let first = joined(vec![(one, page(&[3, 4], false)), (two, page(&[1, 2], false))], 3, 1 << 20);
        let numbers: Vec<u64> = first.conflicts.iter().map(|conflict| conflict.number).collect();
        assert_eq!(numbers, [joint(one, 3), joint(one, 4), joint(two, 1)]);
        assert_eq!((first.next, first.dropped), (Some(joint(two, 1)), 2));
        // Behind it, the first group is asked for nothing and the second one for the rest.
        let after = first.next.expect("looked at just now");
        assert_eq!((behind(one, after), behind(two, after), behind(GroupId(6), after)), (u64::MAX, 1, 0));
        // A group whose own page is full ends this one, or its rest would be passed over.
        let cut = joined(vec![(one, page(&[3], true)), (two, page(&[1], false))], 10, 1 << 20);
        assert_eq!((cut.conflicts.len(), cut.next), (1, Some(joint(one, 3))));
        assert_eq!(joined(vec![(one, page(&[], false))], 10, 1 << 20).next, None);
    }
}
