//! The part "kernel hooks": what a run of each program takes under several kinds of load, as the kernel itself accounts
//! for it, beside the goals. In: a lab with its ways. Out: tables, JSON. Fails for no figure. What the account itself adds to
//! each run is measured with an empty program; figures stand with it and, in a column of their own, without it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mesh_tests::Lab;
use serde_json::{Value, json};

use crate::Measurement;
use crate::measure::median;
use crate::ways::{DNS, ECHO, HTTP, ONCE, SINK, Way};

mod accounting;

use accounting::{Account, Accounting, Node, Runs, between, overhead};

/// The nodes, and what they are called in the tables.
const NODES: [(&str, &str); 2] = [("near", "client's node"), ("far", "server's node")];

/// A kind of load.
struct Load {
    measurement: Measurement,
    /// Name of the way.
    way: &'static str,
}

const fn load(title: &'static str, way: &'static str, port: u16, arguments: &'static [&'static str]) -> Load {
    Load { measurement: Measurement { title, figures: &[], port, arguments, seconds: None }, way }
}

const CONNECT: &[&str] = &["connect", "--connections", "16"];
const REQUESTS: &[&str] = &["http", "--connections", "64"];

const CAPTURED: &str = "new connections, captured";
const ASSIGNED: &str = "new connections, from outside to an enrolled pod";
const REQUEST: &str = "HTTP/1.1, 64 connections, mesh pair";
const STREAM: &str = "bulk, mesh pair";
const OUTSIDE: &str = "new connections, neither pod enrolled";

const LOADS: [Load; 9] = [
    load(CAPTURED, "mesh, one hop, plain", ONCE, CONNECT),
    load(ASSIGNED, "to an enrolled pod", ONCE, CONNECT),
    load(REQUEST, "mesh, pair, mTLS", HTTP, REQUESTS),
    load(STREAM, "mesh, pair, mTLS", SINK, &["bulk"]),
    load("DNS questions", "mesh, one hop, plain", DNS, &["questions"]),
    load("getpeername, getsockname, setsockopt", "mesh, one hop, plain", ECHO, &["names"]),
    load(OUTSIDE, "direct", ONCE, CONNECT),
    load("DNS questions, neither pod enrolled", "direct", DNS, &["questions"]),
    load("getpeername, getsockname, setsockopt, neither pod enrolled", "direct", ECHO, &["names"]),
];

/// For what a figure is.
#[derive(Clone, Copy, PartialEq)]
enum Per {
    /// A run of any of the hooks.
    Run,
    /// A run of each of the hooks, together.
    RunOfEach,
    /// An operation of the load: all runs of the hooks, together.
    Operation,
}

/// What a figure is to be.
#[derive(Clone, Copy)]
enum Wanted {
    /// Fewer nanoseconds.
    Below(f64),
    /// What one look into a map takes.
    OneLookup,
    /// There is no goal.
    Nothing,
}

/// A figure that has a goal, or explains one that has.
struct Goal {
    what: &'static str,
    load: &'static str,
    /// Index in [`NODES`].
    node: usize,
    hooks: &'static [&'static str],
    per: Per,
    wanted: Wanted,
}

impl Goal {
    /// The goal, and whether the figure misses it.
    fn verdict(&self, figure: Option<f64>, net: Option<f64>) -> String {
        let below = match self.wanted {
            Wanted::Below(below) => below,
            Wanted::OneLookup => return "one map lookup a run".into(),
            Wanted::Nothing => return String::new(),
        };
        let misses = |value: Option<f64>| value.is_some_and(|value| value >= below);
        let remark = match (misses(figure), misses(net)) {
            (_, true) => ": missed",
            (true, false) => ": met without the account's own",
            (false, false) => "",
        };
        format!("below {below:.0}{remark}")
    }
}

const fn goal(
    what: &'static str,
    load: &'static str,
    node: usize,
    hooks: &'static [&'static str],
    per: Per,
    wanted: Wanted,
) -> Goal {
    Goal { what, load, node, hooks, per, wanted }
}

const SOCKET_HOOKS: &[&str] = &["connect4", "sock_ops"];
const SOCKETS_BELOW: Wanted = Wanted::Below(1000.0);
const PACKET_BELOW: Wanted = Wanted::Below(300.0);

