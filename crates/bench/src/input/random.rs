//! Seeded random numbers and Zipf's law.
//!
//! Called by the generators only. Not for anything that must be hard to guess.

/// SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection
/// that scatters neighbouring inputs over all 64 bits.
#[inline]
pub(crate) const fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `index` under `seed`.
    pub(crate) fn new(seed: u64, index: u64) -> Self {
        Self(splitmix64(seed ^ splitmix64(index)))
    }

    /// The next 64 bits.
    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        let out = splitmix64(self.0);
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        out
    }

    /// Evenly from `0..bound`; `bound` is below 2³².
    #[inline]
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        scale(self.next() >> 32, bound)
    }

    /// True `percent` times of a hundred.
    #[inline]
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `from`, each as likely.
    #[inline]
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// 32 random bits as an index below `bound`.
#[inline]
fn scale(bits: u64, bound: usize) -> usize {
    ((bits * bound as u64) >> 32) as usize
}

/// Ranks `0..n` with a likelihood of `1 / (rank + 1)^s`: Walker's alias method, one look a draw.
#[derive(Debug)]
pub(crate) struct Zipf {
    /// Below the first number of 2³²: the rank itself; otherwise the second number.
    slots: Vec<(u32, u32)>,
}

impl Zipf {
    /// `n` ranks, at least one, with exponent `s`.
    pub(crate) fn new(n: u32, s: f64) -> Self {
        let weights: Vec<f64> = (1..=n).map(|rank| f64::from(rank).powf(-s)).collect();
        let mean = weights.iter().sum::<f64>() / f64::from(n);
        let mut shares: Vec<f64> = weights.iter().map(|w| w / mean).collect();
        let mut slots: Vec<(u32, u32)> = (0..n).map(|rank| (u32::MAX, rank)).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) = (0..n).partition(|rank| shares[*rank as usize] < 1.0);
        while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
            let share = shares[poor as usize];
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share from 0 to 1 of 2³²")]
            let cut = (share * f64::from(u32::MAX)) as u32;
            slots[poor as usize] = (cut, rich);
            shares[rich as usize] -= 1.0 - share;
            if shares[rich as usize] < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self { slots }
    }

    /// A rank.
    #[inline]
    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let bits = random.next();
        let rank = scale(bits >> 32, self.slots.len());
        let (cut, other) = self.slots[rank];
        if bits & 0xFFFF_FFFF < u64::from(cut) { rank } else { other as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_the_published_sequence() {
        // The first outputs of the reference implementation for state 0 and state 1234567.
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(1_234_567), 6_457_827_717_110_365_317);
    }

    #[test]
    fn zipf_draws_each_rank_as_often_as_its_law_says() {
        let (n, draws) = (50_u32, 400_000);
        let zipf = Zipf::new(n, 1.0);
        let mut random = Random::new(7, 0);
        let mut seen = vec![0_u32; n as usize];
        (0..draws).for_each(|_| seen[zipf.draw(&mut random)] += 1);
        let whole: f64 = (1..=n).map(|r| 1.0 / f64::from(r)).sum();
        for (rank, seen) in (1..=n).zip(seen) {
            let expected = f64::from(draws) / f64::from(rank) / whole;
            assert!((f64::from(seen) - expected).abs() < 5.0 * expected.sqrt(), "rank {rank}: {seen}, not {expected}");
        }
    }
}
