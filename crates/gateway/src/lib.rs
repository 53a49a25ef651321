//! The gateway: the namespaces, the HTTP paths and everything between a client and the domain.
//!
//! The binary is [`main`]; the edge is public so that what it does to the protocol can be shown by
//! itself (`examples/conformance.rs`).

mod apikey;
mod app;
mod auth;
mod boards;
mod clock;
mod cluster;
mod coming;
mod config;
pub mod connection;
mod dev;
pub mod edge;
mod expiry;
mod fanout;
mod gateway;
mod generate;
pub mod http;
mod import;
mod inbox;
mod jobs;
mod limits;
mod log;
pub mod metrics;
mod progress;
mod proxy;
mod shutdown;
pub mod socketio;
mod strangers;
mod superseded;
mod token;
mod verify;

/// For `examples/instructions.rs`.
pub use inbox::parse as parse_event;

use std::{path::PathBuf, process::ExitCode};

use axum::Router;
use clap::{Parser, Subcommand};

use crate::{
    app::{Node, Options},
    config::Config,
};

/// The Socket.IO-compatible realtime platform for education.
#[derive(Debug, Parser)]
#[command(name = "carillon", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything embedded, on 127.0.0.1, with demo users and ready-made tokens.
    Dev,
    /// The server.
    Serve(WithConfig),
    /// Brings the database up to date and ends.
    Migrate(WithConfig),
    /// Prints a signed token.
    Token(token::Request),
    /// Keys for the server API.
    Apikey {
        #[command(subcommand)]
        request: apikey::Request,
    },
    Import(import::Request),
    /// What can be asked of an exam from here.
    Exam {
        #[command(subcommand)]
        request: verify::Request,
    },
    /// The configuration in force, or whether it is valid.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Writes the documents and types that follow from the code; run by scripts/gen.
    #[command(hide = true)]
    Generate {
        /// Only fails when something would change.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Prints what is in force, secrets masked.
    Show(WithConfig),
    /// Ends with an error and a sentence when something is wrong.
    Check(WithConfig),
}

#[derive(Debug, clap::Args)]
struct WithConfig {
    /// A TOML file; the environment wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl WithConfig {
    fn load(&self) -> anyhow::Result<Config> {
        Config::load(self.config.as_deref())
    }
}

/// Does what the command line says.
pub async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence with its causes; a backtrace would bury it.
            eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev => dev::run().await,
        Command::Serve(with) => {
            let config = with.load()?;
            log::start(&config);
            let options = Options { any_localhost_origin: false, extra: Router::new() };
            let node = Node::start(&config, options).await?;
            tracing::info!(address = %node.address, "ready");
            node.run().await
        }
        Command::Migrate(with) => {
            let config = with.load()?;
            config::ensure_directory(config.database.url.expose())?;
            let url = config.database.url.expose();
            let store = carillon_store::SqlStore::open(url, carillon_store::Opener::Tool).await?;
            store.migrate().await?;
            store.close().await;
            Ok(())
        }
        Command::Token(request) => {
            println!("{}", request.sign()?);
            Ok(())
        }
        Command::Apikey { request } => request.run().await,
        Command::Import(request) => request.run().await,
        Command::Exam { request } => request.run().await,
        Command::Generate { check } => generate::run(check),
        Command::Config { command: ConfigCommand::Show(with) } => {
            print!("{}", toml::to_string(&with.load()?)?);
            Ok(())
        }
        Command::Config { command: ConfigCommand::Check(with) } => {
            let config = with.load()?;
            auth::check(&config)?;
            config.redis.authorities()?;
            for warning in &config.warnings {
                eprintln!("{warning}");
            }
            println!("The configuration is valid.");
            Ok(())
        }
    }
}
