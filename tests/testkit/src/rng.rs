//! Chance that can be repeated: it need not be good here, only the same for the same seed.

use std::time::Duration;

/// A xorshift generator (Marsaglia's).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Begins with `seed`.
    pub fn new(seed: u64) -> Self {
        // Spreads neighbouring seeds apart; zero would stay zero for ever.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }

    /// A span between two others, to the thousandth of their difference.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.below(1000) as f64 / 1000.0)
    }

    /// One of `all`, if there is any.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }

    /// `count` of `all`, or all if there are fewer; their order is chance too.
    pub fn choose(&mut self, count: usize, all: &[usize]) -> Vec<usize> {
        let mut left = all.to_vec();
        let take = count.min(left.len());
        (0..take).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices_and_another_others() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..20).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        let mut rng = Rng::new(0);
        let chosen = rng.choose(3, &[4, 5, 6]);
        assert!([4, 5, 6].iter().all(|one| chosen.contains(one)), "{chosen:?}");
        let span = rng.between(Duration::from_secs(2), Duration::from_secs(3));
        assert!((2.0..3.0).contains(&span.as_secs_f64()), "{span:?}");
    }
}
