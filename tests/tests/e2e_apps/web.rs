//! HTTP: curl, nginx, both families, the client's real address.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Lab, Process};

use crate::{LAB, curl, host};

/// Size of the file of the large transfer, in bytes.
const LARGE: u64 = 1 << 30;

/// nginx in the pod `web`, on port 8080, with a page that tells the client's address.
fn nginx(lab: &Lab) -> Result<Process> {
    let pod = lab.pod("web")?;
    let dir = pod.scratch()?;
    let path = dir.display();
    let conf = format!(
        "daemon off; pid {path}/pid; error_log stderr; worker_processes 1; user root;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; sendfile on; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen 8080; listen [::]:8080; root {path};\n\
         location = /whoami {{ return 200 \"$remote_addr:$remote_port\"; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, conf)?;
    pod.serve(&["nginx", "-p", &dir.display().to_string(), "-e", "stderr", "-c", &file.display().to_string()], 8080)
}

#[test]
fn curl_and_nginx_and_a_transfer_of_1_gib() -> Result<()> {
    LAB.test(|lab| {
        let _nginx = nginx(lab)?;
        let client = lab.pod("client")?;

        let said =
            client.run(&["curl", "-sS", "--fail", "-w", " %{local_ip}:%{local_port}", "http://web/whoami"])?.text();
        let (seen, own) = said.split_once(' ').context("two addresses")?;
        ensure!(seen == own, "nginx saw {seen}, curl's end is {own}");

        let file = lab.pod("web")?.scratch()?.join("large");
        random_file(&file)?;
        let there = checksum(&file)?;
        let here = client.run(&["sh", "-c", "curl -sS --fail http://web/large | sha256sum"])?.text();
        let here = here.split_whitespace().next().unwrap_or_default();
        ensure!(here == there, "sha256 of the file is {there}, of what came through {here}");
        Ok(())
    })
}

/// A keystream: cheap, and any loss, swap or repetition shows in its checksum.
fn random_file(file: &std::path::Path) -> Result<()> {
    let script = format!(
        "head -c {LARGE} /dev/zero | openssl enc -aes-128-ctr -nosalt -pass pass:lab -pbkdf2 -out {}",
        file.display()
    );
    let status = Command::new("sh").args(["-c", &script]).status()?;
    ensure!(status.success(), "{script}: {status}");
    ensure!(std::fs::metadata(file)?.len() == LARGE);
    Ok(())
}

fn checksum(file: &std::path::Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().context("a checksum")?.to_owned())
}

#[test]
fn the_app_sees_its_real_client_across_nodes_and_on_the_same_node() -> Result<()> {
    LAB.test(|lab| {
        for (host, port) in [("echo", 8080), ("echo", 8081), ("near", 8080)] {
            let url = format!("http://{host}:{port}/x?y=1");
            let (seen, own) = curl(lab, "client", &url, &[])?;
            ensure!(seen["pod"] == host && seen["path"] == "/x?y=1", "{url}: {seen}");
            ensure!(seen["peer"] == own.as_str(), "{url}: the app saw {}, curl's end is {own}", seen["peer"]);
            let local = format!("{}:8080", lab.pod(host)?.address());
            ensure!(seen["local"] == local.as_str(), "{url}: the app's own end is {}, not {local}", seen["local"]);
        }
        Ok(())
    })
}

#[test]
fn the_client_sees_the_address_that_it_dialled() -> Result<()> {
    LAB.test(|lab| {
        let argv =
            ["curl", "-sS", "-o", "/dev/null", "-w", "%{remote_ip} %{remote_port} %{local_ip}", "http://echo:8080/"];
        let said = lab.pod("client")?.run(&argv)?.text();
        let hosts = std::fs::read_to_string(lab.state().pod_dir("client").join("hosts"))?;
        let service = hosts.lines().find(|l| l.ends_with(" echo")).and_then(|l| l.split(' ').next()).context("echo")?;
        let expected = format!("{service} 8080 {}", lab.pod("client")?.address());
        ensure!(said == expected, "curl says `{said}`, expected `{expected}`");
        Ok(())
    })
}

#[test]
fn ipv6_services_and_ipv6_pod_addresses_work() -> Result<()> {
    LAB.test(|lab| {
        for url in ["http://six:8080/six", "http://six:8081/six"] {
            let (seen, own) = curl(lab, "client", url, &[])?;
            ensure!(own.starts_with("[fd00:10::"), "{url}: curl's end is {own}");
            ensure!(seen["path"] == "/six" && seen["peer"] == own.as_str(), "the app saw {seen}, curl's end is {own}");
        }
        // Of a service of both families the endpoint may be of the other one; the client's port is told all the same.
        for family in ["-4", "-6"] {
            let (seen, own) = curl(lab, "client", "http://dual:8080/dual", &[family])?;
            let port = |address: &str| address.rsplit(':').next().map(str::to_owned);
            let peer = seen["peer"].as_str().unwrap_or_default();
            ensure!(own.starts_with('[') == (family == "-6"), "curl {family}: its end is {own}");
            ensure!(port(peer) == port(&own), "the app saw {seen}, curl's end is {own}");
        }
        let url = format!("http://[{}]:8080/", lab.pod("echo")?.address_v6()?);
        let (seen, own) = curl(lab, "client", &url, &[])?;
        let peer = seen["peer"].as_str().unwrap_or_default();
        ensure!(seen["pod"] == "echo" && host(peer) == host(&own), "{url}: the app saw {seen}, curl's end is {own}");
        Ok(())
    })
}

#[test]
fn bodies_and_keep_alive_pass_through() -> Result<()> {
    LAB.test(|lab| {
        let (seen, _) = curl(lab, "client", "http://echo:8080/put", &["-T", "/etc/services"])?;
        let size = std::fs::metadata("/etc/services")?.len();
        ensure!(seen["method"] == "PUT" && seen["bytes"] == size, "{seen}");
        // One curl, one connection, several requests.
        let argv = ["curl", "-sS", "-w", "%{num_connects} ", "-o", "/dev/null", "http://echo:8080/[1-20]"];
        let connects = lab.pod("client")?.run(&argv)?.text();
        let total: u32 = connects.split_whitespace().filter_map(|n| n.parse::<u32>().ok()).sum();
        ensure!(total == 1, "curl made {total} connections for 20 requests: {connects}");
        Ok(())
    })
}
