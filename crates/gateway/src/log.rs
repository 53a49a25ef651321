//! Structured logs to standard error.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Config, LogFormat};

/// The engine's crates log payloads and tokens below `info`; they never may.
const NEVER_BELOW_INFO: [&str; 4] =
    ["socketioxide", "socketioxide_core", "engineioxide", "engineioxide_core"];

/// Starts logging; `RUST_LOG` wins over the configuration, and `DEBUG=socket.io:*`, as the
/// servers replaced understood it, means our own debug lines.
pub fn start(config: &Config) {
    let wants_debug = std::env::var("DEBUG")
        .is_ok_and(|debug| debug.split(',').any(|part| part.trim().starts_with("socket.io")));
    let text = std::env::var("RUST_LOG").unwrap_or_else(|_| config.log.filter.clone());
    let mut filter = EnvFilter::new(text);
    if wants_debug {
        filter = filter.add_directive("carillon=debug".parse().expect("a sound directive"));
    }
    for name in NEVER_BELOW_INFO {
        let directive = format!("{name}=info").parse().expect("a sound directive");
        filter = filter.add_directive(directive);
    }
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start, as in tests, keeps the first.
    let _ = match config.log.format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}
