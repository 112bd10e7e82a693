//! The servers at the far end of the measurements.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Serves the four ports until the process is killed.
pub async fn run(
    echo: SocketAddr,
    sink: SocketAddr,
    once: SocketAddr,
    dns: SocketAddr,
) -> anyhow::Result<serde_json::Value> {
    tokio::spawn(answer(UdpSocket::bind(dns).await?));
    let echo = listen(echo)?;
    let sink = listen(sink)?;
    let once = listen(once)?;
    println!("ready");
    loop {
        tokio::select! {
            accepted = echo.accept() => spawn(accepted, serve_echo),
            accepted = sink.accept() => spawn(accepted, serve_sink),
            accepted = once.accept() => spawn(accepted, serve_once),
        }
    }
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(4096)?)
}

fn spawn<F>(accepted: std::io::Result<(TcpStream, SocketAddr)>, serve: fn(TcpStream) -> F)
where
    F: Future<Output = std::io::Result<()>> + 'static + Send,
{
    // A failed accept (out of descriptors) is retried by the loop; a failed connection ends alone.
    if let Ok((stream, _)) = accepted {
        tokio::spawn(serve(stream));
    }
}

async fn serve_echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

async fn serve_sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0u64;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.write_all(&total.to_be_bytes()).await;
        }
        total += count as u64;
    }
}

/// The server closes first, so that the client's ports are free again at once, with and without a proxy between.
async fn serve_once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    stream.write_all(&byte).await
}

/// Every question is its own answer.
async fn answer(socket: UdpSocket) {
    /// In the third byte: this is an answer (RFC 1035, 4.1.1).
    const QR: u8 = 0x80;
    let mut message = [0; 512];
    loop {
        // What ICMP says of an earlier answer, and an answer that does not fit into the queue, concern nobody else.
        let Ok((length, client)) = socket.recv_from(&mut message).await else { continue };
        if let Some(flags) = message.get_mut(2) {
            *flags |= QR;
        }
        let _ = socket.send_to(&message[..length], client).await;
    }
}
