//! A pod that is enrolled anew is under its policies from the first connection, and no policy is no pass.

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::{LabBuilder, shared};

use crate::{LIMIT, TCP, clients, policy, reaches, seen_by, server, service};

#[test]
fn policies_hold_from_the_first_connection() -> Result<()> {
    let topology = clients().pod(server("server", "b"));
    let only_teller = policy("first", "server", "  rules: [{from: [{source: {namespaces: [bank]}}]}]");
    let lab = LabBuilder::for_test("polstart", topology)
        .config("services.yaml", &service("server"))
        .config("first.yaml", &only_teller)
        .up()?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        ensure!(reaches(&lab, "teller", "server", TCP)? && !reaches(&lab, "client", "server", TCP)?);
        // The agent comes back again and again while somebody forbidden tries: not one connection gets through.
        let before = seen_by(&lab, "server")?.len();
        let (client, outside) = (lab.pod("client")?.address().to_string(), lab.pod("outside")?.address().to_string());
        for _ in 0..3 {
            agent.kill()?;
            agent.spawn()?;
            let mut tries = 0;
            wait_for(LIMIT, "the agent to serve whom it may", || {
                for stranger in ["client", "outside"] {
                    ensure!(!reaches(&lab, stranger, "server", TCP)?, "{stranger} got through at the {tries}th try");
                    tries += 1;
                }
                Ok(reaches(&lab, "teller", "server", TCP)?.then_some(()))
            })?;
        }
        let since: Vec<String> = seen_by(&lab, "server")?.into_iter().skip(before).collect();
        let strangers =
            since.iter().filter(|peer| [&client, &outside].iter().any(|one| peer.starts_with(&format!("{one}:"))));
        ensure!(strangers.count() == 0 && since.len() >= 3, "{since:?}");

        // Who is not told of workloads and policies serves nobody, and says so; whoever switches them off is served.
        let off = agent.settings().replace("controlPlane:", "nodeStream: false\ncontrolPlane:");
        agent.stop()?;
        agent.spawn_with(&off)?;
        agent.wait_ready()?;
        ensure!(reaches(&lab, "client", "server", TCP)?, "without the node's stream no policy is enforced");
        ensure!(agent.log().contains("no AuthorizationPolicy is enforced"), "{}", agent.log());
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
