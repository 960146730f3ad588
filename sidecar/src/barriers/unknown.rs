//! Purges that Redis has ordered and that were not heard of here.

use larder_policy::PurgeName;

use super::{Barriers, RedisBarriers};

impl Barriers {
    /// Returns the names of purges that Redis holds and that are not applied here; `None`: everything, because it counts in another
    /// generation, has gone back behind `known_order`, which was known when it was asked, or has more barriers than it keeps one by one.
    pub fn unknown(&self, redis: &RedisBarriers, known_order: u64) -> Option<Vec<PurgeName>> {
        self.read(|table| {
            if table.generation != redis.generation
                || redis.order < known_order
                || redis.floor > table.floor.order
            {
                return None;
            }
            let known =
                |name| table.raised.get(name).map_or(0, |barrier| barrier.order).max(table.floor.order);
            let unknown = redis.raised.iter().filter(|(name, order)| *order > known(name));
            let mut names: Vec<_> = unknown.map(|(name, _)| *name).collect();
            if !names.is_empty() {
                redis.add_indirect(&mut names);
            }
            Some(names)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::barriers::Heard;

    #[test]
    fn purges_that_were_not_heard_are_unknown_and_all_are_where_another_counts() {
        let barriers = Barriers::shared(Duration::from_secs(5));
        let [heard, missed] = ["a", "b"].map(PurgeName::tag);
        let raised = vec![(heard, 4), (missed, 5)];
        let redis = RedisBarriers { generation: 7, order: 5, floor: 0, raised };
        assert_eq!(barriers.unknown(&redis, 4), None);
        barriers.resync(&RedisBarriers { generation: 7, order: 3, ..RedisBarriers::default() });
        assert_eq!(barriers.heard(7, 4, &[heard]), Heard::InOrder);
        assert_eq!(barriers.unknown(&redis, 4), Some(vec![missed]));
        assert_eq!(barriers.unknown(&RedisBarriers { floor: 5, ..redis.clone() }, 4), None);
        assert_eq!(barriers.unknown(&RedisBarriers { order: 3, raised: vec![], ..redis.clone() }, 4), None);
        barriers.resync(&redis);
        assert_eq!(barriers.unknown(&redis, 4), Some(vec![]));
    }
}
