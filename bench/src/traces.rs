//! Traces of keys, the same in every run.

/// Number of keys that recur.
pub const KEYS: u32 = 100_000;

/// Number of requests in a trace.
pub const REQUESTS: usize = 2_000_000;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number from 0 up to 1.
    pub fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Keys by rank: the first is the most frequent, the n-th has the frequency `1 / n^skew`.
pub struct Zipf(Vec<f64>);

impl Zipf {
    /// Creates a distribution of this many keys.
    pub fn new(keys: u32, skew: f64) -> Self {
        let mut sum = 0.0;
        let mut sums: Vec<f64> = (1..=keys)
            .map(|rank| {
                sum += f64::from(rank).powf(-skew);
                sum
            })
            .collect();
        sums.iter_mut().for_each(|value| *value /= sum);
        Self(sums)
    }

    /// The next key.
    pub fn next(&self, random: &mut Random) -> u32 {
        let share = random.share();
        self.0.partition_point(|sum| *sum < share).min(self.0.len() - 1) as u32
    }
}

/// A trace.
#[derive(Clone, Copy, Debug)]
pub enum Trace {
    /// Zipf's law.
    Zipf(f64),
    /// Zipf's law, interleaved with thousands of keys that are requested once.
    Scan(f64),
    /// Zipf's law, with a most frequent key that changes over time.
    Moving(f64),
    /// One key after another, then again from the first: this many times the capacity of the cache.
    Loop(f64),
}

impl Trace {
    /// The measured traces.
    pub const ALL: [Self; 8] = [
        Self::Zipf(0.7),
        Self::Zipf(0.9),
        Self::Zipf(1.1),
        Self::Scan(0.7),
        Self::Scan(0.9),
        Self::Scan(1.1),
        Self::Moving(0.9),
        Self::Loop(1.2),
    ];

    /// Returns the name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Zipf(skew) => format!("Zipf {skew}"),
            Self::Scan(skew) => format!("Zipf {skew}, scans"),
            Self::Moving(skew) => format!("Zipf {skew}, moving"),
            Self::Loop(times) => format!("loop of {times}"),
        }
    }

    /// Returns the keys, of which a cache holds about `held`.
    pub fn keys(self, held: u32) -> Vec<u32> {
        const SCAN: u32 = 10_000;
        let mut random = Random(7);
        match self {
            Self::Zipf(skew) => {
                let zipf = Zipf::new(KEYS, skew);
                (0..REQUESTS).map(|_| zipf.next(&mut random)).collect()
            }
            Self::Scan(skew) => {
                let zipf = Zipf::new(KEYS, skew);
                let mut once = KEYS..;
                let key = |request: usize| {
                    let scans = request as u32 / SCAN % 3 == 2;
                    if scans { once.next() } else { None }.unwrap_or_else(|| zipf.next(&mut random))
                };
                (0..REQUESTS).map(key).collect()
            }
            Self::Moving(skew) => {
                let zipf = Zipf::new(KEYS, skew);
                let moved = |request: usize| (request / 200) as u32;
                (0..REQUESTS).map(|request| (zipf.next(&mut random) + moved(request)) % KEYS).collect()
            }
            Self::Loop(times) => {
                let keys = f64::from(held) * times;
                (0..REQUESTS as u32).map(|request| request % keys as u32).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_has_its_stated_skew() {
        let mut counts = [0_u32; 2];
        let (zipf, mut random) = (Zipf::new(1000, 1.0), Random(1));
        for _ in 0..100_000 {
            if let Some(count) = counts.get_mut(zipf.next(&mut random) as usize) {
                *count += 1;
            }
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{counts:?}");
    }

    #[test]
    fn third_of_the_trace_is_scans() {
        let once = Trace::Scan(0.9).keys(0).iter().filter(|key| **key >= KEYS).count();
        assert!(once.abs_diff(REQUESTS / 3) < 20_000, "{once}");
    }

    #[test]
    fn traces_are_the_same_again() {
        assert_eq!(Trace::Scan(0.9).keys(5000), Trace::Scan(0.9).keys(5000));
    }
}
