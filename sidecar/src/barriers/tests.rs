use super::*;

const PATH: &str = "/a/b";

fn tag(name: &str) -> PurgeName {
    PurgeName::tag(name)
}

#[test]
fn table_that_counts_on_trusts_nothing_and_keeps_fills_until_a_purge_of_them() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.count_on_from(Stamp { generation: 7, order: 3, ..Stamp::default() });
    let filled = barriers.stamp();
    assert!(!barriers.are_current());
    barriers.resync(&RedisBarriers { generation: 7, order: 4, floor: 0, raised: vec![(tag("a"), 4)] });
    assert!(barriers.covers([tag("a")], PATH, filled) && !barriers.covers([tag("b")], PATH, filled));
    barriers.resync(&RedisBarriers { generation: 8, ..RedisBarriers::default() });
    assert!(barriers.covers([tag("b")], PATH, filled));
}

#[test]
fn a_fill_that_began_before_a_purge_is_stale() {
    let barriers = Barriers::alone();
    let before = barriers.stamp();
    barriers.raise_locally(&[tag("a")]);
    assert!(barriers.covers([tag("x"), tag("a")], PATH, before));
    assert!(!barriers.covers([tag("x")], PATH, before));
    assert!(!barriers.covers([tag("a")], PATH, barriers.stamp()));
}

#[test]
fn a_purge_of_a_prefix_covers_older_fills_of_its_paths() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
    let (before, names) = (barriers.stamp(), |prefix| PurgeName::prefixes(prefix).collect::<Vec<_>>());
    let checked = barriers.revision();
    assert!(!barriers.covers([], PATH, before));
    assert_eq!(barriers.heard(7, 4, &names("/a")), Heard::InOrder);
    assert!(
        barriers.covers([], PATH, before) && barriers.coverage(checked, [], PATH, before) == Covered::Wholly
    );
    assert!(!barriers.covers([], "/ab", before) && !barriers.covers([], PATH, barriers.stamp()));
    let checked = barriers.revision();
    assert_eq!(barriers.heard(7, 5, &[tag("x")]), Heard::InOrder);
    assert!(barriers.coverage(checked, [], "/ab", before) == Covered::No);
    barriers.raise_locally(&names("/"));
    assert!(barriers.coverage(checked, [], "/ab", before) == Covered::Wholly);
    assert!(barriers.know_all_until(7, 5) && !barriers.know_all_until(7, 6));
    assert!(!barriers.know_all_until(8, 1));
    let redis = RedisBarriers {
        generation: 8,
        order: 2,
        floor: 0,
        raised: names("/a").into_iter().map(|name| (name, 2)).collect(),
    };
    let other = Barriers::shared(Duration::from_secs(5));
    other.resync(&redis);
    let stamp = Stamp { generation: 8, order: 1, ..Stamp::default() };
    assert!(other.covers([], PATH, stamp) && !other.covers([], "/b", stamp));
}

#[test]
fn prefix_that_is_heard_of_late_is_looked_for_again() {
    for is_soft in [false, true] {
        let names = |prefix| {
            let names = PurgeName::prefixes(prefix).collect::<Vec<_>>();
            if is_soft { PurgeName::softly(names) } else { names }
        };
        let new = || {
            let barriers = Barriers::shared(Duration::from_secs(5));
            barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
            let before = barriers.stamp();
            assert!(barriers.ordered(7, 6, &names("/other")), "4 and 5 are on their way");
            let checked = barriers.revision();
            assert_eq!(barriers.coverage(0, [], PATH, before), Covered::No);
            (barriers, before, checked)
        };
        let (barriers, before, checked) = new();
        assert_eq!(barriers.heard(7, 4, &names("/a")), Heard::InOrder);
        assert_ne!(barriers.coverage(checked, [], PATH, before), Covered::No);
        let (barriers, before, checked) = new();
        let raised = [("/a", 4), ("/other", 6)];
        let raised = raised
            .into_iter()
            .flat_map(|(prefix, order)| names(prefix).into_iter().map(move |name| (name, order)));
        barriers.resync(&RedisBarriers { generation: 7, order: 6, floor: 0, raised: raised.collect() });
        assert_ne!(barriers.coverage(checked, [], PATH, before), Covered::No);
    }
}

#[test]
fn purges_are_not_all_known_after_a_gap() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
    assert_eq!(barriers.heard(7, 5, &[]), Heard::AfterGap);
    assert_eq!(barriers.heard(7, 6, &[]), Heard::InOrder);
    assert!(
        barriers.know_all_until(7, 3) && !barriers.know_all_until(7, 4) && !barriers.know_all_until(7, 6)
    );
    barriers.resync(&RedisBarriers { generation: 7, order: 6, ..RedisBarriers::default() });
    assert!(barriers.know_all_until(7, 6));
}

#[test]
fn settled_prefix_leaves_one_that_redis_does_not_have() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    let (pending, told) =
        (PurgeName::prefixes("/a").collect::<Vec<_>>(), PurgeName::prefixes("/b").collect::<Vec<_>>());
    let before = barriers.stamp();
    barriers.raise_locally(&pending);
    let up_to = barriers.raise_locally(&told);
    barriers.settle(&told, up_to);
    assert!(barriers.covers([], PATH, before) && !barriers.covers([], "/b", before));
}

