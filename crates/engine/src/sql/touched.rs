//! When groups, or keys, were touched last: those for which that is longest ago may go to disk.
//!
//! Invariant: each number has a time, that of the last batch with news of it. Called by [`super::held`]
//! and [`super::tops`].

/// Times by number.
#[derive(Debug, Default)]
pub(super) struct Touched {
    times: Vec<u32>,
    now: u32,
}

impl Touched {
    /// A batch touched these of so many.
    pub(super) fn touch(&mut self, numbers: &[u32], of: usize) {
        self.now = self.now.wrapping_add(1);
        self.times.resize(of, 0);
        numbers.iter().for_each(|number| self.times[*number as usize] = self.now);
    }

    /// So many that were touched last, and the others, in the order of their numbers.
    pub(super) fn parted(&self, stay: usize) -> (Vec<u32>, Vec<u32>) {
        let all = || (0_u32..).zip(&self.times);
        let Some(go) = self.times.len().checked_sub(stay).filter(|go| *go > 0) else {
            return (all().map(|(number, _)| number).collect(), Vec::new());
        };
        let mut times = self.times.clone();
        let (_, last, later) = times.select_nth_unstable(go - 1);
        // Of those that are as old as the youngest that goes, some may stay.
        let last = *last;
        let mut ties = later.iter().filter(|time| **time == last).count();
        let (stay, go) = all().partition::<Vec<_>, _>(|(_, time)| {
            let is_tied = **time == last && ties > 0;
            ties -= usize::from(is_tied);
            **time > last || is_tied
        });
        let numbers = |of: Vec<(u32, &u32)>| of.into_iter().map(|(number, _)| number).collect();
        (numbers(stay), numbers(go))
    }

    /// Only these are left, numbered in this order.
    pub(super) fn only(&mut self, stay: &[u32]) {
        self.times = stay.iter().map(|number| self.times[*number as usize]).collect();
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.times.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_touched_last_stay() {
        let mut touched = Touched::default();
        for numbers in [&[0, 1, 2, 3][..], &[1, 4], &[3, 5], &[0]] {
            touched.touch(numbers, 6);
        }
        assert_eq!(touched.parted(0), (vec![], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(touched.parted(1), (vec![0], vec![1, 2, 3, 4, 5]));
        assert_eq!(touched.parted(2), (vec![0, 3], vec![1, 2, 4, 5]), "two are as old as each other: one stays");
        assert_eq!(touched.parted(3), (vec![0, 3, 5], vec![1, 2, 4]));
        assert_eq!(touched.parted(5), (vec![0, 1, 3, 4, 5], vec![2]));
        assert_eq!(touched.parted(6), (vec![0, 1, 2, 3, 4, 5], vec![]));
        assert_eq!(touched.parted(60).1, Vec::<u32>::new());
        touched.only(&[5, 2]);
        assert_eq!(touched.parted(1), (vec![0], vec![1]));
    }
}
