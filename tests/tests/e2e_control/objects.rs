//! Bad objects are named with file and line, and the rest works on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::sys::wait_for;
use mesh_tests::{LabBuilder, shared};

use crate::{SERVICES, all_to, topology, who_answers};

#[test]
fn bad_objects_are_named_and_the_rest_works() -> Result<()> {
    let lab = LabBuilder::for_test("objects", topology());
    let lab = lab.config("services.yaml", SERVICES).config("route.yaml", &all_to("v1")).up()?;
    let body = || -> Result<()> {
        ensure!(who_answers(&lab)? == "server-v1");
        let cases = [
            ("malformed.yaml", "kind: Service\n  metadata: {name: [\n", "malformed.yaml:2:"),
            (
                "field.yaml",
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: f}\nspec:\n  hosts: [f]\n  htttp: []\n",
                "field.yaml:6:",
            ),
            ("kind.yaml", "apiVersion: v1\nkind: Sarvice\nmetadata: {name: k}\n", "kind.yaml:2:"),
            (
                "nowhere.yaml",
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: n}\nspec:\n  hosts: [n.example.com]\n  http:\n  - route:\n    - destination:\n        host: missing.example.com\n",
                "nowhere.yaml:9:",
            ),
        ];
        for (file, yaml, named) in cases {
            lab.write_config(file, yaml)?;
            wait_for(Duration::from_secs(10), &format!("the log to name {named}"), || {
                Ok(lab.control().log().contains(named).then_some(()))
            })?;
        }
        // A good change beside them arrives.
        lab.write_config("route.yaml", &all_to("v2"))?;
        wait_for(Duration::from_secs(10), "the new route", || Ok((who_answers(&lab)? == "server-v2").then_some(())))?;
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