#[test]
fn soft_purge_covers_softly_and_whole_one_wholly() {
    let barriers = Barriers::alone();
    let (before, path) =
        (barriers.stamp(), |path: &str, stamp| barriers.coverage(0, [tag("a")], path, stamp));
    barriers.raise_locally(&PurgeName::softly(vec![tag("b")]));
    assert_eq!(path("/x/y", before), Covered::No);
    barriers.raise_locally(&PurgeName::softly(PurgeName::prefixes("/x").collect()));
    assert_eq!((path("/x/y", before), path("/y", before)), (Covered::Softly, Covered::No));
    assert!(!barriers.covers([tag("a")], "/x/y", before));
    let between = barriers.stamp();
    assert_eq!(path("/x/y", between), Covered::No);
    barriers.raise_locally(&PurgeName::softly(vec![tag("a")]));
    assert_eq!((path("/y", before), path("/y", between)), (Covered::Softly, Covered::Softly));
    assert_eq!(path("/y", barriers.stamp()), Covered::No);
    barriers.raise_locally(&PurgeName::prefixes("/y").collect::<Vec<_>>());
    assert_eq!((path("/y", before), path("/x/y", before)), (Covered::Wholly, Covered::Softly));
    barriers.raise_locally(&[tag("a")]);
    assert_eq!(path("/x/y", between), Covered::Wholly);
}

#[test]
fn order_of_redis_counts_for_purges_of_any_pod() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 3, floor: 1, raised: vec![(tag("a"), 3)] });
    let stamp = |order| Stamp { generation: 7, order, ..Stamp::default() };
    assert!(barriers.covers([tag("a")], PATH, stamp(2)));
    assert!(!barriers.covers([tag("a")], PATH, stamp(3)));
    assert!(barriers.covers([tag("b")], PATH, stamp(0)), "below the floor");
    assert_eq!(barriers.heard(7, 4, &[tag("b")]), Heard::InOrder);
    assert!(barriers.covers([tag("b")], PATH, stamp(3)));
    assert_eq!(barriers.heard(7, 6, &[tag("c")]), Heard::AfterGap, "5 was missed");
    assert!(barriers.covers([tag("c")], PATH, stamp(5)));
    assert_eq!(barriers.heard(8, 1, &[]), Heard::OtherGeneration);
}

#[test]
fn barriers_that_were_lost_make_everything_older_stale() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 9, ..RedisBarriers::default() });
    let old = barriers.stamp();
    barriers.resync(&RedisBarriers { generation: 8, ..RedisBarriers::default() });
    assert!(barriers.covers([tag("a")], PATH, old));
    assert!(!barriers.covers([tag("a")], PATH, barriers.stamp()));
}

#[test]
fn purge_while_redis_is_away_holds_until_redis_has_it() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 1, ..RedisBarriers::default() });
    let in_redis = Stamp { generation: 7, order: 1, ..Stamp::default() };
    let local = barriers.raise_locally(&[tag("a")]);
    assert!(barriers.covers([tag("a")], PATH, in_redis));
    assert_eq!(barriers.heard(7, 2, &[tag("a")]), Heard::InOrder);
    barriers.settle(&[tag("a")], local);
    assert!(barriers.covers([tag("a")], PATH, in_redis));
    assert!(
        !barriers.covers([tag("a")], PATH, Stamp { generation: 7, order: 2, ..Stamp::default() }),
        "filled by another pod since"
    );
}

#[test]
fn too_many_barriers_become_one() {
    let barriers = Barriers::alone();
    let before = barriers.stamp();
    for number in 0..=MAX_BARRIERS {
        barriers.raise_locally(&[tag(&number.to_string())]);
    }
    assert!(barriers.read(|table| table.raised.len()) <= MAX_BARRIERS);
    assert!(barriers.covers([tag("never purged")], PATH, before));
    assert!(!barriers.covers([tag("0")], PATH, barriers.stamp()));
}

#[test]
fn a_purge_of_this_pods_own_hides_no_gap() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
    assert!(barriers.ordered(7, 6, &[tag("own")]), "4 and 5 are on their way");
    assert!(barriers.covers([tag("own")], PATH, Stamp { generation: 7, order: 5, ..Stamp::default() }));
    assert_eq!(barriers.heard(7, 4, &[]), Heard::InOrder);
    assert_eq!(barriers.heard(7, 6, &[]), Heard::AfterGap, "5 was missed all the same");
    assert!(!barriers.ordered(8, 1, &[]));
}

#[test]
fn nothing_is_trusted_without_proof_while_the_first_attempt_to_hear_of_purges_is_under_way() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    barriers.set_joining(true);
    assert!(!barriers.trusts_at(10_000, 10_000));
    barriers.prove(9_000);
    assert!(barriers.trusts_at(8_000, 10_000));
    barriers.set_joining(false);
    assert!(barriers.trusts_at(20_000, 20_000));
}

#[test]
fn without_proof_only_requests_within_the_grace_are_trusted() {
    let barriers = Barriers::shared(Duration::from_secs(5));
    assert!(barriers.trusts_at(5_000, 10_000));
    assert!(!barriers.trusts_at(4_999, 10_000));
    barriers.prove(6_000);
    assert!(barriers.trusts_at(0, 11_000));
    assert!(!barriers.trusts_at(0, 11_001), "it is dated by when it was asked for");
    barriers.prove(5_000);
    assert!(barriers.trusts_at(0, 11_000), "an older proof takes nothing away");
    assert!(Barriers::alone().trusts_at(0, u64::MAX));
}
