//! The corpus: what is sent, and what must become of it. In: `corpus.txt`. Out: [`Case`]s.

/// What must become of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// So many requests go on.
    Passed(usize),
    /// None does, and the client gets this status.
    Refused(u16),
    /// The head goes on, and what follows it is refused.
    Cut,
    /// Taken for something else than HTTP.
    Bytes,
}

impl Verdict {
    /// Answers that must come before the connection says more.
    pub fn answers(self) -> Option<usize> {
        match self {
            Self::Passed(count) => Some(count),
            Self::Refused(_) | Self::Cut => None,
            Self::Bytes => Some(0),
        }
    }

    /// Lines of the client's agent.
    pub fn lines(self) -> usize {
        match self {
            Self::Passed(count) => count,
            Self::Refused(_) | Self::Cut => 1,
            // It is told once nobody was to be reached, which takes its time.
            Self::Bytes => 0,
        }
    }

    /// Requests that the server sees at least.
    pub fn passed(self) -> usize {
        if let Self::Passed(count) = self { count } else { 0 }
    }
}

/// One case.
pub struct Case {
    pub verdict: Verdict,
    pub group: String,
    pub name: String,
    text: String,
}

impl Case {
    /// What is sent to a server, about a path.
    pub fn bytes(&self, host: &str, path: &str) -> Vec<u8> {
        unescaped(&self.text.replace("$H", host).replace("$P", path))
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let lines = include_str!("corpus.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(case).collect()
}

fn case(line: &str) -> Case {
    let parts: Vec<_> = line.splitn(4, " | ").collect();
    let [verdict, group, name, text] = parts[..] else { panic!("four parts expected: {line}") };
    let verdict = match verdict {
        "cut" => Verdict::Cut,
        "bytes" => Verdict::Bytes,
        status if status.len() == 3 => Verdict::Refused(status.parse().unwrap()),
        count => Verdict::Passed(count.parse().unwrap()),
    };
    Case { verdict, group: group.to_owned(), name: name.to_owned(), text: text.to_owned() }
}

/// Lets escapes stand for their bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.push(u8::try_from(c).unwrap());
            continue;
        }
        match rest.next() {
            Some('r') => bytes.push(b'\r'),
            Some('n') => bytes.push(b'\n'),
            Some('t') => bytes.push(b'\t'),
            Some('0') => bytes.push(0),
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            other => panic!("\\{other:?} in {text}"),
        }
    }
    bytes
}
