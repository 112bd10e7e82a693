//! Prometheus text exposition format 0.0.4. In: names, labels, values. Out: text. Escapes label values; never checks
//! that a name is legal (all names are ours).

use std::fmt::{Display, Write};

/// Type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets.
    Histogram,
}

/// A page being written.
#[derive(Default)]
pub struct Text {
    out: String,
    /// Whether the current sample has an open brace.
    open: bool,
}

impl Text {
    /// Begins a family: its `# HELP` and `# TYPE` lines. The samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A whole family of one sample.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.name(name, "");
        self.value(value);
    }

    /// Begins a sample; labels and then the value follow.
    pub fn name(&mut self, name: &str, suffix: &str) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        self.open = false;
    }

    /// One label of the current sample.
    pub fn label(&mut self, name: &str, value: impl Display) {
        self.out.push(if self.open { ',' } else { '{' });
        self.open = true;
        self.out.push_str(name);
        self.out.push_str("=\"");
        let _ = write!(Escaped(&mut self.out), "{value}");
        self.out.push('"');
    }

    /// Labels already written, as [`Text::labels_since`] returned them.
    pub(super) fn raw_labels(&mut self, labels: &str) {
        self.out.push_str(labels);
        self.open = !labels.is_empty();
    }

    /// Ends the sample.
    pub fn value(&mut self, value: impl Display) {
        if self.open {
            self.out.push('}');
        }
        self.open = false;
        let _ = writeln!(self.out, " {value}");
    }

    /// The page.
    pub fn finish(self) -> String {
        self.out
    }

    /// The labels written so far into an otherwise empty page: `{a="b",c="d"` without the closing brace.
    pub(super) fn into_raw_labels(self) -> String {
        self.out
    }
}

/// Escapes backslash, double quote and newline, as the format demands for label values.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_label_values() {
        let mut text = Text::default();
        text.family("x", Kind::Gauge, "Help.");
        text.name("x", "_bucket");
        text.label("a", "q\"b\\n\nü");
        text.label("le", 0.5);
        text.value(3);
        text.name("x", "");
        text.value(1.5);
        assert_eq!(
            text.finish(),
            "# HELP x Help.\n# TYPE x gauge\nx_bucket{a=\"q\\\"b\\\\n\\nü\",le=\"0.5\"} 3\nx 1.5\n"
        );
    }
}
