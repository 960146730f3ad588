use super::*;

fn purge(name: &str) -> Purge {
    let names = vec![PurgeName::tag(name)];
    Purge { seq: 0, version: PurgeName::version("v"), names, number: 0, generation: 0 }
}

/// Brings the second log up to the first, and returns the names that were purged by that; `None` means everything.
fn sync(from: &Log, to: &mut Log, now: u64) -> Option<Vec<PurgeName>> {
    let mut names = Some(vec![]);
    for segment in from.missing(&to.known(now), to.own, now) {
        to.hear(segment, false, now, |effect| match effect {
            Effect::Purge(purge) => {
                names.iter_mut().for_each(|names| names.extend_from_slice(&purge.names));
            }
            Effect::Everything => names = None,
        });
    }
    names
}

#[test]
fn purge_reaches_a_third_pod_through_a_second_one() {
    let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
    a.append(purge("a"), 10);
    assert_eq!(sync(&a, &mut b, 10), Some(purge("a").names));
    b.append(purge("b"), 20);
    drop(a);
    assert_eq!(sync(&b, &mut c, 20), Some([purge("a").names, purge("b").names].concat()));
    assert_eq!(sync(&b, &mut c, 20), Some(vec![]), "once");
    let known = |idle_ms| PeerKnown { last: 1, idle_ms };
    assert_eq!(c.known(25), BTreeMap::from([(1, known(5)), (2, known(5))]), "since it heard of them");
    assert_eq!(sync(&c, &mut b, 20), Some(vec![]), "its own are not told to a pod");
}

#[test]
fn pod_that_missed_more_than_is_listed_purges_everything() {
    let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
    a.append(purge("first"), 1);
    assert!(sync(&a, &mut b, 1).is_some());
    for number in 0..MAX_NAMES {
        a.append(purge(&number.to_string()), 2);
    }
    assert_eq!(a.names, MAX_NAMES);
    assert_eq!(sync(&a, &mut b, 2).map(|names| names.len()), Some(MAX_NAMES), "it missed none");
    assert_eq!(sync(&a, &mut c, 2), None);
    assert_eq!((c.last(1), c.names), (a.last(1), 0));
    assert_eq!(sync(&c, &mut Log::new(4), 2), None, "and has others do so");
    a.append(Purge { names: vec![PurgeName::tag("x"); MAX_NAMES + 1], ..purge("") }, 3);
    assert_eq!((a.names, sync(&a, &mut b, 3)), (0, None), "more than fits");
}

#[test]
fn purges_that_were_not_told_stay_unknown() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    a.append(purge("a"), 1);
    a.append(purge("b"), 1);
    let mut heard = vec![];
    let later = a.own_after(1, 1).unwrap();
    b.hear(later, false, 1, |effect| match effect {
        Effect::Purge(purge) => heard.extend_from_slice(&purge.names),
        Effect::Everything => panic!("b is new"),
    });
    assert_eq!((heard, b.last(1)), (purge("b").names, 0), "applied, and not taken for all");
    assert_eq!(sync(&a, &mut b, 1), Some([purge("a").names, purge("b").names].concat()));
}

#[test]
fn after_a_gap_everything_is_purged_and_told_so_to_others() {
    let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
    a.append(purge("a"), 1);
    let now = RETENTION_MS + 2;
    a.forget_old(now);
    a.append(purge("b"), now);
    let mut is_everything = false;
    let segment = a.missing(&b.known(now), 2, now).remove(0);
    b.hear(segment, true, now, |effect| is_everything |= matches!(effect, Effect::Everything));
    assert!(is_everything);
    assert_eq!(sync(&b, &mut c, now), None);
}

#[test]
fn old_purges_are_forgotten_and_processes_not_before_nobody_tells_of_them() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    a.append(purge("a"), 1);
    assert!(sync(&a, &mut b, 1).is_some());
    let now = RETENTION_MS + 2;
    b.forget_old(now);
    assert_eq!((b.names, b.last(1)), (0, 1));
    assert_eq!(a.missing(&Known::new(), 2, now), [], "nobody is told");
    assert_eq!((a.own_after(0, now), a.own_last(now)), (None, 0), "not even by the process itself");
    b.forget_old(2 * RETENTION_MS + 2);
    assert_eq!(b.last(1), 0);
}

#[test]
fn purge_that_was_heard_of_late_is_told_as_long_as_others() {
    let [mut a, mut b, mut c, mut d] = [1, 2, 3, 4].map(Log::new);
    a.append(purge("a"), 1);
    assert_eq!(sync(&a, &mut b, RETENTION_MS), Some(purge("a").names));
    b.forget_old(2 * RETENTION_MS);
    d.adopt(&b.known(RETENTION_MS), RETENTION_MS);
    assert_eq!(sync(&b, &mut c, 2 * RETENTION_MS), Some(purge("a").names));
    assert_eq!(sync(&d, &mut Log::new(5), 2 * RETENTION_MS), None, "one that took it over says so as long");
    assert_eq!(sync(&d, &mut Log::new(6), 2 * RETENTION_MS + 1), Some(vec![]), "and no longer");
}

