//! Structured logs to standard error.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _, registry,
    util::SubscriberInitExt as _,
};

use crate::config::{Config, LogFormat};

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
    let is_terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(is_terminal);
    let lines = match config.log.format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second start, as in tests, keeps the first.
    // The filters are the subscriber's, not the layer's: a layer's own filter loses lines after a
    // library has asked whether a level is enabled, as sqlx does.
    let _ = registry().with(filter).with(filter_fn(is_discreet)).with(lines).try_init();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// Below `info`, libraries log what they handle: frames, tokens, the text of messages. Only our
/// own lines may go further, because we know what is in them.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with("carillon")
}