const GOALS: [Goal; 14] = [
    goal("connect + sock_ops, a run of each", CAPTURED, 0, SOCKET_HOOKS, Per::RunOfEach, SOCKETS_BELOW),
    goal("  connect, a captured connection", CAPTURED, 0, &["connect4"], Per::Operation, Wanted::Nothing),
    goal("  sock_ops, a captured connection", CAPTURED, 0, &["sock_ops"], Per::Operation, Wanted::Nothing),
    goal("tc egress, a packet of a new connection", CAPTURED, 0, &["egress"], Per::Run, PACKET_BELOW),
    goal("tc ingress, a packet of a new connection", CAPTURED, 0, &["ingress"], Per::Run, PACKET_BELOW),
    goal("tc ingress, a packet, connections from outside", ASSIGNED, 1, &["ingress"], Per::Run, PACKET_BELOW),
    goal("tc egress, a packet, connections from outside", ASSIGNED, 1, &["egress"], Per::Run, PACKET_BELOW),
    goal("tc egress, a packet of requests", REQUEST, 0, &["egress"], Per::Run, PACKET_BELOW),
    goal("tc ingress, a packet of requests", REQUEST, 1, &["ingress"], Per::Run, PACKET_BELOW),
    goal("tc egress, a packet of bulk", STREAM, 0, &["egress"], Per::Run, PACKET_BELOW),
    goal("tc ingress, a packet of bulk", STREAM, 1, &["ingress"], Per::Run, PACKET_BELOW),
    goal("connect, a pod that is not enrolled", OUTSIDE, 0, &["connect4"], Per::Run, Wanted::OneLookup),
    goal("sock_ops, a pod that is not enrolled", OUTSIDE, 0, &["sock_ops"], Per::Run, Wanted::OneLookup),
    goal("sock_release, a pod that is not enrolled", OUTSIDE, 0, &["sock_release"], Per::Run, Wanted::OneLookup),
];

/// One round of one load.
struct Round {
    operations: f64,
    /// By node, as in [`NODES`].
    accounts: Vec<Account>,
}

impl Round {
    /// Nanoseconds that these hooks took.
    fn cost(&self, node: usize, hooks: &[&str], per: Per) -> Option<f64> {
        let account = self.accounts.get(node)?;
        let runs = hooks.iter().filter_map(|hook| account.get(hook)).copied();
        if per == Per::RunOfEach {
            return runs.map(Runs::each).sum();
        }
        let all =
            runs.fold(Runs::default(), |all, one| Runs { count: all.count + one.count, nanos: all.nanos + one.nanos });
        if per == Per::Operation {
            return (self.operations > 0.0).then(|| all.nanos as f64 / self.operations);
        }
        all.each()
    }

    /// How often these hooks ran for each operation.
    fn often(&self, node: usize, hooks: &[&str]) -> Option<f64> {
        let account = self.accounts.get(node)?;
        let count: u64 = hooks.iter().filter_map(|hook| account.get(hook)).map(|runs| runs.count).sum();
        (self.operations > 0.0).then(|| count as f64 / self.operations)
    }
}

/// Measures, prints, and returns the JSON.
pub fn measure(lab: &Lab, ways: &[Way], program: &str, rounds: usize, seconds: f64) -> Result<Value> {
    let nodes = NODES.iter().map(|(name, _)| Node::find(&lab.state().pins(name))).collect::<Result<Vec<_>>>()?;
    let (accounted, longer) = overhead(&lab.state().pins(NODES[0].0))?;
    println!("\nKernel hooks, as the kernel accounts for them (bpf_stats)");
    println!(
        "  An empty program is put down with {accounted:.1} ns a run: that much of every figure is the account's own, and the \
         column `net` is without it. The account makes a run {longer:.1} ns longer."
    );
    let mut measured: Vec<Vec<Round>> = LOADS.iter().map(|_| Vec::new()).collect();
    let accounting = Accounting::begin()?;
    for round in 0..rounds.max(1) {
        for (load, done) in LOADS.iter().zip(&mut measured) {
            let way = ways.iter().find(|way| way.name == load.way).context("no such way")?;
            let before: Vec<_> = nodes.iter().map(Node::account).collect();
            let one = crate::run(lab, way, &load.measurement, program, seconds)
                .with_context(|| format!("{}, round {round}", load.measurement.title))?;
            let accounts = nodes.iter().zip(&before).map(|(node, before)| between(before, &node.account())).collect();
            done.push(Round { operations: one.get("with_warm_up").unwrap_or_default(), accounts });
        }
    }
    drop(accounting);
    let loads: Vec<Value> = LOADS.iter().zip(&measured).map(|(load, rounds)| show(load, rounds, accounted)).collect();
    let goals = show_goals(&measured, accounted);
    Ok(json!({
        "empty_program_ns": accounted, "accounting_makes_a_run_longer_by_ns": longer, "loads": loads, "goals": goals,
    }))
}

