//! Tunnels made by hand, with a good certificate: whose certificate the host shows, and what may be asked for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use crate::anybody::Anybody;
use crate::authority::{Authority, Shown};
use crate::{DB, HOST, LAB, LIMIT, NOBODYS, WEB, WEB2};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
/// HTTP/2 client preface (RFC 9113, section 3.4) and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// Type of a HEADERS frame, and the first byte of its block for status 404 (RFC 7541, appendix A).
const HEADERS: u8 = 1;
const NOT_FOUND: u8 = 0x8d;

/// Opens a tunnel to the host and asks for a destination: the certificate that was shown, and the first byte of the answer.
fn ask(name: Option<&str>, shown: Shown, destination: &str) -> Result<(Vec<u8>, u8)> {
    let to: SocketAddr = format!("{HOST}:15008").parse()?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = builder.with_client_auth_cert(shown.chain, shown.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut tcp = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connecting {to}"))?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned())?,
        None => ServerName::IpAddress(to.ip().into()),
    };
    let mut tls = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = Stream::new(&mut tls, &mut tcp);
    stream.write_all(PREFACE)?;
    // :method CONNECT and :authority, as literals with an indexed name (RFC 7541, 6.2.2).
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, u8::try_from(destination.len())?]);
    block.extend(destination.as_bytes());
    // END_HEADERS, stream 1.
    let mut frame = vec![0, 0, u8::try_from(block.len())?, HEADERS, 4, 0, 0, 0, 1];
    frame.extend(block);
    stream.write_all(&frame)?;
    let answer = loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut body = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut body)?;
        if head[3] == HEADERS {
            break *body.first().context("an empty answer")?;
        }
        if head[3] == 7 {
            bail!("the tunnel is ended");
        }
    };
    let certificate = tls.peer_certificates().and_then(|chain| chain.first()).context("no certificate")?;
    Ok((certificate.to_vec(), answer))
}

#[test]
fn a_tunnel_serves_one_identity() -> Result<()> {
    LAB.test(|lab| {
        let ours = Authority::of_lab(&lab.control().ca_dir())?;
        let ask = |name: Option<&str>, port: u16| -> Result<(Vec<u8>, u8)> {
            let shown = ours.issue(Some(CLIENT), false)?;
            lab.pod("outside")?.within(|| ask(name, shown, &format!("{HOST}:{port}")))?
        };
        let is = |certificate: &[u8], account: &str| {
            let wanted = format!("spiffe://cluster.local/ns/default/sa/{account}");
            certificate.windows(wanted.len()).any(|part| part == wanted.as_bytes())
        };
        // By the name: the certificate of the port's workload; then that one's ports, and those of its identity.
        for (name, account, port, served) in [
            ("port-8080.hbone", "web", WEB, true),
            ("port-8080.hbone", "web", WEB2, true),
            ("port-8081.hbone", "web", WEB, true),
            ("port-8080.hbone", "web", DB, false),
            ("port-9000.hbone", "db", DB, true),
            ("port-9000.hbone", "db", WEB, false),
            ("port-9000.hbone", "db", NOBODYS, false),
            ("port-9000.hbone", "db", 15006, false),
            ("port-9000.hbone", "db", 15008, false),
        ] {
            let (certificate, answer) = ask(Some(name), port).with_context(|| format!("{name} to {port}"))?;
            ensure!(is(&certificate, account), "{name} is not shown the certificate of {account}");
            ensure!((answer != NOT_FOUND) == served, "{name} to {port}: {answer:#x}");
        }
        // Who says nothing, or something else, could mean anybody.
        for name in [None, Some("port-8090.hbone"), Some("web.vm"), Some("port-0.hbone")] {
            ensure!(ask(name, WEB).is_err(), "{name:?} is served");
        }
        // And the client is verified as everywhere.
        let shown = Authority::foreign()?.issue(Some(CLIENT), false)?;
        let to = format!("{HOST}:{WEB}");
        ensure!(lab.pod("outside")?.within(|| self::ask(Some("port-8080.hbone"), shown, &to))?.is_err());
        Ok(())
    })
}
