//! A server of WebSocket that switches and echoes, and a client's words.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::Lab;

/// Longest that anybody is silent.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a test's server listens; two of one pod's may run at once.
pub const PORT: u16 = 8280;
pub const OTHER_PORT: u16 = 8281;

/// Serves one connection at a port of a pod: what it heard, and whether the switch came about.
pub fn serve(lab: &Lab, pod: &str, port: u16) -> Result<std::thread::JoinHandle<Result<String>>> {
    let listener = lab.pod(pod)?.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    let listener = listener.context("listening for WebSocket")?;
    listener.set_nonblocking(true)?;
    Ok(std::thread::spawn(move || {
        let begun = std::time::Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && begun.elapsed() < 2 * LIMIT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("nobody wants a WebSocket"),
            }
        };
        switch(stream)
    }))
}

fn switch(mut stream: TcpStream) -> Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard)?;
    stream.write_all(&heard)?;
    Ok(String::from_utf8(head)?.to_lowercase())
}

/// Switches and has five bytes echoed, at an address that a program of the pod reaches.
pub fn talk(lab: &Lab, pod: &str, host: &str, port: u16) -> Result<String> {
    let words = format!(
        "exec 3<>/dev/tcp/{host}/{port}; printf 'GET /ws HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\
         Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n' >&3; \
         while IFS= read -t 10 -r line <&3; do line=${{line%$'\\r'}}; [ -z \"$line\" ] && break; echo \"$line\"; done; \
         printf hello >&3; head -c 5 <&3"
    );
    Ok(lab.pod(pod)?.run(&["timeout", "20", "bash", "-c", &words])?.text())
}
