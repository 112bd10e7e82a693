//! The document that says how the suites went.
//!
//! In: a file of JSON for each suite. Out: Markdown, the same for the same outcomes. No I/O but reading those files.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Suites in the document's order: name of the file, title, what it is.
const SUITES: [(&str, &str, &str); 4] = [
    (
        "http2",
        "HTTP/2",
        "Frames byte by byte, cases from RFC 9113 and RFC 7541: to an outbound and an inbound listener of ours and to Envoy 1.40, with the \
         same server behind. A connection that must end may end by GOAWAY, with the code of the rule, or at once. A stream that must be \
         refused may be reset or answered with 4xx, and the next request on its connection must be answered. Every malformed message stands \
         in the access log once with `DPE`, and neighbours on the same worker and tunnel go on. Ours know which frame has broken a rule by \
         following those that `h2`, which reads them, is given; where several that are suspect have come in one read, PROTOCOL_ERROR stays \
         what it is. Of trailers the first line is looked at: a pseudo header whose name only the dynamic table knows is dropped, and goes \
         no further.",
    ),
    (
        "websocket",
        "WebSocket",
        "The cases of the Autobahn suite as `kosoku` 0.1.0 runs them, against a server of `websockets` 15.0.1: through two agents from pod to \
         pod, through Envoy, and without a proxy. What passes without a proxy must pass through the agents. Left out are 12.2 to 12.5 and 13.2 \
         to 13.7: the messages of 12.1 and 13.1 again, with other parameters of a compression that is the ends' own.",
    ),
    (
        "smuggling",
        "Requests that could be read in two ways",
        "Raw requests through two agents to nginx and to HAProxy. What must hold: the server sees just what the access logs say was passed on, \
         what is refused gets its status or is cut off and is logged once with `DPE`, and a kept connection beside it goes on. Those of HTTP/2 \
         are the malformed requests of the suite above, with a server of HTTP/1 behind.",
    ),
    (
        "grpc",
        "gRPC",
        "The interoperability cases of gRPC by `grpcio` 1.76.0 at both ends: through two agents from pod to pod, and through Envoy.",
    ),
];

#[derive(Deserialize)]
struct Suite {
    subjects: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    section: String,
    name: String,
    outcomes: Vec<Outcome>,
    /// Why ours do not pass it.
    why: Option<String>,
}

#[derive(Deserialize)]
struct Outcome {
    passed: bool,
    seen: String,
}

/// The whole document.
pub fn render(results: &Path) -> Result<String> {
    let mut suites = Vec::new();
    for (name, title, about) in SUITES {
        let file = results.join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{}: the suite has not run to its end", file.display()))?;
        let suite: Suite = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        ensure!(!suite.cases.is_empty(), "{}: no cases", file.display());
        suites.push((title, about, suite));
    }
    document(&suites)
}

fn document(suites: &[(&str, &str, Suite)]) -> Result<String> {
    let mut text = String::from(
        "# Conformance\n\nWritten by `cargo xtask conformance`, which runs every case; a share of them runs in `cargo xtask test`. \
         The rule: no case that the reference passes may fail for us.\n\n\
         | suite | cases | tried on | passed | failed |\n|---|---|---|---|---|\n",
    );
    for (title, _, suite) in suites {
        for (at, subject) in suite.subjects.iter().enumerate() {
            let passed = suite.cases.iter().filter(|case| case.outcomes[at].passed).count();
            let failed = suite.cases.len() - passed;
            writeln!(text, "| {title} | {} | {subject} | {passed} | {failed} |", suite.cases.len())?;
        }
    }
    for (title, about, suite) in suites {
        write!(text, "\n## {title}\n\n{about}\n")?;
        failed(&mut text, suite)?;
    }
    Ok(text)
}

/// Cases that somebody fails.
fn failed(text: &mut String, suite: &Suite) -> Result<()> {
    let failed: Vec<_> = suite.cases.iter().filter(|case| case.outcomes.iter().any(|of| !of.passed)).collect();
    if failed.is_empty() {
        text.push_str("\nNobody fails a case.\n");
        return Ok(());
    }
    write!(text, "\n| failed by somebody | {} |\n|---|", suite.subjects.join(" | "))?;
    writeln!(text, "{}", "---|".repeat(suite.subjects.len()))?;
    for case in failed {
        write!(text, "| {}: {} |", case.section, case.name)?;
        for of in &case.outcomes {
            write!(text, " {} |", if of.passed { "passed".to_owned() } else { format!("**{}**", cell(&of.seen)) })?;
        }
        text.push('\n');
    }
    for case in &suite.cases {
        if let Some(why) = &case.why {
            writeln!(text, "\n`{}: {}`, why ours do not pass: {why}.", case.section, case.name)?;
        }
    }
    Ok(())
}

/// Text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_lists_what_is_not_as_it_should_be() {
        let suite = r#"{"subjects": ["ours", "theirs"], "cases": [
            {"section": "1", "name": "good", "outcomes": [{"passed": true, "seen": "x"}, {"passed": true, "seen": "y"}], "why": null},
            {"section": "2", "name": "odd", "outcomes": [{"passed": true, "seen": "z"}, {"passed": false, "seen": "a | b"}], "why": "because"}]}"#;
        let text = document(&[("Title", "About.", serde_json::from_str(suite).unwrap())]).unwrap();
        assert!(text.contains("| Title | 2 | ours | 2 | 0 |\n| Title | 2 | theirs | 1 | 1 |\n"), "{text}");
        assert!(text.contains("| 2: odd | passed | **a \\| b** |\n"), "{text}");
        assert!(text.contains("`2: odd`, why ours do not pass: because."), "{text}");
        assert!(!text.contains("good"), "{text}");
    }
}
