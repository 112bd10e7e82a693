//! What a case is: which rule, what is done, and what that must come to.

use super::peer::{Outcome, Peer};

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Where the rule stands.
    pub section: &'static str,
    /// What is done, and what must come of it.
    pub name: &'static str,
    /// A client that keeps to the rules would not do so.
    pub malformed: bool,
    /// The client's words; it has not greeted yet where `greeted` is false.
    pub run: fn(&mut Peer) -> Outcome,
    /// Preface and SETTINGS have been exchanged.
    pub greeted: bool,
    /// What is refused stands in the access log with a flag.
    pub logged: bool,
}

/// Something that a server must bear.
pub const fn good(section: &'static str, name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case { section, name, malformed: false, run, greeted: true, logged: false }
}

/// Something that a server must refuse.
pub const fn bad(section: &'static str, name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case { section, name, malformed: true, run, greeted: true, logged: true }
}

impl Case {
    /// A case that greets by itself.
    pub const fn ungreeted(self) -> Self {
        Self { greeted: false, ..self }
    }

    /// A case of which the access log need not tell: nobody could say what belongs to a request and what has been overtaken by its end.
    pub const fn unlogged(self) -> Self {
        Self { logged: false, ..self }
    }
}
