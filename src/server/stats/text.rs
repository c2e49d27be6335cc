//! The Prometheus text format, version 0.0.4.

use std::fmt::Write;

use crate::metrics::{Family, Sample};

/// Metrics in the making.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Text(String);

/// Labels of a sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a metric: its samples follow.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // writing to a String cannot fail
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample; `at` is its time in milliseconds since the epoch.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (number, (key, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{key}=\"", if number == 0 { '{' } else { ',' });
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = if value.is_infinite() { write!(self.0, " +Inf") } else { write!(self.0, " {value}") };
        if let Some(at) = at {
            let _ = write!(self.0, " {at}");
        }
        self.0.push('\n');
    }

    /// A metric of one sample.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, labels: Labels<'_>, value: f64) {
        self.metric(name, kind, help);
        self.sample(name, labels, value, None);
    }

    /// All of a family, if there is anything to tell.
    pub fn family(&mut self, family: &dyn Family) {
        let samples = family.samples();
        if samples.is_empty() {
            return;
        }
        let (name, kind, help) = family.head();
        self.metric(name, kind, help);
        for Sample { suffix, labels, value } in samples {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (*key, value.as_ref())).collect();
            self.sample(&format!("{name}{suffix}"), &labels, value, None);
        }
    }

    #[cfg(test)]
    pub fn lines(&self) -> std::str::Lines<'_> {
        self.0.lines()
    }

    /// The answer to a scrape.
    pub fn response(self) -> axum::response::Response {
        use axum::response::IntoResponse;
        ([(http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], self.0).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.metric("m", "gauge", "Help.");
        text.sample("m", &[("a", "x\"\\\n"), ("b", "")], 1.5, Some(7));
        assert_eq!(text.0, "# HELP m Help.\n# TYPE m gauge\nm{a=\"x\\\"\\\\\\n\",b=\"\"} 1.5 7\n");
    }
}
