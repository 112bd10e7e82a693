//! TLS ends that say what happened: a client that trusts everybody, a server that asks for nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream};

use crate::anybody::Anybody;
use crate::authority::Shown;

/// Longest that a peer takes to say anything.
const LIMIT: Duration = Duration::from_secs(10);
/// HTTP/2 client preface (RFC 9113, section 3.4) and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// How a peer took us.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It speaks HTTP/2 with us.
    Accepted,
    /// It ended the connection; why, as far as it said.
    Refused(String),
}

/// Shows a certificate, or none, to a tunnel port, and looks whether HTTP/2 is spoken there. Also gives the certificate
/// that was shown to us.
pub fn knock(to: SocketAddr, shown: Option<Shown>) -> Result<(Verdict, Option<CertificateDer<'static>>)> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain, shown.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut tcp = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connecting {to}"))?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::IpAddress(to.ip().into()))?;
    let mut stream = Stream::new(&mut tls, &mut tcp);
    let mut frame = [0; 9];
    let outcome = stream.write_all(PREFACE).and_then(|()| stream.read_exact(&mut frame));
    let certificate = tls.peer_certificates().and_then(|c| c.first()).map(|c| c.clone().into_owned());
    match outcome {
        Ok(()) if frame[3] == 4 => Ok((Verdict::Accepted, certificate)),
        Ok(()) => bail!("{to} answered something that is no SETTINGS frame: {frame:?}"),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => bail!("{to} neither accepts nor refuses"),
        Err(e) => Ok((Verdict::Refused(e.to_string()), certificate)),
    }
}

/// Serves one connection with a certificate and looks whether the client goes on to speak HTTP/2.
pub fn receive(mut tcp: TcpStream, shown: &Shown) -> Result<Verdict> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(shown.chain.clone(), shown.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut tls = ServerConnection::new(Arc::new(config))?;
    let mut first = [0; 3];
    match Stream::new(&mut tls, &mut tcp).read_exact(&mut first) {
        Ok(()) if first == *b"PRI" => Ok(Verdict::Accepted),
        Ok(()) => bail!("the client sent something that is no HTTP/2: {first:?}"),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => bail!("the client neither accepts nor refuses"),
        Err(e) => Ok(Verdict::Refused(e.to_string())),
    }
}
