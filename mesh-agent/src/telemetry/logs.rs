//! The agent's own log: structured, on stderr. In: settings and `RUST_LOG`. Out: a global tracing subscriber. Never
//! used for traffic (that is the access log).

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::LogFormat;

/// Starts logging. `level` is used unless the environment has `RUST_LOG` (same syntax, for example
/// `info,mesh_agent::xds=debug`).
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => directives,
        _ => level.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| format!("log level \"{filter}\": {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(|error| error.to_string())
}
