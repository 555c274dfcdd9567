//! Counts of durations in fixed, log-linear buckets: the same few kilobytes however many are recorded.

use std::time::Duration;

/// Buckets per power of two are `1 << SUB_BITS`, so a percentile is at most 1/32 above the truth.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// The first `SUB` values have a bucket each; every later power of two has `SUB` of them.
const BUCKETS: usize = ((u64::BITS - SUB_BITS + 1) as usize) << SUB_BITS;

/// A histogram of microseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: vec![0; BUCKETS].into_boxed_slice(),
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        self.record_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one duration given in microseconds.
    pub fn record_micros(&mut self, micros: u64) {
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(micros);
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// The microseconds that a share (0 to 1) of the recorded durations did not exceed; none if nothing was recorded.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        let wanted = ((share * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Some(highest(index).min(self.max));
            }
        }
        Some(self.max)
    }

    /// The longest in microseconds; none if nothing was recorded.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.total > 0).then_some(self.max)
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let power = value.ilog2() - SUB_BITS;
    (((u64::from(power) + 1) << SUB_BITS) + ((value >> power) & (SUB - 1))) as usize
}

/// The greatest value of a bucket.
fn highest(index: usize) -> u64 {
    let index = index as u64;
    if index < SUB {
        return index;
    }
    let power = (index >> SUB_BITS) - 1;
    let lowest = (SUB + (index & (SUB - 1))) << power;
    lowest + ((1 << power) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_ends_at_most_a_32nd_above_it() {
        let mut value = 0u64;
        while value < u64::MAX / 3 {
            for near in [value.saturating_sub(1), value, value + 1] {
                let end = highest(bucket(near));
                assert!(end >= near, "{near} is above its bucket's end {end}");
                assert!(
                    end - near <= near / SUB,
                    "{near} is far below its bucket's end {end}"
                );
            }
            value = value * 3 / 2 + 1;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(highest(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn buckets_follow_on_each_other_without_gap() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(highest(index)), index);
            assert_eq!(bucket(highest(index) + 1), index + 1);
        }
    }

    #[test]
    fn quantiles_are_those_of_the_recorded_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (None, None));
        for micros in 1..=1000 {
            histogram.record_micros(micros);
        }
        let p50 = histogram.quantile(0.5).unwrap();
        assert!((500..=516).contains(&p50), "{p50}");
        let p99 = histogram.quantile(0.99).unwrap();
        assert!((990..=1000).contains(&p99), "{p99}");
        assert_eq!(histogram.quantile(1.0), Some(1000));
        assert_eq!(histogram.quantile(0.0), Some(1));
        assert_eq!(histogram.max(), Some(1000));
    }

    #[test]
    fn merged_histograms_count_as_one() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        low.record(Duration::from_micros(10));
        high.record(Duration::from_secs(2));
        low.merge(&high);
        assert_eq!(low.quantile(0.5), Some(10));
        assert_eq!(low.max(), Some(2_000_000));
    }
}
