//! SIGKILL in a loop: nothing gets in while no agent is there, and what may works again each time.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::shared;
use mesh_tests::sys::wait_for;

use crate::lab;

/// How often the agent is killed.
const ROUNDS: usize = 8;
/// Attempts from outside while no agent is there.
const ATTEMPTS: usize = 5;
/// Longest that the traffic takes to come back; only a failure takes so long.
const BACK: Duration = Duration::from_secs(20);
/// How long one attempt from outside waits.
const ATTEMPT: Duration = Duration::from_millis(200);

/// The server's workload is closed while its agent is gone (the default). Somebody outside the mesh, who may talk to it
/// while it is there (PERMISSIVE), tries then, beside the mesh's own traffic.
#[test]
fn a_closed_workload_stays_closed_and_the_mesh_comes_back() -> Result<()> {
    let lab = lab("killed", &[])?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let target = SocketAddr::new(lab.pod("server")?.address(), 9000);
        let outsider = lab.pod("outsider")?.address().to_string();
        // The application tells of each connection that has ended, and who it was.
        let seen = || -> Result<usize> { Ok(lab.pod("server")?.log().matches(&outsider).count()) };
        let asks = || lab.pod("client")?.try_run(&["curl", "-sS", "--max-time", "2", "http://server:8080/"]);
        let (mut open, mut mesh) = (Duration::ZERO, Duration::ZERO);
        for round in 0..ROUNDS {
            let expected = seen()? + 1;
            let start = Instant::now();
            wait_for(BACK, "plaintext by the agent", || Ok(attempt(&lab, target)?.then_some(())))?;
            if round > 0 {
                open = open.max(start.elapsed());
            }
            wait_for(BACK, "the mesh", || Ok(asks()?.status.success().then_some(())))?;
            if round > 0 {
                mesh = mesh.max(start.elapsed());
            }
            wait_for(BACK, "the application's word of it", || Ok((seen()? >= expected).then_some(())))?;
            agent.kill()?;
            let before = seen()?;
            for _ in 0..ATTEMPTS {
                ensure!(!attempt(&lab, target)?, "round {round}: who answers?");
            }
            ensure!(!asks()?.status.success(), "round {round}: who serves the client?");
            ensure!(seen()? == before, "round {round}: the application has seen somebody while no agent was there");
            agent.spawn()?;
        }
        println!("new connections back within {open:?} of the start, the mesh's own within {mesh:?}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}

/// Asks in the open, from outside the mesh. Whether the application answered.
fn attempt(lab: &mesh_tests::Lab, target: SocketAddr) -> Result<bool> {
    lab.pod("outsider")?.within(|| {
        use std::io::{Read, Write};
        let Ok(mut stream) = TcpStream::connect_timeout(&target, ATTEMPT) else { return false };
        let asked = stream.set_read_timeout(Some(ATTEMPT)).and_then(|()| stream.write_all(b"echo\nsecret"));
        let mut answer = [0; 6];
        asked.is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"secret"
    })
}