/// Prints one load's table.
fn show(load: &Load, rounds: &[Round], accounted: f64) -> Value {
    println!("\n  {}", load.measurement.title);
    println!("    {:<16}{:<14}{:>10}{:>10}{:>13}{:>12}", "where", "hook", "ns a run", "net", "runs an op", "ns an op");
    let mut rows = Vec::new();
    for (node, (name, title)) in NODES.iter().enumerate() {
        let hooks: BTreeMap<&str, ()> =
            rounds.iter().filter_map(|r| r.accounts.get(node)).flat_map(|a| a.keys().map(|k| (*k, ()))).collect();
        for hook in hooks.into_keys() {
            let of = |figure: &dyn Fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(figure));
            let each = of(&|round| round.cost(node, &[hook], Per::Run));
            let often = of(&|round| round.often(node, &[hook])).filter(|often| *often > 0.0);
            let cost = of(&|round| round.cost(node, &[hook], Per::Operation)).filter(|_| often.is_some());
            // What runs now and then belongs to the nodes' own business.
            if let Some(each) = each.filter(|_| often.is_none_or(|often| often >= 0.01)) {
                let text = |value: Option<f64>, digits| value.map_or("–".into(), |v| format!("{v:.digits$}"));
                let net = each - accounted;
                println!("    {title:<16}{hook:<14}{each:>10.0}{net:>10.0}{:>13}{:>12}", text(often, 2), text(cost, 0));
                rows.push(json!({
                    "node": name, "hook": hook, "ns_per_run": each, "runs_per_operation": often, "ns_per_operation": cost,
                }));
            }
        }
    }
    json!({ "load": load.measurement.title, "hooks": rows })
}

/// Prints the goals, each beside its figure.
fn show_goals(measured: &[Vec<Round>], accounted: f64) -> Vec<Value> {
    println!("\n  {:<52}{:>8}{:>8}{:>13}{:>12}  goal", "goals", "ns", "net", "rounds", "runs an op");
    let mut rows = Vec::new();
    for goal in &GOALS {
        let rounds = LOADS.iter().zip(measured).find(|(load, _)| load.measurement.title == goal.load);
        let Some((_, rounds)) = rounds else { continue };
        let of = |figure: &dyn Fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(figure));
        let cost = |round: &Round| round.cost(goal.node, goal.hooks, goal.per);
        let figure = of(&cost);
        let apart = spread(rounds.iter().filter_map(cost));
        let often = of(&|round| round.often(goal.node, goal.hooks));
        let runs = match goal.per {
            Per::Run => Some(1.0),
            Per::RunOfEach => Some(goal.hooks.len() as f64),
            Per::Operation => often,
        };
        let net = figure.zip(runs).map(|(figure, runs)| figure - runs * accounted);
        let text = |value: Option<f64>, digits| value.map_or("–".to_owned(), |value| format!("{value:.digits$}"));
        println!(
            "  {:<52}{:>8}{:>8}{:>13}{:>12}  {}",
            goal.what,
            text(figure, 0),
            text(net, 0),
            apart.map_or("–".to_owned(), |(least, most)| format!("{least:.0}–{most:.0}")),
            text(often.filter(|often| *often >= 0.01), 2),
            goal.verdict(figure, net)
        );
        let below = if let Wanted::Below(below) = goal.wanted { Some(below) } else { None };
        rows.push(json!({
            "goal": goal.what.trim_start(), "ns": figure, "net_ns": net, "least_and_most_ns": apart, "below_ns": below,
            "runs_per_operation": often, "load": goal.load,
        }));
    }
    rows
}

/// The least and the most of the rounds: how far a figure can be trusted.
fn spread(rounds: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    rounds.fold(None, |apart, one| match apart {
        Some((least, most)) => Some((f64::min(least, one), f64::max(most, one))),
        None => Some((one, one)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_for_a_run_a_run_of_each_or_an_operation() {
        let account = Account::from([
            ("connect4", Runs { count: 10, nanos: 1000 }),
            ("sock_ops", Runs { count: 40, nanos: 2000 }),
        ]);
        let round = Round { operations: 10.0, accounts: vec![account] };
        assert_eq!(round.cost(0, SOCKET_HOOKS, Per::Operation), Some(300.0));
        assert_eq!(round.cost(0, SOCKET_HOOKS, Per::Run), Some(60.0));
        assert_eq!(round.often(0, &["sock_ops"]), Some(4.0));
        assert_eq!(round.cost(0, SOCKET_HOOKS, Per::RunOfEach), Some(150.0));
        assert_eq!(round.cost(1, &["connect4"], Per::Operation), None);
    }

    #[test]
    fn rounds_are_as_far_apart_as_their_least_and_most() {
        assert_eq!(spread([2.0, 1.0, 3.0].into_iter()), Some((1.0, 3.0)));
        assert_eq!(spread(std::iter::empty()), None);
    }

    #[test]
    fn a_missed_goal_is_called_so() {
        let goal = goal("", "", 0, &[], Per::Run, PACKET_BELOW);
        assert_eq!(goal.verdict(Some(200.0), Some(150.0)), "below 300");
        assert_eq!(goal.verdict(Some(320.0), Some(270.0)), "below 300: met without the account's own");
        assert_eq!(goal.verdict(Some(400.0), Some(350.0)), "below 300: missed");
    }

    #[test]
    fn every_goal_has_its_load() {
        assert!(GOALS.iter().all(|goal| LOADS.iter().any(|load| load.measurement.title == goal.load)));
    }
}
