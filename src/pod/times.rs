//! Times that somebody wrote down in seconds, in a pod or an order: any number may stand there.

use std::time::Duration;

/// Longest time that is waited for, a hundred years. The clocks' own numbers have an end, behind which adding to them panics;
/// nobody tells such a time from for ever.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// A time of the API, which can be added to any clock; one below zero is none.
pub fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn any_number_of_seconds_can_be_added_to_a_clock() {
        assert_eq!([-1, i64::MIN, 0, 30].map(|n| seconds(n).as_secs()), [0, 0, 0, 30]);
        let late = Instant::now() + seconds(i64::MAX) + seconds(i64::MAX);
        assert!(late > Instant::now() + seconds(i64::from(i32::MAX)));
    }
}
