//! Configuration files of the proxies measured beside the mesh: nginx and HAProxy, one hop, in the client's pod.
//!
//! Both get what their manuals advise for throughput (kept upstream connections, no access log) and the same two
//! workers or threads as the agent. In: where to listen and what to reach. Out: text.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// Ports of the peers on loopback in the client's pod.
pub const NGINX_HTTP: u16 = 19080;
/// HAProxy in HTTP mode.
pub const HAPROXY_HTTP: u16 = 19081;
/// HAProxy in TCP mode towards the echo server.
pub const HAPROXY_ECHO: u16 = 19082;
/// HAProxy in TCP mode towards the sink.
pub const HAPROXY_SINK: u16 = 19083;

/// HAProxy in TCP mode towards the server that closes first.
pub const HAPROXY_ONCE: u16 = 19084;

/// The origin: nginx with a small static reply.
pub fn origin(dir: &Path, port: u16) -> String {
    format!(
        "{}http {{
  access_log off;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  keepalive_requests 1000000000;
  server {{
    listen {port} backlog=4096;
    listen [::]:{port} backlog=4096;
    location / {{ default_type text/plain; return 200 \"{body}\"; }}
  }}
}}
",
        nginx_head(dir),
        dir = dir.display(),
        body = "x".repeat(1024),
    )
}

/// nginx as a reverse proxy.
pub fn nginx(dir: &Path, upstream: SocketAddr) -> String {
    format!(
        "{}http {{
  access_log off;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  keepalive_requests 1000000000;
  upstream origin {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{NGINX_HTTP} backlog=4096;
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  }}
}}
",
        nginx_head(dir),
        dir = dir.display(),
    )
}

fn nginx_head(dir: &Path) -> String {
    format!(
        "daemon off;
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 19000; }}
",
        dir = dir.display()
    )
}

/// HAProxy: one HTTP and three TCP proxies.
pub fn haproxy(http: SocketAddr, echo: SocketAddr, sink: SocketAddr, once: SocketAddr) -> String {
    let mut text = String::from(
        "global
  maxconn 9500
  nbthread 2
defaults
  timeout connect 5s
  timeout client 60s
  timeout server 60s
",
    );
    for (name, mode, port, upstream, extra) in [
        ("http", "http", HAPROXY_HTTP, http, "  http-reuse always\n"),
        ("echo", "tcp", HAPROXY_ECHO, echo, ""),
        ("sink", "tcp", HAPROXY_SINK, sink, ""),
        ("once", "tcp", HAPROXY_ONCE, once, ""),
    ] {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "listen {name}\n  mode {mode}\n  bind 127.0.0.1:{port} backlog 4096\n{extra}  server origin {upstream}\n"
        );
    }
    text
}
