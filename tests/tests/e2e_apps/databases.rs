//! redis and PostgreSQL, with their own clients.

use anyhow::{Context, Result, ensure};

use crate::LAB;

#[test]
fn redis_cli_and_redis_server() -> Result<()> {
    LAB.test(|lab| {
        let pod = lab.pod("redis")?;
        let dir = pod.scratch()?.display().to_string();
        let argv =
            ["redis-server", "--port", "6379", "--bind", "*", "--protected-mode", "no", "--save", "", "--dir", &dir];
        let _server = pod.serve(&argv, 6379)?;
        let client = lab.pod("client")?;
        let cli = |argv: &[&str]| -> Result<String> {
            let argv: Vec<_> = ["redis-cli", "-h", "redis"].iter().chain(argv).copied().collect();
            Ok(client.run(&argv)?.text().trim().to_owned())
        };
        ensure!(cli(&["ping"])? == "PONG");
        ensure!(cli(&["set", "key", "value of some length"])? == "OK");
        ensure!(cli(&["get", "key"])? == "value of some length");
        let list = cli(&["client", "list"])?;
        let address = client.address();
        ensure!(list.contains(&format!(" addr={address}:")), "redis sees its client as: {list}");
        // 50 connections with 16 commands under way on each.
        let bench = ["redis-benchmark", "-h", "redis", "-n", "20000", "-c", "50", "-P", "16", "-q", "-t", "set,get"];
        let said = client.run(&bench)?.text();
        ensure!(said.contains("GET:") && !said.to_lowercase().contains("error"), "{said}");
        Ok(())
    })
}

#[test]
fn psql_and_postgresql() -> Result<()> {
    LAB.test(|lab| {
        let pod = lab.pod("postgres")?;
        let bin = std::fs::read_dir("/usr/lib/postgresql").context("PostgreSQL (package postgresql)")?;
        let bin = bin.flatten().map(|e| e.path().join("bin")).max().context("no PostgreSQL version")?;
        let program = |name: &str| bin.join(name).display().to_string();
        // Its own directory under /tmp: PostgreSQL refuses to be root, and its user may not enter the lab's.
        let data = tempfile::Builder::new().prefix("mesh-lab-postgres").tempdir()?;
        let path = data.path().display().to_string();
        let run = |argv: &[&str]| -> Result<String> { Ok(pod.run(argv)?.text()) };
        run(&["chown", "postgres", &path])?;
        let postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-C", "/tmp"];
        let as_postgres = |argv: &[&str]| postgres.iter().chain(argv).map(|&s| s.to_owned()).collect::<Vec<_>>();
        let cluster = format!("{path}/data");
        pod.run(&as_postgres(&[&program("initdb"), "-D", &cluster, "-A", "trust", "--no-sync"]))?;
        std::fs::write(format!("{cluster}/pg_hba.conf"), "host all all all trust\n")?;
        let listen = ["-c", "listen_addresses=*", "-c", "fsync=off", "-c", "unix_socket_directories="];
        let server: Vec<_> = [program("postgres"), "-D".to_owned(), cluster].into_iter().collect();
        let server: Vec<&str> = server.iter().map(String::as_str).chain(listen).collect();
        let _server = pod.serve(&as_postgres(&server), 5432)?;

        let client = lab.pod("client")?;
        let psql = |sql: &str| -> Result<String> {
            let argv = [
                "psql",
                "-h",
                "postgres",
                "-U",
                "postgres",
                "-X",
                "-A",
                "-t",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
            ];
            Ok(client.run(&argv)?.text().trim().to_owned())
        };
        psql("create table t as select i, md5(i::text) as hash from generate_series(1, 20000) i")?;
        ensure!(psql("select count(*), min(length(hash)) from t")? == "20000|32");
        let rows = psql("select i, hash from t order by i")?;
        ensure!(rows.lines().count() == 20000);
        let seen = psql("select host(inet_client_addr())")?;
        ensure!(seen == client.address().to_string(), "PostgreSQL sees its client as {seen}");
        Ok(())
    })
}
