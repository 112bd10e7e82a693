//! A bad resource is refused by name, and everything beside it is taken.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::{LabBuilder, shared};

use crate::between::{BAD_CLUSTER, BAD_LISTENER, Between, PORT};
use crate::{SERVICES, all_to, topology, who_answers};

#[test]
fn a_bad_resource_is_refused_by_name_and_the_rest_works() -> Result<()> {
    let lab = LabBuilder::for_test("nack", topology());
    let lab = lab.config("services.yaml", SERVICES).config("route.yaml", &all_to("v1")).up()?;
    let body = || -> Result<()> {
        let between = Between::start(&lab)?;
        let agent = lab.node("a")?.agent();
        agent.stop()?;
        let real = "https://istiod.istio-system.svc:15012";
        let settings = agent.settings();
        ensure!(settings.contains(real));
        agent.spawn_with(&settings.replace(real, &format!("http://istiod.istio-system.svc:{PORT}")))?;
        agent.wait_ready()?;

        for bad in [BAD_CLUSTER, BAD_LISTENER] {
            wait_for(Duration::from_secs(10), &format!("a NACK that names {bad}"), || {
                Ok(between.objections().iter().any(|o| o.contains(bad)).then_some(()))
            })
            .with_context(|| format!("objections so far: {:?}", between.objections()))?;
        }
        // What came in the same answers works, and so does what comes later.
        ensure!(who_answers(&lab)? == "server-v1");
        lab.write_config("route.yaml", &all_to("v2"))?;
        wait_for(Duration::from_secs(10), "the new route", || Ok((who_answers(&lab)? == "server-v2").then_some(())))?;
        let wrong: Vec<_> = between
            .objections()
            .into_iter()
            .filter(|o| !o.contains(BAD_CLUSTER) && !o.contains(BAD_LISTENER))
            .collect();
        ensure!(wrong.is_empty(), "good resources were refused: {wrong:?}");
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
