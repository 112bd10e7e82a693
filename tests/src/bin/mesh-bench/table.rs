//! Prints the figures and writes them as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::measure::{Round, median};

/// Which figure of a measurement is shown, and how.
#[derive(Clone, Copy)]
pub struct Figure {
    /// Name in [`Round::get`].
    pub name: &'static str,
    /// Heading with the unit.
    pub heading: &'static str,
    /// True where only the proxies of a path have it, so that there is no ratio to the direct path.
    pub absolute: bool,
}

/// All rounds of one measurement: path name → rounds, in the order of `paths`.
pub struct Results {
    /// What was measured, as a heading.
    pub title: String,
    /// Shown figures.
    pub figures: &'static [Figure],
    /// Names of the paths; the first is the direct one.
    pub paths: Vec<&'static str>,
    /// Rounds by path.
    pub rounds: BTreeMap<&'static str, Vec<Round>>,
}

impl Results {
    /// Median of a figure over a path's rounds.
    fn value(&self, path: &str, figure: Figure) -> Option<f64> {
        median(self.rounds.get(path)?.iter().filter_map(|round| round.get(figure.name)))
    }

    /// Median over rounds of the path's figure divided by the direct path's of the same round.
    fn ratio(&self, path: &str, figure: Figure) -> Option<f64> {
        let direct = self.rounds.get(self.paths.first()?)?;
        let pairs = self.rounds.get(path)?.iter().zip(direct);
        median(pairs.filter_map(|(round, direct)| Some(round.get(figure.name)? / direct.get(figure.name)?)))
    }

    /// A table for a person.
    pub fn print(&self) {
        println!("\n{}", self.title);
        print!("  {:<34}", "path");
        for figure in self.figures {
            print!("{:>26}", figure.heading);
        }
        println!();
        for path in &self.paths {
            print!("  {path:<34}");
            for figure in self.figures {
                let text = match (self.value(path, *figure), figure.absolute) {
                    (None, _) => "–".to_string(),
                    (Some(value), true) => format!("{value:.1}"),
                    (Some(value), false) => match self.ratio(path, *figure) {
                        Some(ratio) => format!("{value:.1} ({ratio:.2}×)"),
                        None => format!("{value:.1}"),
                    },
                };
                print!("{text:>26}");
            }
            println!();
        }
    }

    /// The same for a program: medians, ratios and every round.
    pub fn json(&self) -> Value {
        let paths: BTreeMap<_, _> = self
            .paths
            .iter()
            .map(|path| {
                let figures: BTreeMap<_, _> = self
                    .figures
                    .iter()
                    .map(|figure| {
                        let rounds: Vec<_> =
                            self.rounds.get(path).into_iter().flatten().map(|round| round.get(figure.name)).collect();
                        let ratio = if figure.absolute { None } else { self.ratio(path, *figure) };
                        let median = self.value(path, *figure);
                        (figure.name, json!({ "median": median, "ratio_to_direct": ratio, "rounds": rounds }))
                    })
                    .collect();
                (*path, figures)
            })
            .collect();
        json!({ "measurement": self.title, "paths": paths })
    }
}
