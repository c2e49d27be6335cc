//! Times that somebody wrote down in seconds, in a pod or an order: any number may stand there. And times as Go writes them,
//! which those who read Events know.

use std::time::Duration;

/// Longest time that is waited for, a hundred years. The clocks' own numbers have an end, behind which adding to them panics;
/// nobody tells such a time from for ever.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// A time of the API, which can be added to any clock; one below zero is none.
pub fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0)).min(LONGEST)
}

/// As Go writes a time, in whole milliseconds: `1m20.5s`.
pub fn in_words(time: Duration) -> String {
    let millis = time.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, seconds) = (millis / 60_000, (millis % 60_000) as f64 / 1000.0);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn times_are_written_as_go_has_them() {
        let of = |millis| in_words(Duration::from_millis(millis));
        assert_eq!([0, 7, 1234, 10_000].map(of), ["0s", "7ms", "1.234s", "10s"]);
        assert_eq!([80_000, 300_000, 3_600_500].map(of), ["1m20s", "5m0s", "1h0m0.5s"]);
    }

    #[test]
    fn any_number_of_seconds_can_be_added_to_a_clock() {
        assert_eq!([-1, i64::MIN, 0, 30].map(|n| seconds(n).as_secs()), [0, 0, 0, 30]);
        let late = Instant::now() + seconds(i64::MAX) + seconds(i64::MAX);
        assert!(late > Instant::now() + seconds(i64::from(i32::MAX)));
    }
}
