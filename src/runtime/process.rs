//! Facts of a process from `/proc`, to tell it from a later one with the same pid.

/// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22); `None` if there is no such process.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in brackets may hold blanks
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_start_time_is_known() {
        assert!(super::start_time(std::process::id() as i32).is_some());
        assert!(super::start_time(i32::MAX).is_none());
    }
}
