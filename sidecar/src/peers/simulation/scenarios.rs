//! Schedules that lost purges, or purged more than was, and that no seed comes upon.

use super::{
    pod::Kind,
    world::{Event, LONG, SHORT, World},
};

const MINUTE: u64 = 60_000;

impl World {
    /// Has a pod store the response under a key.
    fn store(&mut self, pod: usize, key: usize) -> Result<(), String> {
        self.at(self.now, Event::Read { pod, key });
        self.until(self.now + MINUTE / 10)
    }

    /// Has a pod write, so that its purge is of one tag.
    fn change(&mut self, pod: usize, key: usize) -> Result<(), String> {
        self.write_of(pod, key, Kind::Tag { is_soft: false });
        self.until(self.now + MINUTE / 10)
    }

    /// Cuts a pod off from all others.
    fn isolate(&mut self, pod: usize) {
        (0..self.pods.len()).for_each(|other| self.cut(pod, other, u64::MAX));
    }

    /// Cuts a pod off from Redis.
    fn lose_redis(&mut self, pod: usize) {
        let link = self.pods[pod].as_mut().and_then(|pod| pod.redis.as_mut()).expect("it has a redis");
        link.is_connected = false;
    }

    fn has_stored(&self, pod: usize, key: usize) -> bool {
        self.pods[pod].as_ref().is_some_and(|pod| pod.stored(key, self.now).is_some())
    }
}

#[test]
fn purge_that_one_pod_heard_of_late_reaches_those_that_it_meets_after_that() -> Result<(), String> {
    let mut world = World::quiet(LONG, false);
    let [origin, witness, last] = [0, 1, 2];
    world.until(10 * MINUTE)?;
    world.pods[3] = None;
    world.store(last, 0)?;
    world.isolate(origin);
    world.change(origin, 0)?;
    world.until(29 * MINUTE)?;
    world.cut(witness, last, u64::MAX);
    world.cut(origin, witness, 0);
    world.until(33 * MINUTE)?;
    world.pods[origin] = None;
    assert!(world.has_stored(last, 0), "it has not heard of it yet");
    world.until(42 * MINUTE)?;
    world.cut(witness, last, 0);
    world.run()?;
    assert!(!world.has_stored(last, 0));
    Ok(())
}

#[test]
fn purge_that_redis_lacks_is_told_after_any_time() -> Result<(), String> {
    let mut world = World::quiet(LONG, true);
    let [origin, witness] = [0, 1];
    world.until(10 * MINUTE)?;
    world.store(witness, 0)?;
    world.isolate(origin);
    world.lose_redis(origin);
    world.change(origin, 0)?;
    world.until(100 * MINUTE)?;
    assert!(world.has_stored(witness, 0), "nobody has heard of it yet");
    world.cut(origin, witness, 0);
    world.until(105 * MINUTE)?;
    world.pods[origin] = None;
    assert_eq!(world.redis.len(), 1, "the witness has told redis");
    world.run()?;
    assert_eq!(world.oracle.seen.everything, 0);
    Ok(())
}

#[test]
fn with_redis_a_gap_between_two_pods_purges_nothing() -> Result<(), String> {
    let mut world = World::quiet(LONG, true);
    world.until(10 * MINUTE)?;
    world.store(2, 1)?;
    world.isolate(1);
    world.until(60 * MINUTE)?;
    world.lose_redis(0);
    world.lose_redis(1);
    (2..4).for_each(|other| world.cut(0, other, u64::MAX));
    world.change(0, 0)?;
    world.cut(0, 1, 0);
    world.until(70 * MINUTE)?;
    world.run()?;
    assert_eq!(world.oracle.seen.everything, 0);
    assert!(world.has_stored(2, 1));
    Ok(())
}

#[test]
fn new_pod_empties_no_cache_for_a_purge_that_is_on_its_way() -> Result<(), String> {
    let mut world = World::quiet(SHORT, false);
    let [origin, other, new] = [0, 1, 3];
    world.until(2_000)?;
    world.pods[new] = None;
    world.until(4_000)?;
    world.store(other, 1)?;
    world.cut(origin, other, u64::MAX);
    world.cut(2, other, u64::MAX);
    world.write_of(origin, 0, Kind::Tag { is_soft: false });
    world.until(world.now + 50)?;
    world.at(world.now, Event::Begin { pod: new });
    world.until(world.now + 3_000)?;
    world.cut(origin, other, 0);
    world.run()?;
    assert_eq!(world.oracle.seen.everything, 0);
    Ok(())
}

#[test]
fn nobody_waits_for_a_pod_that_has_left() -> Result<(), String> {
    let mut world = World::quiet(SHORT, false);
    world.until(5_000)?;
    world.leave(1);
    world.until(5_500)?;
    world.pods[1] = None;
    let seen = world.oracle.seen;
    world.change(0, 0)?;
    assert_eq!(world.oracle.seen.acknowledged - seen.acknowledged, 3, "the two others have, and itself");
    let made = world.oracle.purges.last().expect("there is one");
    assert!(made.acknowledged_at.is_some_and(|at| at < 5_500 + 90), "{made:?}");
    Ok(())
}