#[test]
fn old_purge_that_redis_lacks_is_kept_and_told() {
    let (mut a, mut b, now) = (Log::new(1), Log::new(2), 4 * RETENTION_MS);
    a.append(purge("a"), 1);
    a.hold();
    a.forget_old(now);
    assert_eq!(sync(&a, &mut b, now), Some(purge("a").names));
    a.settle(now);
    a.forget_old(now);
    assert_eq!((a.names, sync(&a, &mut Log::new(3), now)), (0, Some(vec![])));
}

#[test]
fn purges_that_redis_has_are_neither_kept_nor_taken_for_missed() {
    let mut a = Log::new(1);
    a.append(Purge { names: vec![PurgeName::tag("x"); MAX_NAMES + 1], ..purge("") }, 1);
    a.append(purge("a"), 5);
    a.settle(4);
    assert_eq!(sync(&a, &mut Log::new(2), 6), Some(purge("a").names));
    a.settle(5);
    assert_eq!((a.names, sync(&a, &mut Log::new(3), 6)), (0, Some(vec![])));
}

#[test]
fn purges_after_settled_ones_are_told_without_a_gap() {
    let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
    a.append(purge("a"), 1);
    assert!(sync(&a, &mut b, 1).is_some());
    a.append(purge("b"), 2);
    a.settle(2);
    a.append(purge("c"), 3);
    assert_eq!(sync(&a, &mut b, 3), Some(purge("c").names), "redis tells of the other");
    let segment = b.missing(&Known::new(), 3, 3).remove(0);
    assert_eq!((segment.settled, segment.purges.len(), b.names), (2, 1, 1));
    assert!(super::super::message::segment(segment.into()).is_some());
    assert_eq!(sync(&b, &mut c, 3), Some(purge("c").names));
    assert_eq!(c.last(1), 3);
}

#[test]
fn pod_that_begins_takes_over_the_knowledge_of_others() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    a.append(purge("a"), 1);
    b.adopt(&a.known(1), 1);
    assert_eq!(sync(&a, &mut b, 1), Some(vec![]));
    a.append(purge("b"), 2);
    assert_eq!(sync(&a, &mut b, 2), Some(purge("b").names));
}

#[test]
fn adopted_purges_are_everything_to_processes_without_them() {
    let (mut a, mut b, mut c) = (Log::new(1), Log::new(2), Log::new(3));
    a.append(purge("a"), 1);
    b.adopt(&a.known(1), 1);
    b.settle(5);
    assert_eq!(sync(&b, &mut c, ON_ITS_WAY_MS), Some(vec![]), "it may be on its way");
    assert_eq!(
        sync(&b, &mut c, ON_ITS_WAY_MS + 1),
        None,
        "redis was not told of it by the one that took it over"
    );
    assert_eq!(sync(&a, &mut b, 5), Some(vec![]));
}

#[test]
fn process_that_purges_no_more_leaves_logs_that_took_it_over() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    a.append(purge("a"), 1);
    assert!(sync(&a, &mut b, 1).is_some());
    for number in 3..7 {
        let (mut next, now) = (Log::new(number), (number - 2) * RETENTION_MS / 2);
        next.adopt(&b.known(now), now);
        next.forget_old(now);
        b = next;
    }
    let now = 2 * RETENTION_MS + 2;
    b.forget_old(now);
    assert_eq!(b.known(now), Known::new());
}

#[test]
fn burst_of_purges_is_forgotten_after_a_while() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    for number in 0..=MAX_NAMES {
        a.append(purge(&number.to_string()), 1);
    }
    assert!(sync(&a, &mut b, 1).is_none());
    let later = 3 * RETENTION_MS;
    a.forget_old(later);
    b.forget_old(later);
    assert_eq!(b.last(1), 0);
    a.append(purge("later"), later);
    assert_eq!(sync(&a, &mut b, later), Some(purge("later").names), "and not everything");
}

#[test]
fn processes_are_bounded_and_those_that_lack_a_dropped_one_hear_of_everything() {
    let (mut a, mut b) = (Log::new(1), Log::new(2));
    for number in 0..=MAX_ORIGINS as u64 {
        let mut other = Log::new(10 + number);
        other.append(purge(&number.to_string()), number);
        assert!(sync(&other, &mut a, number).is_some());
    }
    assert!(a.origins.len() <= MAX_ORIGINS / 2 + 2, "{}", a.origins.len());
    assert_eq!(sync(&a, &mut b, 2 * MAX_ORIGINS as u64), None);
    assert_eq!(sync(&a, &mut b, 2 * MAX_ORIGINS as u64), Some(vec![]), "once");
}
